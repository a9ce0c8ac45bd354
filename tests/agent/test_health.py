import json

import pytest

from kpx.agent.health import Health, Status
from kpx.api import Node, parse_object
from kpx.family import Family

V4, V6 = Family.IPV4, Family.IPV6
NOON = 1_780_315_200.0  # 2026-06-01T12:00:00Z
TIMEOUT = 60.0


def node(**parts: object) -> Node:
    metadata = {"name": "node-0"}
    parsed = parse_object("Node", {"metadata": metadata | parts.pop("metadata", {}), **parts})  # type: ignore[operator]
    assert isinstance(parsed, Node)
    return parsed


def both(health: Health, now: float) -> tuple[bool, bool]:
    return health.healthz(now).ok, health.livez(now).ok


@pytest.fixture
def health() -> Health:
    return Health(TIMEOUT)


def test_a_family_without_its_first_rules_is_alive_for_a_while_but_never_well() -> None:
    health = Health(TIMEOUT)
    health.expect([V4, V6])
    health.updated(V4, NOON)
    health.queued(V6, NOON)
    assert health.healthz(NOON + 1) == Status(
        False,
        {
            "lastUpdated": "2026-06-01T12:00:00Z",
            "currentTime": "2026-06-01T12:00:01Z",
            "nodeEligible": True,
            "healthy": False,
            "status": {"IPv4": {"lastUpdated": "2026-06-01T12:00:00Z", "healthy": True}},
        },
    )
    assert both(health, NOON + 59) == (False, True)
    assert both(health, NOON + 60) == (False, False)
    never = {"lastUpdated": "0001-01-01T00:00:00Z", "healthy": False}
    assert health.livez(NOON + 60).body["status"] == {
        "IPv4": {"lastUpdated": "2026-06-01T12:00:00Z", "healthy": True},
        "IPv6": never,
    }
    health.updated(V6, NOON + 61)
    assert both(health, NOON + 1e6) == (True, True)


def test_an_agent_that_starts_anew_has_to_write_its_rules_anew(health: Health) -> None:
    health.updated(V4, NOON)
    health.expect([V4])
    assert both(health, NOON + 1) == (False, True)


def test_what_waits_on_keeps_its_time(health: Health) -> None:
    health.queued(V4, NOON)
    health.updated(V4, NOON + 50, waiting_since=NOON + 10)
    assert both(health, NOON + 69) == (True, True)
    assert both(health, NOON + 70) == (False, False)


def test_the_body_tells_of_refusals_and_of_who_undoes_rules(health: Health) -> None:
    health.updated(V4, NOON)
    health.refused(V4, 2)
    health.undone(V4, "iptables-nft-re of kube-proxy (pid 42)", NOON + 20)
    status = {"lastUpdated": "2026-06-01T12:00:00Z", "healthy": True, "refusedServicePorts": 2}
    told = {"undoneBy": "iptables-nft-re of kube-proxy (pid 42)"}
    assert health.healthz(NOON + 19).body["status"] == {"IPv4": status | told}
    assert health.healthz(NOON + 20).body["status"] == {"IPv4": status}


def test_a_change_may_wait_as_long_as_the_timeout(health: Health) -> None:
    health.updated(V4, NOON)
    health.queued(V4, NOON + 10)
    assert both(health, NOON + 69.9) == (True, True)
    assert both(health, NOON + 70) == (False, False)


def test_the_oldest_waiting_change_counts(health: Health) -> None:
    health.updated(V4, NOON)
    health.queued(V4, NOON + 10)
    health.queued(V4, NOON + 60)
    assert both(health, NOON + 71) == (False, False)


def test_a_sync_ends_the_waiting(health: Health) -> None:
    health.updated(V4, NOON)
    health.queued(V4, NOON + 10)
    health.updated(V4, NOON + 100)
    assert both(health, NOON + 1e6) == (True, True)
    health.queued(V4, NOON + 1e6)
    assert both(health, NOON + 1e6) == (True, True)


def test_without_changes_nothing_is_late(health: Health) -> None:
    health.updated(V4, NOON)
    assert both(health, NOON + 1e9) == (True, True)


def test_a_family_is_late_alone(health: Health) -> None:
    health.updated(V4, NOON)
    health.updated(V6, NOON + 0.25)
    health.queued(V6, NOON + 1)
    late = NOON + 100.5
    status = {
        "IPv4": {"lastUpdated": "2026-06-01T12:00:00Z", "healthy": True},
        "IPv6": {"lastUpdated": "2026-06-01T12:00:00.25Z", "healthy": False},
    }
    assert health.livez(late) == Status(
        False,
        {
            "lastUpdated": "2026-06-01T12:00:00.25Z",
            "currentTime": "2026-06-01T12:01:40.5Z",
            "healthy": False,
            "status": status,
        },
    )
    health.updated(V6, late)
    assert both(health, late) == (True, True)


def test_a_node_that_leaves_is_alive_but_not_for_load_balancers(health: Health) -> None:
    health.updated(V4, NOON)
    health.node(node(metadata={"deletionTimestamp": "2026-06-01T11:00:00Z"}))
    assert both(health, NOON + 5) == (False, True)
    body = health.healthz(NOON + 5).body
    # The proxy itself is healthy, and lastUpdated tells the truth.
    assert (body["nodeEligible"], body["healthy"], body["lastUpdated"]) == (False, True, "2026-06-01T12:00:00Z")
    assert "nodeEligible" not in health.livez(NOON + 5).body


@pytest.mark.parametrize(
    ("key", "eligible"), [("ToBeDeletedByClusterAutoscaler", False), ("node.kubernetes.io/unschedulable", True)]
)
def test_only_the_autoscalers_taint_counts(health: Health, key: str, eligible: bool) -> None:
    health.node(node(spec={"taints": [{"key": key, "effect": "NoSchedule"}]}))
    assert both(health, NOON) == (eligible, True)
    health.node(node())
    assert both(health, NOON) == (True, True)


def test_a_node_not_yet_known_is_eligible_but_one_that_is_gone_is_not(health: Health) -> None:
    health.node(None)
    assert both(health, NOON) == (True, True)
    health.node(node())
    health.node(None)
    assert both(health, NOON) == (False, True)
    assert health.healthz(NOON).body["lastUpdated"] == "0001-01-01T00:00:00Z"


def test_bodies_are_json_in_kube_proxys_order(health: Health) -> None:
    health.updated(V4, NOON)
    body = health.healthz(NOON).body
    assert list(json.loads(json.dumps(body))) == ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"]


def test_the_timeout_can_change(health: Health) -> None:
    health.updated(V4, NOON)
    health.queued(V4, NOON)
    health.timeout_seconds = 5
    assert both(health, NOON + 10) == (False, False)
