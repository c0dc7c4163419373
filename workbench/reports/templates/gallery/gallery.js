document.addEventListener("DOMContentLoaded", function () {
  var body = document.querySelector("tbody");
  var rows = Array.prototype.slice.call(body.rows);
  var search = document.getElementById("search");
  var count = document.getElementById("count");
  search.addEventListener("input", function () {
    var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var shown = 0;
    rows.forEach(function (row) {
      var text = row.textContent.toLowerCase();
      row.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
      if (!row.hidden) shown += 1;
    });
    count.textContent = words.length ? shown + " of " + rows.length : "";
  });
  document.querySelectorAll("th button").forEach(function (button) {
    button.addEventListener("click", function () {
      var column = button.parentNode.cellIndex;
      var down = button.getAttribute("aria-sort") === "ascending";
      document.querySelectorAll("th button").forEach(function (other) { other.removeAttribute("aria-sort"); });
      button.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort(function (a, b) {
        var x = a.cells[column].textContent.trim(), y = b.cells[column].textContent.trim();
        return (down ? -1 : 1) * x.localeCompare(y, undefined, { numeric: true });
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
