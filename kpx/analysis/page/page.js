"use strict";
// The page: a list of Services, the picture of one, its chains, and a packet to send.

const DATA = JSON.parse(document.getElementById("data").textContent);

(() => {
  const SHARED = "(all Services)", SHOWN = 12;
  const find = id => document.getElementById(id);
  const boxes = DATA.picture.boxes.map(([id, kind, title, lines, group, table, chain, position]) =>
    ({ id, kind, title, lines, group: group || SHARED, table, chain, position }));
  const arrows = DATA.picture.arrows.map(([source, target, label, seldom]) => ({ source, target, label, seldom }));
  const byGroup = Map.groupBy ? Map.groupBy(boxes, box => box.group)
    : boxes.reduce((all, box) => all.set(box.group, [...(all.get(box.group) ?? []), box]), new Map());
  const groups = [...byGroup.keys()].sort((a, b) => (a === SHARED) - (b === SHARED) || (a < b ? -1 : 1));
  let chosen = null, passed = new Set();

  function make(name, attributes, ...children) {
    const node = Object.assign(document.createElement(name), attributes);
    node.append(...children.filter(child => child !== null && child !== ""));
    return node;
  }

  // ---- Services ----

  // Found by name, and by any address, port or chain in their boxes.
  const words = new Map(groups.map(group => [group, byGroup.get(group).flatMap(box => [group, box.title, box.chain, ...box.lines]).join(" ").toLowerCase()]));

  function list() {
    const wanted = find("search").value.trim().toLowerCase();
    const matching = groups.filter(group => words.get(group).includes(wanted));
    find("services").replaceChildren(...matching.slice(0, 300).map(group => make("li", { className: group === chosen ? "chosen" : "" },
      make("button", { type: "button", textContent: group, onclick: () => choose(group) }))));
    find("count").textContent = `${matching.length} of ${groups.length}`;
    return matching;
  }

  function choose(group) {
    chosen = group;
    const own = byGroup.get(group), ids = new Set(own.map(box => box.id));
    find("name").textContent = group;
    Draw.picture(find("picture"), own, arrows.filter(one => ids.has(one.source) && ids.has(one.target)), open);
    Draw.highlight(find("picture"), passed);
    find("chains").replaceChildren();
    const way = own.find(box => box.kind === "way in" && box.table === "nat") ?? own.find(box => box.kind === "way in");
    const packet = way && suggestion(way);
    if (packet) find("packet").value = packet;
    list();
  }

  function suggestion(way) {
    const [, host, port, protocol] = way.title.match(/^(.*?):?(\d+)\/(\w+)$/) ?? [];
    if (!port) return null;
    const six = DATA.family === "ipv6", node = DATA.host?.[0] ?? (six ? "::1" : "127.0.0.1");
    const place = host.startsWith("node port") ? (six ? `[${node}]` : node) : host;
    return `${protocol} ${six ? "2001:db8::7" : "198.51.100.7"} -> ${place}:${port}`;
  }

  // ---- chains ----

  function open(box) { show(box.table, box.chain, box.position, null); }

  // Show the rules of a chain behind `card`, or first; later ones go.
  function show(table, chain, position, card) {
    const rules = DATA.tables[table]?.[chain];
    if (!rules) return;
    const cards = find("chains");
    while (cards.lastChild && cards.lastChild !== card) cards.lastChild.remove();
    const own = boxes.find(box => box.chain === chain && box.table === table && box.group !== SHARED && !box.position);
    const here = make("section", { className: "chain" }, make("h3", { textContent: chain }),
      make("p", { textContent: [table, own?.group, own && own.title !== chain ? own.title : ""].filter(Boolean).join(" · ") }));
    const lines = make("ol", {});
    rules.forEach((rule, at) => {
      const target = DATA.tables[table][rule[3]] ? rule[3] : null;
      const text = target ? rule[0].slice(0, rule[0].lastIndexOf(target)) : rule[0];
      const line = make("li", { className: at + 1 === position ? "at" : "" }, text);
      if (target) line.append(make("button", { type: "button", textContent: target, onclick: () => show(table, target, 0, here) }));
      lines.append(line);
    });
    here.append(rules.length ? lines : make("p", { textContent: "no rules" }));
    cards.append(here);
    here.querySelector(".at")?.scrollIntoView({ block: "nearest" });
    here.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // ---- packets ----

  const FLOW = /^\s*([\w-]+)\s+(\S+)\s*(?:->|→|\bto\b)\s*(\S+)\s*$/;
  const PLACE = /^(?:\[([\da-fA-F:.]+)\]|([\d.]+))(?::(\d{1,5}))?$/;

  function read(text) {
    const flow = text.match(FLOW);
    if (!flow) throw new Error("a packet is written like: tcp 10.244.1.5 -> 10.96.1.10:80");
    const place = word => {
      const found = word.match(PLACE);
      const host = found ? found[1] ?? found[2] : word, port = found?.[3];
      if (Walk.address(host) === null) throw new Error(`not an address, or an address and port: ${word}`);
      if (port > 65535) throw new Error(`not a port: ${port}`);
      return [host, port === undefined ? null : +port];
    };
    const [source, sourcePort] = place(flow[2]), [destination, port] = place(flow[3]);
    const protocol = flow[1].toLowerCase();
    if (["tcp", "udp", "sctp"].includes(protocol) && port === null) throw new Error(`${protocol} needs a port`);
    return { protocol, source, sourcePort, destination, port: port ?? 0 };
  }

  const FATES = { translated: "translated", untouched: "passes, not translated", rejected: "rejected", dropped: "dropped", unknown: "can't be known here: ask kpx trace" };
  const percent = value => value >= 0.9999995 ? "100 %" : `${(value * 100).toPrecision(value < 0.1 ? 2 : 3)} %`;

  function simple(value) {
    for (let d = 1; d <= 1000; d++) {
      const n = Math.round(value * d);
      if (n && Math.abs(value - n / d) < 1e-8) return d === 1 ? `${n}` : `${n}/${d}`;
    }
    return percent(value);
  }

  function send() {
    const out = find("result");
    let found;
    try {
      const origin = find("origin").value, inward = find("interface").value.trim();
      found = Walk.trace(DATA, { ...read(find("packet").value), origin, in: inward || null, out: null });
    } catch (error) {
      out.replaceChildren(make("p", { className: "error", textContent: error.message }));
      return;
    }
    const rows = found.outcomes.map(one => make("tr", { className: one.fate },
      make("td", { textContent: simple(one.share), title: one.exact }),
      make("td", { textContent: one.destination ? `→ ${one.destination}` : FATES[one.fate] + (one.detail ? `: ${one.detail}` : "") }),
      make("td", { textContent: one.masqueraded ? "masqueraded" : "" })));
    const ways = found.paths.slice(0, SHOWN).map((path, number) => make("details", { open: number === 0 },
      make("summary", {}, `${simple(path.share)} → ${path.outcome.destination || FATES[path.outcome.fate]}`),
      make("ol", {}, ...path.steps.map(step => make("li", {},
        make("button", { type: "button", textContent: `${step.chain} ${step.position || ""}`, onclick: () => show(step.table, step.chain, step.position, null) }),
        make("code", { textContent: step.rule }))))));
    const more = found.paths.length > SHOWN ? make("p", { textContent: `… ${found.paths.length - SHOWN} more ways` }) : "";
    out.replaceChildren(make("table", {}, make("tbody", {}, ...rows)), ...ways, more);
    passed = new Set(found.paths.flatMap(path => path.steps.flatMap(step => [`${step.table} ${step.chain}`, `${step.table} ${step.chain} ${step.position}`])));
    const group = boxes.find(box => box.position && box.kind === "way in" && passed.has(box.id))?.group;
    if (group && group !== chosen) {
      const text = find("packet").value;
      choose(group);
      find("packet").value = text;
    }
    for (const end of found.outcomes.filter(one => ["rejected", "dropped"].includes(one.fate)))
      passed.add(`${end.fate === "dropped" ? "DROP" : "REJECT"} ${group ?? ""}`);
    Draw.highlight(find("picture"), passed);
  }

  find("search").addEventListener("input", list);
  find("search").addEventListener("keydown", event => { if (event.key === "Enter") { const [first] = list(); if (first) choose(first); } });
  find("trace").addEventListener("submit", event => { event.preventDefault(); send(); });
  if (groups.length) choose(groups[0]);
})();
