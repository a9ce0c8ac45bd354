"use strict";
// How large the picture is shown: as wide as there is room for, all of it, or by so many percent.

const View = (() => {
  const LEAST = 0.1, MOST = 4, STEP = 1.25, LEGIBLE = 0.6;
  const find = id => document.getElementById(id);
  let size = "width"; // or "all", or a number: 1 is the size that it is drawn in

  const picture = () => find("picture").querySelector("svg");
  const bounded = scale => Math.min(MOST, Math.max(LEAST, scale));

  // The scale at which the picture is as wide as its frame, if letters can be read then; or at which all of it is seen.
  function fitting({ width, height }) {
    const frame = find("picture"), style = getComputedStyle(frame);
    const wide = frame.clientWidth / width;
    if (size === "width") return Math.min(1, Math.max(LEGIBLE, wide));
    const room = parseFloat(style.maxHeight) || frame.clientHeight;
    return bounded(Math.min(1, wide, room / height));
  }

  function scale() {
    const svg = picture();
    return !svg ? 1 : typeof size === "number" ? size : fitting(svg.viewBox.baseVal);
  }

  function apply() {
    const svg = picture();
    for (const tool of find("tools").querySelectorAll("button")) tool.disabled = !svg;
    find("fit").setAttribute("aria-pressed", size === "all");
    if (!svg) return;
    const { width, height } = svg.viewBox.baseVal, by = scale();
    svg.setAttribute("width", width * by);
    svg.setAttribute("height", height * by);
    find("scale").textContent = `${Math.round(by * 100)} %`;
  }

  // Scale about a point of the frame, so that what is there stays there.
  function zoom(to, x = find("picture").clientWidth / 2, y = find("picture").clientHeight / 2) {
    const frame = find("picture"), before = scale();
    size = bounded(to);
    apply();
    const by = size / before;
    frame.scrollTo((frame.scrollLeft + x) * by - x, (frame.scrollTop + y) * by - y);
  }

  const to = wanted => { size = wanted; apply(); };
  find("larger").addEventListener("click", () => zoom(scale() * STEP));
  find("smaller").addEventListener("click", () => zoom(scale() / STEP));
  find("fit").addEventListener("click", () => to(size === "all" ? "width" : "all"));
  find("scale").addEventListener("click", () => zoom(1));
  find("picture").addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const frame = find("picture").getBoundingClientRect();
    zoom(scale() * (event.deltaY < 0 ? STEP : 1 / STEP), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });
  document.querySelector("main").addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { "+": () => zoom(scale() * STEP), "=": () => zoom(scale() * STEP), "-": () => zoom(scale() / STEP),
      0: () => to("width"), f: () => to("all") }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  addEventListener("resize", apply);

  return { apply };
})();
