"""Objects in protobuf: the same models, and the same complaints, as from JSON; and whatever is none is refused."""

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kpx.api import Object, parse_object
from kpx.errors import InputError
from kpx.sources import kube_pb2
from kpx.sources.body import LONGEST_PACKED, FrameSplitter
from kpx.sources.trouble import BrokenAnswerError, RefusedError, TooLargeError
from kpx.sources.wire import JSON, PROTOBUF, Entry, Packed, Page, Said, decode_frame
from tests.apiserver.packing import enveloped, field, list_head, packed, varint

RECORDINGS = Path(__file__).parent / "recordings"
KINDS = {"services": "Service", "endpointslices": "EndpointSlice", "nodes": "Node"}
API_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}


# What a real server has said, both ways.


def read(encoding: Any, kind: str, body: bytes, size: int = 1 << 30) -> tuple[list[Any], Page]:
    reader = encoding.reader(kind)
    found = []
    for start in range(0, len(body), size):
        found += reader.feed(body[start : start + size])
    found += reader.rest()
    return found, reader.page()


def judged(kind: str, content: Mapping[str, Any]) -> Object | list[str]:
    try:
        return parse_object(kind, content)
    except InputError as error:
        return [str(problem) for problem in error.problems]


def of_entry(kind: str, entry: Entry) -> Object | list[str]:
    try:
        return parse_object(kind, entry.content())
    except InputError as error:
        return [str(problem) for problem in error.problems]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("plural", KINDS)
def test_recorded_lists(plural: str, size: int) -> None:
    kind = KINDS[plural]
    ours, page = read(PROTOBUF, kind, (RECORDINGS / f"{plural}.list.protobuf").read_bytes(), size)
    theirs, same = read(JSON, kind, (RECORDINGS / f"{plural}.list.json").read_bytes())
    assert page == same
    assert len(ours) == len(theirs) > 0
    for packed_entry, plain in zip(ours, theirs, strict=True):
        assert (packed_entry.namespace, packed_entry.name, packed_entry.version) == (
            plain.namespace,
            plain.name,
            plain.version,
        )
        assert of_entry(kind, packed_entry) == of_entry(kind, plain)


def events(encoding: Any, kind: str, body: bytes, size: int) -> list[Said]:
    splitter = encoding.splitter()
    return [
        encoding.event(kind, part)
        for start in range(0, len(body), size)
        for part in splitter.feed(body[start : start + size])
    ]


@pytest.mark.parametrize("size", [3, 1 << 20])
@pytest.mark.parametrize("plural", KINDS)
def test_recorded_watches(plural: str, size: int) -> None:
    kind = KINDS[plural]
    ours = events(PROTOBUF, kind, (RECORDINGS / f"{plural}.watch.protobuf").read_bytes(), size)
    theirs = events(JSON, kind, (RECORDINGS / f"{plural}.watch.json").read_bytes(), size)
    assert [type(one) for one in ours] == [type(one) for one in theirs]
    assert sum(getattr(one, "initial_end", False) for one in ours) == 1
    for one, other in zip(ours, theirs, strict=True):
        entry, plain = getattr(one, "entry", None), getattr(other, "entry", None)
        assert (entry is None) is (plain is None)
        if entry is not None and plain is not None:
            assert (entry.namespace, entry.name) == (plain.namespace, plain.name)


def test_recorded_refusal() -> None:
    body = (RECORDINGS / "gone.watch.protobuf").read_bytes()
    with pytest.raises(RefusedError, match="too old resource version") as raised:
        events(PROTOBUF, "Service", body, 1 << 20)
    assert raised.value.status == 410


def test_the_generated_module_is_of_the_schema() -> None:
    text = Path(kube_pb2.__file__).with_name("kube.proto").read_text()
    written = {
        (message, label == "repeated", kind, name, int(number))
        for message, body in re.findall(r"^message (\w+) \{(.*?)^\}", text, re.M | re.S)
        for label, kind, name, number in re.findall(r"^  (optional|repeated) (\w+) (\w+) = (\d+);", body, re.M)
    }
    types = {FieldDescriptor.TYPE_STRING: "string", FieldDescriptor.TYPE_BYTES: "bytes"}
    types |= {
        FieldDescriptor.TYPE_INT32: "int32",
        FieldDescriptor.TYPE_INT64: "int64",
        FieldDescriptor.TYPE_BOOL: "bool",
    }
    generated = {
        (
            message.name,
            one.is_repeated,
            one.message_type.name if one.message_type else types[one.type],
            one.name,
            one.number,
        )
        for message in kube_pb2.DESCRIPTOR.message_types_by_name.values()
        for one in message.fields
    }
    assert generated == written


# Any object: JSON or protobuf, the same model or the same complaint.

