"use strict";
// The page: a list of Services, the picture of one, its chains, and a packet to send.

let DATA; // JSON, packed with gzip

(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), c => c.charCodeAt(0));
  DATA = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();

  const SHARED = "(all Services)", LISTED = 300, ROWS = 100, WAYS = 12;
  const find = id => document.getElementById(id);
  const boxes = DATA.picture.boxes.map(([id, kind, title, lines, group, table, chain, position, others, rules]) =>
    ({ id, kind, title, lines, group: group || SHARED, table, chain, position, others, rules }));
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
  const words = new Map(groups.map(group => [group, byGroup.get(group).flatMap(box => [group, box.title, box.chain, ...box.lines, ...box.others.flat()]).join(" ").toLowerCase()]));

  function list() {
    const wanted = find("search").value.trim().toLowerCase();
    const matching = groups.filter(group => words.get(group).includes(wanted));
    find("services").replaceChildren(...matching.slice(0, LISTED).map(group => {
      const link = make("a", { href: address(group), textContent: group, onclick: () => choose(group) });
      if (group === chosen) link.setAttribute("aria-current", "true");
      return make("li", {}, link);
    }));
    find("count").textContent = `${matching.length} of ${groups.length}` + (matching.length > LISTED ? `, the first ${LISTED} shown` : "");
    return matching;
  }

  // Each Service has an address of its own, for links and for the browser's way back.
  const address = group => "#" + encodeURIComponent(group).replace(/%2F/g, "/").replace(/%3A/g, ":");

  function addressed() {
    let wanted = location.hash.slice(1);
    try { wanted = decodeURIComponent(wanted); } catch { /* no address of this page's */ }
    return byGroup.has(wanted) ? wanted : groups.find(group => group.startsWith(`${wanted}:`)) ?? groups[0];
  }

  function choose(group) {
    show(group);
    location.hash = address(group);
  }

  function show(group) {
    chosen = group;
    const own = byGroup.get(group), ids = new Set(own.map(box => box.id));
    find("name").textContent = group;
    Draw.picture(find("picture"), group, own, arrows.filter(one => ids.has(one.source) && ids.has(one.target)), open);
    highlight();
    find("chains").replaceChildren();
    const way = own.find(box => box.kind === "way in" && box.table === "nat") ?? own.find(box => box.kind === "way in");
    const packet = way && suggestion(way);
    if (packet) find("packet").value = packet;
    const focused = find("services").contains(document.activeElement);
    list();
    const link = find("services").querySelector("[aria-current]");
    link?.scrollIntoView({ block: "nearest" });
    if (focused) link?.focus();
  }

  // Mark what the last packet passed; a box of many endpoints, if it passed one of them, or a rule that chooses one.
  function highlight() {
    for (const box of byGroup.get(chosen))
      if (box.others.some(([id]) => passed.has(id)) || box.rules.some(rule => passed.has(rule))) passed.add(box.id);
    Draw.highlight(find("picture"), passed);
  }

  function suggestion(way) {
    const [, host, port, protocol] = way.title.match(/^(.*?):?(\d+)\/(\w+)$/) ?? [];
    if (!port) return null;
    const six = DATA.family === "ipv6", node = DATA.host?.[0] ?? (six ? "::1" : "127.0.0.1");
    const place = host.startsWith("node port") ? (six ? `[${node}]` : node) : host;
    return `${protocol} ${six ? "2001:db8::7" : "198.51.100.7"} -> ${place}:${port}`;
  }

  // ---- chains ----

  function open(box) { unfold(box.table, box.chain, box.position, null); }

  // Show the rules of a chain behind `card`, or first; later ones go.
  function unfold(table, chain, position, card) {
    const rules = DATA.tables[table]?.[chain];
    if (!rules) return;
    const cards = find("chains");
    while (cards.lastChild && cards.lastChild !== card) cards.lastChild.remove();
    const own = boxes.find(box => box.group !== SHARED && !box.position && box.id === `${table} ${chain}`)
      ?? boxes.find(box => box.others.some(([id]) => id === `${table} ${chain}`));
    const here = make("section", { className: "chain" }, make("h3", { textContent: chain }),
      make("p", { textContent: [table, own?.group, own && own.title !== chain && !own.others.length ? own.title : ""].filter(Boolean).join(" · ") }));
    const lines = make("ol", {});
    rules.forEach((rule, at) => {
      const target = DATA.tables[table][rule[3]] ? rule[3] : null;
      const text = target ? rule[0].slice(0, rule[0].lastIndexOf(target)) : rule[0];
      const line = make("li", { className: at + 1 === position ? "at" : "" }, text);
      if (target) line.append(make("button", { type: "button", textContent: target, onclick: () => unfold(table, target, 0, here) }));
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

  function place(word) {
    const found = word.match(PLACE);
    const host = found ? found[1] ?? found[2] : word, port = found?.[3];
    if (Walk.address(host) === null) throw new Error(`not an address, or an address and port: ${word}`);
    if (port > 65535) throw new Error(`not a port: ${port}`);
    return [host, port === undefined ? null : +port];
  }

  function read(text) {
    const flow = text.match(FLOW);
    if (!flow) throw new Error("a packet is written like: tcp 10.244.1.5 -> 10.96.1.10:80");
    const [source, sourcePort] = place(flow[2]), [destination, port] = place(flow[3]);
    const protocol = flow[1].toLowerCase();
    if (["tcp", "udp", "sctp"].includes(protocol) && port === null) throw new Error(`${protocol} needs a port`);
    return { protocol, source, sourcePort, destination, port: port ?? 0 };
  }

  // The packet that the form describes.
  function asked() {
    const text = id => find(id).value.trim();
    const mark = Number(text("mark") || 0);
    if (!Number.isInteger(mark) || mark < 0 || mark > 0xffffffff) throw new Error(`not a mark: ${text("mark")}`);
    const packet = { ...read(text("packet")), mark, origin: find("origin").value, state: find("state").value,
      in: text("in") || null, out: text("out") || null, bridged: { yes: true, no: false }[find("bridged").value] };
    return { ...packet, known: known(packet, text("known")) };
  }

  // Lists of xt_recent with seconds: `10.244.1.12:8080@60` is on those that remember who goes to this endpoint.
  function known(packet, words) {
    const found = {};
    for (const word of words.split(/[\s,]+/).filter(Boolean)) {
      const [, whom, seconds] = word.match(/^(.+?)(?:@(\d+))?$/) ?? [null, word];
      let lists = [whom];
      if (whom.includes(":")) {
        const [host, port] = place(whom), there = Walk.endpoint(Walk.address(host), port, DATA.family === "ipv6" ? 128 : 32);
        const paths = Walk.trace(DATA, packet).paths.filter(path => path.outcome.destination === there);
        lists = paths.flatMap(path => [...path.known.keys()]);
        if (!paths.length) throw new Error(`no way of this packet leads to ${whom}`);
        if (!lists.length) throw new Error(`the rules don't remember who goes to ${whom}: no session affinity`);
      }
      for (const name of lists) found[name] = Number(seconds ?? 0);
    }
    return found;
  }

  const FATES = { translated: "translated", untouched: "passes, not translated", rejected: "rejected", dropped: "dropped", unknown: "can't be known" };
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
      found = Walk.trace(DATA, asked());
    } catch (error) {
      out.replaceChildren(make("p", { className: "error", textContent: error.message }));
      return;
    }
    const rows = found.outcomes.slice(0, ROWS).map(one => make("tr", { className: one.fate },
      make("td", { textContent: simple(one.share), title: one.exact }),
      make("td", { textContent: one.destination ? `→ ${one.destination}` : FATES[one.fate] + (one.detail ? `: ${one.detail}` : "") }),
      make("td", { textContent: one.masqueraded ? "masqueraded" : "" })));
    if (found.outcomes.length > ROWS) rows.push(make("tr", {}, make("td", { colSpan: 3, textContent: `… ${found.outcomes.length - ROWS} more outcomes` })));
    const ways = found.paths.slice(0, WAYS).map((path, number) => make("details", { open: number === 0 },
      make("summary", {}, `${simple(path.share)} → ${path.outcome.destination || FATES[path.outcome.fate]}`),
      make("ol", {}, ...path.steps.map(step => make("li", {},
        make("button", { type: "button", textContent: `${step.chain} ${step.position || ""}`, onclick: () => unfold(step.table, step.chain, step.position, null) }),
        make("code", { textContent: step.rule }))))));
    const more = found.paths.length > WAYS ? make("p", { textContent: `… ${found.paths.length - WAYS} more ways` }) : "";
    const many = found.sampled ? make("p", { textContent: "There are too many ways to list: of those that come to the same, one is shown." }) : "";
    const hint = found.outcomes.some(one => one.fate === "unknown") ? make("p", { textContent: "A source port or what else rules may ask could help." }) : "";
    out.replaceChildren(make("table", {}, make("tbody", {}, ...rows)), hint, many, ...ways, more);
    passed = new Set(found.paths.flatMap(path => path.steps.flatMap(step => [`${step.table} ${step.chain}`, `${step.table} ${step.chain} ${step.position}`])));
    const group = boxes.find(box => box.position && box.kind === "way in" && passed.has(box.id))?.group;
    if (group && group !== chosen) {
      const text = find("packet").value;
      choose(group);
      find("packet").value = text;
    }
    for (const end of found.outcomes.filter(one => ["rejected", "dropped"].includes(one.fate)))
      passed.add(`${end.fate === "dropped" ? "DROP" : "REJECT"} ${group ?? ""}`);
    highlight();
  }

  find("search").addEventListener("input", list);
  find("trace").addEventListener("submit", event => { event.preventDefault(); send(); });

  // In the list: arrows go up and down, Enter takes the first, Escape clears the search.
  document.querySelector("nav").addEventListener("keydown", event => {
    const search = find("search"), stops = [search, ...find("services").querySelectorAll("a")];
    const at = stops.indexOf(document.activeElement), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) stops[at + step]?.focus();
    else if (event.key === "Enter" && at === 0) { const [first] = list(); if (first) choose(first); }
    else if (event.key === "Escape") { search.value = ""; list(); search.focus(); }
    else return;
    event.preventDefault();
  });

  const unread = Object.values(DATA.unread);
  if (unread.length) find("host").textContent = `${unread.join(" and ")}: what becomes of packets isn't certain.`;
  else if (!DATA.host) find("host").textContent = "The node's addresses aren't known: endpoints are taken to be elsewhere.";
  addEventListener("hashchange", () => { if (addressed() !== chosen) show(addressed()); });
  if (groups.length) show(addressed());
})();
