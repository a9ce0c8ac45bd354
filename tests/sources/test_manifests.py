import gc
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.sources.manifests import Loaded, load
from tests.api.samples import NODE, SERVICE, SLICE, changed

CASES = Path(__file__).parents[1] / "conformance" / "cases"


def read(text: str | bytes) -> Loaded:
    return load(["-"], io.BytesIO(text.encode() if isinstance(text, str) else text))


def told(loaded: Loaded) -> list[str]:
    return [str(problem) for problem in loaded.problems]


def names(loaded: Loaded) -> list[str]:
    return [f"{type(found).__name__} {found.metadata.name}" for found in loaded.objects]


def named(name: str) -> dict[str, Any]:
    return changed(NODE, ("metadata", "name"), name)


ALL_THREE = ["Service web", "EndpointSlice web-a", "Node node-0"]


@pytest.mark.parametrize(
    "text",
    [
        yaml.safe_dump_all([SERVICE, SLICE, NODE]),
        "---\n" + yaml.safe_dump_all([SERVICE, None, SLICE, NODE], explicit_end=True),
        "\ufeff" + yaml.safe_dump_all([SERVICE, SLICE, NODE]),
        yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [SERVICE, SLICE, NODE]}),
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [SERVICE, SLICE, NODE]}, indent=4),
        "\ufeff" + json.dumps({"kind": "List", "items": [SERVICE, SLICE, NODE]}),
        "\n".join(map(json.dumps, [SERVICE, SLICE, NODE])),
        "".join(map(json.dumps, [SERVICE, SLICE, NODE])),
    ],
)
def test_forms(text: str) -> None:
    loaded = read(text)
    assert told(loaded) == []
    assert names(loaded) == ALL_THREE
    assert loaded.skipped == {}
    assert loaded.objects == read(yaml.safe_dump_all([SERVICE, SLICE, NODE])).objects


def test_typed_list_whose_items_lack_kind() -> None:
    item = {"metadata": {"name": "node-0"}}
    loaded = read(json.dumps({"apiVersion": "v1", "kind": "NodeList", "items": [item]}))
    assert (names(loaded), told(loaded)) == (["Node node-0"], [])
    loaded = read(json.dumps({"apiVersion": "v2", "kind": "NodeList", "items": [item]}))
    assert told(loaded) == ["Node node-0: apiVersion: must be v1 (got 'v2')"]
    assert read('{"apiVersion":"v1","kind":"ServiceList","items":null}') == Loaded((), (), {})


def test_yaml_that_begins_like_json() -> None:
    assert names(read("{kind: Node, apiVersion: v1, metadata: {name: a}}")) == ["Node a"]


def test_times_in_yaml_stay_text() -> None:
    (node,) = read("kind: Node\napiVersion: v1\nmetadata: {name: a, creationTimestamp: 2024-05-01T10:00:00Z}").objects
    assert node.metadata.creation_timestamp == "2024-05-01T10:00:00Z"


def test_other_kinds_are_counted() -> None:
    items = [{"kind": "Pod"}, {"kind": "Deployment"}, {"kind": "Pod"}, SERVICE]
    loaded = read(json.dumps({"kind": "List", "items": items}) + json.dumps({"kind": "PodList", "items": [{}]}))
    assert loaded.skipped == {"Deployment": 1, "Pod": 3}
    assert (names(loaded), told(loaded)) == (["Service web"], [])


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "..data").mkdir()
    for place, node in {"a.yaml": "a", "b/c.json": "c", "b/d.yml": "d", "e.txt": "e", "..data/a.yaml": "a"}.items():
        (tmp_path / place).write_text(json.dumps(named(node)))
    assert names(load([str(tmp_path)])) == ["Node a", "Node c", "Node d"]
    assert names(load([str(tmp_path / "e.txt"), str(tmp_path / "b")])) == ["Node e", "Node c", "Node d"]


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    good = tmp_path / "good.yaml"
    good.write_text(json.dumps(NODE))
    loaded = load(["", str(tmp_path / "no\nne.yaml"), str(tmp_path / "empty"), "-", "a\0b", str(good)])
    assert names(loaded) == ["Node node-0"]
    assert told(loaded) == [
        "'': a path must not be empty",
        f"{tmp_path}/no ne.yaml: No such file or directory",
        f"{tmp_path}/empty: has no *.yaml, *.yml or *.json in it",
        "-: can't be read: there is no standard input",
        "a b: embedded null byte",
    ]


