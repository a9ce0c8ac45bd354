"""Whether the proxy keeps up, and whether load balancers should use this node. Pure: the clock is passed in.

The rules and the JSON bodies are those of kube-proxy 1.36 (`pkg/proxy/healthcheck/proxy_health.go`). All times are
in seconds since the epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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


class Health:
    """Collects what happens, answers probes.

    A family is well unless a change has waited for `timeout_seconds` (kube-proxy: twice `syncPeriod`) to reach the
    kernel. Until its first sync it counts as starting up, which is well, and doesn't show in bodies.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._updated: dict[Family, float] = {}
        self._waiting_since: dict[Family, float] = {}
        self._node_seen = False
        self._eligible = True

    def queued(self, family: Family, now: float) -> None:
        """There is a change that the kernel doesn't know yet."""
        self._waiting_since.setdefault(family, now)

    def updated(self, family: Family, now: float) -> None:
        """The kernel knows every change."""
        self._waiting_since.pop(family, None)
        self._updated[family] = now

    def node(self, node: api.Node | None) -> None:
        """This node is so now. None is a node that is gone, or, before the first one, not known yet."""
        self._node_seen = self._node_seen or node is not None
        self._eligible = _is_eligible(node) if node else not self._node_seen

    def healthz(self, now: float) -> Status:
        """What load balancers ask: does the proxy keep up, and does this node stay?"""
        return self._status(now, self._keeps_up(now) and self._eligible, {"nodeEligible": self._eligible})

    def livez(self, now: float) -> Status:
        """What kubelet asks: does the proxy keep up?"""
        return self._status(now, self._keeps_up(now), {})

    def _status(self, now: float, ok: bool, node: Mapping[str, object]) -> Status:
        families = {
            API_FAMILY[family]: {"lastUpdated": _rfc3339(at), "healthy": not self._is_late(family, now)}
            for family, at in self._updated.items()
        }
        # As long as all is well, `lastUpdated` is the present: in old kube-proxies it was the last time they looked.
        updated = now if ok else max(self._updated.values(), default=None)
        body: dict[str, object] = {
            "lastUpdated": _NEVER if updated is None else _rfc3339(updated),
            "currentTime": _rfc3339(now),
            **node,
            "healthy": self._keeps_up(now),
        }
        return Status(ok, body | {"status": families} if families else body)

    def _keeps_up(self, now: float) -> bool:
        return not any(self._is_late(family, now) for family in self._updated)

    def _is_late(self, family: Family, now: float) -> bool:
        since = self._waiting_since.get(family)
        return since is not None and now - since >= self.timeout_seconds


def _is_eligible(node: api.Node) -> bool:
    leaving = any(taint.key == TO_BE_DELETED_TAINT for taint in node.spec.taints)
    return node.metadata.deletion_timestamp is None and not leaving


def _rfc3339(seconds: float) -> str:
    """UTC, with as many digits of the second as it takes, as Go prints it."""
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".") + "Z"
