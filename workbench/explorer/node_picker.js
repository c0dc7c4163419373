// The nodemask of a policy as toggles and, for weighted interleave, a slider for each chosen node.
function render({ model, el }) {
  el.classList.add("wb-nodes");
  const toggles = document.createElement("div"), sliders = document.createElement("div");
  toggles.className = "wb-toggles";
  toggles.setAttribute("role", "group");
  sliders.className = "wb-weights";
  el.replaceChildren(toggles, sliders);

  function send(name, value) { model.set(name, value); model.save_changes(); }

  function drawToggles() {
    const chosen = new Set(model.get("selected")), disabled = model.get("disabled");
    toggles.setAttribute("aria-label", model.get("label"));
    const focused = document.activeElement?.dataset?.node;
    toggles.replaceChildren(...model.get("nodes").map((node) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = node.id;
      button.title = node.title;
      button.dataset.node = node.id;
      button.disabled = disabled;
      button.setAttribute("role", "checkbox");
      button.setAttribute("aria-checked", String(chosen.has(node.id)));
      button.setAttribute("aria-label", `node ${node.id}, ${node.title}`);
      button.style.setProperty("--node", node.color);
      button.addEventListener("click", () => {
        const now = new Set(model.get("selected"));
        now.has(node.id) ? now.delete(node.id) : now.add(node.id);
        send("selected", [...now].sort((a, b) => a - b));
      });
      return button;
    }));
    if (focused && el.contains(document.activeElement) === false) toggles.querySelector(`[data-node="${focused}"]`)?.focus();
  }

  function drawSliders() {
    const shown = model.get("weighted") ? model.get("nodes").filter((node) => model.get("selected").includes(node.id)) : [];
    const weights = model.get("weights");
    const active = document.activeElement;
    // A slider that is being dragged must not be replaced under the pointer.
    const same = [...sliders.querySelectorAll("input[type=range]")].map((input) => Number(input.dataset.node)).join() === shown.map((n) => n.id).join();
    if (same && shown.length) {
      for (const input of sliders.querySelectorAll("input")) if (input !== active) input.value = weights[input.dataset.node] ?? 1;
      return;
    }
    sliders.replaceChildren(...shown.map((node) => {
      const row = document.createElement("label");
      row.className = "wb-weight";
      const name = document.createElement("span");
      name.textContent = `node ${node.id}`;
      const slider = document.createElement("input"), number = document.createElement("input");
      for (const [input, type] of [[slider, "range"], [number, "number"]]) {
        input.type = type;
        input.min = 1;
        input.max = type === "range" ? Math.max(32, model.get("largest")) : 255;
        input.dataset.node = node.id;
        input.value = weights[node.id] ?? 1;
        input.setAttribute("aria-label", `weight of node ${node.id}`);
        input.addEventListener("input", () => {
          const value = Number(input.value);
          (input === slider ? number : slider).value = value;
          send("weights", { ...model.get("weights"), [node.id]: value });
        });
      }
      row.append(name, slider, number);
      return row;
    }));
  }
  const draw = () => { drawToggles(); drawSliders(); };
  model.on("change:nodes change:disabled change:label", draw);
  model.on("change:selected change:weighted", draw);
  model.on("change:weights", drawSliders);
  draw();
}
export default { render };