def test_the_first_of_several_stays(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text(yaml.safe_dump(SERVICE))
    two.write_text(yaml.safe_dump_all([changed(SERVICE, ("spec", "internalTrafficPolicy"), "Cluster"), NODE]))
    loaded = load([str(tmp_path)])
    assert loaded.objects[0] == read(yaml.safe_dump(SERVICE)).objects[0]
    assert names(loaded) == ["Service web", "Node node-0"]
    assert told(loaded) == [f"Service shop/web: is defined in {one} and again in {two}"]
    other = changed(SERVICE, ("metadata", "namespace"), "other")
    assert told(read(yaml.safe_dump_all([SERVICE, other]))) == []


def test_broken_objects_do_not_stop_others() -> None:
    broken = changed(changed(SERVICE, ("spec", "ports", 0, "port"), "80"), ("spec", "clusterIP"), "x")
    loaded = read(yaml.safe_dump_all([broken, NODE]))
    assert names(loaded) == ["Node node-0"]
    assert told(loaded) == [
        "Service shop/web: spec.clusterIP: must be an IP address or \"None\" (got 'x')",
        "Service shop/web: spec.ports[0].port: must be a whole number (got '80')",
    ]


def test_what_comes_before_a_fault_is_kept() -> None:
    loaded = read(yaml.safe_dump(NODE) + "---\na: [\n")
    assert names(loaded) == ["Node node-0"]
    assert told(loaded)[0].startswith("-: is not YAML: did not find expected node content, line ")
    loaded = read(json.dumps(NODE) + "\n{,}")
    assert names(loaded) == ["Node node-0"]
    assert told(loaded)[0].startswith("-: is not JSON: Expecting property name enclosed in double quotes, line 2, col")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"\xff\xfek\x00", "-: is not UTF-8 text: byte 0 is 0xff"),
        (b"\x00", "-: is not YAML: unacceptable character"),
        (b"a: [", "-: is not YAML: did not find expected node content, line 2, column 1"),
        (b"!!bool x", "-: is not YAML: "),
        (b"!!int ''", "-: is not YAML: "),
        (b"!!set {a, b}", "-: is not YAML: could not determine a constructor for the tag"),
        (b"!!binary YQ==", "-: is not YAML: could not determine a constructor for the tag"),
        (b"!!python/object/apply:os.getpid []", "-: is not YAML: could not determine a constructor for the tag"),
        (b"*a", "-: is not YAML: found undefined alias, line 1"),
        (b"1" * 5000, "-: is not YAML: Exceeds the limit"),
        (b"[" * 1_000_000, "-: is nested too deeply"),
        (b"- " * 100_000, "-: is nested too deeply"),
        (b'{"a":' * 100_000, "-: is nested too deeply"),
        (b"text", "-: holds something that is not an object (got 'text')"),
        (b"[]", "-: holds something that is not an object"),
        (b"a: 1", "-: holds an object without a kind"),
        (b"kind: [Node]", "-: holds an object without a kind"),
        (b"kind: 'Pod\n\n  x'", "-: holds an object without a kind (got 'Pod\\nx')"),
        (b"kind: List", "-: holds a List inside a list, or one whose items are no list"),
        (b"kind: List\nitems: {}", "-: holds a List inside a list, or one whose items are no list"),
        (b"&a {kind: List, items: [*a]}", "-: holds a List inside a list, or one whose items are no list"),
        (b"kind: List\nitems: [5]", "-: holds something that is not an object (got 5)"),
        (b"kind: Node\nmetadata: {name: a}", "Node a: apiVersion: must be v1"),
        (b"kind: Service\napiVersion: serving.knative.dev/v1", "Service (unnamed): apiVersion: must be v1 (got 's"),
        (b"kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1", "EndpointSlice (unnamed): apiVersion: must be"),
        (
            b"kind: Node\napiVersion: v1\nmetadata: {name: 0x" + b"f" * 9999 + b"}",
            "Node (unnamed): metadata.name: must be",
        ),
        (b"kind: 0x" + b"f" * 9999, "-: holds an object without a kind"),
        (b"kind: Node\napiVersion: v1\nmetadata: {name: [1]}", "Node (unnamed): metadata.name: must be a string"),
        (b"kind: Node\napiVersion: v1\nmetadata: {name: !!float .nan}", "Node nan: metadata.name: must be a string"),
    ],
)
def test_bad_input(text: bytes, problem: str) -> None:
    loaded = read(text)
    assert loaded.objects == ()
    assert len(loaded.problems) == 1
    assert told(loaded)[0].startswith(problem)
    assert told(loaded)[0].isprintable()


def test_bad_json_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ('{"a": NaN}', '{"a": 1', "[" * 100_000, "", "kind: Node"):
        file.write_text(text)
        loaded = load([str(file)])
        assert len(loaded.problems) == (1 if text else 0)
        assert all(problem.subject == str(file) for problem in loaded.problems)


def test_aliases_do_not_explode() -> None:
    tens = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    loaded = read(f"a0: &a0 [1]\n{tens}kind: Node\napiVersion: v1\nmetadata: *a29\n")
    assert told(loaded) == ["Node (unnamed): metadata: must be a mapping"]
    merged = "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 30))
    (problem,) = told(read(f"a0: &a0 {{k: 1}}\n{merged}"))
    assert problem.startswith("-: is not YAML: too many merged keys, line")
    assert told(read("kind: &a {b: *a}")) == ["-: holds an object without a kind"]


def test_garbage_collection_goes_on_as_before() -> None:
    assert gc.isenabled()
    read("a: [")
    assert gc.isenabled()
    gc.disable()
    try:
        read("")
        assert not gc.isenabled()
    finally:
        gc.enable()


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes(data: bytes) -> None:
    for problem in read(data).problems:
        assert str(problem).isprintable()


@settings(deadline=None)
@given(st.data())
def test_damaged_manifests(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([yaml.safe_dump_all([SERVICE, SLICE]), json.dumps(SERVICE) + json.dumps(SLICE)]))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 20)))
    filler = data.draw(
        st.text(max_size=5) | st.sampled_from(["- ", "{", "}", "[", ": ", "\n", '"', "&a ", "*a", "!!set "])
    )
    loaded = read((whole[:start] + filler + whole[end:]).encode(errors="surrogatepass"))
    for problem in loaded.problems:
        assert str(problem).isprintable()


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_what_a_server_stored_loads(case: str) -> None:
    loaded = load([str(CASES / case / "cluster.yaml")])
    assert told(loaded) == []
    assert len(loaded.objects) == len(list(yaml.safe_load_all((CASES / case / "cluster.yaml").read_text())))
    assert loaded.skipped == {}