_TEXTS = st.sampled_from(["", "web", "a.b", "UPPER", "x" * 70, "10.0.0.1", "2001:db8::1", "ü", "a b", "-", "TCP", "\n"])
_NUMBERS = st.sampled_from([0, 1, 80, 65535, 65536, -1, 10800, 86401, 2**31 - 1, -(2**31)])
_FLAGS = st.booleans()
_MAPS = st.dictionaries(_TEXTS, _TEXTS, max_size=3)
_TIMES = st.sampled_from(["2026-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2038-01-19T03:14:08Z"])


def lists(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A Go list is left out of JSON where it is empty."""
    return st.lists(of, min_size=1, max_size=3)


def fields(always: Mapping[str, Any] | None = None, **maybe: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(dict(always or {}), optional=maybe)


def filled(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Go leaves out of JSON what is empty; a pointer to it it doesn't."""
    return of.filter(bool)


META = fields(
    {"name": st.sampled_from(["web", "a-b", "x1"]), "resourceVersion": st.sampled_from(["1", "12345"])},
    namespace=st.sampled_from(["shop", "a", "UP"]),
    uid=filled(_TEXTS),
    labels=filled(_MAPS),
    annotations=filled(_MAPS),
    creationTimestamp=_TIMES,
    deletionTimestamp=_TIMES,
)
PORT = fields(
    {"port": _NUMBERS, "targetPort": st.one_of(_NUMBERS, _TEXTS)},
    name=filled(_TEXTS),
    protocol=st.sampled_from(["TCP", "UDP", "SCTP", "tcp"]),
    nodePort=filled(_NUMBERS),
)
SPEC = fields(
    None,
    type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Other"]),
    clusterIP=st.sampled_from(["10.96.0.1", "None", "fd00::1", "x"]),
    clusterIPs=lists(st.sampled_from(["10.96.0.1", "None", "fd00::1", "x"])),
    ports=lists(PORT),
    externalIPs=lists(_TEXTS),
    selector=filled(_MAPS),
    sessionAffinity=st.sampled_from(["None", "ClientIP", "Other"]),
    sessionAffinityConfig=fields(clientIP=fields(timeoutSeconds=_NUMBERS)),
    loadBalancerSourceRanges=lists(st.sampled_from(["10.0.0.0/8", " ::/0 ", "x"])),
    externalTrafficPolicy=st.sampled_from(["Cluster", "Local", "Other"]),
    internalTrafficPolicy=st.sampled_from(["Cluster", "Local", "Other"]),
    healthCheckNodePort=filled(_NUMBERS),
    ipFamilies=lists(st.sampled_from(["IPv4", "IPv6", "Other"])),
    allocateLoadBalancerNodePorts=_FLAGS,
    trafficDistribution=_TEXTS,
)
INGRESS = fields(ip=filled(_TEXTS), hostname=filled(_TEXTS), ipMode=st.sampled_from(["VIP", "Proxy", "Other"]))
SERVICE = st.fixed_dictionaries(
    {
        "metadata": META,
        "spec": SPEC,
        "status": st.fixed_dictionaries({"loadBalancer": fields(ingress=lists(INGRESS))}),
    }
)
NAMED = fields({"name": _TEXTS})
ENDPOINT = fields(
    {
        "addresses": st.lists(st.sampled_from(["10.0.0.1", "fd00::1", "host.example", "x y"]), max_size=3),
        "conditions": fields(ready=_FLAGS, serving=_FLAGS, terminating=_FLAGS),
    },
    nodeName=_TEXTS,
    zone=_TEXTS,
    hints=fields(forZones=lists(NAMED), forNodes=lists(NAMED)),
    targetRef=fields(kind=filled(_TEXTS), name=filled(_TEXTS)),
)
SLICE = st.fixed_dictionaries(
    {
        "metadata": META,
        "addressType": st.sampled_from(["IPv4", "IPv6", "FQDN", ""]),
        "endpoints": st.lists(ENDPOINT, max_size=4),
        "ports": st.lists(
            fields(name=_TEXTS, protocol=st.sampled_from(["TCP", "UDP", "Other", ""]), port=_NUMBERS), max_size=3
        ),
    }
)
NODE = st.fixed_dictionaries(
    {
        "metadata": META,
        "spec": fields(
            podCIDR=st.sampled_from(["10.244.0.0/24", "x"]),
            podCIDRs=lists(st.sampled_from(["10.244.0.0/24", "fd00::/64", "x"])),
            taints=lists(
                fields(
                    {"key": _TEXTS, "effect": st.sampled_from(["NoSchedule", "NoExecute", "Other", ""])},
                    value=filled(_TEXTS),
                )
            ),
        ),
        "status": fields(
            addresses=lists(fields({"type": st.sampled_from(["InternalIP", "Hostname", ""]), "address": _TEXTS}))
        ),
    }
)
SOUND: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7", "labels": {"a": "b"}},
    "spec": {
        "type": "NodePort",
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1", "fd00::1"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP", "nodePort": 30080}],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
    },
    "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}},
}


