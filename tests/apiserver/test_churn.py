"""The stream of changes: repeatable, always valid, and with everything in it that a proxy must survive."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

import pytest

from . import ApiServer, Change, churn, node_objects, population
from .resources import Object

Key = tuple[str, str, str]


def key(obj: Object) -> Key:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def replay(seed: int, count: int) -> Iterator[tuple[Change, dict[Key, Object]]]:
    """Every change with the objects that are there after it."""
    objects: dict[Key, Object] = {}
    for change in islice(churn(seed), count):
        if change.verb == "delete":
            assert objects.pop(key(change.obj))["metadata"]["uid"] == change.obj["metadata"]["uid"]
        else:
            assert (key(change.obj) in objects) is (change.verb == "update")
            objects[key(change.obj)] = change.obj
        yield change, objects


def services(objects: dict[Key, Object]) -> list[Object]:
    return [obj for obj in objects.values() if obj["kind"] == "Service"]


def test_the_same_seed_gives_the_same_changes() -> None:
    first, second, other = (list(islice(churn(seed), 800)) for seed in (1, 1, 2))
    assert first == second != other
    versions = [int(change.obj["metadata"]["resourceVersion"]) for change in first]
    assert versions == list(range(1, 801))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_must_be_unique_is(seed: int) -> None:
    for step, (_, objects) in enumerate(replay(seed, 2000)):
        if step % 20:
            continue
        specs = [obj["spec"] for obj in services(objects)]
        cluster_ips = chain.from_iterable(spec.get("clusterIPs", []) for spec in specs)
        ports = [port["nodePort"] for spec in specs for port in spec["ports"] if "nodePort" in port]
        ports += [spec["healthCheckNodePort"] for spec in specs if "healthCheckNodePort" in spec]
        outside = chain.from_iterable(spec.get("externalIPs", []) for spec in specs)
        for values in (cluster_ips, ports, outside):
            counts = Counter(values)
            counts.pop("None", None)
            assert not counts or max(counts.values()) == 1
        assert all(30_100 <= port <= 32_767 for port in ports)


@pytest.mark.parametrize("seed", [1, 2])
def test_services_are_as_a_server_stores_them(seed: int) -> None:
    for change, _ in replay(seed, 1500):
        if change.obj["kind"] != "Service":
            continue
        spec, kind = change.obj["spec"], change.obj["spec"]["type"]
        external = kind in ("NodePort", "LoadBalancer")
        assert all(("nodePort" in port) is external for port in spec["ports"])
        assert ("externalTrafficPolicy" in spec) is (external or "externalIPs" in spec)
        assert ("healthCheckNodePort" in spec) is (kind == "LoadBalancer" and spec["externalTrafficPolicy"] == "Local")
        assert ("sessionAffinityConfig" in spec) is (spec["sessionAffinity"] == "ClientIP")
        assert ("clusterIP" in spec) is ("internalTrafficPolicy" in spec) is (kind != "ExternalName")
        if spec.get("clusterIP", "None") != "None":
            assert [":" in ip for ip in spec["clusterIPs"]] == [f == "IPv6" for f in spec["ipFamilies"]]
            assert spec["clusterIP"] == spec["clusterIPs"][0]
        names = [port.get("name") for port in spec["ports"]]
        assert names == [None] or (None not in names and len(set(names)) == len(names))
        assert change.obj["metadata"].keys() >= {"uid", "creationTimestamp", "labels", "managedFields"}


def traits(change: Change) -> Iterator[str]:
    """What a proxy has to deal with in this object."""
    obj = change.obj
    if obj["kind"] == "EndpointSlice":
        yield f"slice {obj['addressType']}"
        yield "placeholder" if obj["endpoints"] is None else "endpoints"
        for endpoint in obj["endpoints"] or []:
            conditions = endpoint["conditions"]
            yield "ready" if conditions["ready"] else "not ready"
            if conditions.get("terminating"):
                yield "serving" if conditions["serving"] else "dying"
            if "hints" in endpoint:
                yield "hints"
        return
    spec = obj["spec"]
    yield spec["type"]
    yield from (spec.get(name, "") for name in ("ipFamilyPolicy", "trafficDistribution", "sessionAffinity"))
    yield from (f"external {spec.get('externalTrafficPolicy')}", f"internal {spec.get('internalTrafficPolicy')}")
    yield from (name for name in ("externalIPs", "loadBalancerSourceRanges") if name in spec)
    yield from (port["protocol"] for port in spec["ports"])
    if spec.get("clusterIP") == "None":
        yield "headless"
    yield from (entry["ipMode"] for entry in obj["status"]["loadBalancer"].get("ingress", []))
    yield from (label for label in obj["metadata"]["labels"] if "/" in label)


def test_everything_happens() -> None:
    seen = Counter(trait for change in islice(churn(4), 5000) for trait in traits(change))
    words = """ClusterIP NodePort LoadBalancer ExternalName SingleStack PreferDualStack RequireDualStack
    PreferClose PreferSameZone PreferSameNode ClientIP externalIPs loadBalancerSourceRanges TCP UDP SCTP
    headless VIP Proxy placeholder ready serving dying hints
    service.kubernetes.io/service-proxy-name"""
    wanted = [*words.split(), "slice IPv4", "slice IPv6", "not ready"]
    wanted += [f"{scope} {policy}" for scope in ("external", "internal") for policy in ("Local", "Cluster")]
    assert not [trait for trait in wanted if not seen[trait]]


def test_orders_that_race() -> None:
    """Deletions in both orders, slices before their Service, another clusterIP under a known name."""
    found: Counter[str] = Counter()
    addresses: dict[Key, str] = {}
    for change, objects in replay(5, 5000):
        service = "Service", change.obj["metadata"]["namespace"], owner(change.obj)
        siblings = [obj for obj in objects.values() if obj["kind"] != "Service" and owner(obj) == service[2]]
        if change.obj["kind"] == "EndpointSlice" and change.verb == "create" and service not in objects:
            found["slice before service"] += 1
        if change.obj["kind"] == "Service" and change.verb == "delete":
            found["service last" if not siblings else "service first"] += 1
        if change.obj["kind"] == "Service" and change.verb == "create":
            address = change.obj["spec"].get("clusterIP", "None")
            found["other clusterIP"] += addresses.get(service, address) != address
            found["on the old one's slices"] += bool(siblings)
            addresses[service] = address
        found["several slices"] += len(siblings) > 3
    assert set(found) == {
        "slice before service",
        "service first",
        "service last",
        "other clusterIP",
        "on the old one's slices",
        "several slices",
    }
    assert min(found.values()) >= 5


def owner(obj: Object) -> str:
    labels = obj["metadata"]["labels"]
    return str(labels.get("kubernetes.io/service-name", obj["metadata"]["name"]))


def test_addresses_and_ports_are_handed_on() -> None:
    """What one Service gave back another one gets: the case in which stale rules do harm."""
    owners: dict[object, set[str]] = {}
    for change, _ in replay(9, 3000):
        if change.obj["kind"] == "Service" and change.verb != "delete":
            spec = change.obj["spec"]
            ports = [port["nodePort"] for port in spec["ports"] if "nodePort" in port]
            for value in (*spec.get("clusterIPs", []), *ports):
                owners.setdefault(value, set()).add(change.obj["metadata"]["uid"])
    owners.pop("None")
    handed_on = [value for value, uids in owners.items() if len(uids) > 1]
    assert sum(isinstance(value, int) for value in handed_on) > 5
    assert sum(isinstance(value, str) for value in handed_on) > 5


def test_endpoints_move_between_slices() -> None:
    """For a while an address is in two slices of one Service, or in none."""
    twice = 0
    for change, objects in replay(6, 2000):
        if change.obj["kind"] == "EndpointSlice":
            held = Counter(
                address
                for obj in objects.values()
                if obj["kind"] == "EndpointSlice" and owner(obj) == owner(change.obj)
                for endpoint in obj["endpoints"] or []
                for address in endpoint["addresses"]
            )
            twice += any(count > 1 for count in held.values())
    assert twice > 5


def test_the_size_stays() -> None:
    counts = [len(services(objects)) for _, objects in replay(7, 6000)]
    assert min(counts[1000:]) >= 10
    assert max(counts) <= 45


def test_a_server_takes_it_all() -> None:
    with ApiServer() as server:
        server.put_all(node_objects(3))
        server.put_all(population(20))
        steps = list(replay(8, 600))
        for change, _ in steps:
            server.change(*change)
        objects = steps[-1][1]
        held = {key(obj): obj for obj in server.objects("Service", "EndpointSlice")}
        fleet = {k for k in held if k[1] == "fleet"}
        assert len(fleet) == 40
        assert held.keys() - fleet == objects.keys()
        for name, obj in objects.items():
            assert {**obj, "metadata": None} == {**held[name], "metadata": None}
            assert obj["metadata"]["uid"] == held[name]["metadata"]["uid"]
