"use strict";
// What became of a packet: for which packet the answer is, its outcomes, and its ways, rule by rule.

const Answer = (() => {
  const ROWS = 100, WAYS = 12;
  const NONE = "No packet sent. An answer tells where the packet ends, how likely, and which rules it meets.";
  const FATES = { translated: "translated", untouched: "passes, not translated", rejected: "rejected", dropped: "dropped", unknown: "can't be known" };
  const out = document.getElementById("result");
  const percent = value => value >= 0.9999995 ? "100 %" : `${(value * 100).toPrecision(value < 0.1 ? 2 : 3)} %`;

  function make(name, attributes, ...children) {
    const node = Object.assign(document.createElement(name), attributes);
    node.append(...children.filter(child => child !== null && child !== ""));
    return node;
  }

  function simple(value) {
    for (let d = 1; d <= 1000; d++) {
      const n = Math.round(value * d);
      if (n && Math.abs(value - n / d) < 1e-8) return d === 1 ? `${n}` : `${n}/${d}`;
    }
    return percent(value);
  }

  const clear = () => out.replaceChildren(make("p", { className: "none", textContent: NONE }));
  const fail = message => out.replaceChildren(make("p", { className: "error", textContent: message }));

  // `found` is what Walk tells of a packet that is described in `words`; `open` is called with a step that is clicked.
  function tell(words, found, open) {
    const rows = found.outcomes.slice(0, ROWS).map(one => make("tr", { className: one.fate },
      make("td", { textContent: simple(one.share), title: one.exact }),
      make("td", { textContent: one.destination ? `→ ${one.destination}` : FATES[one.fate] + (one.detail ? `: ${one.detail}` : "") }),
      make("td", { textContent: one.masqueraded ? "masqueraded" : "" })));
    if (found.outcomes.length > ROWS) rows.push(make("tr", {}, make("td", { colSpan: 3, textContent: `… ${found.outcomes.length - ROWS} more outcomes` })));
    const ways = found.paths.slice(0, WAYS).map((path, number) => make("details", { open: number === 0 },
      make("summary", {}, `${simple(path.share)} → ${path.outcome.destination || FATES[path.outcome.fate]}`),
      make("ol", {}, ...path.steps.map(step => make("li", {},
        make("button", { type: "button", textContent: `${step.chain} ${step.position || ""}`, onclick: () => open(step) }),
        make("code", { textContent: step.rule }))))));
    const more = found.paths.length > WAYS ? make("p", { textContent: `… ${found.paths.length - WAYS} more ways` }) : "";
    const many = found.sampled ? make("p", { textContent: "There are too many ways to list: of those that come to the same, one is shown." }) : "";
    const hint = found.outcomes.some(one => one.fate === "unknown") ? make("p", { textContent: "A source port or what else rules may ask could help." }) : "";
    out.replaceChildren(
      make("h3", { id: "asked", textContent: words.flow }), make("p", { id: "about", textContent: words.about }),
      make("table", {}, make("tbody", {}, ...rows)), hint, many, ...ways, more);
  }

  return { clear, fail, tell, make };
})();