@given(
    st.one_of(
        st.tuples(st.just("Service"), SERVICE),
        st.tuples(st.just("EndpointSlice"), SLICE),
        st.tuples(st.just("Node"), NODE),
    )
)
@example(("Service", SOUND))
@settings(max_examples=400, deadline=None)
def test_the_same_from_json_and_from_protobuf(case: tuple[str, dict[str, Any]]) -> None:
    kind, obj = case
    from_packed = of_entry(kind, Entry("", "", 0, Packed(kind, packed(kind, obj))))
    assert from_packed == judged(kind, json.loads(json.dumps(obj, sort_keys=True)))
    if kind != "Node" and obj["metadata"].get("namespace", "UP") != "UP":
        entry = Entry.packed(kind, packed(kind, obj))
        assert (entry.name, entry.version) == (obj["metadata"]["name"], int(obj["metadata"]["resourceVersion"]))


def test_the_sound_one_is_sound() -> None:
    found = of_entry("Service", Entry("", "", 0, Packed("Service", packed("Service", SOUND))))
    assert not isinstance(found, list)


# What is none.


def wrapped(content: bytes, kind: str = "Service") -> bytes:
    return enveloped(kind, API_VERSIONS[kind], content)


def event(of_type: bytes, content: bytes) -> bytes:
    return field(1, of_type) + field(2, field(1, content))


