"""Endpoints that slices list more than once: which one counts, here and for everything that asks."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kpx.agent.checks import service_health
from kpx.agent.desired import Desired
from kpx.agent.store import Store
from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.model.endpoint import count_endpoints, merge_slices, slice_of
from kpx.model.service import ServicePortName
from kpx.sources.events import Put
from tests.manifests import Manifest, endpoint_slice, service

RECORDED: list[list[Any]] = json.loads((Path(__file__).parent / "duplicates.json").read_text())
"""What kube-proxy 1.36.2 made of 384 Services with an address listed twice: both endpoints, whether they stand in the
same slice or in two, what else there is, and every outcome seen in 13 starts. The map of slices that kube-proxy walks
has no order: so two slices may have two outcomes."""

HERE, ELSEWHERE = "node-0", "node-1"
WHERE = {"local": HERE, "remote": ELSEWHERE}
STATES = {
    "ready": {"ready": True, "serving": True, "terminating": False},
    "serving-terminating": {"ready": False, "serving": True, "terminating": True},
    "not-ready": {"ready": False, "serving": False, "terminating": False},
    "dead": {"ready": False, "serving": False, "terminating": True},
}
TWIN, OTHER = "10.244.2.2", "10.244.20.2"
PORT = ServicePortName("shop", "web", "http", "tcp")


def endpoint(kind: str, address: str = TWIN, **more: Any) -> Manifest:
    """An endpoint of a state, here or elsewhere: `dead remote`."""
    state, where = kind.split()
    return {"addresses": [address], "nodeName": WHERE[where], "conditions": STATES[state]} | more


def slices(*parts: list[Manifest], port: int = 8080) -> list[Manifest]:
    """EndpointSlices of Service web, in the order of their names."""
    made = []
    for number, endpoints in enumerate(parts):
        one = endpoint_slice("web", [])
        one["metadata"]["name"] = f"web-{number}"
        made.append(one | {"endpoints": endpoints, "ports": [{"name": "http", "port": port}]})
    return made


def parsed(*manifests: Manifest) -> list[Object]:
    return [parse_object(one["kind"], one) for one in manifests]


def outcome(objects: list[Object]) -> dict[str, Any]:
    """What becomes of Service web, told as the recordings tell it."""
    store = Store(HERE)
    for one in objects:
        store.take(Put(one))
    desired = Desired(store, KubeProxyConfiguration(), Target(HERE, Family.IPV4, Layout.CLASSIC))
    desired.load_all()
    tables = desired.ruleset().tables

    def targets(prefix: str) -> list[str]:
        rules = [rule for chain, of_chain in tables["nat"].chains.items() if chain[:9] == prefix for rule in of_chain]
        leads = [part for rule in rules for part in rule.split() if part.startswith("KUBE-SEP-")]
        ends = [rule.split()[-1] for chain in leads for rule in tables["nat"].chains[chain] if " DNAT " in rule]
        return sorted({f"{TWIN}:8080": "twin", f"{OTHER}:8080": "other"}[one] for one in ends)

    refused = [
        f"{chain} {word}"
        for chain in ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES")
        for rule in tables["filter"].chains[chain]
        for word in ("REJECT", "DROP")
        if f"-j {word}" in rule
    ]
    health = service_health(desired, ("shop", "web"))
    assert health is not None
    return {
        "svc": targets("KUBE-SVC-"),
        "svl": targets("KUBE-SVL-"),
        "refused": sorted(refused),
        "healthy": health.local_ready,
    }


@pytest.mark.parametrize(("first", "second", "where", "variant", "seen"), RECORDED)
def test_of_two_endpoints_with_one_address_kube_proxys_counts(
    first: str, second: str, where: str, variant: str, seen: list[dict[str, Any]]
) -> None:
    other = [endpoint("ready remote", OTHER)] if variant == "with-other-remote-ready" else []
    one, two = endpoint(first), endpoint(second)
    parts = slices([one, two, *other]) if where == "same" else slices([one, *other], [two])
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]
    web = service(
        "web",
        "10.96.0.10",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Local" if variant == "internal-local" else "Cluster",
        healthCheckNodePort=31000,
        ports=ports,
    )
    assert outcome(parsed(web, *parts)) in seen
    assert outcome(parsed(web, *reversed(parts))) == outcome(parsed(web, *parts)), "the order of arrival counts"


def expected(parts: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """The endpoint that counts for each port name and place.

    Written from `pkg/proxy/endpointslicecache.go` of Kubernetes 1.36 (`addEndpoints`): one map for each port name over
    all slices; an endpoint is put into it if its place is free, or if it isn't terminating itself.
    """
    table: dict[tuple[str, str], Manifest] = {}
    for part in sorted(parts, key=lambda one: str(one["metadata"]["name"])):
        for port in part["ports"]:
            for one in part["endpoints"]:
                key = (port["name"], f"{one['addresses'][0]}:{port['port']}")
                ends = one["conditions"]["terminating"]
                if not ends:
                    table[key] = one
                table.setdefault(key, one)
    return table


KINDS = [f"{state} {where}" for state, where in product(STATES, WHERE)]
HINTS = {"forZones": [{"name": "zone-a"}]}, {"forNodes": [{"name": HERE}]}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_what_counts_is_one_endpoint_whole(first: str, second: str) -> None:
    """Hints, place and state all come from the same entry; another port is another place, a third entry comes last."""
    one, two = endpoint(first, hints=HINTS[0]), endpoint(second, hints=HINTS[1])
    three = endpoint("serving-terminating local", hints=HINTS[0])
    other_port = slices([one], port=9090)[0]
    other_port["metadata"]["name"] = "web-9"
    for parts in (
        slices([one, two]),
        slices([one], [two]),
        slices([one], [two], [three]),
        slices([three], [one, two]),
        [*slices([one], [two]), other_port],
    ):
        packed = [made for part in parsed(*parts) if (made := slice_of(part, HERE)) is not None]  # type: ignore[arg-type]
        found = merge_slices(packed, Family.IPV4)[PORT]
        want = expected(parts)
        assert {("http", str(end)) for end in found} == set(want)
        for end in found:
            source = want["http", str(end)]
            state, hints = source["conditions"], source["hints"]
            assert (end.ready, end.serving, end.terminating) == tuple(state.values())
            assert end.local == (source["nodeName"] == HERE)
            assert end.zone_hints == {hint["name"] for hint in hints.get("forZones", ())}
            assert end.node_hints == {hint["name"] for hint in hints.get("forNodes", ())}
        assert count_endpoints(packed, PORT, Family.IPV4) == len(found)
        assert cluster_of(parsed(*parts), Family.IPV4, HERE).endpoints[PORT] == found
