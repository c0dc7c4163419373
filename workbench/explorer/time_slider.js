// After which operation the views stand: a slider of the browser's own, with its keys, and the number beside it.
function render({ model, el }) {
  el.classList.add("wb-time");
  const name = document.createElement("span"), of = document.createElement("span");
  const slider = document.createElement("input"), number = document.createElement("input");
  name.textContent = "after operation";
  el.replaceChildren(name, slider, number, of);
  for (const [input, type] of [[slider, "range"], [number, "number"]]) {
    input.type = type;
    input.className = `wb-time-${type}`;
    input.min = 0;
    input.step = 1;
    input.setAttribute("aria-label", "after operation");
  }
  function send(text) {
    const value = Math.min(model.get("max"), Math.max(0, Math.round(Number(text))));
    if (text === "" || !Number.isFinite(value)) { draw(); return; }
    model.set("value", value);
    model.save_changes();
    draw();
  }
  slider.addEventListener("input", () => send(slider.value));
  number.addEventListener("change", () => send(number.value));
  function draw() {
    const max = model.get("max"), value = Math.min(max, model.get("value"));
    // The end first: a value beyond it would be cut.
    for (const input of [slider, number]) { input.max = max; input.value = value; input.disabled = max === 0; }
    of.textContent = `of 0 to ${max.toLocaleString("en-US")}`;
    el.dataset.max = max;
  }
  model.on("change:max change:value", draw);
  draw();
}
export default { render };
