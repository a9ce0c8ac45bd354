"use strict";
// The page: a list of Services, the picture of one, its chains, and a packet to send.

let DATA; // the rules of the family that is shown

(async () => {
  const LISTED = 300, { make } = Answer;
  const NAMES = { ipv4: "IPv4", ipv6: "IPv6" }, SIGNS = { broken: "✖", partly: "▲", unknown: "?" };
  const find = id => document.getElementById(id);
  let side = null, chosen = null, passed = new Set();

  // ---- Services ----

  function list() {
    const wanted = find("search").value.trim().toLowerCase(), only = find("only").checked;
    const matching = side.groups.filter(group => side.words.get(group).includes(wanted) && (!only || side.troubles.has(group)));
    find("services").replaceChildren(...matching.slice(0, LISTED).map(group => {
      const link = make("a", { href: address(side.family, group), textContent: group, onclick: () => choose(group) });
      if (group === chosen) link.setAttribute("aria-current", "true");
      const trouble = side.troubles.get(group);
      if (trouble) {
        link.className = trouble.level;
        link.title = trouble.says.join("\n");
        link.append(make("small", { textContent: `${SIGNS[trouble.level]} ${trouble.word}` }));
      }
      return make("li", {}, link);
    }));
    find("count").textContent = `${matching.length} of ${side.groups.length}` + (matching.length > LISTED ? `, the first ${LISTED} shown` : "");
    find("nothing").textContent = side.groups.length === 1 ? "These rules are for no Service." : matching.length ? "" : "No Service is like that.";
    return matching;
  }

  // Each Service has an address of its own, for links and for the browser's way back; the first family isn't named.
  const address = (family, group) => "#" + encodeURIComponent(group).replace(/%2F/g, "/").replace(/%3A/g, ":")
    + (family === Side.families[0] ? "" : `,${family}`);

  // The family and Service that the address names; without one, the first Service. What only another family has is shown
  // there, unless a family is named.
  async function addressed() {
    const [, words, named] = location.hash.match(/^#?([^,]*)(?:,(\w+))?$/) ?? [];
    let wanted = words ?? "";
    try { wanted = decodeURIComponent(wanted); } catch { /* no address of this page's */ }
    const first = Side.families.includes(named) ? named : Side.families[0];
    for (const family of wanted ? [first, ...Side.families] : []) {
      const { byGroup, groups } = await Side.of(family);
      const group = byGroup.has(wanted) ? wanted : groups.find(one => one.startsWith(`${wanted}:`));
      if (group) return [first === named ? first : family, group];
    }
    return [first, (await Side.of(first)).groups[0]];
  }

  function choose(group) {
    show(group);
    location.hash = address(side.family, group);
  }

  function show(group) {
    chosen = group;
    const own = side.byGroup.get(group) ?? [], ids = new Set(own.map(box => box.id));
    find("name").textContent = group;
    Draw.picture(find("picture"), group, own, side.arrows.filter(one => ids.has(one.source) && ids.has(one.target)), open);
    View.apply();
    forget();
    tellTrouble(group, own);
    find("chains").replaceChildren();
    const way = own.find(box => box.kind === "way in" && box.table === "nat") ?? own.find(box => box.kind === "way in");
    find("packet").value = Ask.suggestion(DATA, way);
    const focused = find("services").contains(document.activeElement);
    list();
    const link = find("services").querySelector("[aria-current]");
    link?.scrollIntoView({ block: "nearest" });
    if (focused) link?.focus();
  }

  function tellTrouble(group, own) {
    const trouble = side.troubles.get(group);
    const none = group === Side.SHARED ? "There are no chains of a Service proxy here." : `There are no rules for it in ${NAMES[side.family]}.`;
    const says = trouble?.says ?? (own.length ? [] : [none]);
    find("trouble").className = trouble?.level ?? "";
    find("trouble").replaceChildren(...says.map(text => make("li", { textContent: text })));
  }

  // ---- IPv4 and IPv6 ----

  async function turn(family) {
    side = await Side.of(family);
    DATA = side.data;
    for (const button of find("families").children) button.setAttribute("aria-pressed", button.dataset.of === family);
    find("packet").placeholder = Ask.example(family);
    const unread = Object.values(DATA.unread);
    find("host").textContent = unread.length ? `${unread.join(" and ")}: what becomes of packets isn't certain.`
      : DATA.host ? "" : "The node's addresses aren't known: endpoints are taken to be elsewhere.";
    find("troubled").hidden = !side.troubles.size;
    find("only").checked &&= side.troubles.size > 0;
    find("troubles").textContent = `only those with something wrong: ${side.troubles.size}`;
  }

  for (const family of Object.keys(NAMES)) {
    const has = Side.families.includes(family);
    const button = make("button", { type: "button", textContent: NAMES[family], disabled: !has, title: has ? "" : `There are no rules of ${NAMES[family]} here.`,
      onclick: async () => { await turn(family); choose(chosen); } });
    button.dataset.of = family;
    find("families").append(button);
  }

  // ---- chains ----

  function open(box) { unfold(box.table, box.chain, box.position, null); }

  // Show the rules of a chain behind `card`, or first; later ones go.
  function unfold(table, chain, position, card) {
    const rules = DATA.tables[table]?.[chain];
    if (!rules) return;
    const cards = find("chains");
    while (cards.lastChild && cards.lastChild !== card) cards.lastChild.remove();
    const own = side.boxes.find(box => box.group !== Side.SHARED && !box.position && box.id === `${table} ${chain}`)
      ?? side.boxes.find(box => box.others.some(([id]) => id === `${table} ${chain}`));
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

  // An answer is for the packet that was sent: with another Service it goes.
  function forget() {
    passed = new Set();
    Answer.clear();
    Draw.highlight(find("picture"), passed);
  }

  function send() {
    let found;
    const words = Ask.words();
    try {
      found = Walk.trace(DATA, Ask.packet(DATA));
    } catch (error) {
      forget();
      Answer.fail(error.message);
      return;
    }
    const met = new Set(found.paths.flatMap(path => path.steps.flatMap(step => [`${step.table} ${step.chain}`, `${step.table} ${step.chain} ${step.position}`])));
    const group = side.boxes.find(box => box.position && box.kind === "way in" && met.has(box.id))?.group;
    if (group && group !== chosen) {
      const text = find("packet").value;
      choose(group);
      find("packet").value = text;
    }
    for (const end of found.outcomes.filter(one => ["rejected", "dropped"].includes(one.fate)))
      met.add(`${end.fate === "dropped" ? "DROP" : "REJECT"} ${group ?? ""}`);
    // A box of many endpoints is passed if one of them is, or a rule that chooses one.
    for (const box of side.byGroup.get(chosen) ?? [])
      if (box.others.some(([id]) => met.has(id)) || box.rules.some(rule => met.has(rule))) met.add(box.id);
    passed = met;
    Answer.tell(words, found, step => unfold(step.table, step.chain, step.position, null));
    Draw.highlight(find("picture"), passed);
  }

  find("search").addEventListener("input", list);
  find("only").addEventListener("change", list);
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

  // Go where the address says, unless that is here.
  async function go() {
    const wanted = location.hash;
    if (side && wanted === address(side.family, chosen)) return;
    const [family, group] = await addressed();
    if (location.hash !== wanted) return;
    if (family !== side?.family) await turn(family);
    show(group);
  }

  addEventListener("hashchange", go);
  await go();
})();
