// Small pictures as SVG, drawn from plain data: the host, pages per node, cost per vCPU node, and time.
// Colours of lines and text come from the page's theme, so that they are right in the light and in the dark one.
const NS = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const label = (x, y, words, attributes = {}) => svg("text", { x, y, class: "wb-text", ...attributes }, String(words));
const title = (words) => svg("title", {}, words);

function gib(value, digits = 3) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < 5) { value /= 1024; unit++; }
  return `${Number(value.toPrecision(digits))} ${units[unit]}`;
}

// What is a few thousandths of a guest still shows as a line.
const thin = (height) => Math.max(2, height);

// Squares and what they mean, line by line within the width; returns the height they take.
function legend(root, left, width, entries) {
  let x = left, y = 10;
  for (const [fill, words] of entries) {
    const wide = 20 + 6.6 * words.length;
    if (x > left && x + wide > width) [x, y] = [left, y + 16];
    root.append(svg("rect", { x, y: y - 5, width: 10, height: 10, fill }), label(x + 14, y, words, { "dominant-baseline": "central" }));
    x += wide;
  }
  return y + 14;
}

// The host: boxes filled as far as the node is used, joined by lines that are thicker the nearer two nodes are.
function host(data, width, height) {
  const n = data.nodes.length, root = svg("svg", { width, height, role: "group", "aria-label": data.summary });
  const columns = n <= 8 ? n <= 3 ? n : Math.ceil(n / 2) : Math.ceil(Math.sqrt(n * width / height / 1.3));
  const rows = Math.ceil(n / columns);
  const cellW = width / columns, cellH = (height - 4) / rows;
  const gapX = n <= 8 ? Math.max(34, Math.min(60, cellW * 0.34)) : cellW * 0.12, gapY = n <= 8 ? Math.min(54, cellH * 0.34) : cellH * 0.16;
  const boxW = cellW - gapX, boxH = cellH - gapY;
  const place = data.nodes.map((_, i) => {
    // Two rows of a ring keep neighbours side by side; more nodes make a grid.
    const row = Math.floor(i / columns), column = i % columns;
    return { x: column * cellW + gapX / 2, y: row * cellH + gapY / 2 };
  });
  const mark = (field, node = data) => node.assumed.includes(field) ? "?" : "";  // the source does not say it
  const plates = [];
  if (n <= 8) {
    const distances = data.distances.flatMap((row, i) => row.filter((_, j) => i !== j));
    const near = Math.min(...distances), far = Math.max(...distances);
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) {
      const d = data.distances[i][j], back = data.distances[j][i];
      const share = far === near ? 1 : 1 - (d - near) / (far - near);
      const [a, b] = [place[i], place[j]];
      const line = svg("line", { x1: a.x + boxW / 2, y1: a.y + boxH / 2, x2: b.x + boxW / 2, y2: b.y + boxH / 2,
        class: "wb-link", "stroke-width": (0.8 + 3.2 * share).toFixed(1), opacity: (0.25 + 0.6 * share).toFixed(2) });
      line.append(title(`node ${data.nodes[i].id} to ${data.nodes[j].id}: distance ${d}${back !== d ? `, back ${back}` : ""}`));
      root.append(line);
      // Numbers where they do not cover each other: between neighbours.
      const sideways = Math.abs((i % columns) - (j % columns)), down = Math.abs(Math.floor(i / columns) - Math.floor(j / columns));
      if (sideways + down === 1) {
        const x = (a.x + b.x + boxW) / 2, y = (a.y + b.y + boxH) / 2;
        plates.push(svg("rect", { x: x - 12, y: y - 8, width: 24, height: 16, rx: 3, class: "wb-plate" }),
          label(x, y, (back !== d ? `${d}/${back}` : d) + mark("distances"), { "text-anchor": "middle", "dominant-baseline": "central", "data-link": `${i}-${j}` }));
      }
    }
  }
  root.append(...plates); // above every line
  data.nodes.forEach((node, i) => {
    const { x, y } = place[i];
    const group = svg("g", { "data-node": node.id, "data-item": "" }, title(node.title));
    group.append(svg("rect", { x, y, width: boxW, height: boxH, rx: 4, class: "wb-box" }));
    const total = node.memory || 1;
    let bottom = y + boxH - 1;
    for (const [amount, fill, name] of [[node.other, "var(--wb-other)", "other"], [node.guest, node.color, "guest"],
      [node.metadata, "var(--wb-metadata)", "metadata"]]) {
      if (amount <= 0) continue;
      const h = name === "metadata" ? thin(amount / total * (boxH - 2)) : amount / total * (boxH - 2);
      bottom -= h;
      group.append(svg("rect", { x: x + 1, y: bottom, width: boxW - 2, height: h, fill, "data-part": name }));
    }
    group.append(svg("rect", { x, y, width: boxW, height: boxH, rx: 4, fill: "none", stroke: node.color, "stroke-width": 2 }));
    // Words stand on a plate: the edge of the fill must not run through them.
    const lines = [`${node.id}${node.kind === "dram" ? "" : " " + node.kind.toUpperCase()}${mark("kind", node)}`];
    if (boxH <= 44 || boxW <= 54) lines[0] += node.assumed.some((field) => field !== "kind") ? "?" : "";
    else lines.push(node.memory ? gib(node.memory) + mark("memory", node) : "no memory",
      (node.cpus ? `${node.cpus} CPUs` : "no CPU") + mark("cpus", node));
    const plate = { w: Math.min(boxW - 6, 7 * Math.max(...lines.map((words) => words.length)) + 8), h: 14 * lines.length + 4 };
    group.append(svg("rect", { x: x + (boxW - plate.w) / 2, y: y + (boxH - plate.h) / 2, width: plate.w, height: plate.h, rx: 3, class: "wb-plate" }));
    lines.forEach((words, l) => {
      const centre = y + boxH / 2 + (l - (lines.length - 1) / 2) * 14;
      group.append(label(x + boxW / 2, centre, words, { "text-anchor": "middle", "dominant-baseline": "central",
        class: `wb-text${l === 0 ? " wb-strong" : ""}` }));
    });
    root.append(group);
  });
  return root;
}

