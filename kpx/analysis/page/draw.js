"use strict";
// Boxes and arrows as SVG: columns from left to right by how far packets have come, and lines that only go across and up
// or down.

const Draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SANS = 'system-ui, "DejaVu Sans", sans-serif', MONO = 'ui-monospace, "DejaVu Sans Mono", monospace';
  const FONTS = { pod: `600 12px ${SANS}`, title: `600 12px ${SANS}`, chain: `11px ${MONO}`, line: `10px ${SANS}`, label: `11px ${SANS}` };
  const PAD = 10, GAP = 12, LANE = 6, HEAD = 14, NEAR = 4, LONGEST = 36;
  const KNOWN = new Set(["way in", "endpoint", "refusal"]); // kinds whose titles people know, not only rules

  // The width of a text in pixels.
  const measure = (() => {
    const context = document.createElement("canvas").getContext("2d");
    return (text, style) => { context.font = FONTS[style]; return context.measureText(text).width; };
  })();

  function make(name, attributes, parent, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent?.append(node);
    return node;
  }

  // The column of each box: one more than that of the last box before it. A loop, which no kernel takes but a file may
  // hold, is entered at its first box.
  function columns(boxes, arrows) {
    const waiting = new Map(boxes.map(box => [box.id, new Set()])), next = new Map(boxes.map(box => [box.id, []]));
    for (const arrow of arrows) {
      if (arrow.source !== arrow.target) waiting.get(arrow.target).add(arrow.source);
      next.get(arrow.source).push(arrow.target);
    }
    const rooted = new Set([...waiting].filter(([, sources]) => sources.size).map(([id]) => id));
    const depth = new Map(boxes.map(box => [box.id, 0])), ready = boxes.map(box => box.id).filter(id => !rooted.has(id));
    while (waiting.size) {
      const here = ready.pop() ?? waiting.keys().next().value;
      if (!waiting.delete(here)) continue;
      for (const target of next.get(here)) {
        if (!waiting.has(target)) continue;
        depth.set(target, Math.max(depth.get(target), depth.get(here) + 1));
        waiting.get(target).delete(here);
        if (!waiting.get(target).size) ready.push(target);
      }
    }
    // What nothing leads to stands right before what it leads to.
    for (const box of boxes)
      if (!rooted.has(box.id) && next.get(box.id).length)
        depth.set(box.id, Math.max(0, Math.min(...next.get(box.id).map(id => depth.get(id))) - 1));
    const found = [];
    for (const box of boxes) (found[depth.get(box.id)] ??= []).push(box);
    return found.filter(Boolean);
  }

  // Boxes of a column stand in the order of those that lead to them.
  function order(found, arrows) {
    const at = new Map(found[0].map((box, y) => [box.id, y])), from = new Map();
    for (const arrow of arrows) from.set(arrow.target, [...(from.get(arrow.target) ?? []), arrow.source]);
    for (const column of found.slice(1)) {
      const mean = box => {
        const places = (from.get(box.id) ?? []).filter(id => at.has(id)).map(id => at.get(id));
        return places.length ? places.reduce((a, b) => a + b, 0) / places.length : 0;
      };
      const means = new Map(column.map(box => [box, mean(box)]));
      column.sort((a, b) => means.get(a) - means.get(b));
      column.forEach((box, y) => at.set(box.id, y / column.length * 10));
    }
  }

  function wrap(line) {
    const found = [];
    for (const word of line.split(" "))
      if (found.length && `${found.at(-1)} ${word}`.length <= LONGEST) found.push(`${found.pop()} ${word}`);
      else found.push(word);
    return found;
  }

  // What is written in a box: the pod's name, the title, and small print.
  const texts = box => [...(box.name ? [[box.name, "pod", 15]] : []), [box.title, KNOWN.has(box.kind) ? "title" : "chain", 16],
    ...box.lines.flatMap(wrap).map(line => [line, "line", 13])];
  const width = box => Math.max(...texts(box).map(([text, style]) => measure(text, style))) + 2 * PAD;
  const height = box => texts(box).reduce((sum, [, , high]) => sum + high, 8);

  // How far apart lines with different labels end at a box.
  const step = labels => labels.length > 1 ? 12 * Math.max(...labels.map(label => label.split("\n").length)) + 4 : 0;

  // Where boxes stand; `lanes` are the places right before each column where lines go up and down, one for each source.
  function place(found, arrows) {
    const spot = new Map(), lanes = [], labels = new Map(found.flat().map(box => [box.id, []]));
    for (const arrow of arrows) if (!labels.get(arrow.target).includes(arrow.label)) labels.get(arrow.target).push(arrow.label);
    const high = box => Math.max(height(box), labels.get(box.id).length * step(labels.get(box.id)));
    const heights = found.map(column => column.reduce((sum, box) => sum + high(box) + GAP, -GAP));
    const tallest = Math.max(...heights);
    let x = 8;
    found.forEach((column, number) => {
      const ids = new Set(column.map(box => box.id)), coming = arrows.filter(one => ids.has(one.target));
      const sources = [...new Set(coming.map(one => one.source))];
      const label = Math.max(0, ...coming.flatMap(one => one.label.split("\n")).map(one => measure(one, "label")));
      if (number) x += HEAD + LANE * sources.length;
      lanes.push(new Map(sources.map((source, at) => [source, x - LANE * at])));
      if (number) x += label + HEAD + 8;
      const wide = Math.max(...column.map(width));
      let y = 8 + (tallest - heights[number]) / 2;
      for (const box of column) {
        spot.set(box.id, { x, y, w: wide, h: high(box), column: number, labels: labels.get(box.id) });
        y += high(box) + GAP;
      }
      x += wide;
    });
    return { spot, lanes, width: x + 8, height: tallest + 16 };
  }

  // The corners of a line. Where columns lie between, it crosses them at the nearest height that no box takes.
  function corners(a, b, arrow, { spot, lanes }) {
    const [x1, y1, x2] = [a.x + a.w, a.y + a.h / 2, b.x - 2];
    const y2 = b.y + b.h / 2 + (b.labels.indexOf(arrow.label) - (b.labels.length - 1) / 2) * step(b.labels);
    const lane = lanes[b.column].get(arrow.source);
    if (b.column <= a.column) return [[x1, y1], [x1 + HEAD, y1], [x1 + HEAD, y2 - 3], [x2, y2 - 3]];
    const between = [...spot.values()].filter(one => one.column > a.column && one.column < b.column);
    const free = y => between.every(one => y < one.y - 4 || y > one.y + one.h + 4);
    const tried = [y1, y2, ...between.flatMap(one => [one.y - GAP / 2, one.y + one.h + GAP / 2])];
    const y = tried.filter(free).sort((m, n) => Math.abs(m - y1) - Math.abs(n - y1))[0] ?? y1;
    const first = between.length ? lanes[a.column + 1].get(arrow.source) ?? x1 + HEAD / 2 : lane;
    const end = Math.abs(y - y2) < NEAR ? y : y2;
    return [[x1, y1], [first, y1], [first, y], [lane, y], [lane, end], [x2, end]];
  }

  // Draw what is called `name` into an element; `open` is called with a box that is clicked.
  function picture(parent, name, boxes, arrows, open) {
    parent.replaceChildren();
    if (!boxes.length) return;
    const found = columns(boxes, arrows);
    order(found, arrows);
    const placed = place(found, arrows), { spot, width: w, height: h } = placed;
    const svg = make("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `Picture of ${name}` }, parent);
    const head = make("marker", { id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, make("defs", {}, svg));
    make("path", { d: "M0 0 L8 4 L0 8 z" }, head);
    for (const arrow of arrows) {
      const points = corners(spot.get(arrow.source), spot.get(arrow.target), arrow, placed), [x2, y2] = points.at(-1);
      const group = make("g", { class: `arrow${arrow.seldom ? " seldom" : ""}`, "data-from": arrow.source, "data-to": arrow.target }, svg);
      make("path", { d: `M${points.map(([x, y]) => `${Math.round(x)} ${Math.round(y)}`).join(" L")}`, "marker-end": "url(#head)" }, group);
      const lines = arrow.label ? arrow.label.split("\n") : [];
      lines.forEach((line, n) => make("text", { x: x2 - HEAD, y: y2 - 5 - 12 * (lines.length - 1 - n), "text-anchor": "end" }, group, line));
    }
    for (const box of boxes) {
      const { x, y, w: wide, h: high } = spot.get(box.id);
      const group = make("g", { class: `box ${box.kind.replace(" ", "-")}`, "data-id": box.id, tabindex: 0, role: "button",
        "aria-label": [box.kind, ...texts(box).map(([text]) => text)].join(", ") }, svg);
      make("rect", { x, y, width: wide, height: high, rx: 5 }, group);
      let down = y;
      for (const [text, style, step] of texts(box)) {
        down += step;
        make("text", { x: x + PAD, y: down, class: style === "chain" ? "title chain" : style }, group, text);
      }
      group.addEventListener("click", () => open(box));
      group.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(box); } });
    }
  }

  // Mark the boxes and arrows that packets pass.
  function highlight(parent, passed) {
    for (const node of parent.querySelectorAll(".box")) node.classList.toggle("passed", passed.has(node.dataset.id));
    for (const node of parent.querySelectorAll(".arrow"))
      node.classList.toggle("passed", passed.has(node.dataset.from) && passed.has(node.dataset.to));
  }

  return { picture, highlight };
})();
