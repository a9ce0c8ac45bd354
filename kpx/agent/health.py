"""Whether the proxy keeps up, and whether load balancers should use this node. Pure: the clock is passed in.

The rules and the JSON bodies are those of kube-proxy 1.36 (`pkg/proxy/healthcheck/proxy_health.go`), but for three
things. A family counts from the start: kube-proxy forgets one that never got its first rules. What waits on after a
sync keeps its time. And the body tells who undoes our rules, and which Services the kernel refuses. All times are in
seconds since the epoch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kpx import api
from kpx.family import Family

API_FAMILY = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}
"""Families under the names that the Kubernetes API and kube-proxy's metrics use."""

TO_BE_DELETED_TAINT = "ToBeDeletedByClusterAutoscaler"
"""Set by the cluster autoscaler on a node that it is about to delete."""

_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to a probe: whether all is well, and the JSON body that tells why."""

    ok: bool
    body: Mapping[str, object]


@dataclass(slots=True)
class _Family:
    """What is known of one family: when its kernel state was last confirmed, and since when a change waits."""

    updated: float | None = None
    waiting_since: float | None = None
    refused: int = 0
    undone_by: str = ""
    undone_until: float = 0.0


@dataclass(slots=True)
class Health:
    """Collects what happens, answers probes.

    A family is well unless a change has waited for `timeout_seconds` (kube-proxy: twice `syncPeriod`) to be confirmed
    by the kernel, however often it was tried. `/healthz` also wants every family to have got its first rules.
    """

    timeout_seconds: float
    _families: dict[Family, _Family] = field(default_factory=dict)
    _node_seen: bool = False
    _eligible: bool = True

    def expect(self, families: Collection[Family]) -> None:
        """These are the families that there are; what was known of them before is void."""
        self._families = {family: _Family() for family in families}

    def queued(self, family: Family, since: float) -> None:
        """There is a change that the kernel doesn't know yet; the first one counts."""
        one = self._of(family)
        one.waiting_since = since if one.waiting_since is None else min(one.waiting_since, since)

    def updated(self, family: Family, now: float, waiting_since: float | None = None) -> None:
        """The kernel was seen to hold every change, but for those that have come, or waited, since then."""
        one = self._of(family)
        one.waiting_since, one.updated = waiting_since, now

    def refused(self, family: Family, services: int) -> None:
        """The kernel refuses the rules of so many service ports, which keep their old ones."""
        self._of(family).refused = services

    def undone(self, family: Family, process: str, until: float) -> None:
        """Another process undoes our rules; this is worth telling until some time after the last repair."""
        one = self._of(family)
        one.undone_by, one.undone_until = process, until

    def node(self, node: api.Node | None) -> None:
        """This node is so now. None is a node that is gone, or, before the first one, not known yet."""
        self._node_seen = self._node_seen or node is not None
        self._eligible = _is_eligible(node) if node else not self._node_seen

    def healthz(self, now: float) -> Status:
        """What load balancers ask: does the proxy keep up, has it any rules, and does this node stay?"""
        complete = all(one.updated is not None for one in self._families.values())
        well = complete and self._keeps_up(now)
        return self._status(now, well, well and self._eligible, {"nodeEligible": self._eligible})

    def livez(self, now: float) -> Status:
        """What kubelet asks: does the proxy keep up?"""
        well = self._keeps_up(now)
        return self._status(now, well, well, {})

    def _status(self, now: float, well: bool, ok: bool, node: Mapping[str, object]) -> Status:
        families = {
            API_FAMILY[family]: self._family_status(one, now)
            for family, one in self._families.items()
            if one.updated is not None or self._is_late(one, now)
        }
        # As long as all is well, `lastUpdated` is the present: in old kube-proxies it was the last time they looked.
        updated = now if ok else max((one.updated or 0.0 for one in self._families.values()), default=0.0)
        body: dict[str, object] = {
            "lastUpdated": _rfc3339(updated) if updated else _NEVER,
            "currentTime": _rfc3339(now),
            **node,
            "healthy": well,
        }
        return Status(ok, body | {"status": families} if families else body)

    def _family_status(self, one: _Family, now: float) -> Mapping[str, object]:
        body: dict[str, object] = {
            "lastUpdated": _NEVER if one.updated is None else _rfc3339(one.updated),
            "healthy": not self._is_late(one, now),
        }
        if one.refused:
            body["refusedServicePorts"] = one.refused
        if now < one.undone_until:
            body["undoneBy"] = one.undone_by
        return body

    def _of(self, family: Family) -> _Family:
        return self._families.setdefault(family, _Family())

    def _keeps_up(self, now: float) -> bool:
        return not any(self._is_late(one, now) for one in self._families.values())

    def _is_late(self, one: _Family, now: float) -> bool:
        return one.waiting_since is not None and now - one.waiting_since >= self.timeout_seconds


def _is_eligible(node: api.Node) -> bool:
    leaving = any(taint.key == TO_BE_DELETED_TAINT for taint in node.spec.taints)
    return node.metadata.deletion_timestamp is None and not leaving


def _rfc3339(seconds: float) -> str:
    """UTC, with as many digits of the second as it takes, as Go prints it."""
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".") + "Z"
