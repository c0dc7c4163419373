// A text with a button that copies it, and buttons that download files which Python makes when they are asked for.
function render({ model, el }) {
  el.classList.add("wb-share");
  const area = document.createElement("textarea");
  area.readOnly = true;
  area.rows = 14;
  area.setAttribute("aria-label", "text to copy");
  const bar = document.createElement("div");
  bar.className = "wb-space-tools";
  const note = document.createElement("output");
  note.setAttribute("aria-live", "polite");

  function button(label, action, name) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    made.dataset.tool = name;
    made.addEventListener("click", action);
    bar.append(made);
  }
  if (!model.get("plain")) button("copy", async () => {
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      area.select(); // where the clipboard is closed to pages, the old way still works
      document.execCommand("copy");
    }
    note.textContent = "copied";
  }, "copy");
  for (const { name, label } of model.get("downloads"))
    button(label, () => { note.textContent = `preparing ${label}`; model.send({ download: name }); }, name);
  bar.append(note);
  el.replaceChildren(bar, ...(model.get("plain") ? [] : [area]));
  const draw = () => { area.value = model.get("text"); };
  model.on("change:text", draw);
  model.on("msg:custom", (message, buffers) => {
    if (message.error) { note.textContent = message.error; return; }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([buffers[0]]));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    note.textContent = `${message.name}: ${(buffers[0].byteLength / 1024).toFixed(1)} KiB`;
  });
  draw();
}
export default { render };
