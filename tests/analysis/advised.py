"""Advice carried out: what a finding tells to do, done to the rules it was found in. For tests of advice."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import kpx
from kpx.analysis.checks import Finding
from kpx.analysis.checks.advice import Act
from kpx.analysis.packet import Host, Origin, Outcome, Packet
from kpx.analysis.simulate import Simulator, tables_of_save
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.family import Family
from kpx.netfilter.names import is_policy
from kpx.netfilter.rule import target_of
from kpx.netfilter.save import Saved, parse_save
from kpx.netfilter.tools import Backend
from kpx.reconcile.edit import Step
from kpx.reconcile.plan import make_plan
from kpx.sources import manifests
from tests.kernel import Namespace

NODE = "192.0.2.10"


class Rules:
    """Rules as lists, by table and chain, with policies: what `iptables-restore` is given, and can be changed."""

    def __init__(self, text: str) -> None:
        saved: Saved = parse_save(text)
        self.chains = {table: {name: list(one.rules) for name, one in t.chains.items()} for table, t in saved.items()}
        self.policies = {
            (table, name): one.policy for table, t in saved.items() for name, one in t.chains.items() if one.policy
        }

    def text(self) -> str:
        lines = []
        for table, chains in self.chains.items():
            lines.append(f"*{table}")
            lines += (f":{name} {self.policies.get((table, name), '-')} [0:0]" for name in chains)
            lines += (f"-A {name} {rule}" for name, rules in chains.items() for rule in rules)
            lines.append("COMMIT")
        return "\n".join(lines) + "\n"

    def drop_chain(self, table: str, chain: str) -> None:
        """Delete a chain and every rule that leads there."""
        for rules in self.chains[table].values():
            rules[:] = [rule for rule in rules if target_of(rule) != chain]
        del self.chains[table][chain]

    def behind(self, table: str, entrance: str, rule: str, chain: str) -> None:
        """Move a rule of a built-in chain behind the jump to a chain."""
        rules = self.chains[table][entrance]
        rules.remove(rule)
        rules.insert(next(at for at, one in enumerate(rules) if target_of(one) == chain) + 1, rule)

    def narrow(self, table: str, entrance: str, rule: str, exceptions: tuple[str, ...]) -> None:
        """Have a rule leave some packets alone: it goes to a chain of its own, behind exceptions."""
        rules = self.chains[table][entrance]
        rules[rules.index(rule)] = "-j NARROWED"
        self.chains[table]["NARROWED"] = [*(f"{one} -j RETURN" for one in exceptions), rule]


def carried_out(text: str, finding: Finding, cluster: Path, config: Path, exceptions: tuple[str, ...] = ()) -> str:
    """The rules once somebody has done what the advice says. `exceptions` are what a rule is narrowed by."""
    rules, advice = Rules(text), finding.advice
    match advice.act:
        case Act.REWRITE:
            return applied(text, cluster, config)
        case Act.DELETE_RULE if finding.check in ("repeated-rule", "duplicate-jump"):
            some = rules.chains[finding.table][finding.chain]
            first = some.index(finding.rule)
            some[first + 1 :] = [one for one in some[first + 1 :] if one != finding.rule]
        case Act.DELETE_RULE:
            del rules.chains[finding.table][finding.chain][finding.position - 1]
        case Act.DELETE_CHAIN:
            rules.drop_chain(finding.table, advice.chain or finding.chain)
            return applied(rules.text(), cluster, config) if advice.chain else rules.text()
        case Act.MOVE_BEHIND:
            rules.behind(finding.table, finding.chain, finding.rule, advice.chain)
        case Act.NARROW:
            rules.narrow(finding.table, finding.chain, finding.rule, exceptions)
        case Act.ACCEPT:
            rules.chains["filter"]["FORWARD"] += ["-s 10.244.0.0/16 -j ACCEPT", "-d 10.244.0.0/16 -j ACCEPT"]
        case Act.NOTHING:
            pass
        case _:
            raise AssertionError(advice)
    return rules.text()


def applied(text: str, cluster: Path, config: Path) -> str:
    """What `kpx apply` makes of rules: in a kernel, if one takes them, else as its plan says."""
    options = ("-f", str(cluster), "--config", str(config), "--backend", "nft", "--layout", "classic")
    with Namespace() as one:
        load = one.run(["iptables-nft-restore"], text, check=False)
        if load.returncode == 0:
            one.kpx("apply", *options)
            return one.save(Backend.NFT, Family.IPV4)
    return _planned(text, cluster, config)


def _planned(text: str, cluster: Path, config: Path) -> str:
    objects = manifests.load([str(cluster)]).objects
    parsed, _ = kpx.parse_config(config.read_bytes())
    ruleset, _ = compile_sound(objects, parsed, Target("node-0", Family.IPV4, Layout.CLASSIC))
    rules = Rules(text)
    for edit in make_plan(ruleset, parse_save(text)).edits:
        chains = rules.chains.setdefault(edit.table, {})
        if edit.step is Step.DELETE:
            chains.pop(edit.chain)
            continue
        held = chains.setdefault(edit.chain, [])
        if edit.step is Step.CREATE:
            held.clear()
        else:
            for rule in edit.removed:
                held.remove(rule)
        for placed in edit.added:
            held.insert(placed.position - 1 if placed.position else len(held), placed.rule)
    return rules.text()


# ---- what packets meet ----

SENDERS = (
    ("10.244.0.9", Origin.POD),
    ("10.244.0.77", Origin.POD),
    ("198.51.100.7", Origin.OUTSIDE),
    (NODE, Origin.NODE),
)
TO_SERVICES = (
    ("tcp", "10.96.0.50", 80),
    ("tcp", "10.96.0.51", 443),
    ("udp", "10.96.0.10", 53),
    ("tcp", "203.0.113.10", 443),
    ("tcp", NODE, 30080),
    ("tcp", NODE, 30443),
)
TO_OTHERS = (
    ("tcp", "10.244.0.5", 8080),
    ("tcp", "10.244.1.5", 8080),
    ("tcp", NODE, 22),
    ("tcp", "198.51.100.99", 80),
    ("udp", "10.244.0.9", 53),
    ("tcp", "172.17.0.2", 80),
)


def probes(places: tuple[tuple[str, str, int], ...]) -> Iterator[Packet]:
    """Packets of every kind of sender to these places."""
    for protocol, address, port in places:
        for source, origin in SENDERS:
            if source != address:
                yield Packet(source, address, protocol, port, 40_000, origin, in_interface="eth0", bridged=False)


def simulator(text: str) -> Simulator:
    tables, policies = tables_of_save(parse_save(text))
    return Simulator(tables, Family.IPV4, Host((NODE,)), policies)


Met = tuple[Mapping[Outcome, object], frozenset[tuple[str, str]]]
"""What becomes of a packet, and the rules of NetworkPolicies that it meets."""


def met(some: Simulator, packet: Packet) -> Met:
    policies = frozenset(
        (step.chain, step.rule) for path in some.paths(packet) for step in path.steps if is_policy(step.chain)
    )
    return dict(some.outcomes(packet)), policies


def touched(some: Simulator, packet: Packet, finding: Finding) -> bool:
    """Whether a packet meets the rule, or the chain, that a finding is about, or others' that are in its way."""
    for path in some.paths(packet):
        for step in path.steps:
            place = (step.table, step.chain, step.position)
            if (place[0], place[1]) == (finding.table, finding.chain) and finding.position in (0, place[2]):
                return True
            if finding.advice.chain and target_of(step.rule) == finding.advice.chain:
                return True
    return False