// The guest's memory on each node against the node's capacity; A is drawn as an outline beside B.
function bars(data, width, height) {
  const root = svg("svg", { width, height, role: "group", "aria-label": data.summary });
  const left = 52, bottom = 34, n = data.nodes.length, step = (width - left - 6) / n;
  const entries = [["var(--wb-other)", "other use and reserves"], [(data.nodes.find((node) => node.guest) || data.nodes[0]).color, "guest, by node"]];
  if (data.nodes.some((node) => node.metadata)) entries.push(["var(--wb-metadata)", "page tables, other metadata"]);
  const top = legend(root, left, width, entries) + 4;
  const largest = Math.max(1, ...data.nodes.map((node) => Math.max(node.memory, node.guest + node.metadata, node.guest_a || 0)));
  const y = (value) => top + (height - bottom - top) * (1 - value / largest);
  let tick = 1;
  while (largest / tick > 5) tick *= 2; // a round number of KiB, MiB, GiB ...
  for (let value = 0; value <= largest * 1.0001; value += tick) {
    root.append(svg("line", { x1: left, x2: width - 6, y1: y(value), y2: y(value), class: "wb-grid" }),
      label(left - 5, y(value), gib(value), { "text-anchor": "end", "dominant-baseline": "central" }));
  }
  const every = Math.ceil(20 / step);
  data.nodes.forEach((node, i) => {
    const x = left + i * step + step * 0.12, w = step * 0.76, half = data.compare ? w / 2 : w;
    const group = svg("g", { "data-node": node.id, "data-guest": node.guest, "data-item": "" }, title(node.title));
    group.append(svg("rect", { x, y: y(node.memory), width: w, height: y(0) - y(node.memory), class: "wb-capacity" }));
    group.append(svg("rect", { x, y: y(node.other), width: w, height: y(0) - y(node.other), fill: "var(--wb-other)" }));
    const base = Math.min(node.other, node.memory);
    if (data.compare) group.append(svg("rect", { x, y: y(base + node.guest_a), width: half, height: Math.max(0, y(base) - y(base + node.guest_a)),
      fill: node.color, "fill-opacity": 0.35, stroke: node.color, "stroke-dasharray": "3 2" }));
    group.append(svg("rect", { x: x + w - half, y: y(base + node.guest), width: half, height: Math.max(0, y(base) - y(base + node.guest)), fill: node.color }));
    const beside = node.metadata ? thin(y(base) - y(base + node.metadata)) : 0;
    if (beside) group.append(svg("rect", { x: x + w - half, y: y(base + node.guest) - beside, width: half, height: beside,
      fill: "var(--wb-metadata)", "data-part": "metadata" }, title(`metadata: ${gib(node.metadata)}`)));
    if (node.guest && 6.4 * gib(node.guest).length < step - 2) group.append(label(x + w - half / 2, Math.max(top + 4, y(base + node.guest) - beside - 7), gib(node.guest), { "text-anchor": "middle" }));
    if (i % every === 0) group.append(label(x + w / 2, height - bottom + 13, node.id, { "text-anchor": "middle" }));
    root.append(group);
  });
  root.append(label(left + (width - left) / 2, height - 5, "NUMA node", { "text-anchor": "middle" }));
  return root;
}

