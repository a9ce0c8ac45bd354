"use strict";
// What becomes of a packet: kpx.analysis.simulate and .match, for the browser.
//
// Probabilities are exact fractions {n, d}. A test is true, false, or null: can't be known. What this page doesn't know
// of is never guessed.

const Walk = (() => {
  const ONE = { n: 1n, d: 1n }, NONE = { n: 0n, d: 1n };
  const divisor = (a, b) => { while (b) [a, b] = [b, a % b]; return a; };
  const reduced = (n, d) => { const by = divisor(n, d); return { n: n / by, d: d / by }; };
  const times = (a, b) => reduced(a.n * b.n, a.d * b.d);
  const plus = (a, b) => reduced(a.n * b.d + b.n * a.d, a.d * b.d);
  const rest = a => ({ n: a.d - a.n, d: a.d });
  const fraction = a => a.d === 1n ? `${a.n}` : `${a.n}/${a.d}`;
  const decimal = a => Number((a.n << 64n) / a.d) / 2 ** 64;

  // ---- addresses: numbers ----

  function address(text) {
    if (!text.includes(":")) {
      const parts = text.split(".");
      if (parts.length !== 4 || !parts.every(part => /^\d{1,3}$/.test(part) && +part < 256)) return null;
      return parts.reduce((all, part) => (all << 8n) | BigInt(part), 0n);
    }
    let words = text.toLowerCase();
    const dotted = words.match(/^(.*:)(\d+\.\d+\.\d+\.\d+)$/);
    if (dotted) {
      const low = address(dotted[2]);
      if (low === null) return null;
      words = dotted[1] + (low >> 16n).toString(16) + ":" + (low & 0xffffn).toString(16);
    }
    const halves = words.split("::");
    if (halves.length > 2) return null;
    const [left, right] = halves.map(half => half ? half.split(":") : []);
    const gap = halves.length === 2 ? 8 - left.length - right.length : 0;
    if (halves.length === 2 ? gap < 1 : left.length !== 8) return null;
    const all = [...left, ...Array(gap).fill("0"), ...(right || [])];
    if (!all.every(word => /^[0-9a-f]{1,4}$/.test(word))) return null;
    return all.reduce((sum, word) => (sum << 16n) | BigInt("0x" + word), 0n);
  }

  function plain(number, bits) {
    if (bits === 32) return [24n, 16n, 8n, 0n].map(shift => (number >> shift) & 255n).join(".");
    const words = Array.from({ length: 8 }, (_, i) => ((number >> BigInt(112 - 16 * i)) & 0xffffn).toString(16));
    const runs = words.join(":").match(/(^|:)0(:0)+(?=:|$)/g) || [];
    const longest = runs.sort((a, b) => b.length - a.length)[0];
    if (!longest) return words.join(":");
    const at = words.join(":").indexOf(longest);
    return words.join(":").slice(0, at) + "::" + words.join(":").slice(at + longest.length).replace(/^:/, "");
  }

  const endpoint = (number, port, bits) => bits === 128 ? `[${plain(number, bits)}]:${port}` : `${plain(number, bits)}:${port}`;

  function network(text) {
    const [host, length] = text.split("/");
    const number = address(host), bits = host.includes(":") ? 128 : 32;
    if (number === null) return null;
    const all = (1n << BigInt(bits)) - 1n;
    const mask = length === undefined ? all
      : /^\d+$/.test(length) ? all ^ ((1n << BigInt(bits - +length)) - 1n) : address(length);
    return mask === null ? null : { net: number & mask, mask };
  }

  // ---- matches: each makes of its values a function of a packet on its way and the scene ----

  const unknown = () => null;
  const within = (value, of) => {
    const found = network(value);
    return found ? (p, s) => { const x = of(p); return x === null ? null : (x & found.mask) === found.net; } : unknown;
  };
  const port = (value, of) => {
    const [low, high] = value.split(":");
    if (!/^\d+$/.test(low) || !/^\d+$/.test(high ?? low)) return unknown;
    return (p, s) => { const x = of(p, s); return x === null ? null : +low <= x && x <= +(high ?? low); };
  };
  const any = tests => (p, s) => {
    const answers = tests.map(test => test(p, s));
    return answers.includes(true) ? true : answers.includes(null) ? null : false;
  };
  const marked = (value, of) => {
    const [stored, mask] = value.split("/").map(Number);
    return Number.isNaN(stored) ? unknown : p => (of(p) & (mask ?? 0xffffffff)) >>> 0 === stored >>> 0;
  };
  // Of an interface of which only the start of its name is known, that and a + stand for it.
  const startsAs = (start, wanted) => {
    const other = wanted.replace(/\+$/, "");
    return wanted.endsWith("+") && start.startsWith(other) ? true : other.startsWith(start) ? null : false;
  };
  const iface = (actual, wanted, elsewhere) =>
    actual === null ? (elsewhere && wanted === "lo" ? false : null)
      : actual.endsWith("+") ? startsAs(actual.slice(0, -1), wanted)
      : wanted.endsWith("+") ? actual.startsWith(wanted.slice(0, -1)) : actual === wanted;
  const routedTo = (p, s) => s.hook === "OUTPUT" ? s.packet.destination : p.destination;
  const conntrack = (p, s) => !p.tracked ? "UNTRACKED" : s.table === "raw" && s.in !== "lo" ? "INVALID" : s.packet.state;

  const HEAD = {
    "-s": value => within(value, p => p.source),
    "-d": value => within(value, p => p.destination),
    "-p": value => (p, s) => [s.packet.protocol, "all", "0"].includes(value),
    "-i": value => (p, s) => iface(s.in, value, true),
    "-o": value => (p, s) => {
      if (s.out !== null || s.packet.origin !== "node") return iface(s.out, value, true);
      const local = s.host.isLocal(routedTo(p, s));
      return iface(local ? "lo" : null, value, local === false);
    },
    "-f": () => () => false,
  };

  const toPort = p => p.port, fromPort = (p, s) => s.packet.sourcePort;
  const PORTS = { "--dport": value => port(value, toPort), "--sport": value => port(value, fromPort) };
  const several = (value, ofs) => {
    const tests = value.split(",").flatMap(one => ofs.map(of => port(one, of)));
    return tests.includes(unknown) ? unknown : any(tests);
  };
  const range = (value, of) => {
    const [low, high] = value.split("-").map(address);
    return low === null ? unknown : p => { const x = of(p); return x === null ? null : low <= x && x <= (high ?? low); };
  };
  const type = (special, local, value) => {
    const wanted = new Set(value.split(","));
    const certain = local ? "LOCAL" : special;
    if (certain) return wanted.has(certain);
    wanted.delete("MULTICAST");
    if (local === false) wanted.delete("LOCAL");
    return wanted.size ? null : false;
  };
  const ctstate = value => {
    const wanted = new Set(value.split(","));
    return (p, s) => {
      const now = conntrack(p, s);
      if (wanted.has(now)) return true;
      const moved = p.translated && (p.destination !== s.packet.destination || p.port !== s.packet.port);
      if (now === "NEW") return (wanted.has("DNAT") && moved) || (wanted.has("SNAT") && p.masqueraded);
      return ["ESTABLISHED", "RELATED"].includes(now) && (wanted.has("DNAT") || wanted.has("SNAT")) ? null : false;
    };
  };
  const bridged = (p, s) => s.packet.origin === "node" ? false : s.packet.bridged ?? null;
  const bridgePort = (p, s) => bridged(p, s) === false ? false : null;
  const ownProcess = (p, s) => s.packet.origin === "node" ? null : false;
  const flags = (mask, wanted) => (p, s) => {
    const asked = mask.split(","), set = wanted.split(",").filter(flag => flag !== "NONE");
    const syn = asked.includes("SYN") ? 1 : 0;
    return s.packet.state === "NEW" && s.packet.protocol === "tcp" ? set.length === syn && (!syn || set[0] === "SYN") : null;
  };

  // Classic BPF that looks at nothing but the packet's addresses: kpx.analysis.bpf.
  const ALU = {
    0x00: (a, b) => a + b, 0x10: (a, b) => a - b, 0x20: (a, b) => a * b, 0x30: (a, b) => b ? a / b : null,
    0x40: (a, b) => a | b, 0x50: (a, b) => a & b, 0x60: (a, b) => b < 32n ? a << b : null,
    0x70: (a, b) => b < 32n ? a >> b : null, 0x90: (a, b) => b ? a % b : null, 0xa0: (a, b) => a ^ b,
  };
  const JUMPS = { 0x10: (a, b) => a === b, 0x20: (a, b) => a > b, 0x30: (a, b) => a >= b, 0x40: (a, b) => (a & b) !== 0n };

  function bytecode(text) {
    const [count, ...lines] = text.split(",");
    const program = lines.filter(line => line.trim()).map(line => line.trim().split(/\s+/).map(Number));
    const sound = program.every(one => one.length === 4 && one.every(Number.isInteger));
    if (!sound || Number(count) !== program.length || !program.length || program.length > 64) return unknown;
    return (p, s) => runs(program, [p.source, p.destination], s.host.bits);
  }

  // A word of the source, or of the destination, which stands behind it; null if that isn't known.
  function loaded(addresses, bits, at) {
    const place = at - (bits === 32 ? 12 : 8), size = bits / 8;
    if (place < 0 || place >= 2 * size || place % 4) return null;
    const address = addresses[Math.floor(place / size)];
    return address === null ? null : (address >> BigInt(bits - 32 - 8 * (place % size))) & 0xffffffffn;
  }

  function runs(program, addresses, bits) {
    let a = 0n, x = 0n;
    for (let at = 0; at < program.length;) {
      const [code, jt, jf, number] = program[at++];
      const k = BigInt(number), operand = code & 8 ? x : k;
      const kind = code & 7, what = code & 0xf0;
      if (code === 0x20) {
        const word = loaded(addresses, bits, number);
        if (word === null) return null;
        a = word;
      } else if (code === 0x00) a = k;
      else if (code === 0x01) x = k;
      else if (kind === 4 && ALU[what]) {
        const result = ALU[what](a, operand);
        if (result === null) return null;
        a = BigInt.asUintN(32, result);
      } else if (code === 0x05) at += number;
      else if (kind === 5 && JUMPS[what]) at += JUMPS[what](a, operand) ? jt : jf;
      else if (kind === 6) return code === 0x16 ? a !== 0n : k !== 0n;
      else if (kind === 7) { if (code & 0x80) a = x; else x = a; }
      else return null;
    }
    return null;
  }

  const MATCHES = {
    bpf: { "--bytecode": bytecode },
    tcp: { ...PORTS, "--tcp-flags": flags }, udp: PORTS, sctp: PORTS,
    multiport: {
      "--dports": value => several(value, [toPort]), "--sports": value => several(value, [fromPort]),
      "--ports": value => several(value, [fromPort, toPort]),
    },
    iprange: {
      "--src-range": value => range(value, p => p.source), "--dst-range": value => range(value, p => p.destination),
    },
    mark: { "--mark": value => marked(value, p => p.mark) },
    // A connection that is older than the packet may bear any mark.
    connmark: {
      "--mark": value => { const test = marked(value, p => p.connmark); return (p, s) => s.packet.state === "NEW" ? test(p) : null; },
    },
    conntrack: { "--ctstate": ctstate }, state: { "--state": ctstate },
    addrtype: {
      "--dst-type": value => (p, s) => type(s.host.kind(p.destination), s.host.isLocal(p.destination), value),
      "--src-type": value => (p, s) => {
        if (p.source === null) return type("", true, value);
        return type(s.host.kind(p.source), s.host.isLocal(p.source) ?? s.packet.origin === "node", value);
      },
    },
    physdev: {
      "--physdev-is-in": () => bridged, "--physdev-is-out": () => bridgePort, "--physdev-is-bridged": () => bridgePort,
      "--physdev-in": () => bridgePort, "--physdev-out": () => bridgePort,
    },
    nfacct: {
      "--nfacct-name": value =>
        ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"].includes(value) ? () => true : unknown,
    },
    owner: { "--uid-owner": () => ownProcess, "--gid-owner": () => ownProcess, "--socket-exists": () => ownProcess },
  };

  function test(make, option) {
    const [, negated, ...values] = option;
    const made = make && values.every(value => value !== undefined) ? make(...values) : unknown;
    return negated ? (p, s) => { const answer = made(p, s); return answer === null ? null : !answer; } : made;
  }

  const named = options => Object.fromEntries(options.map(([name, negated, ...values]) => [name, { negated, values }]));

  function statistic(options) {
    const has = named(options), mode = has["--mode"]?.values[0];
    if (mode === "random" && has["--probability"]) {
      const steps = Math.round(Number(has["--probability"].values[0]) * 2 ** 31);
      if (!(steps >= 0 && steps <= 2 ** 31)) return { test: unknown };
      const part = reduced(BigInt(steps), 1n << 31n);
      return { chance: has["--probability"].negated ? rest(part) : part };
    }
    if (mode === "nth" && has["--every"]) {
      if (!/^\d+$/.test(has["--every"].values[0])) return { test: unknown };
      const part = { n: 1n, d: BigInt(has["--every"].values[0]) || 1n };
      return { chance: has["--every"].negated ? rest(part) : part };
    }
    return { test: unknown };
  }

  // A list of xt_recent: the sender is on those that the packet says, and on those that it is put on on its way.
  const RECENT = ["--set", "--rcheck", "--update", "--remove"];
  function recent(options) {
    const has = named(options), actions = RECENT.filter(name => has[name]);
    const allowed = new Set([...actions, "--name", "--mask", "--rsource", "--seconds", "--reap"]);
    const seconds = Number(has["--seconds"]?.values[0] ?? Infinity);
    if (options.some(option => option[1] || !allowed.has(option[0])) || actions.length !== 1 || !has["--name"] || Number.isNaN(seconds))
      return { test: unknown };
    return { recent: actions[0], name: has["--name"].values[0], seconds };
  }

  // Whether such a match holds, and the packet behind it: {known} are seconds since the sender was put on each list.
  function remembered({ recent, name, seconds }, p) {
    const age = p.known.get(name), others = () => [...p.known].filter(([one]) => one !== name);
    if (recent === "--remove") return age === undefined ? [false, p] : [true, { ...p, known: new Map(others()) }];
    const holds = recent === "--set" || age <= seconds;
    return [holds, holds && recent !== "--rcheck" ? { ...p, known: new Map([...others(), [name, 0]]) } : p];
  }

  function conditions(rule) {
    const heads = rule[1].map(option => ({ test: test(HEAD[option[0]], option), what: option[0], options: [option] }));
    return heads.concat(rule[2].flatMap(([module, options]) =>
      ofMatch(module, options).map((one, index) => ({ ...one, what: `${module} ${index}`, options }))));
  }

  function ofMatch(module, options) {
    if (module === "statistic") return [statistic(options)];
    if (module === "recent") return [recent(options)];
    const found = !options.length && !MATCHES[module] ? [{ test: unknown }] : [];
    if (module === "connmark") found.push({ test: (p, s) => !["UNTRACKED", "INVALID"].includes(conntrack(p, s)) });
    return [...found, ...options.map(option => ({ test: test(MATCHES[module]?.[option[0]], option) }))];
  }

  // All cases of asking a rule: [true | false | null, packet, weight]. Of what isn't known both answers are cases, each
  // with the whole weight and borne by the packet as assumed; or null, if it bears too many already.
  function* ask(rule, p, weight, scene, place) {
    rule.conditions ??= conditions(rule);
    let on = [[p, weight]], doubted = [];
    for (const one of rule.conditions) {
      if (one.chance !== undefined) {
        for (const [q, part] of on) yield [false, q, times(part, rest(one.chance))];
        on = on.map(([q, part]) => [q, times(part, one.chance)]);
      } else if (one.recent) {
        const cases = [...both(on, doubted, scene, place)];
        [on, doubted] = [[], []];
        for (const [answer, q, part] of cases) {
          const [holds, after] = answer ? remembered(one, q) : [answer, q];
          if (holds) on.push([after, part]);
          else yield [holds, after, part];
        }
      } else {
        const answer = one.test(p, scene);
        if (answer === false) { for (const [q, part] of on) yield [false, q, part]; return; }
        if (answer === null) doubted.push(one);
      }
    }
    yield* both(on, doubted, scene, place);
  }

  function* both(on, doubted, scene, place) {
    next: for (let [p, weight] of on) {
      for (const one of doubted) {
        const key = keyOf(one, p, scene, place), told = implied(p.assumed, key), negated = plainly(one) && Boolean(one.options[0][1]);
        if (told === null) {
          if (p.assumed.length === MOST_DOUBTS) { yield [null, p, weight]; continue next; }
          yield [false, { ...p, assumed: [...p.assumed, { key, truth: negated }] }, weight];
          p = { ...p, assumed: [...p.assumed, { key, truth: !negated }] };
        } else if (told === negated) { yield [false, p, weight]; continue next; }
      }
      yield [true, p, weight];
    }
  }

  // ---- what isn't known, and where that makes no difference: kpx.analysis.doubt ----

  const MOST_DOUBTS = 8, MOST_QUESTIONS = 12;
  const STATEFUL = new Set(["limit", "hashlimit", "quota", "connlimit", "nfacct", "rateest", "statistic", "recent"]);
  const plainly = one => one.what === "-i" || one.what === "-o"
    || (one.what === "addrtype 0" && one.options.length === 1 && one.options[0].length === 3 && one.options[0][2] === "LOCAL");
  const keyed = parts => ({ parts, id: JSON.stringify(parts, (_, value) => typeof value === "bigint" ? `${value}` : value) });

  // What stands for an answer that isn't known: the same wherever the same is asked of the same packet.
  function keyOf(one, p, scene, place) {
    if (one.what === "-i") return keyed(["-i", one.options[0][2]]);
    if (one.what === "-o") return keyed(["-o", one.options[0][2], routedTo(p, scene)]);
    if (plainly(one)) return keyed(["local", one.options[0][0] === "--src-type" ? p.source : p.destination]);
    const packet = [p.source, p.destination, p.port, p.mark, p.connmark, p.masqueraded];
    return keyed([one.what, one.options, packet, STATEFUL.has(one.what.split(" ")[0]) ? place : []]);
  }

  function implied(assumed, key) {
    for (const { key: other, truth } of assumed) {
      if (other.id === key.id) return truth;
      const [what, name, ...more] = other.parts, [asked, wanted, ...rest] = key.parts;
      if (what === asked && (what === "-i" || what === "-o") && keyed(more).id === keyed(rest).id) {
        const told = ofInterface(name, truth, wanted);
        if (told !== null) return told;
      }
    }
    return null;
  }

  function ofInterface(name, isIt, asked) {
    const [start, other] = [name, asked].map(one => one.replace(/\+$/, ""));
    if (isIt && !name.endsWith("+")) return asked === name || (asked.endsWith("+") && name.startsWith(other));
    if (isIt) return asked.endsWith("+") && start.startsWith(other) ? true : other.startsWith(start) ? null : false;
    return name.endsWith("+") && other.startsWith(start) ? false : null;
  }

  const without = (p, id) => ({ ...p, assumed: p.assumed.filter(one => one.key.id !== id) });
  const total = some => some.reduce((sum, [, weight]) => plus(sum, weight), NONE);
  const idOf = p => JSON.stringify([KEPT.map(key => `${p[key]}`), [...p.known].sort(), p.assumed.map(one => [one.key.id, one.truth]).sort()]);

  // Packets that bear no assumption any more on which nothing depends: both ways have led to the same.
  function joined(on) {
    const ids = new Set(on.flatMap(([p]) => p.assumed.map(one => one.key.id)));
    for (const id of ids) {
      const sides = new Map();
      for (const one of on) {
        const truth = one[0].assumed.find(other => other.key.id === id)?.truth;
        if (truth === undefined) continue;
        const shape = idOf(without(one[0], id));
        if (!sides.has(shape)) sides.set(shape, { true: [], false: [] });
        sides.get(shape)[truth].push(one);
      }
      for (const { true: yes, false: no } of sides.values())
        if (fraction(total(yes)) === fraction(total(no)))
          on = [...on.filter(one => !yes.includes(one) && !no.includes(one)), ...no.map(([p, weight]) => [without(p, id), weight])];
    }
    return on;
  }

  // The ends of a packet's ways whose probabilities add up to 1: what is certain, and the rest as unknown.
  function settled(ends, doubts) {
    const shape = end => ({ ...end.p, ...Object.fromEntries(KEPT.map(key => [key, 0])) });
    const groups = new Map();
    for (const end of ends) {
      const key = JSON.stringify(end.outcome);
      groups.set(key, [...groups.get(key) ?? [], [{ ...shape(end), end }, end.weight]]);
    }
    ends = [...groups.values()].flatMap(some => joined(some)).map(([p, weight]) => ({ ...p.end, p, weight }));
    const open = new Map(ends.flatMap(end => end.p.assumed.map(one => [one.key.id, one.key])));
    const keys = [...open.values()].sort((a, b) => compare(doubts.get(a.id).order, doubts.get(b.id).order));
    if (!keys.length) return ends;
    if (keys.length > MOST_QUESTIONS) {
      const certain = ends.filter(end => !end.p.assumed.length);
      return [...certain, lost(doubts.get(keys[0].id), rest(total(certain.map(end => [0, end.weight]))))];
    }
    const made = tree(ends, keys, []);
    const world = ofWorld(ends, keys);
    if (!made.key) return world;
    const leaves = leavesOf(made).map(leaf => new Map(leaf.shares));
    const sure = new Map([...leaves[0].keys()].map(key => [key, leaves.map(leaf => leaf.get(key) ?? NONE).reduce(least)]));
    const shares = sharesOf(world);
    const scaled = world.map(end => {
      const key = JSON.stringify(end.outcome), part = times(end.weight, sure.get(key) ?? NONE), all = shares.get(key);
      return { ...end, weight: reduced(part.n * all.d, part.d * all.n) };
    });
    const left = rest([...sure.values()].reduce(plus, NONE));
    return [...scaled.filter(end => end.weight.n), lost(doubts.get(made.key.id), left)];
  }

  const lost = (doubt, weight) =>
    ({ outcome: { fate: "unknown", destination: "", masqueraded: false, detail: doubt.detail }, weight, steps: doubt.steps, known: new Map() });
  const least = (a, b) => a.n * b.d < b.n * a.d ? a : b;
  const compare = (a, b) => {
    const at = a.findIndex((one, index) => one !== b[index]);
    return at < 0 ? 0 : a[at] < b[at] ? -1 : 1;
  };

  function sharesOf(ends) {
    const found = new Map();
    for (const { outcome, weight } of ends) found.set(JSON.stringify(outcome), plus(found.get(JSON.stringify(outcome)) ?? NONE, weight));
    return found;
  }

  const where = (ends, id, truth) => ends.filter(end => (end.p.assumed.find(one => one.key.id === id)?.truth ?? truth) === truth);

  // Outcomes with their shares in each world, as a tree of questions that make a difference.
  function tree(ends, keys, chosen) {
    if (!keys.length) {
      const shares = [...sharesOf(ends)].sort(([a], [b]) => a < b ? -1 : 1);
      return { shares, id: JSON.stringify(shares.map(([key, weight]) => [key, fraction(weight)])) };
    }
    const [key, ...more] = keys, told = implied(chosen, key);
    const sides = [false, true].filter(truth => told === null || told === truth)
      .map(truth => tree(where(ends, key.id, truth), more, [...chosen, { key, truth }]));
    const [no, yes] = [sides[0], sides[sides.length - 1]];
    return no.id === yes.id ? no : { key, no, yes, id: JSON.stringify([key.id, no.id, yes.id]) };
  }

  const leavesOf = one => one.key ? [...leavesOf(one.no), ...leavesOf(one.yes)] : [one];

  function ofWorld(ends, keys) {
    const chosen = [];
    for (const key of keys) {
      const truth = Boolean(implied(chosen, key));
      chosen.push({ key, truth });
      ends = where(ends, key.id, truth);
    }
    return ends;
  }

  // The bits of marks that rules ask for: kpx.analysis.asked.
  function marks(tables) {
    const mask = text => text === undefined ? 0xffffffff : Number.isNaN(Number(text)) ? 0xffffffff : Number(text);
    const asked = { mark: 0, connmark: 0 }, copies = [], all = { mark: 0xffffffff, connmark: 0xffffffff };
    for (const chains of Object.values(tables))
      for (const rules of Object.values(chains))
        for (const [text] of rules) {
          if (!text.includes("mark ")) continue;
          const found = [...text.matchAll(/-m (mark|connmark) (?:! )?--mark \w+(?:\/(\w+))?(?= |$)/g)];
          if (found.length < (text.match(/-m (?:conn)?mark /g) ?? []).length) return all;
          for (const [, kind, bits] of found) asked[kind] |= mask(bits);
          for (const [, kind, of, other] of text.matchAll(/--(save|restore)-mark(?: --nfmask (\w+))?(?: --ctmask (\w+))?(?= |$)/g))
            copies.push([kind, mask(of), mask(other)]);
        }
    for (let before = null; before !== `${asked.mark} ${asked.connmark}`;) {
      before = `${asked.mark} ${asked.connmark}`;
      for (const [kind, of, other] of copies)
        if (kind === "restore") asked.connmark |= other & asked.mark;
        else asked.mark |= of & asked.connmark;
    }
    return asked;
  }

  // ---- targets ----

  const SILENT = new Set(["", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "CHECKSUM", "TCPMSS", "TCPOPTSTRIP", "CLASSIFY",
    "DSCP", "TOS", "ECN", "TTL", "HL", "SECMARK", "CONNSECMARK", "RATEEST", "IDLETIMER", "LED", "TEE", "SET"]);
  const xmark = (mark, value) => {
    const [stored, bits] = value.split("/").map(Number);
    return ((mark & ~(bits ?? 0xffffffff)) ^ stored) >>> 0;
  };
  const place = value => {
    const found = value.match(/^\[(.*)\](?::(\d+))?$/) || (value.split(":").length > 2 ? [0, value] : value.match(/^([^:]*)(?::(\d+))?$/));
    return found && address(found[1]) !== null ? { host: address(found[1]), port: found[2] } : null;
  };
  const CHANGES = {
    MARK: (p, o) => o.length === 1 && o[0][0] === "--set-xmark" ? { ...p, mark: xmark(p.mark, o[0][2]) } : null,
    CONNMARK: (p, o, s) => {
      const has = named(o);
      if (["UNTRACKED", "INVALID"].includes(conntrack(p, s))) return p;
      if (has["--set-xmark"]) return { ...p, connmark: xmark(p.connmark, has["--set-xmark"].values[0]) };
      const [from, to] = ["--nfmask", "--ctmask"].map(name => Number(has[name]?.values[0] ?? 0xffffffff));
      if (has["--save-mark"]) return { ...p, connmark: ((p.connmark & ~to) ^ (p.mark & from)) >>> 0 };
      if (has["--restore-mark"] && s.packet.state === "NEW") return { ...p, mark: ((p.mark & ~from) ^ (p.connmark & to)) >>> 0 };
      return has["--restore-mark"] && !((from | to) & s.marks) ? p : null;
    },
    NOTRACK: (p, o, s) => s.in === "lo" ? p : { ...p, tracked: false },
    CT: (p, o, s) => {
      const names = o.map(option => option[0]);
      if (names.length === 1 && names[0] === "--notrack") return CHANGES.NOTRACK(p, o, s);
      return names.every(name => ["--helper", "--ctevents", "--expevents", "--timeout"].includes(name)) ? p : null;
    },
    DNAT: (p, o, s) => {
      const to = o.filter(option => option[0] === "--to-destination"), others = ["--to-destination", "--random", "--persistent"];
      if (to.length !== 1 || to[0].length !== 3 || o.some(option => option[1] || !others.includes(option[0]))) return null;
      const bare = to[0][2].match(/^:(\d+)$/);
      if (bare) return { ...p, port: +bare[1], translated: true };
      const found = place(to[0][2]);
      if (!found || (found.host === 0n && s.host.bits === 128)) return null;
      return { ...p, destination: found.host, port: found.port === undefined ? p.port : +found.port, translated: true };
    },
    REDIRECT: (p, o, s) => {
      const ports = o.filter(option => option[0] === "--to-ports").map(option => option[2]);
      if (s.hook !== "OUTPUT" || ports.length < o.length || ports.some(one => !/^\d+$/.test(one))) return null;
      const loopback = s.host.bits === 32 ? 0x7f000001n : 1n;
      return { ...p, destination: loopback, port: ports.length ? +ports[0] : p.port, translated: true };
    },
    SNAT: (p, o) => {
      const to = o.filter(option => option[0] === "--to-source").map(option => option[2]);
      const found = to.length === 1 && !to[0].includes("-") ? place(to[0]) : { host: null };
      return found && { ...p, source: found.host, masqueraded: true };
    },
    MASQUERADE: p => ({ ...p, source: null, masqueraded: true }),
  };
  const GOES_ON = new Set(["MARK", "CONNMARK", "NOTRACK", "CT"]);

  // ---- the way through tables and hooks ----

  const TABLES = {
    PREROUTING: ["raw", "mangle", "nat"], INPUT: ["mangle", "filter", "security", "nat"],
    FORWARD: ["mangle", "filter", "security"], OUTPUT: ["raw", "mangle", "nat", "filter", "security"],
    POSTROUTING: ["mangle", "nat"],
  };
  const HOOKS = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
  const ALL_TABLES = ["raw", "mangle", "nat", "filter", "security"];
  const MOST_WAYS = 20000, DEEPEST = 128, MOST_STEPS = 500, LAST_STEPS = 20;

  class TooManyWays extends Error {}

  class Journey {
    // `sampled`: of ways that come to the same one is kept; otherwise all are, and too many are an error.
    constructor(data, packet, sampled) {
      Object.assign(this, { data, packet, sampled, ends: [], passed: 0, met: new Set() });
      this.doubts = new Map();
      this.marks = data.marks ??= marks(data.tables);
      const bits = data.family === "ipv6" ? 128 : 32;
      const own = data.host && new Set(data.host.map(one => address(one)));
      const loopback = x => bits === 32 ? x >> 24n === 127n : x === 1n;
      const kind = x => bits === 128 ? (x >> 120n === 0xffn ? "MULTICAST" : "")
        : x >> 28n === 0xen ? "MULTICAST" : x >> 24n === 0n || x === 0xffffffffn ? "BROADCAST" : "";
      const isLocal = x => loopback(x) || own?.has(x) ? true : own || kind(x) || data.elsewhere.has(x) ? false : null;
      this.host = { bits, kind, isLocal };
    }

    // Every way to an outcome: {outcome, weight, steps}.
    paths() {
      const { source, destination, port, origin, mark, known } = this.packet;
      const start = { source, destination, port, mark, connmark: 0, translated: false, masqueraded: false,
        tracked: true, unread: [], known: new Map(Object.entries(known)), assumed: [], steps: [] };
      const begin = [[start, ONE]];
      if (origin === "node") this.send(begin);
      else this.route(this.routable(this.pass("PREROUTING", begin, this.packet.in, "")), on => this.takeIn(on), on => this.forward(on));
      return settled(this.ends, this.doubts);
    }

    note(key, order, detail, steps) {
      const known = this.doubts.get(key.id);
      if (!known || compare(order, known.order) < 0) this.doubts.set(key.id, { order, detail, steps });
    }

    end(fate, p, weight, detail = "") {
      const destination = fate === "translated" ? endpoint(p.destination, p.port, this.host.bits) : "";
      const masqueraded = (fate === "translated" || fate === "untouched") && p.masqueraded;
      let outcome = { fate, destination, masqueraded, detail };
      if (p.unread.length && fate !== "unknown") { // behind rules that nobody could read nothing is certain
        const why = p.unread.map(table => this.data.unread[table]).join(" and ");
        const words = [fate, destination, masqueraded ? "masqueraded" : "", detail].filter(Boolean).join(" ");
        outcome = { fate: "unknown", destination: "", masqueraded: false, detail: `${why}; by the other tables: ${words}` };
      }
      this.ends.push({ outcome, weight, steps: p.steps, known: p.known, p });
      if (this.ends.length > MOST_WAYS) {
        if (!this.sampled) throw new TooManyWays();
        this.ends = summedEnds(this.ends);
      }
    }

    arrive(on) { for (const [p, weight] of on) this.end(p.translated ? "translated" : "untouched", p, weight); }
    takeIn(on) { this.arrive(this.pass("INPUT", on, this.packet.in, "")); }
    forward(on) {
      const through = this.pass("FORWARD", on, this.packet.in, this.packet.out);
      this.arrive(this.pass("POSTROUTING", through, this.packet.in, this.packet.out));
    }
    send(on) {
      const out = this.pass("POSTROUTING", this.pass("OUTPUT", on, "", this.packet.out), "", this.packet.out);
      this.route(out, here => this.loop(here), away => this.arrive(away));
    }
    loop(on) {
      const again = this.pass("PREROUTING", on, "lo", "", "nat");
      this.arrive(this.pass("INPUT", again, "lo", "", "nat"));
    }

    // The kernel drops what was translated to 0.0.0.0; what the host itself sends there, it delivers to itself.
    isNowhere(p) { return this.host.bits === 32 && p.destination === 0n; }
    routable(on) {
      return on.filter(([p, weight]) => !(p.translated && this.isNowhere(p)) || this.end("dropped", p, weight));
    }

    // What is for the host itself goes one way, the rest another; where that isn't known, both.
    route(on, here, away) {
      const ways = { true: [], false: [] };
      for (const [p, weight] of on) {
        const key = keyed(["local", p.destination]), local = this.isNowhere(p) || (this.host.isLocal(p.destination) ?? implied(p.assumed, key));
        if (local !== null) { ways[local].push([p, weight]); continue; }
        this.note(key, [-1, 0, "", 0], `whether ${plain(p.destination, this.host.bits)} is an address of the host`, p.steps);
        for (const truth of [true, false]) ways[truth].push([{ ...p, assumed: [...p.assumed, { key, truth }] }, weight]);
      }
      here(ways.true);
      away(ways.false);
    }

    pass(hook, on, inward, outward, without = "") {
      for (const table of TABLES[hook]) {
        if (table === without) continue;
        if (this.data.unread[table]) { on = this.unread(table, on); continue; }
        if (!this.data.tables[table]?.[hook]) continue;
        const scene = { packet: this.packet, host: this.host, marks: this.marks.mark, table, hook, in: inward, out: outward };
        const [asked, passed] = table === "nat" ? this.translatable(on) : [on, []];
        for (const [p, weight] of asked)
          for (const [verdict, after, part] of this.chain(scene, hook, p, weight, [])) {
            const policy = this.data.policies[`${table} ${hook}`] ?? "ACCEPT";
            if (verdict === "accept" || policy === "ACCEPT") passed.push([after, part]);
            else this.end("dropped", this.step(after, scene, hook, 0, `policy ${policy}`), part);
          }
        on = joined(this.sampled ? summed(passed) : passed);
      }
      return on;
    }

    // Pass a table of which nobody knows the rules.
    unread(table, on) {
      const met = new Set(table === "nat" ? this.translatable(on)[0] : on);
      return on.map(one => met.has(one) && !one[0].unread.includes(table) ? [{ ...one[0], unread: [...one[0].unread, table] }, one[1]] : one);
    }

    // nat is asked for what conntrack has not seen before; the others pass it.
    translatable(on) {
      const { state, protocol } = this.packet, fresh = state === "NEW" || (state === "RELATED" && protocol !== "icmp");
      return [on.filter(([p]) => fresh && p.tracked), on.filter(([p]) => !fresh || !p.tracked)];
    }

    step(p, scene, chain, position, rule) {
      return { ...p, steps: [...p.steps, { table: scene.table, hook: scene.hook, chain, position, rule }] };
    }

    // How packets leave a chain: ["accept" | "back", packet, weight]. What comes of a packet that enters it is worked
    // out once, unless all ways are to be told apart: the work grows with the rules, not with the ways through them.
    *chain(scene, name, p, weight, above) {
      if (!this.sampled) {
        this.met.add(`${scene.table} ${scene.hook} ${name} ${idOf(p)}`);
        if (++this.passed > 200 + 8 * this.met.size) throw new TooManyWays();
        yield* this.walk(scene, name, p, weight, above);
        return;
      }
      const { out, ends } = this.passage(scene, name, p, above);
      for (const end of ends)
        this.ends.push({ ...end, weight: times(weight, end.weight), steps: behind(p.steps, end.steps) });
      for (const [verdict, q, part] of out) yield [verdict, { ...q, steps: behind(p.steps, q.steps) }, times(weight, part)];
    }

    passage(scene, name, p, above) {
      const key = `${name} ${idOf(p)}`, known = scene.passages ??= new Map();
      if (known.has(key)) return known.get(key);
      const kept = this.ends;
      this.ends = [];
      const ways = [...this.walk(scene, name, { ...p, steps: [] }, ONE, above)];
      const out = ["accept", "back"].flatMap(verdict =>
        summed(ways.filter(([one]) => one === verdict).map(([, q, part]) => [q, part])).map(([q, part]) => [verdict, q, part]));
      const found = { out, ends: summedEnds(this.ends) };
      this.ends = kept;
      if (!above.includes(name) && above.length < DEEPEST) known.set(key, found);
      return found;
    }

    *walk(scene, name, p, weight, above) {
      const rules = this.data.tables[scene.table][name];
      if (!rules || above.includes(name) || above.length === DEEPEST) {
        const why = above.includes(name) ? "leads to itself" : above.length === DEEPEST ? "lies too deep" : "is missing";
        this.end("unknown", p, weight, `${scene.table}: ${name} ${why}`);
        return;
      }
      yield* this.rules(scene, name, rules, 0, p, weight, [...above, name]);
    }

    *rules(scene, name, rules, from, p, weight, above) {
      let on = [[p, weight]];
      for (let at = from; at < rules.length && on.length; at++) {
        const next = [];
        for (const [q, part] of on)
          for (const [truth, after, share] of ask(rules[at], q, part, scene, [scene.table, scene.hook, name, at + 1])) {
            if (!share.n) continue;
            for (const { key } of after.assumed.slice(q.assumed.length))
              this.note(key, [HOOKS.indexOf(scene.hook), ALL_TABLES.indexOf(scene.table), name, at + 1],
                `${scene.table} ${name}: ${rules[at][0]}`, this.step(q, scene, name, at + 1, rules[at][0]).steps);
            if (truth === false) next.push([after, share]);
            else {
              const known = this.step(after, scene, name, at + 1, rules[at][0]);
              if (truth === null) this.lost(scene, name, rules[at], known, share);
              else for (const [verdict, out, rest] of this.act(scene, name, rules[at], known, share, above))
                if (verdict === "on") next.push([out, rest]);
                else yield [verdict, out, rest];
            }
          }
        on = joined(this.sampled ? summed(next) : next);
        if (on.length > MOST_WAYS) on = this.crowded(scene, name, at + 1, on);
      }
      for (const [q, part] of on) yield ["back", q, part];
    }

    *act(scene, name, rule, p, weight, above) {
      const target = rule[3];
      if (SILENT.has(target)) yield ["on", p, weight];
      else if (target === "RETURN") yield ["back", p, weight];
      else if (target === "ACCEPT") yield ["accept", p, weight];
      else if (target === "DROP") this.end("dropped", p, weight);
      else if (target === "REJECT") this.end("rejected", p, weight, rule[4].flatMap(option => option[2] ?? []).join(" "));
      else if (Object.hasOwn(CHANGES, target)) {
        const changed = CHANGES[target](p, rule[4], scene);
        if (changed) {
          const counting = { ...changed, mark: (changed.mark & this.marks.mark) >>> 0, connmark: (changed.connmark & this.marks.connmark) >>> 0 };
          yield [GOES_ON.has(target) ? "on" : "accept", counting, weight];
        }
        else this.lost(scene, name, rule, p, weight);
      } else if (!this.data.tables[scene.table][target]) this.lost(scene, name, rule, p, weight);
      else
        for (const [verdict, out, part] of this.chain(scene, target, p, weight, above))
          yield [verdict === "accept" ? "accept" : rule[5] ? "back" : "on", out, part];
    }

    // Where packets have become too many different ones, what comes of them isn't known.
    crowded(scene, chain, position, on) {
      if (!this.sampled) throw new TooManyWays();
      const detail = `${scene.table} ${chain}: up to rule ${position} packets have more than ${MOST_WAYS} fates`;
      for (const [p, weight] of on) this.end("unknown", p, weight, detail);
      return [];
    }

    lost(scene, chain, rule, p, weight) { this.end("unknown", p, weight, `${scene.table} ${chain}: ${rule[0]}`); }
  }

  const KEPT = ["source", "destination", "port", "mark", "connmark", "translated", "masqueraded", "tracked", "unread"];

  // Steps, and others behind them; where that gets too long, what stands between is left out.
  function behind(steps, later) {
    if (steps.length + later.length <= MOST_STEPS) return [...steps, ...later];
    const last = later.slice(-LAST_STEPS), gap = { ...last[0], position: 0, rule: "… more rules, not shown" };
    return [...steps, ...(last.length < later.length ? [gap] : []), ...last];
  }

  // Packets that are the same but for their ways are one, with the way of the first.
  function summed(on) {
    const found = new Map();
    for (const [p, weight] of on) {
      const key = idOf(p), one = found.get(key);
      found.set(key, [one ? one[0] : p, one ? plus(one[1], weight) : weight]);
    }
    return [...found.values()];
  }

  function summedEnds(ends) {
    const found = new Map();
    for (const end of ends) {
      const key = `${JSON.stringify(end.outcome)} ${idOf(end.p)}`, one = found.get(key);
      found.set(key, one ? { ...one, weight: plus(one.weight, end.weight) } : end);
    }
    return [...found.values()];
  }

  // Outcomes with their probabilities, the likeliest first.
  function outcomes(paths) {
    const found = new Map();
    for (const { outcome, weight } of paths) {
      const key = JSON.stringify(outcome);
      found.set(key, found.has(key) ? plus(found.get(key), weight) : weight);
    }
    return [...found].map(([key, weight]) => ({ ...JSON.parse(key), exact: fraction(weight), share: decimal(weight) }))
      .sort((a, b) => b.share - a.share || (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));
  }

  // A packet {protocol, source, sourcePort, destination, port, origin, in, out, mark, state, bridged, known} with texts
  // for addresses; `known` are the seconds since its sender was put on lists of xt_recent.
  function trace(data, packet) {
    const source = address(packet.source), destination = address(packet.destination);
    const version = text => text.includes(":") ? "ipv6" : "ipv4";
    for (const [what, number] of [["source", source], ["destination", destination]])
      if (number === null || version(packet[what]) !== data.family) throw new Error(`${what}: not an address of ${data.family}: ${packet[what]}`);
    data.elsewhere ??= new Set(elsewhere(data));
    const asked = { mark: 0, state: "NEW", known: {}, ...packet, source, destination };
    let paths, sampled = false;
    try {
      paths = new Journey(data, asked, false).paths();
    } catch (error) {
      if (!(error instanceof TooManyWays)) throw error;
      sampled = true;
      paths = new Journey(data, asked, true).paths();
    }
    paths.sort((a, b) => decimal(b.weight) - decimal(a.weight));
    return { sampled, paths: paths.map(one => ({ ...one, exact: fraction(one.weight), share: decimal(one.weight) })), outcomes: outcomes(paths) };
  }

  // Where the host's own addresses aren't known, what rules translate to is taken to be elsewhere.
  function elsewhere(data) {
    if (data.host) return [];
    return Object.values(data.tables.nat ?? {}).flat().filter(rule => rule[3] === "DNAT")
      .map(rule => place(rule[4].at(-1)?.[2] ?? "")?.host).filter(one => one !== undefined && one !== null);
  }

  return { trace, address, endpoint };
})();
