// The distance matrix as a grid of numbers with heat colours. Arrow keys move, typing changes, Enter keeps.
function render({ model, el }) {
  el.classList.add("wb-matrix");
  let table = null;

  function heat(value, low, high) {
    const share = high > low ? (value - low) / (high - low) : 0;
    return `color-mix(in srgb, var(--wb-heat) ${Math.round(8 + 62 * share)}%, transparent)`;
  }
  function paint() {
    const values = model.get("values"), flat = values.flat();
    const low = Math.min(...flat), high = Math.max(...flat);
    for (const cell of table.querySelectorAll("td")) {
      const { row, column } = cell.dataset, value = values[row][column];
      if (cell !== document.activeElement) cell.textContent = value;
      cell.style.background = heat(value, low, high);
    }
  }
  function keep(cell) {
    const { row, column } = cell.dataset, old = model.get("values"), value = Number(cell.textContent.trim());
    if (value === old[row][column]) return;
    const values = old.map((line) => [...line]);
    values[row][column] = Number.isInteger(value) ? value : cell.textContent.trim();
    if (model.get("symmetric")) values[column][row] = values[row][column];
    model.set("values", values);
    model.save_changes();
    paint();
  }
  function build() {
    const ids = model.get("ids");
    table = document.createElement("table");
    table.setAttribute("aria-label", "distances between nodes, from row to column");
    const head = table.createTHead().insertRow();
    head.append(document.createElement("th"));
    for (const id of ids) head.append(Object.assign(document.createElement("th"), { textContent: id, scope: "col" }));
    const body = table.createTBody();
    ids.forEach((id, row) => {
      const line = body.insertRow();
      line.append(Object.assign(document.createElement("th"), { textContent: id, scope: "row" }));
      ids.forEach((other, column) => {
        const cell = line.insertCell();
        cell.dataset.row = row;
        cell.dataset.column = column;
        cell.tabIndex = row === 0 && column === 0 ? 0 : -1;
        cell.contentEditable = row === column ? "false" : "plaintext-only";
        cell.setAttribute("role", "gridcell");
        cell.setAttribute("aria-label", `distance from node ${id} to node ${other}`);
      });
    });
    table.addEventListener("keydown", (event) => {
      const cell = event.target.closest("td");
      if (!cell) return;
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Enter") { keep(cell); event.preventDefault(); }
      if (event.key === "Escape") { cell.textContent = model.get("values")[cell.dataset.row][cell.dataset.column]; }
      if (move) {
        table.querySelector(`td[data-row="${Number(cell.dataset.row) + move[0]}"][data-column="${Number(cell.dataset.column) + move[1]}"]`)?.focus();
        event.preventDefault();
      }
      event.stopPropagation(); // the notebook's own shortcuts must not act while somebody types
    });
    table.addEventListener("focusout", (event) => { const cell = event.target.closest("td"); if (cell) keep(cell); });
    el.replaceChildren(table);
    paint();
  }
  model.on("change:ids", build);
  model.on("change:values", () => (table.querySelectorAll("thead th").length - 1 === model.get("ids").length ? paint() : build()));
  build();
}
export default { render };
