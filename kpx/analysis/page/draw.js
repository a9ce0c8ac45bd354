"use strict";
// Boxes and arrows as SVG: columns from left to right by how far packets have come.

const Draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const FAMILY = 'system-ui, "DejaVu Sans", sans-serif';
  const TITLE = `600 12px ${FAMILY}`, LINE = `10px ${FAMILY}`, LABEL = `11px ${FAMILY}`;
  const PAD = 10, GAP = 12;

  // The width of a text in pixels.
  const measure = (() => {
    const context = document.createElement("canvas").getContext("2d");
    return (text, font) => { context.font = font; return context.measureText(text).width; };
  })();

  function make(name, attributes, parent, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent?.append(node);
    return node;
  }

  // The column of each box: one more than that of the last box before it.
  function columns(boxes, arrows) {
    const into = new Map(boxes.map(box => [box.id, []]));
    for (const arrow of arrows) into.get(arrow.target).push(arrow.source);
    const depth = new Map();
    const visit = (id, above) => {
      if (above.has(id)) return 0; // a loop: no kernel takes one, but a file may hold it
      if (!depth.has(id)) {
        const before = into.get(id).map(one => visit(one, new Set([...above, id])) + 1);
        depth.set(id, Math.max(0, ...before));
      }
      return depth.get(id);
    };
    for (const box of boxes) visit(box.id, new Set());
    // What nothing leads to stands right before what it leads to.
    for (const box of boxes)
      if (!into.get(box.id).length) {
        const next = arrows.filter(one => one.source === box.id).map(one => depth.get(one.target));
        if (next.length) depth.set(box.id, Math.max(0, Math.min(...next) - 1));
      }
    const found = [];
    for (const box of boxes) (found[depth.get(box.id)] ??= []).push(box);
    return found.filter(Boolean);
  }

  // Boxes of a column stand in the order of those that lead to them.
  function order(found, arrows) {
    const at = new Map(found[0].map((box, y) => [box.id, y]));
    for (const column of found.slice(1)) {
      const mean = box => {
        const from = arrows.filter(one => one.target === box.id && at.has(one.source)).map(one => at.get(one.source));
        return from.length ? from.reduce((a, b) => a + b, 0) / from.length : 0;
      };
      const means = new Map(column.map(box => [box, mean(box)]));
      column.sort((a, b) => means.get(a) - means.get(b));
      column.forEach((box, y) => at.set(box.id, y / column.length * 10));
    }
  }

  const width = box => Math.max(measure(box.title, TITLE), ...box.lines.map(line => measure(line, LINE))) + 2 * PAD;
  const height = box => 24 + box.lines.length * 13;

  function place(found, arrows) {
    const spot = new Map(), heights = found.map(column => column.reduce((sum, box) => sum + height(box) + GAP, -GAP));
    const tallest = Math.max(...heights);
    let x = 8;
    found.forEach((column, number) => {
      const ids = new Set(column.map(box => box.id));
      const labels = arrows.filter(one => ids.has(one.target)).flatMap(one => one.label.split("\n"));
      if (number) x += 44 + Math.max(0, ...labels.map(label => measure(label, LABEL)));
      const wide = Math.max(...column.map(width));
      let y = 8 + (tallest - heights[number]) / 2;
      for (const box of column) {
        spot.set(box.id, { x, y, w: wide, h: height(box) });
        y += height(box) + GAP;
      }
      x += wide;
    });
    return { spot, width: x + 8, height: tallest + 16 };
  }

  // Draw what is called `name` into an element; `open` is called with a box that is clicked.
  function picture(parent, name, boxes, arrows, open) {
    parent.replaceChildren();
    if (!boxes.length) return;
    const found = columns(boxes, arrows);
    order(found, arrows);
    const { spot, width: w, height: h } = place(found, arrows);
    const svg = make("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `Picture of ${name}` }, parent);
    svg.style.minWidth = `${Math.round(w * 0.7)}px`; // smaller letters can't be read
    const head = make("marker", { id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, make("defs", {}, svg));
    make("path", { d: "M0 0 L8 4 L0 8 z" }, head);
    for (const arrow of arrows) {
      const a = spot.get(arrow.source), b = spot.get(arrow.target);
      const [x1, y1, x2, y2] = [a.x + a.w, a.y + a.h / 2, b.x, b.y + b.h / 2];
      const bend = Math.max(24, (x2 - x1) / 2.4);
      const group = make("g", { class: `arrow${arrow.seldom ? " seldom" : ""}`, "data-from": arrow.source, "data-to": arrow.target }, svg);
      make("path", { d: `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2 - 2} ${y2}`, "marker-end": "url(#head)" }, group);
      const lines = arrow.label ? arrow.label.split("\n") : [];
      lines.forEach((line, n) => make("text", { x: x2 - 14, y: y2 - 5 - 12 * (lines.length - 1 - n), "text-anchor": "end" }, group, line));
    }
    for (const box of boxes) {
      const { x, y, w: wide, h: high } = spot.get(box.id);
      const group = make("g", { class: `box ${box.kind.replace(" ", "-")}`, "data-id": box.id, tabindex: 0, role: "button",
        "aria-label": [box.kind, box.title, ...box.lines].join(", ") }, svg);
      make("rect", { x, y, width: wide, height: high, rx: 5 }, group);
      make("text", { x: x + PAD, y: y + 16, class: "title" }, group, box.title);
      box.lines.forEach((line, n) => make("text", { x: x + PAD, y: y + 30 + 13 * n, class: "line" }, group, line));
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
