"""Every command's `--json` has the shape that its `--schema` prints, and the schema says what its fields are."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.inprocess import run
from tests.cli.scenes import ROOT, SHOP, Scene, long, questions, recorded
from tests.kernel import Namespace, needs_kernel

COMMANDS = ("apply", "cleanup", "diff", "doctor", "explain", "graph", "render", "top", "trace", "verify")
OPTIONS = ("-f", str(SHOP), "--config", str(ROOT / "tests/demo/config.yaml"))


@cache
def schema(command: str) -> Any:
    found = json.loads(run(command, "--schema").stdout)
    Draft202012Validator.check_schema(found)
    return found


def validate(command: str, text: str) -> Any:
    found = json.loads(text)
    Draft202012Validator(schema(command)).validate(found)
    return found


@pytest.mark.parametrize("scene", [long(), *recorded()], ids=lambda scene: scene.name)
def test_what_is_printed_has_the_shape_that_is_told(scene: Scene, tmp_path: Path) -> None:
    answered = set()
    for question in questions(scene, tmp_path):
        done = run(*question, "--json")
        if done.status != 2 or done.stdout:
            validate(question[0], done.stdout)
            answered.add(question[0])
    assert answered == {"diff", "explain", "graph", "render", "top", "trace", "verify"} - (
        {"trace"} if scene.name == "not-proxied" else set()
    )


@pytest.mark.kernel
@needs_kernel
def test_commands_that_need_root(namespace: Namespace) -> None:
    both = ("--backend", "nft", "--family", "dual")
    for steps in (["--dry-run"], [], []):
        done = namespace.kpx("apply", *OPTIONS, *both, "--json", *steps)
        told = [validate("apply", line) for line in done.stdout.splitlines()]
        assert [one["family"] for one in told] == ["ipv4", "ipv6"]
        if steps:
            assert all(one["payload"].count("\n") == one["lines"] > 0 and not one["restores"] for one in told)
    assert not any(one["lines"] or one["payload"] for one in told)
    validate("top", namespace.kpx("top", "--once", "--interval", "0.1", "--backend", "nft", "--json").stdout)
    validate("doctor", namespace.kpx("doctor", "--backend", "nft", "--json", check=False).stdout)
    removed = namespace.kpx("cleanup", *both, "--json").stdout.splitlines()
    assert all(validate("cleanup", line)["lines"] > 0 for line in removed)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_schema_leaves_nothing_open(command: str) -> None:
    """Objects have the fields that are told and all of them; and what they are is said."""
    parts = list(objects(schema(command)))
    assert parts
    for part in parts:
        assert part["additionalProperties"] is False
        assert set(part["required"]) == set(part["properties"])
        assert part["description"]
        told = [name for name, field in part["properties"].items() if "description" in field]
        assert told or len(part["properties"]) < 5, part["title"]


@pytest.mark.parametrize("command", ["diff", "render"])
def test_json_is_short_for_the_format(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("*filter\nCOMMIT\n*nat\nCOMMIT\n")
    options = ("--against", str(tmp_path / "empty")) if command == "diff" else ()
    short, whole = (run(command, *OPTIONS, *options, *more).stdout for more in (("--json",), ("--format", "json")))
    assert short == whole != ""


def objects(part: Any) -> Iterator[Any]:
    """Every object with fields of its own in a schema."""
    if isinstance(part, dict):
        if "properties" in part and part.get("type") == "object":
            yield part
        for inner in part.values():
            yield from objects(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from objects(inner)
