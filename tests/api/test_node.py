import pytest

from kpx.api import Node, parse_object
from kpx.errors import InputError
from tests.api.samples import NODE, Path, changed


def addresses(node: object) -> list[tuple[str, str]]:
    assert isinstance(node, Node)
    return [(entry.type, entry.address) for entry in node.status.addresses]


def test_every_field() -> None:
    node = parse_object("Node", NODE)
    assert isinstance(node, Node)
    assert node.metadata.labels == {"topology.kubernetes.io/zone": "zone-a"}
    assert (node.spec.pod_cidr, node.spec.pod_cidrs) == ("10.244.0.0/24", ("10.244.0.0/24", "fd00:244::/64"))
    assert [(taint.key, taint.value, taint.effect) for taint in node.spec.taints] == [
        ("example.com/a", "b", "NoSchedule")
    ]
    assert addresses(node) == [("InternalIP", "10.200.0.2")]


def test_a_name_is_enough() -> None:
    node = parse_object("Node", {"metadata": {"name": "node-0"}, "spec": None, "status": None})
    assert isinstance(node, Node)
    assert (node.spec.pod_cidr, node.spec.pod_cidrs, node.status.addresses) == (None, (), ())


def test_addresses_that_are_none_are_left_out() -> None:
    entries = [
        {"type": "InternalIP", "address": "FD00::0:2"},
        {"type": "ExternalIP", "address": "not-an-address"},
        {"type": "Hostname", "address": "NODE_0.example"},
        {"type": "InternalDNS", "address": "a\n-j ACCEPT"},
        {"type": "Hostname", "address": ""},
    ]
    node = parse_object("Node", changed(NODE, ("status", "addresses"), entries))
    assert addresses(node) == [("InternalIP", "fd00::2"), ("Hostname", "NODE_0.example")]


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("metadata", "name"), "node 0", "metadata.name"),
        (
            ("metadata", "labels", "topology.kubernetes.io/zone"),
            "a'b",
            "metadata.labels['topology.kubernetes.io/zone']",
        ),
        (("spec", "podCIDR"), "10.244.0.0", "spec.podCIDR"),
        (("spec", "podCIDRs", 1), "fd00::/129", "spec.podCIDRs[1]"),
        (("spec", "taints", 0, "effect"), "Never", "spec.taints[0].effect"),
        (("spec", "taints", 0, "key"), "a b", "spec.taints[0].key"),
        (("status", "addresses", 0, "type"), "-j", "status.addresses[0].type"),
        (("status", "addresses", 0, "address"), 5, "status.addresses[0].address"),
    ],
)
def test_one_wrong_field(path: Path, value: object, where: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_object("Node", changed(NODE, path, value))
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == (where, value)
    assert problem.subject.startswith("Node ")
