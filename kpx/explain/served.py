"""The service ports that rules tell of: their ways in, chains and endpoints, read from comments and targets."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kpx.analysis.simulate import Simulator
from kpx.netfilter.names import MARK_DROP, MARK_MASQ, ours
from kpx.netfilter.owners import is_own_chain, rule_owner
from kpx.netfilter.rule import comment_of, target_of
from kpx.netfilter.ruleset import Rules

_ENTRY = re.compile(
    r"(?:(?:! )?-s \S+ )?(?:-d (?P<address>\S+)/(?:32|128) )?-p (?P<protocol>\S+) .*--dport (?P<port>[0-9]{1,5}) "
)
_DNAT = re.compile(r"-p (\S+) .*-j DNAT --to-destination (\S+)")
_KINDS = {"cluster IP": "cluster IP", "external IP": "external IP", "loadbalancer IP": "load balancer IP"}


@dataclass
class Served:
    """What rules tell of one service port. `chains` maps its chains to their rules.

    `marks` are the rules that mark its packets before they get there, as kube-proxy before 1.24 has them.
    """

    name: str
    protocol: str
    ways: dict[tuple[str, int], str] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    chains: dict[str, Rules] = field(default_factory=dict)

    @property
    def endpoints(self) -> frozenset[str]:
        """Where its rules translate to."""
        return frozenset(place for rules in self.chains.values() for place in places_in(rules))


def places_in(rules: Rules) -> Iterator[str]:
    """The endpoints, as `address:port`, to which rules translate."""
    yield from (found[2] for found in map(_DNAT.search, rules) if found)


def services(simulator: Simulator) -> Mapping[tuple[str, str], Served]:
    """Everything that rules tell, by service port and protocol."""
    found: dict[tuple[str, str], Served] = {}
    heads: dict[tuple[str, str], set[str]] = defaultdict(set)
    for table in ("nat", "filter"):
        for chain, rules in simulator.tables.get(table, {}).items():
            if ours(chain) and not is_own_chain(chain):
                for rule in rules:
                    owner, entry = rule_owner(rule), _ENTRY.match(rule)
                    if owner and entry:
                        key = (owner, entry["protocol"])
                        one = found.setdefault(key, Served(*key))
                        _take(one, chain, entry["address"] or "", int(entry["port"]), rule)
                        heads[key].add(target_of(rule) or "")
    nat = simulator.tables.get("nat", {})
    for key, one in found.items():
        one.chains = _below(heads[key], nat)
        one.refusals += [f"DROP: {comment}" for comment in _dropped(one.chains)]
    return found


def _dropped(chains: Mapping[str, Rules]) -> Iterator[str]:
    """Why rules in chains of a Service send packets to where kubelet has them dropped: kube-proxy before 1.26."""
    for rule in (rule for rules in chains.values() for rule in rules if rule.endswith(f"-j {MARK_DROP}")):
        if "no local endpoints" in (comment := comment_of(rule) or ""):
            yield comment


def _take(one: Served, chain: str, address: str, port: int, rule: str) -> None:
    comment = comment_of(rule) or ""
    target = target_of(rule)
    if target in ("REJECT", "DROP"):
        one.refusals.append(f"{target} for {f'{address} port' if address else 'node port'} {port}: {comment}")
    if target == MARK_MASQ:
        one.marks.append(rule)
        return
    if "health check" in comment or comment.endswith("KUBE-FW-") or target == "ACCEPT":
        return
    kind = next((kind for words, kind in _KINDS.items() if comment.endswith(words)), "")
    if kind or (address, port) not in one.ways:
        one.ways[address, port] = kind or ("address" if address else "node port")


def _below(heads: Iterable[str], nat: Mapping[str, Rules]) -> dict[str, Rules]:
    """The chains that these lead to and that belong to one Service."""
    found: dict[str, Rules] = {}
    edge = list(heads)
    while edge:
        chain = edge.pop()
        if chain in found or chain not in nat or not (is_own_chain(chain) or chain.startswith(("KPX-SV", "KPX-AF"))):
            continue
        found[chain] = nat[chain]
        edge += [target for rule in nat[chain] if (target := target_of(rule))]
    return found