WEB = packed("Service", SOUND)
DEEP = b"\x0b" * 5000
"""Groups in groups."""
ENDLESS = b"\x12\xff\xff\xff\xff\x07"
"""A field of 2 GiB."""


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff",
        ENDLESS,
        DEEP,
        event(b"ADDED", b""),
        event(b"ADDED", WEB),
        event(b"ADDED", wrapped(b"")),
        event(b"ADDED", wrapped(b"\x0a\x04\x0a")),
        event(b"ADDED", wrapped(ENDLESS)),
        event(b"ADDED", wrapped(DEEP)),
        event(b"ADDED", wrapped(packed("Service", {"metadata": {"name": "a", "namespace": "b"}}))),
        event(
            b"ADDED",
            wrapped(packed("Service", {"metadata": {"name": "A\n", "namespace": "b", "resourceVersion": "1"}})),
        ),
        event(b"ADDED", wrapped(field(1, field(1, b"\xff\xfe") + field(3, b"b") + field(6, b"1")))),
        event(b"ADDED", wrapped(field(1, b"1", 5) + b"234")),
        event(b"ADDED", wrapped(WEB, "Node")),
        event(b"CHANGED", wrapped(WEB)),
        event(b"", wrapped(WEB)),
        event(b"\xff", wrapped(WEB)),
        event(b"BOOKMARK", wrapped(b"")),
        event(b"BOOKMARK", wrapped(packed("Service", {"metadata": {"resourceVersion": "x"}}))),
        event(b"ERROR", wrapped(b"\xff")),
        event(b"ADDED", b"k8s\0" + field(2, WEB) + field(3, b"gzip")),
    ],
)
def test_frames_that_are_none(frame: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        decode_frame("Service", frame)


def test_an_error_that_says_nothing() -> None:
    with pytest.raises(RefusedError) as raised:
        decode_frame("Service", event(b"ERROR", wrapped(b"")))
    assert raised.value.status == 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"k8s\0",
        b"k8s",
        enveloped("ServiceList", "v1", b""),
        enveloped("PodList", "v1", list_head({"resourceVersion": "7"})),
        enveloped("ServiceList", "v1", list_head({"resourceVersion": "-7"})),
        enveloped("ServiceList", "v1", list_head({"resourceVersion": "7"}) + field(2, WEB))[:-100],
        enveloped("ServiceList", "v1", field(2, WEB)),
        b"k8s\0" + field(1, field(2, b"ServiceList")) + ENDLESS + b"\x0b",
        b"k8s\0" + field(1, field(2, b"ServiceList")) + field(2, b"\x0b" * 20),
        b"k8s\0" + field(1, field(2, b"ServiceList")) + field(2, b"\x12" + b"\xff" * 20),
        b"k8s\0" + field(1, field(2, b"ServiceList")) + field(2, ENDLESS),
        b"k8s\0" + field(1, field(2, b"ServiceList")) + field(2, b"\x12\x05ab"),
        b"k8s\0" + b"\x0a\xff\xff\xff\xff\x07",
    ],
)
def test_lists_that_are_none(body: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        read(PROTOBUF, "Service", body)


def test_an_item_that_is_none_spoils_no_other() -> None:
    other = packed("Service", SOUND | {"metadata": SOUND["metadata"] | {"name": "other"}})
    items = [WEB, b"\xff", field(1, b""), field(1, packed("Service", SOUND)[:9]), other]
    content = list_head({"resourceVersion": "9"}) + b"".join(field(2, item) for item in items)
    found, page = read(PROTOBUF, "Service", enveloped("ServiceList", "v1", content))
    assert [one.name if isinstance(one, Entry) else "?" for one in found] == ["web", "?", "?", "?", "other"]
    assert [str(one).partition(":")[0] for one in found if not isinstance(one, Entry)] == [
        "items[1]",
        "items[2]",
        "items[3]",
    ]
    assert page == Page(9, "")


IDENTITY = field(1, field(1, b"web") + field(3, b"shop") + field(6, b"7"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (IDENTITY + field(2, b"\xff"), "Service shop/web: is no Service in protobuf"),
        (IDENTITY + field(2, field(1, b"\x0b")), "Service shop/web: is no ServicePort in protobuf"),
        (
            IDENTITY + field(2, field(3, b"\xff\xfe")),
            "Service shop/web: spec.clusterIP: must be a string (got b'\\xff\\xfe')",
        ),
        (IDENTITY + field(2, field(2, b"\x0a\x01\xff")), "Service shop/web: spec.selector"),
        (IDENTITY + field(2, b"\x18\x07"), "Service shop/web: spec.clusterIP: is required"),
        (IDENTITY + field(2, field(1, b"") * 20_001), "Service shop/web: spec.ports: must have at most 20000 items"),
        (IDENTITY + field(2, field(2, b"") * 20_001), "Service shop/web: spec.selector: must have at most 20000 items"),
        (
            field(1, field(1, b"web") + field(3, b"shop") + field(6, b"7") + field(8, b"\x08" + varint(1 << 62))),
            "Service shop/web: metadata.creationTimestamp: must be a string (got 4611686018427387904)",
        ),
        (
            field(1, field(1, b"web") + field(3, b"shop") + field(6, b"7") + field(8, b"\x08" + varint(-(1 << 62)))),
            "Service shop/web: metadata.creationTimestamp: must be a string (got -4611686018427387904)",
        ),
    ],
)
def test_objects_that_are_none_are_named(content: bytes, complaint: str) -> None:
    entry = Entry.packed("Service", content)
    assert (entry.namespace, entry.name, entry.version) == ("shop", "web", 7)
    found = of_entry("Service", entry)
    assert isinstance(found, list)
    assert any(one.startswith(complaint) for one in found), found


def test_frames_come_whole_however_they_are_cut() -> None:
    rng = random.Random(1)
    frames = [rng.randbytes(rng.choice([0, 1, 5, 300])) for _ in range(50)]
    stream = b"".join(len(frame).to_bytes(4) + frame for frame in frames) + b"\0\0\1"
    splitter = FrameSplitter()
    found: list[bytes] = []
    while stream:
        size = rng.randrange(1, 40)
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == frames


def test_endless_frame() -> None:
    with pytest.raises(TooLargeError, match="a frame of"):
        list(FrameSplitter().feed((LONGEST_PACKED + 1).to_bytes(4)))
    with pytest.raises(TooLargeError, match="a frame of"):
        list(FrameSplitter().feed(b"\xff\xff\xff\xff"))


@given(st.integers(0, 2**32))
@settings(max_examples=500, deadline=None)
def test_mutants_of_real_answers(seed: int) -> None:
    """Bytes changed, lost, doubled, in a list or in a frame: sound, or refused by name; never anything else."""
    rng = random.Random(seed)
    plural, kind = rng.choice(list(KINDS.items()))
    stream = rng.random() < 0.5
    body = bytearray((RECORDINGS / f"{plural}.{'watch' if stream else 'list'}.protobuf").read_bytes())
    for _ in range(rng.choice([1, 2, 5, 50])):
        at = rng.randrange(len(body))
        match rng.randrange(5):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                body[at] ^= 1 << rng.randrange(8)
            case 2:
                del body[at : at + rng.choice([1, 4, 100])]
            case 3:
                body[at:at] = rng.choice([b"\xff" * 5, ENDLESS, b"\x0b" * 200, b"\0", bytes(body[at : at + 60])])
            case _:
                del body[at + 200 :]
        if len(body) < 10:
            break
    try:
        found: list[Any] = (
            events(PROTOBUF, kind, bytes(body), 999) if stream else read(PROTOBUF, kind, bytes(body), 999)[0]
        )
    except (BrokenAnswerError, RefusedError):
        return
    for one in found:
        entry = one if isinstance(one, Entry) else getattr(one, "entry", None)
        if entry is not None:
            judgement = of_entry(kind, entry)
            assert not isinstance(judgement, list) or judgement