// One bar for each node that runs vCPUs: where the memory lies that it uses; numbers of the model beside it.
function vcpus(data, width) {
  // Where the words of the model would leave a bar less than 300 pixels, they stand below it.
  const below = width < 904, rowH = below ? 42 : 26, left = 108, right = below ? 90 : 496;
  const height = Math.max(60, data.rows.length * rowH + 34);
  const root = svg("svg", { width, height, role: "group", "aria-label": data.summary });
  const inner = Math.max(60, width - left - right);
  data.rows.forEach((row, i) => {
    const y = 6 + i * rowH;
    let x = left;
    root.append(label(left - 6, y + 9, row.name, { "text-anchor": "end", "dominant-baseline": "central" }));
    const group = svg("g", { "data-vcpu-node": row.node, "data-local": row.local, "data-item": "" }, title(row.title));
    for (const part of row.parts) {
      const w = part.share * inner;
      group.append(svg("rect", { x, y, width: Math.max(0, w), height: 18, fill: part.color, opacity: part.local ? 1 : 0.55 }));
      if (w > 54) group.append(label(x + w / 2, y + 9.5, part.label, { "text-anchor": "middle", "dominant-baseline": "central", class: "wb-text wb-on" }));
      x += w;
    }
    group.append(svg("rect", { x: left, y, width: inner, height: 18, fill: "none", class: "wb-frame" }));
    root.append(group, label(left + inner + 8, y + 9, row.numbers, { "dominant-baseline": "central" }));
    if (row.note) root.append(label(below ? left : left + inner + 92, y + (below ? 27 : 9), row.note, { "dominant-baseline": "central", class: "wb-text wb-modelled" }));
  });
  const every = inner < 90 ? 4 : inner < 180 ? 2 : 1;  // room for the numbers
  for (let i = 0; i <= 4; i += every) root.append(label(left + inner * i / 4, height - 8, `${25 * i} %`, { "text-anchor": "middle" }));
  return root;
}

