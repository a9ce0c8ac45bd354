"""No text of an object can become anything but the value it is: not another rule, not another option."""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import kpx
from kpx.netfilter.restore import payload
from kpx.netfilter.rule import parse_rule
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.manifests import Manifest, endpoint_slice, node, service

SERVICE = service(
    "web",
    "10.96.0.1",
    type="LoadBalancer",
    ports=[{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
    externalIPs=["192.0.2.1"],
    sessionAffinity="ClientIP",
    loadBalancerSourceRanges=["192.0.2.0/24"],
    externalTrafficPolicy="Local",
) | {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP", "hostname": "lb.example.com"}]}}}
SLICE = endpoint_slice("web", ["10.244.0.1"], node_name="node-0")
SLICE["endpoints"][0] |= {"zone": "zone-a", "hints": {"forZones": [{"name": "zone-a"}]}}
OBJECTS = [SERVICE, SLICE, node()]

NASTY = st.sampled_from(
    [
        '" -j ACCEPT "',
        "x\nCOMMIT\n*filter\n-F",
        "-j",
        "--comment",
        "a b",
        "\\",
        "'",
        "\x00",
        "\r\n",
        "*nat",
        ":X",
        "é",
        "$(id)",
    ]
)
ALLOWED = re.compile(
    r"(\*(filter|nat)|COMMIT|:KUBE-[A-Z0-9-]{1,23} - \[0:0\]|-A KUBE-[A-Z0-9-]+( .*)?|-I [A-Z]+ \d .*)"
)
MODULES = {"comment", "tcp", "udp", "sctp", "conntrack", "mark", "addrtype", "statistic", "recent"}
TARGETS = re.compile(r"KUBE-[A-Z0-9-]+|DNAT|MARK|MASQUERADE|RETURN|ACCEPT|DROP|REJECT")


def string_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in an object a string stands; map keys count as well."""
    if isinstance(value, str):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from string_places(inner, (*path, key))


PLACES = [(number, path) for number, one in enumerate(OBJECTS) for path in string_places(one)]


def with_text(place: tuple[int, tuple[Any, ...]], text: str, append: bool) -> list[Manifest]:
    objects = deepcopy(OBJECTS)
    number, path = place
    inner = objects[number]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] + text if append else text
    return objects


def parsed(manifests: list[Manifest]) -> list[kpx.Object] | kpx.InputError:
    try:
        return [kpx.parse_object(str(one["kind"]), one) for one in manifests]
    except kpx.InputError as error:
        return error


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), st.one_of(NASTY, st.text(max_size=20)), st.booleans())
def test_text_anywhere_is_refused_or_stays_a_value(place: tuple[int, tuple[Any, ...]], text: str, append: bool) -> None:
    objects = parsed(with_text(place, text, append))
    if isinstance(objects, kpx.InputError):
        assert "\n" not in str(objects)
        return
    for family in kpx.Family:
        lines = payload(transactions(make_plan(kpx.compile(objects, node_name="node-0", family=family), {}).edits))
        assert lines.count("COMMIT\n") == 2
        for line in lines.splitlines():
            assert ALLOWED.fullmatch(line), line
            if line.startswith("-A"):
                rule = parse_rule(line.split(" ", 2)[2])
                assert {match.module for match in rule.matches} <= MODULES
                assert rule.target is None or TARGETS.fullmatch(rule.target)
