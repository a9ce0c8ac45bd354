#!/usr/bin/env python3
"""Compare two `iptables-save` dumps by what they mean for Service proxying.

    compare.py EXPECTED ACTUAL      exit 0: same; 1: differs (differences on stdout); 2: unreadable

Inside a rule, the order of the `-m` groups does not count. Inside a chain the order of rules counts,
except in the dispatch chains (see UNORDERED), whose rules are disjoint; there only the jump to
KUBE-NODEPORTS must come last. In the built-in chains only jumps to KUBE-* chains are compared, as a set.
Counters, comments starting with '#', the canary chain and the mangle table are ignored.
"""

import shlex
import sys
from collections import Counter
from pathlib import Path

Group = tuple[str, ...]
Key = tuple[frozenset[Group], Group]
Tables = dict[str, dict[str, list[Key]]]

UNORDERED = {
    ("nat", "KUBE-SERVICES"),
    ("nat", "KUBE-NODEPORTS"),
    ("filter", "KUBE-SERVICES"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "KUBE-PROXY-FIREWALL"),
}


def rule_key(words: list[str]) -> Key:
    """One rule's words after `-A CHAIN`, as (frozenset of match groups, target words)."""
    groups: list[Group] = []
    target: Group = ()
    current: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        if word in ("-j", "-g"):
            target = tuple(words[i:])
            break
        if word == "-m":
            groups.append(tuple(current))
            current = [words[i + 1]]
            i += 2
            continue
        current.append(word)
        i += 1
    groups.append(tuple(current))
    # the leading group holds -s/-d/-p/-i/-o in any order: split it into single options
    head, rest = groups[0], [g for g in groups[1:] if len(g) > 1]
    options: list[Group] = []
    option: list[str] = []
    for word in head:
        if (word == "!" or word.startswith("-")) and option and option != ["!"]:
            options.append(tuple(option))
            option = []
        option.append(word)
    if option:
        options.append(tuple(option))
    return frozenset(options) | frozenset(rest), target


def load(path: str) -> Tables:
    tables: Tables = {}
    table: dict[str, list[Key]] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or line == "COMMIT":
            continue
        if line.startswith("*"):
            table = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            table.setdefault(line[1:].split()[0], [])
        elif line.startswith("-A "):
            words = shlex.split(line)
            table.setdefault(words[1], []).append(rule_key(words[2:]))
        else:
            raise SystemExit(f"{path}:{number}: not an iptables-save line: {line}")
    return tables


def show(key: Key) -> str:
    matches, target = key
    return " ".join(" ".join(g) for g in sorted(matches)) + "  " + " ".join(target)


def main(expected_path: str, actual_path: str) -> int:
    expected, actual = load(expected_path), load(actual_path)
    problems: list[str] = []
    for table in ("filter", "nat"):
        want, have = expected.get(table, {}), actual.get(table, {})
        for chain in sorted(set(want) | set(have)):
            if chain == "KUBE-PROXY-CANARY":
                continue
            w, h = want.get(chain), have.get(chain)
            if not chain.startswith("KUBE-"):
                jumps = [{r for r in rules or () if r[1] and r[1][1].startswith("KUBE-")} for rules in (w, h)]
                problems += [f"{table} {chain}: missing  {show(r)}" for r in jumps[0] - jumps[1]]
                problems += [f"{table} {chain}: extra    {show(r)}" for r in jumps[1] - jumps[0]]
                continue
            if w is None or h is None:
                # an empty chain nobody jumps to is no difference
                if w or h:
                    problems.append(f"{table} {chain}: {'extra' if w is None else 'missing'} chain")
                continue
            if (table, chain) in UNORDERED:
                problems += [f"{table} {chain}: missing  {show(r)}" for r in (Counter(w) - Counter(h)).elements()]
                problems += [f"{table} {chain}: extra    {show(r)}" for r in (Counter(h) - Counter(w)).elements()]
                last = [i for i, r in enumerate(h) if r[1][1:2] == ("KUBE-NODEPORTS",)]
                if last and last[0] < len(h) - len(last):
                    problems.append(f"{table} {chain}: the jump to KUBE-NODEPORTS is not last")
            elif w != h:
                problems.append(f"{table} {chain}: differs")
                problems += [f"    want {show(r)}" for r in w] + [f"    have {show(r)}" for r in h]
    print("\n".join(problems) if problems else "same")
    return 1 if problems else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
