"use strict";
// The packet that the form describes, read as `kpx trace` reads it, and in words.

const Ask = (() => {
  const FLOW = /^\s*([\w-]+)\s+(\S+)\s*(?:->|→|\bto\b)\s*(\S+)\s*$/;
  const PLACE = /^(?:\[([\da-fA-F:.]+)\]|([\d.]+))(?::(\d{1,5}))?$/;
  const FROM = { outside: "from outside", pod: "from a pod", node: "from the node itself" };
  const SIX = "ipv6";
  const find = id => document.getElementById(id);
  const text = id => find(id).value.trim();

  function place(word) {
    const found = word.match(PLACE);
    const host = found ? found[1] ?? found[2] : word, port = found?.[3];
    if (Walk.address(host) === null) throw new Error(`not an address, or an address and port: ${word}`);
    if (port > 65535) throw new Error(`not a port: ${port}`);
    return [host, port === undefined ? null : +port];
  }

  function read(words, family) {
    const flow = words.match(FLOW);
    if (!flow) throw new Error(`a packet is written like: ${example(family)}`);
    const [source, sourcePort] = place(flow[2]), [destination, port] = place(flow[3]);
    const protocol = flow[1].toLowerCase();
    if (["tcp", "udp", "sctp"].includes(protocol) && port === null) throw new Error(`${protocol} needs a port`);
    return { protocol, source, sourcePort, destination, port: port ?? 0 };
  }

  const example = family => family === SIX ? "tcp fd00:244::5 -> [fd00:96::10]:80" : "tcp 10.244.1.5 -> 10.96.1.10:80";

  // The packet that the form describes.
  function packet(data) {
    const mark = Number(text("mark") || 0);
    if (!Number.isInteger(mark) || mark < 0 || mark > 0xffffffff) throw new Error(`not a mark: ${text("mark")}`);
    const asked = { ...read(text("packet"), data.family), mark, origin: find("origin").value, state: find("state").value,
      in: text("in") || null, out: text("out") || null, bridged: { yes: true, no: false }[find("bridged").value] };
    return { ...asked, known: known(data, asked, text("known")) };
  }

  // The same in words: the flow first, then what else is said of it.
  function words() {
    const more = [["mark", "mark "], ["known", "client was with "], ["in", "in by "], ["out", "out by "]]
      .filter(([id]) => text(id)).map(([id, before]) => before + text(id));
    const bridged = { yes: "through a bridge", no: "not through a bridge" }[find("bridged").value] ?? "";
    const state = find("state").value === "NEW" ? "" : `conntrack says ${find("state").value}`;
    return { flow: text("packet").replace(/\s+/g, " ").replace(/\s*->\s*/, " → "),
      about: [FROM[find("origin").value], state, ...more, bridged].filter(Boolean).join(", ") };
  }

  // Lists of xt_recent with seconds: `10.244.1.12:8080@60` is on those that remember who goes to this endpoint.
  function known(data, asked, named) {
    const found = {};
    for (const word of named.split(/[\s,]+/).filter(Boolean)) {
      const [, whom, seconds] = word.match(/^(.+?)(?:@(\d+))?$/) ?? [null, word];
      let lists = [whom];
      if (whom.includes(":")) {
        const [host, port] = place(whom), there = Walk.endpoint(Walk.address(host), port, data.family === SIX ? 128 : 32);
        const paths = Walk.trace(data, asked).paths.filter(path => path.outcome.destination === there);
        lists = paths.flatMap(path => [...path.known.keys()]);
        if (!paths.length) throw new Error(`no way of this packet leads to ${whom}`);
        if (!lists.length) throw new Error(`the rules don't remember who goes to ${whom}: no session affinity`);
      }
      for (const name of lists) found[name] = Number(seconds ?? 0);
    }
    return found;
  }

  // A packet from outside to a way in, as text; empty if the box doesn't tell to where.
  function suggestion(data, way) {
    const [, host, port, protocol] = way?.title.match(/^(.*?):?(\d+)\/(\w+)(?:,|$)/) ?? [];
    if (!port) return "";
    const six = data.family === SIX, node = data.host?.[0] ?? (six ? "::1" : "127.0.0.1");
    const place = host.startsWith("node port") ? (six ? `[${node}]` : node) : host;
    return `${protocol} ${six ? "2001:db8::7" : "198.51.100.7"} -> ${place}:${port}`;
  }

  return { packet, words, example, suggestion };
})();
