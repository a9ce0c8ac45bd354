"""No text and no value in any field gets past the API's grammar, or raises anything but InputError."""

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kpx.api import parse_config, parse_object
from kpx.errors import InputError
from tests.api import samples

CASES = Path(__file__).parents[1] / "conformance" / "cases"

SAFE = re.compile(r"[A-Za-z0-9_.:/\[@][-A-Za-z0-9_.:/\[\],+@]*")
"""What may reach a rule: no white space, no quote, no `!` anywhere, no leading `-`."""

LINES = {"kubeconfig", "accept_content_types", "content_type", "format", "file_pattern", "info_buffer_size"} | {
    "show_hidden_metrics_for_version",
    "port_range",
    "scheduler",
    "network_name",
    "source_vip",
    "root_hns_endpoint_name",
}
"""Fields of the configuration that hold any line of text; nothing reads them for a rule."""

FREE = {"annotations", *LINES}
SAMPLES = {"Service": samples.SERVICE, "EndpointSlice": samples.SLICE, "Node": samples.NODE, "Config": samples.CONFIG}
PLACES = [(kind, path) for kind, sample in SAMPLES.items() for path in samples.paths(sample)]

hostile = st.builds(
    "".join,
    st.lists(
        st.sampled_from(["\n", " ", '"', "'", "-j", "-A", "ACCEPT", "web", "10.0.0.1", "/8", "COMMIT", "\\", "\x00"])
        | st.sampled_from(["!", "\r", "\t", "\u2028", "a", "1", "-", ".", ":", "%eth0", "None", "é", "$", "`", ";"])
        | st.text(max_size=3),
        max_size=5,
    ),
)
valid_with_a_tail = st.builds(
    str.__add__,
    st.sampled_from(["web", "10.0.0.1", "10.0.0.0/8", "fd00::1", "TCP", "ClusterIP", "IPv4", "30s", "cni0", "primary"]),
    st.sampled_from(["\n", " ", "\r\n", "\x00", '"', "\n-A INPUT -j ACCEPT", "\u2028", "\ud800"]),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def parse(kind: str, data: Any) -> Any:
    """The object, or None if it was refused, in which case the complaint must be fit for a log."""
    try:
        if kind == "Config":
            return parse_config(json.dumps(data).encode())[0]
        return parse_object(kind, data)
    except InputError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert str(problem).isprintable()
        assert len(problem.subject) < 400
    return None


def texts(value: Any) -> list[str]:
    """Every string in a model that may come near a rule."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, BaseModel):
        names = list(type(value).model_fields)
    elif is_dataclass(value):
        names = [field.name for field in fields(value)]
    elif isinstance(value, dict):
        return [text for pair in value.items() for inner in pair for text in texts(inner)]
    else:
        return [text for inner in value for text in texts(inner)] if isinstance(value, tuple) else []
    return [text for name in names if name not in FREE for text in texts(getattr(value, name))]


def assert_safe(value: Any) -> None:
    for text in texts(value):
        assert text == "" or SAFE.fullmatch(text), text


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(PLACES), hostile | valid_with_a_tail)
def test_text_in_any_field(place: tuple[str, samples.Path], text: str) -> None:
    kind, path = place
    assert_safe(parse(kind, samples.changed(SAMPLES[kind], path, text)))


@settings(deadline=None)
@given(st.sampled_from([place for place in PLACES if isinstance(place[1][-1], str)]), hostile | valid_with_a_tail)
def test_text_as_any_key(place: tuple[str, samples.Path], text: str) -> None:
    kind, path = place
    assert_safe(parse(kind, samples.changed(SAMPLES[kind], (*path[:-1], text), "value")))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(PLACES), json_values)
def test_any_value_in_any_field(place: tuple[str, samples.Path], value: object) -> None:
    kind, path = place
    assert_safe(parse(kind, samples.changed(SAMPLES[kind], path, value)))


@pytest.mark.parametrize(("kind", "path"), PLACES, ids=str)
def test_every_field_with_a_newline_or_missing(kind: str, path: samples.Path) -> None:
    """Not left to chance: every text of the samples with a line after it, and every field gone."""
    value: Any = SAMPLES[kind]
    for step in path:
        value = value[step]
    if isinstance(value, str):
        for tail in ("\n", "\n-A INPUT -j ACCEPT", ' "', " -j ACCEPT", "\x00"):
            assert_safe(parse(kind, samples.changed(SAMPLES[kind], path, value + tail)))
    assert_safe(parse(kind, samples.without(SAMPLES[kind], path)))


@settings(deadline=None)
@given(st.sampled_from(["Service", "EndpointSlice", "Node"]), st.binary(max_size=40))
def test_any_bytes(kind: str, data: bytes) -> None:
    assert_safe(parse(kind, data))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_as_configuration(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_config(data)


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_what_a_server_stored_is_accepted(case: str) -> None:
    for document in yaml.safe_load_all((CASES / case / "cluster.yaml").read_text()):
        found = parse_object(document["kind"], document)
        assert parse_object(document["kind"], json.dumps(document).encode()) == found
        assert_safe(found)
    config, warnings = parse_config((CASES / case / "config.yaml").read_bytes())
    assert config.hostname_override == "node-0"
    assert warnings == ()