// Lines over the operations of the run, one panel for each quantity; the marked one is where the time slider stands.
function time(data, width, height) {
  const root = svg("svg", { width, height, role: "group", "aria-label": data.summary });
  const panels = data.panels.length, each = (height - 24) / panels, left = 62;
  const x = (event) => left + (width - left - 12) * (data.events > 1 ? event / (data.events - 1) : 0.5);
  data.panels.forEach((panel, p) => {
    const top = p * each + 18, low = (p + 1) * each - 6;
    const values = panel.lines.flatMap((line) => line.values);
    const most = Math.max(...values, 0) || 1;
    const y = (value) => low - (low - top) * value / most;
    root.append(label(4, p * each + 9, panel.title, { class: "wb-text wb-strong" }));
    for (const share of [0, 0.5, 1]) root.append(svg("line", { x1: left, x2: width - 12, y1: y(most * share), y2: y(most * share), class: "wb-grid" }),
      label(left - 5, y(most * share), panel.unit === "B" ? gib(most * share) : Number((most * share).toPrecision(3)).toLocaleString("en-US"),
        { "text-anchor": "end", "dominant-baseline": "central" }));
    for (const line of panel.lines) {
      let path = "";
      line.values.forEach((value, i) => { path += i ? `H${x(i)}V${y(value)}` : `M${x(i)} ${y(value)}`; });
      const at = Math.min(data.at, line.values.length - 1), value = line.values[at];
      const words = `${line.name}: ${panel.unit === "B" ? gib(value) : value.toLocaleString("en-US")} after operation ${at}`;
      const drawn = svg("path", { d: path, fill: "none", stroke: line.color, "stroke-width": 1.8, "data-line": line.name, "data-item": "" }, title(words));
      root.append(drawn);
      if (line.values.length === 1) root.append(svg("circle", { cx: x(0), cy: y(line.values[0]), r: 3, fill: line.color }, title(line.name)));
    }
  });
  const now = x(Math.min(data.at, data.events - 1));
  root.append(svg("line", { x1: now, x2: now, y1: 14, y2: height - 20, class: "wb-now" }),
    label(left, height - 6, "operation 0"), label(width - 12, height - 6, `operation ${data.events - 1}`, { "text-anchor": "end" }),
    label(Math.min(Math.max(now, left + 120), width - 130), height - 6, data.now, { "text-anchor": "middle", class: "wb-text wb-strong" }));
  return root;
}

const KINDS = { host, bars, vcpus, time };

async function render({ model, el }) {
  el.classList.add("wb-chart");
  // What two pictures show goes to the browser once, to the one that is the source of the other.
  const name = model.get("source"), source = name ? await model.widget_manager.get_model(name.replace("IPY_MODEL_", "")) : model;
  let asked = 0;
  const said = document.createElement("output");
  said.className = "wb-said";
  // Tab reaches the picture, arrow keys its parts; what the mouse finds by hovering stands below for the keyboard.
  const items = () => [...el.querySelectorAll("[data-item]")];
  const say = () => { said.textContent = items().find((item) => item === document.activeElement)?.querySelector("title")?.textContent || ""; };
  function reach(number, move) {
    const all = items();
    if (!all.length) return;
    const at = (number + all.length) % all.length;
    all.forEach((item, i) => item.setAttribute("tabindex", i === at ? 0 : -1));
    if (move) all[at].focus();
    say();
  }
  el.addEventListener("focusin", say);
  el.addEventListener("focusout", () => { said.textContent = ""; });
  el.addEventListener("keydown", (event) => {
    const all = items(), at = all.indexOf(event.target.closest?.("[data-item]"));
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (at < 0 || next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    reach(next, true);
    event.preventDefault();
    event.stopPropagation();
  });
  let width = 0;  // as the observer saw it last: to ask while drawing would have the page laid out for each picture
  const draw = () => {
    asked = 0;
    const data = source.get("data");
    if (!data || !data.summary) el.textContent = "working it out …";
    if (!data || !data.summary || width < 40) return;
    const before = items(), focused = before.indexOf(document.activeElement);
    const reachable = Math.max(0, before.findIndex((item) => item.getAttribute("tabindex") === "0"));
    const picture = KINDS[model.get("kind")](data, width, model.get("height"));
    for (const item of picture.querySelectorAll("[data-item]")) {
      item.setAttribute("role", "img");
      item.setAttribute("aria-label", item.querySelector("title").textContent);
    }
    el.replaceChildren(picture, said);
    reach(reachable < items().length ? reachable : 0, focused >= 0);
    el.dataset.kind = model.get("kind");
    el.dataset.serial = data.serial;
  };
  const later = () => { asked ||= requestAnimationFrame(draw); };
  source.on("change:data", later);
  // A hidden tab has no width; draw when it gets one.
  const observer = new ResizeObserver(() => { if (el.clientWidth !== width) { width = el.clientWidth; later(); } });
  observer.observe(el);
  later();
  return () => { source.off("change:data", later); observer.disconnect(); cancelAnimationFrame(asked); };
}
export default { render };
