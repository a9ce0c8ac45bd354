"""What changed between two revisions of a cluster, as one node's proxy sees it, in a reviewer's words. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from kpx.family import host_port
from kpx.model.cluster import Cluster
from kpx.model.endpoint import Endpoint, Endpoints
from kpx.model.node import NodeView
from kpx.model.policy import Selection, select, weights
from kpx.model.service import ServicePort, ServicePortName
from kpx.shape import SHAPE

Kind = Literal["new", "gone", "changed"]

_LISTED = 6
"""How many addresses a sentence names; `Statement.before` and `.after` have all of them."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One change: of what, from what to what, and as a sentence."""

    __pydantic_config__ = SHAPE

    aspect: Annotated[str, Field(description="what changed: endpoints, shares, node port, source ranges, …")]
    text: Annotated[str, Field(description="the change as a sentence, which names some endpoints only")]
    before: Annotated[tuple[str, ...], Field(description="all values that were; shares are fractions")] = ()
    after: Annotated[tuple[str, ...], Field(description="all values that will be")] = ()
    breaking: Annotated[bool, Field(description="whether what was served isn't served any more")] = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Everything that changed of one service port, or of the node."""

    __pydantic_config__ = SHAPE

    subject: Annotated[str, Field(description="namespace/name:port, or `node NAME`")]
    kind: Kind
    statements: tuple[Statement, ...]

    @property
    def breaking(self) -> bool:
        """Whether any of it is."""
        return any(one.breaking for one in self.statements)


@dataclass(frozen=True, slots=True)
class Revision:
    """One of the two: the service ports with their endpoints, and the node they are seen from."""

    cluster: Cluster
    node: NodeView


def review(old: Revision, new: Revision) -> tuple[Finding, ...]:
    """Everything that is different, the node first, then service ports by name."""
    names = sorted(old.cluster.ports.keys() | new.cluster.ports.keys())
    findings = (_node(old.node, new.node), *(_port(_Side.of(old, name), _Side.of(new, name)) for name in names))
    return tuple(one for one in findings if one)


@dataclass(frozen=True, slots=True)
class _Side:
    """A service port in one revision."""

    port: ServicePort
    endpoints: Endpoints
    selection: Selection

    @classmethod
    def of(cls, revision: Revision, name: ServicePortName) -> "_Side | None":
        port = revision.cluster.ports.get(name)
        if port is None:
            return None
        endpoints = revision.cluster.endpoints.get(name, ())
        return cls(port, endpoints, select(endpoints, port, revision.node))

    @property
    def choices(self) -> Mapping[str, Endpoints]:
        """The endpoints that take part, by the policy under which they do."""
        found = {"Cluster": self.selection.cluster} if self.port.uses_cluster_endpoints else {}
        return found | ({"Local": self.selection.local} if self.port.uses_local_endpoints else {})

    def fate(self, local: bool) -> str:
        """What becomes of connections under a policy."""
        if self.selection.serves(local):
            return "served"
        return "dropped: no endpoint is on this node" if self.selection.anywhere else "rejected: there are no endpoints"


def _node(old: NodeView, new: NodeView) -> Finding | None:
    values = {
        "zone": (old.zone, new.zone),
        "addresses": (", ".join(old.addresses), ", ".join(new.addresses)),
        "podCIDR": (old.pod_cidr, new.pod_cidr),
    }
    statements = tuple(
        Statement(aspect, f"{aspect} {before or 'none'} → {after or 'none'}", (before,), (after,))
        for aspect, (before, after) in values.items()
        if before != after
    )
    return Finding(f"node {new.name}", "changed", statements) if statements else None


def _port(old: _Side | None, new: _Side | None) -> Finding | None:
    if old and new:
        statements = (*_fields(old.port, new.port), *_endpoints(old, new), *_fates(old, new))
        return Finding(str(new.port.name), "changed", statements) if statements else None
    if new:
        return Finding(str(new.port.name), "new", (_appearance(new),))
    if old:
        text = f"gone; was {_ways(old.port)}"
        return Finding(str(old.port.name), "gone", (Statement("service", text, (_ways(old.port),), (), True),))
    return None


# ---- a service port that is new or gone ----


def _appearance(side: _Side) -> Statement:
    served = "; ".join(_crowd(side, policy) for policy in side.choices)
    return Statement("service", f"new: {_ways(side.port)}; {served}", (), (_ways(side.port),))


def _crowd(side: _Side, policy: str) -> str:
    count = len(side.choices[policy])
    text = f"{count} endpoint{'' if count == 1 else 's'}" if count else "no endpoints"
    share = f", {', '.join(_shares(side, policy))} each" if count > 1 else ""
    return text + share + (f" (policy {policy})" if len(side.choices) > 1 else "")


def _ways(port: ServicePort) -> str:
    """Every way in to a service port."""
    found = [f"cluster IP {host_port(port.cluster_ip, port.port)}/{port.protocol}"]
    found += [f"node port {port.node_port}"] if port.node_port else []
    found += [f"external IP {one}" for one in port.external_ips]
    found += [f"load balancer {one}" for one in port.load_balancer_ips]
    return ", ".join(found)


# ---- its fields ----


def _fields(old: ServicePort, new: ServicePort) -> Iterator[Statement]:
    yield from _value("cluster IP", old.cluster_ip, new.cluster_ip, breaking=True)
    yield from _value("port", str(old.port), str(new.port), breaking=True)
    yield from _value("node port", str(old.node_port or "none"), str(new.node_port or "none"), bool(old.node_port))
    yield from _set("external IP", old.external_ips, new.external_ips)
    yield from _set("load balancer IP", old.load_balancer_ips, new.load_balancer_ips)
    yield from _source_ranges(old.source_ranges, new.source_ranges)
    yield from _value("external traffic policy", _policy(old.external_local), _policy(new.external_local))
    yield from _value("internal traffic policy", _policy(old.internal_local), _policy(new.internal_local))
    yield from _value("client affinity", _affinity(old.affinity_seconds), _affinity(new.affinity_seconds))
    yield from _value("balance", old.balancing.balance, new.balancing.balance)
    yield from _value("local weight", f"+{old.balancing.local_weight} %", f"+{new.balancing.local_weight} %")
    yield from _value("affinity scope", old.balancing.scope, new.balancing.scope)
    before, after = (str(one.health_check_node_port or "none") for one in (old, new))
    yield from _value("health check node port", before, after)


def _value(aspect: str, before: str, after: str, breaking: bool = False) -> Iterator[Statement]:
    if before != after:
        yield Statement(aspect, f"{aspect} {before} → {after}", (before,), (after,), breaking)


def _set(aspect: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Statement]:
    come, gone = sorted(set(after) - set(before)), sorted(set(before) - set(after))
    parts = [f"{aspect} {one} added" for one in come] + [f"{aspect} {one} removed" for one in gone]
    if parts:
        yield Statement(aspect, "; ".join(parts), tuple(before), tuple(after), bool(gone))


def _source_ranges(before: Sequence[str], after: Sequence[str]) -> Iterator[Statement]:
    """Without any, all sources may use the load balancer: so the first one shuts out, and none lets all in."""
    if set(before) == set(after):
        return
    narrower = bool(after) and not (before and set(before) <= set(after))
    texts = (", ".join(sorted(set(one))) or "everybody" for one in (before, after))
    text = "load balancer open to " + " → ".join(texts)
    yield Statement("source ranges", text, tuple(before), tuple(after), narrower)


def _policy(local: bool) -> str:
    return "Local" if local else "Cluster"


def _affinity(seconds: int) -> str:
    return f"{seconds} s" if seconds else "none"


# ---- its endpoints ----


def _endpoints(old: _Side, new: _Side) -> Iterator[Statement]:
    before, after = _ports_of(old.endpoints), _ports_of(new.endpoints)
    moved = len(before) == len(after) == 1 and before != after
    if moved:
        yield from _value("target port", str(*before), str(*after))
    plain = len(before | after) == 1 or moved
    past = {_label(one, plain): one for one in old.endpoints}
    now = {_label(one, plain): one for one in new.endpoints}
    sentences: dict[str, list[str]] = defaultdict(list)
    for label in sorted(past.keys() | now.keys()):
        happened = _happened(past.get(label), now.get(label), old, new)
        if happened:
            sentences[happened].append(label)
    ordered = sorted(sentences.items(), key=lambda one: (not one[0].startswith("leaves"), one[0]))
    parts = [f"{_listed(labels)} {_number(verb, len(labels))}" for verb, labels in ordered]
    if parts:
        yield Statement("endpoints", "; ".join(parts), _texts(old.selection), _texts(new.selection))
    yield from _share_changes(old, new)


def _ports_of(endpoints: Endpoints) -> set[int]:
    return {one.port for one in endpoints}


def _label(endpoint: Endpoint, plain: bool) -> str:
    return endpoint.address if plain else str(endpoint)


def _texts(selection: Selection) -> tuple[str, ...]:
    return tuple(str(one) for one in selection.reachable)


def _happened(before: Endpoint | None, after: Endpoint | None, old: _Side, new: _Side) -> str:
    """What happened to an endpoint, as a verb in the third person; empty if nothing did that matters here."""
    took, takes = before in old.selection.reachable, after in new.selection.reachable
    if before is None and after is not None:
        return "joins" if takes else f"joins ({_aside(after)})"
    if before is not None and after is None:
        return "leaves" if took else f"leaves ({_aside(before)})"
    if before is None or after is None:
        return ""
    if _state(before) != _state(after):
        return f"turns from {_state(before)} to {_state(after)}"
    if took != takes:
        return "takes part now" if takes else f"takes no part any more ({_aside(after)})"
    if before.weight != after.weight and takes:
        return f"weighs {after.weight} now"
    if before.local != after.local and new.port.uses_local_endpoints:
        return f"moves {'to' if after.local else 'away from'} this node"
    return ""


def _state(endpoint: Endpoint) -> str:
    if endpoint.terminating:
        return "terminating and serving" if endpoint.serving else "terminating"
    return "ready" if endpoint.ready else "not ready"


def _aside(endpoint: Endpoint) -> str:
    """Why an endpoint takes no part."""
    if not endpoint.ready:
        return _state(endpoint)
    return "not for this node" if endpoint.weight else "weight 0"


_VERBS = {"joins": "join", "leaves": "leave", "turns": "turn", "takes": "take", "moves": "move", "weighs": "weigh"}


def _number(verb: str, count: int) -> str:
    first, _, rest = verb.partition(" ")
    return " ".join(filter(None, (first if count == 1 else _VERBS[first], rest)))


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_LISTED])
    more = f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
    return f"endpoint{'' if len(labels) == 1 else 's'} {shown}{more}"


def _share_changes(old: _Side, new: _Side) -> Iterator[Statement]:
    """How the part of an endpoint in the traffic changed, for each policy."""
    policies = {policy: None for side in (old, new) for policy in side.choices}
    for policy in policies:
        before, after = (_shares(side, policy) for side in (old, new))
        if before != after and policy in old.choices and policy in new.choices:
            where = f" under policy {policy}" if len(policies) > 1 else ""
            words = " → ".join(", ".join(some) or "none" for some in (before, after))
            yield Statement("shares", f"shares {words}{where}", before, after)


def _shares(side: _Side, policy: str) -> tuple[str, ...]:
    """The share of each endpoint under a policy; where they weigh differently, all shares there are."""
    chosen = weights(side.choices.get(policy, ()), side.port.balancing)
    return tuple(str(Fraction(one, sum(chosen))) for one in sorted(set(chosen), reverse=True))


# ---- what becomes of its connections ----


def _fates(old: _Side, new: _Side) -> Iterator[Statement]:
    ways = {"connections to the cluster IP": (old.fate(old.port.internal_local), new.fate(new.port.internal_local))}
    if old.port.externally_accessible and new.port.externally_accessible:
        ways["connections from outside"] = old.fate(old.port.external_local), new.fate(new.port.external_local)
    changed = {who: fates for who, fates in ways.items() if fates[0] != fates[1]}
    if len(changed) == 2 and len(set(changed.values())) == 1:
        changed = {"connections": next(iter(changed.values()))}
    for who, (before, after) in changed.items():
        text = f"{who} are {after} now" if after == "served" else f"{who} are {after}"
        yield Statement("connections", text, (before,), (after,), after != "served")
