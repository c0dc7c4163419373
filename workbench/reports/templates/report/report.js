document.addEventListener("DOMContentLoaded", function () {
  var button = document.getElementById("wb-code");
  var all = document.querySelectorAll("details.code");
  if (!button || !all.length) return;
  button.hidden = false;
  button.addEventListener("click", function () {
    var open = button.getAttribute("aria-pressed") !== "true";
    all.forEach(function (details) { details.open = open; });
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "Hide all code" : "Show all code";
  });
});
