"use strict";
// The rules of one IP family: its boxes and arrows, by service port, and what is wrong with some.

const Side = (() => {
  const SHARED = "(all Services)";
  const packed = new Map([...document.querySelectorAll("script[data-family]")].map(one => [one.dataset.family, one]));
  const opened = new Map();

  async function unpacked(text) { // JSON, packed with gzip
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  async function read(family) {
    const data = await unpacked(packed.get(family).textContent);
    const boxes = data.picture.boxes.map(([id, kind, title, lines, group, table, chain, position, others, rules, name]) =>
      ({ id, kind, title, lines, group: group || SHARED, table, chain, position, others, rules, name }));
    const arrows = data.picture.arrows.map(([source, target, label, seldom]) => ({ source, target, label, seldom }));
    const byGroup = new Map([[SHARED, []]]);
    for (const box of boxes) {
      if (!byGroup.has(box.group)) byGroup.set(box.group, []);
      byGroup.get(box.group).push(box);
    }
    // Services come in the order of the page's data; what all share comes last.
    const groups = [...[...byGroup.keys()].filter(group => group !== SHARED), SHARED];
    // Found by name, and by any address, port or chain in their boxes.
    const words = new Map(groups.map(group => [group, [group, ...byGroup.get(group)
      .flatMap(box => [box.name, box.title, box.chain, ...box.lines, ...box.others.flat()])].join(" ").toLowerCase()]));
    return { family, data, boxes, arrows, byGroup, groups, words, troubles: new Map(Object.entries(data.troubles)) };
  }

  // What a family's rules are; it is unpacked when it is first asked for.
  function of(family) {
    if (!opened.has(family)) opened.set(family, read(family));
    return opened.get(family);
  }

  return { of, families: [...packed.keys()], SHARED };
})();
