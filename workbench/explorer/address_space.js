// The guest's address space on a canvas: every column shows which nodes back its pages. Zoom and pan happen here at
// once with the columns at hand; Python then sends exact columns for the new view. Policy ranges above can be dragged.
const MARGIN = 8, MINIMAP = 8, BAND = 22, STATE = 13, AXIS = 20, GAP = 4;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(value) {
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit++; }
  return `${Number(value.toFixed(value >= 100 ? 1 : 3))} ${UNITS[unit]}`;
}

// Offsets near each other need more digits than three to differ: whole numbers of the largest unit that divides them.
function exact(value) {
  let unit = 0;
  while (value && value % 1024 === 0 && unit < 4) { value /= 1024; unit++; }
  return `${value.toLocaleString("en-US")} ${UNITS[unit]}`;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A text that stays is not set: it would be laid out anew.
function put(node, words) { if (node.textContent !== words) node.textContent = words; }

function render({ model, el }) {
  el.classList.add("wb-space");
  const canvas = element("canvas", { tabindex: "0", role: "img", "data-testid": "address-space" });
  const readout = element("output", { class: "wb-readout", "aria-live": "polite" });
  const toolbar = element("div", { class: "wb-space-tools", role: "toolbar", "aria-label": "Zoom of the address space" });
  const where = element("span", { class: "wb-where" });
  const legend = element("div", { class: "wb-legend", "aria-label": "Colours of the nodes" });
  const tools = {
    whole: ["whole guest", "Show the whole guest (Home)", () => show(0, frame().total)],
    out: ["−", "Zoom out (-)", () => zoom(2)],
    in: ["+", "Zoom in (+)", () => zoom(0.5)],
    left: ["◂", "Move left (arrow left)", () => pan(-0.25)],
    right: ["▸", "Move right (arrow right)", () => pan(0.25)],
    page: ["one page", "Zoom to one page", () => onePage()],
  };
  for (const [name, [text, label, action]] of Object.entries(tools)) {
    const button = element("button", { type: "button", "aria-label": label, title: label, "data-tool": name }, text);
    button.addEventListener("click", action);
    toolbar.append(button);
  }
  toolbar.append(where);
  el.replaceChildren(toolbar, canvas, readout, legend);

  let view = null;      // [start, stop] in bytes, fractional while moving
  let drag = null;
  let pointer = null;   // x of the mouse in the canvas
  // Nothing to show before the first result, nor when the guest's file could not be made.
  const EMPTY = { total: 0, page: 4096, start: 0, stop: 0, nodes: [], ranges: [], states: [] };
  const frame = () => { const f = model.get("frame"); return f?.total ? f : EMPTY; };
  const width = () => canvas.clientWidth;
  const inner = () => width() - 2 * MARGIN;
  const toX = (offset) => MARGIN + (offset - view[0]) / (view[1] - view[0]) * inner();
  const toOffset = (x) => view[0] + (x - MARGIN) / inner() * (view[1] - view[0]);
  let theme = null;  // read once for each drawing
  const style = (name, otherwise) => (theme || getComputedStyle(el)).getPropertyValue(name).trim() || otherwise;

  function layout() {
    const f = frame(), strips = f.compare ? 2 : 1;
    const top = { minimap: 2, ranges: 2 + MINIMAP + GAP };
    top.strip = top.ranges + BAND + GAP;
    const height = f.compare ? 46 : 72;
    top.stripHeight = height;
    top.strips = strips;
    top.states = top.strip + strips * (height + GAP);
    top.axis = top.states + (f.states || []).length * (STATE + 2);
    top.height = top.axis + AXIS;
    return top;
  }

  let timer = null, requests = 0;
  function show(start, stop, quiet = false) {
    const f = frame(), least = f.page;
    if (!f.total || !view) return;
    let size = Math.max(least, Math.min(f.total, stop - start));
    start = Math.max(0, Math.min(f.total - size, start));
    view = [start, start + size];
    draw();
    say();
    if (quiet) return;
    clearTimeout(timer);
    // With a number of its own: asking again for a view that Python has left meanwhile is a change too.
    timer = setTimeout(() => { model.set("viewport", [...view.map(Math.round), ++requests]); model.save_changes(); }, 25);
  }
  function zoom(factor, centre = view && (view[0] + view[1]) / 2) {
    if (!view) return;
    const size = Math.max(frame().page, (view[1] - view[0]) * factor);
    const share = (centre - view[0]) / (view[1] - view[0]);
    show(centre - share * size, centre - share * size + size);
  }
  function pan(share) {
    if (!view) return;
    const by = share * (view[1] - view[0]);
    show(view[0] + by, view[1] + by);
  }
  function onePage() {
    if (!view) return;
    const f = frame(), page = Math.floor((view[0] + view[1]) / 2 / f.page) * f.page;
    show(page, page + f.page);
  }

  function columns(name) {
    const data = model.get(name);
    return data && data.byteLength ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : null;
  }

  function drawStrip(context, data, top, height, f) {
    const parts = f.nodes.length + 1, count = data.length / parts;
    const span = (f.stop - f.start) / count;
    context.save();
    context.beginPath();
    context.rect(MARGIN, top, inner(), height);
    context.clip();
    // Hatched where the columns are still to come: what is not loaded must not look like what is not present.
    if (view[0] < f.start || view[1] > f.stop) {
      context.fillStyle = hatch(context);
      context.fillRect(MARGIN, top, inner(), height);
    }
    const left = Math.max(MARGIN, toX(f.start));
    context.fillStyle = style("--wb-empty", "#e8e8e8");
    context.fillRect(left, top, Math.min(width() - MARGIN, toX(f.stop)) - left, height);
    const alike = (a, b) => { for (let n = 0; n < parts; n++) if (data[a * parts + n] !== data[b * parts + n]) return false; return true; };
    for (let c = 0, next; c < count; c = next) {
      for (next = c + 1; next < count && alike(c, next); next++);
      // Whole pixels: edges in between would shine through as stripes.
      const x = Math.floor(toX(f.start + c * span)), right = Math.ceil(toX(f.start + next * span));
      if (right < MARGIN || x > width() - MARGIN) continue;
      let y = top;
      for (let n = 0; n < parts - 1; n++) {
        const share = data[c * parts + n];
        if (!share) continue;
        const h = share / 255 * height;
        context.fillStyle = f.nodes[n].color;
        context.fillRect(x, y, Math.max(right - x, 1), h + 0.4);
        y += h;
      }
    }
    // Lines between pages as soon as there is room for them.
    const pixels = toX(view[0] + f.page) - MARGIN;
    if (pixels > 7) {
      context.strokeStyle = style("--wb-surface", "#fff");
      context.lineWidth = 1;
      context.beginPath();
      for (let p = Math.ceil(view[0] / f.page) * f.page; p < view[1]; p += f.page) {
        const x = Math.round(toX(p)) + 0.5;
        context.moveTo(x, top); context.lineTo(x, top + height);
      }
      context.stroke();
    }
    context.restore();
  }

  function hatch(context) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const pen = tile.getContext("2d");
    pen.fillStyle = style("--wb-surface", "#fff");
    pen.fillRect(0, 0, 8, 8);
    pen.strokeStyle = style("--wb-soft", "#777");
    pen.beginPath();
    for (const at of [-4, 4, 12]) { pen.moveTo(at - 4, 8); pen.lineTo(at + 4, 0); }
    pen.stroke();
    return context.createPattern(tile, "repeat");
  }

  function text(context, words, x, y, room, color, align = "left") {
    context.font = "11px " + style("--jp-ui-font-family", "system-ui, sans-serif");
    context.fillStyle = color;
    context.textAlign = align;
    context.textBaseline = "middle";
    if (room !== null && context.measureText(words).width > room) {
      while (words.length > 1 && context.measureText(words + "…").width > room) words = words.slice(0, -1);
      if (words.length < 2) return;
      words += "…";
    }
    context.fillText(words, x, y);
  }

  function draw() {
    const f = frame();
    if (!f.total) {
      view = null;
      canvas.width = canvas.width;  // clears what an earlier run drew
      where.textContent = "";
      canvas.setAttribute("aria-label", "Address space of the guest: nothing to show yet.");
    }
    if (!f.total || !width()) return;
    if (!view || view[1] > f.total) view = [0, f.total];
    theme = getComputedStyle(el);
    const top = layout(), ratio = window.devicePixelRatio || 1;
    const context = canvas.getContext("2d"), wide = Math.floor(width() * ratio), high = Math.floor(top.height * ratio);
    if (canvas.width !== wide || canvas.height !== high) {  // to set a size anew has the page laid out
      canvas.style.height = `${top.height}px`;
      [canvas.width, canvas.height] = [wide, high];
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width(), top.height);
    const ink = style("--wb-ink", "#222"), soft = style("--wb-soft", "#777"), line = style("--wb-line", "#bbb");

    // where the view lies in the whole guest
    context.fillStyle = style("--wb-empty", "#e8e8e8");
    context.fillRect(MARGIN, top.minimap, inner(), MINIMAP);
    context.fillStyle = style("--wb-accent", "#1976d2");
    context.fillRect(MARGIN + view[0] / f.total * inner(), top.minimap,
      Math.max(3, (view[1] - view[0]) / f.total * inner()), MINIMAP);

    // policy ranges, the last one on top because it wins
    context.strokeStyle = line;
    context.setLineDash([3, 3]);
    context.strokeRect(MARGIN + 0.5, top.ranges + 0.5, inner() - 1, BAND - 1);
    context.setLineDash([]);
    if (!f.ranges.length) text(context, "no policy: drag here to add a range", MARGIN + 6, top.ranges + BAND / 2, inner() - 12, soft);
    for (const range of shownRanges()) {
      const x = Math.max(MARGIN, toX(range.start)), right = Math.min(width() - MARGIN, toX(range.end));
      if (right <= x) continue;
      const chosen = range.index === model.get("selected");
      context.fillStyle = style("--wb-surface", "#fff");
      context.fillRect(x, top.ranges, right - x, BAND);
      context.fillStyle = chosen ? style("--wb-chosen", "#d4e6fa") : style("--wb-empty", "#e8e8e8");
      context.fillRect(x, top.ranges, right - x, BAND);
      context.strokeStyle = chosen ? style("--wb-accent", "#1976d2") : soft;
      context.lineWidth = chosen ? 2 : 1;
      context.strokeRect(x + 0.5, top.ranges + 0.5, right - x - 1, BAND - 1);
      // the nodes of the policy as a stripe of their colours
      range.colors.forEach((color, i) => {
        const w = (right - x - 2) / range.colors.length;
        context.fillStyle = color;
        context.fillRect(x + 1 + i * w, top.ranges + BAND - 5, w + 0.3, 4);
      });
      text(context, range.label, x + 6, top.ranges + BAND / 2 - 2, right - x - 12, ink);
    }
    context.lineWidth = 1;

    const now = columns("shares"), before = f.compare ? columns("shares_a") : null;
    let y = top.strip;
    if (f.compare) {
      if (before) drawStrip(context, before, y, top.stripHeight, f);
      label(context, "A", y, ink);
      y += top.stripHeight + GAP;
    }
    if (now) drawStrip(context, now, y, top.stripHeight, f);
    if (f.compare) label(context, "B", y, ink);

    (f.states || []).forEach((band, row) => {
      const bandTop = top.states + row * (STATE + 2);
      for (const part of band.parts) {
        const x = Math.max(MARGIN, toX(part.start)), right = Math.min(width() - MARGIN, toX(part.end));
        if (right <= x) continue;
        context.fillStyle = part.color;
        context.fillRect(x, bandTop, Math.max(1, right - x), STATE);
        // The first part says what the strip is about.
        const words = x <= MARGIN ? `${band.name}: ${part.label}` : part.label;
        text(context, words, x + 4, bandTop + STATE / 2 + 0.5, right - x - 8, part.ink || "#fff");
      }
    });

    // axis
    context.strokeStyle = soft;
    const step = tickStep(view[1] - view[0], f.page);
    for (let tick = Math.ceil(view[0] / step) * step; tick <= view[1]; tick += step) {
      const x = toX(tick);
      context.beginPath(); context.moveTo(x, top.axis); context.lineTo(x, top.axis + 4); context.stroke();
      const align = x < 40 ? "left" : x > width() - 40 ? "right" : "center";
      text(context, view[1] - view[0] < f.total / 64 ? exact(tick) : bytes(tick), x, top.axis + 12, null, soft, align);
    }
    if (pointer !== null && !drag) {
      context.strokeStyle = ink;
      context.beginPath(); context.moveTo(pointer + 0.5, top.ranges); context.lineTo(pointer + 0.5, top.axis); context.stroke();
    }
    put(where, `${exact(Math.round(view[0]))} to ${exact(Math.round(view[1]))} (${bytes(view[1] - view[0])} of ${bytes(f.total)})`);
    canvas.setAttribute("aria-label", `Address space of ${f.file}: ${f.summary} View: ${where.textContent}. Plus and minus zoom, arrows move, Home shows everything.`);
    el.dataset.start = Math.round(view[0]);
    el.dataset.stop = Math.round(view[1]);
    el.dataset.exact = String(f.start === Math.round(view[0]) && f.stop === Math.round(view[1]));
    el.dataset.loaded = String(f.start <= view[0] && view[1] <= f.stop);
    el.dataset.serial = f.serial;
    el.dataset.ranges = f.ranges.map((range) => `${range.start}-${range.end}`).join(" ");
    el.dataset.painted = performance.timeOrigin + performance.now();
  }

  function label(context, words, y, ink) {
    context.fillStyle = style("--wb-surface", "#fff");
    context.fillRect(MARGIN + 2, y + 2, 16, 15);
    context.font = "bold 11px sans-serif";
    context.fillStyle = ink;
    context.textAlign = "center"; context.textBaseline = "middle";
    context.fillText(words, MARGIN + 10, y + 10);
  }

  function tickStep(span, page) {
    const wanted = span / Math.max(2, Math.floor(inner() / 120));
    let step = page;
    while (step < wanted) step *= 2;
    return step;
  }

  function shownRanges() {
    const ranges = frame().ranges.slice();
    if (drag && drag.range) ranges.push({ index: -1, label: "", colors: [], ...drag.shown });
    return ranges;
  }

  function describe(x) {
    const f = frame(), data = columns("shares");
    if (!data) return "";
    const offset = Math.max(0, Math.min(f.total - 1, toOffset(x)));
    const page = Math.floor(offset / f.page), place = `${exact(page * f.page)}, page ${page.toLocaleString("en-US")}`;
    if (offset < f.start || offset >= f.stop) return `${place}: loading`;
    const parts = f.nodes.length + 1, count = data.length / parts;
    const column = Math.floor((offset - f.start) / (f.stop - f.start) * count);
    const row = data.subarray(column * parts, (column + 1) * parts);
    const shares = f.nodes.map((node, n) => [row[n] || 0, `node ${node.id}`]).concat([[row[parts - 1] || 0, "not present"]])
      .filter(([share]) => share > 0).sort((a, b) => b[0] - a[0]);
    const shown = shares.slice(0, 4).map(([share, name]) => shares.length === 1 ? name : `${name} ${Math.round(share / 2.55)} %`);
    if (shares.length > 4) shown.push(`${shares.length - 4} more`);
    const states = (f.states || []).map((band) => {
      const part = band.parts.find((p) => p.start <= offset && offset < p.end);
      return part && `${band.name}: ${part.label}`;
    });
    const range = f.ranges.filter((r) => r.start <= offset && offset < r.end).pop();
    return [`${place}: ${shown.join(", ")}`, range?.label, ...states]
      .filter(Boolean).join(" · ");
  }

  let described = null;  // x of which the line below the map speaks
  function say() { if (!drag) put(readout, described === null || !view ? "" : describe(described)); }

  function hit(x, y) {
    const top = layout();
    if (y < top.ranges || y > top.ranges + BAND) return { place: y > top.ranges + BAND ? "strip" : "minimap" };
    for (const range of frame().ranges.slice().reverse()) {
      const left = toX(range.start), right = toX(range.end);
      if (Math.abs(x - left) < 6) return { place: "edge", range, edge: "start" };
      if (Math.abs(x - right) < 6) return { place: "edge", range, edge: "end" };
      // A range of the whole guest has nowhere to go: dragging in it draws a new one on top.
      if (left < x && x < right) return range.start === 0 && range.end >= frame().total ? { place: "band", under: range } : { place: "range", range };
    }
    return { place: "band" };
  }
  const local = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const snap = (offset) => { const f = frame(); return Math.max(0, Math.min(f.total, Math.round(offset / snapStep(f)) * snapStep(f))); };
  // Dragged bounds land on a round number of at most a pixel.
  const snapStep = (f) => { let step = f.page; while (step * 2 <= (view[1] - view[0]) / inner() * 4) step *= 2; return step; };

  canvas.addEventListener("pointerdown", (event) => {
    if (!view) return;
    const [x, y] = local(event), at = hit(x, y);
    canvas.setPointerCapture(event.pointerId);
    if (at.place === "minimap") { const half = (view[1] - view[0]) / 2, c = (x - MARGIN) / inner() * frame().total; show(c - half, c + half); return; }
    const chosen = at.range || at.under;
    if (chosen) { model.set("selected", chosen.index); model.save_changes(); }
    drag = { ...at, from: toOffset(x), x, view: [...view], shown: at.range && { start: at.range.start, end: at.range.end } };
    if (at.place === "band") { drag.range = { index: -1 }; drag.shown = { start: snap(drag.from), end: snap(drag.from) }; }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!view) return;
    const [x, y] = local(event);
    pointer = x;
    if (!drag) {
      const at = hit(x, y);
      canvas.style.cursor = { edge: "ew-resize", range: "move", band: "crosshair", strip: "grab", minimap: "pointer" }[at.place];
      described = x;
      say();
      draw();
      return;
    }
    if (drag.place === "strip") {
      const by = (drag.x - x) / inner() * (drag.view[1] - drag.view[0]);
      show(drag.view[0] + by, drag.view[1] + by);
      return;
    }
    const offset = toOffset(x), size = drag.shown.end - drag.shown.start;
    if (drag.place === "edge") drag.shown = { ...drag.shown, [drag.edge]: snap(offset) };
    if (drag.place === "band") drag.shown = { start: Math.min(snap(drag.from), snap(offset)), end: Math.max(snap(drag.from), snap(offset)) };
    if (drag.place === "range") {
      const start = Math.max(0, Math.min(frame().total - size, snap(drag.range.start + offset - drag.from)));
      drag.shown = { start, end: start + size };
    }
    readout.textContent = `range ${exact(drag.shown.start)} to ${exact(drag.shown.end)}`;
    draw();
  });
  const drop = () => {
    if (drag && drag.range && drag.shown.end > drag.shown.start &&
        (drag.range.index < 0 || drag.shown.start !== drag.range.start || drag.shown.end !== drag.range.end)) {
      model.set("gesture", { serial: (model.get("gesture").serial || 0) + 1, index: drag.range.index, start: drag.shown.start, end: drag.shown.end });
      model.save_changes();
    }
    drag = null;
    draw();
    say();
  };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", () => { drag = null; draw(); });
  canvas.addEventListener("pointerleave", () => { pointer = null; if (!drag) { described = null; say(); draw(); } });
  canvas.addEventListener("dblclick", (event) => { if (view) zoom(0.25, toOffset(local(event)[0])); });
  canvas.addEventListener("wheel", (event) => {
    // Plain scrolling must go on scrolling the page unless the canvas has the focus.
    if (!view || !event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    event.stopPropagation();
    zoom(event.deltaY > 0 ? 1.35 : 1 / 1.35, toOffset(local(event)[0]));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const action = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => pan(-0.1), ArrowRight: () => pan(0.1),
      PageUp: () => pan(-1), PageDown: () => pan(1), Home: () => show(0, frame().total) }[event.key];
    if (!view || !action || event.ctrlKey || event.altKey || event.metaKey) return;
    action();
    described = width() / 2;
    say();
    event.preventDefault();
    event.stopPropagation();
  });

  // Without a mouse the line below the map speaks of the middle of the view.
  canvas.addEventListener("focus", () => { if (described === null && canvas.matches(":focus-visible")) { described = width() / 2; say(); } });
  canvas.addEventListener("blur", () => { if (pointer === null) { described = null; say(); } });

  let named = "";
  function drawLegend() {
    const f = frame(), now = JSON.stringify(f.nodes.map((node) => [node.id, node.color, node.kind]));
    if (now === named) return;
    named = now;
    legend.replaceChildren(...f.nodes.slice(0, 64).map((node) =>
      element("span", { class: "wb-key" }, element("i", { style: `background:${node.color}` }), `${node.id}${node.kind === "dram" ? "" : " " + node.kind}`)),
      element("span", { class: "wb-key" }, element("i", { class: "wb-absent" }), "not present"),
      element("span", { class: "wb-key" }, element("i", { class: "wb-loading" }), "still loading"));
  }
  let forced = -1;
  const fresh = () => {
    // Python may have moved the view (another guest, a typed offset).
    const f = frame();
    if (f.force && f.serial !== forced) { view = [f.start, f.stop]; forced = f.serial; }
    drawLegend();
    draw();
    say();  // what lies under the pointer may have changed
  };
  let asked = false;
  model.on("change:frame change:shares change:shares_a", () => {
    el.dataset.received = performance.timeOrigin + performance.now();
    // Once for a message, and not a frame later: the picture is what somebody waits for.
    if (!asked) queueMicrotask(() => { asked = false; fresh(); });
    asked = true;
  });
  model.on("change:selected", draw);
  const observer = new ResizeObserver(draw);
  observer.observe(canvas);
  fresh();
  return () => { observer.disconnect(); clearTimeout(timer); };
}
export default { render };
