import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from kpx.api import Service
from kpx.errors import KpxError
from kpx.sources import directory
from kpx.sources.directory import DirectorySource
from kpx.sources.events import Gone, Put, Synced
from tests.api.samples import NODE, SERVICE, SLICE, changed

from .told import Told, running, until

ALL_THREE = ["EndpointSlice web-a", "Node node-0", "Service web"]
Test = Callable[[Path, Told], Coroutine[Any, Any, None]]


def service(name: str, port: int = 80) -> dict[str, Any]:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def text(*objects: dict[str, Any]) -> str:
    return yaml.safe_dump_all(objects)


def port(told: Told, name: str = "web") -> int:
    found = told.objects["Service", "shop", name]
    assert isinstance(found, Service)
    return found.spec.ports[0].port


@contextlib.asynccontextmanager
async def following(path: Path) -> AsyncIterator[Told]:
    told = Told()
    async with running(DirectorySource(str(path)), told):
        await until(told.complete)
        yield told


async def quiet() -> None:
    """Long enough for anything that was to come of a change."""
    await asyncio.sleep(directory._QUIET_SECONDS * 6)


def check(path: Path, test: Test) -> Told:
    """Run a test while a source follows `path`."""

    async def run() -> Told:
        async with following(path) as told:
            await test(path, told)
        return told

    return asyncio.run(run())


def test_initial_state_then_synced(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text(text(SERVICE, {"kind": "Secret", "apiVersion": "v1"}))
    (tmp_path / "deep" / "b.yml").write_text(text(SLICE))
    (tmp_path / "deep" / "er" / "c.json").write_text('{"kind": "NodeList", "items": []}')
    (tmp_path / "deep" / "er" / "d.yaml").write_text(text(NODE))
    (tmp_path / ".hidden.yaml").write_text(text(service("hidden")))
    (tmp_path / "e.txt").write_text(text(service("text")))

    async def test(path: Path, told: Told) -> None:
        assert told.names() == ALL_THREE

    told = check(tmp_path, test)
    assert [type(event) for event in told.events] == [Put] * 3 + [Synced] * 3


def test_empty_directory_is_complete(tmp_path: Path) -> None:
    async def test(path: Path, told: Told) -> None:
        assert told.synced == ["Service", "EndpointSlice", "Node"]
        (path / "a.yaml").write_text(text(service("web")))
        await until(lambda: told.names() == ["Service web"])

    check(tmp_path, test)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_no_directory_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KpxError, match=f"{name}: is not a directory"):
        asyncio.run(DirectorySource(str(tmp_path / name)).run(Told()))


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(service("one"), service("two"), service("three")))

    async def test(path: Path, told: Told) -> None:
        told.events.clear()
        file.write_text("# the same objects, written otherwise\n" + text(service("three"), service("two", 81)))
        await until(lambda: len(told.events) == 2)
        assert Gone("Service", "shop", "one") in told.events
        assert port(told, "two") == 81
        await quiet()
        assert len(told.events) == 2

    check(tmp_path, test)


def test_deleted_file_and_deleted_tree(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("one")))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text(text(service("two"), NODE))

    async def test(path: Path, told: Told) -> None:
        (path / "a.yaml").unlink()
        await until(lambda: told.names() == ["Node node-0", "Service two"])
        (path / "sub").rename(path.parent / f"{path.name}-moved")
        await until(lambda: told.names() == [])
        assert Gone("Node", "", "node-0") in told.events

    check(tmp_path, test)


def test_new_directory_is_followed(tmp_path: Path) -> None:
    async def test(path: Path, told: Told) -> None:
        (path / "new" / "deep").mkdir(parents=True)
        (path / "new" / "deep" / "a.yaml").write_text(text(service("web")))
        await until(lambda: told.names() == ["Service web"])
        (path / "new" / "deep" / "a.yaml").write_text(text(service("web", 81)))
        await until(lambda: port(told) == 81)

    check(tmp_path, test)


def test_rename_over(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("web")))

    async def test(path: Path, told: Told) -> None:
        for number in range(81, 86):
            (path / ".a.yaml.swp").write_text(text(service("web", number)))
            os.rename(path / ".a.yaml.swp", path / "a.yaml")
            await until(lambda number=number: port(told) == number)  # type: ignore[misc]

    assert check(tmp_path, test).counts == Counter({"Put": 6, "Synced": 3})


def test_configmap_swap(tmp_path: Path) -> None:
    """As the kubelet does it: files are links through `..data`, which is replaced by a rename."""

    def publish(version: str, *names: str) -> None:
        (tmp_path / f"..{version}" / "sub").mkdir(parents=True)
        for name in names:
            (tmp_path / f"..{version}" / name).write_text(text(service("web", int(version))))
        (tmp_path / f"..{version}" / "sub" / "node.yaml").write_text(text(NODE))
        (tmp_path / "..data_tmp").symlink_to(f"..{version}")
        os.rename(tmp_path / "..data_tmp", tmp_path / "..data")

    publish("80", "a.yaml")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    (tmp_path / "sub").symlink_to("..data/sub")

    async def test(path: Path, told: Told) -> None:
        assert told.names() == ["Node node-0", "Service web"]
        for number in (81, 82):
            publish(str(number), "a.yaml")
            await until(lambda number=number: port(told) == number)  # type: ignore[misc]
            for old in (path / f"..{number - 1}").rglob("*.yaml"):
                old.unlink()
        (path / "..82" / "sub" / "node.yaml").write_text(text(changed(NODE, ("metadata", "uid"), "other")))
        await until(lambda: told.objects["Node", "", "node-0"].metadata.uid == "other")

    told = check(tmp_path, test)
    assert "Gone" not in told.counts


def test_slow_writer_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(service("one"), service("two")))

    async def test(path: Path, told: Told) -> None:
        first, second = text(service("one", 81)), text(service("two", 82))
        with file.open("w") as writer:
            writer.write(first)
            writer.flush()
            await quiet()
            (path / "other.yaml").write_text(text(service("other")))
            await until(lambda: "Service other" in told.names())
            assert (port(told, "one"), port(told, "two")) == (80, 80)
            writer.write(f"---\n{second}")
        await until(lambda: (port(told, "one"), port(told, "two")) == (81, 82))

    assert "Gone" not in check(tmp_path, test).counts


def test_writer_that_never_closes_is_read_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_LONGEST_WRITE", 0.3)
    monkeypatch.setattr(directory, "_RESCAN_SECONDS", 0.2)
    file = tmp_path / "a.yaml"

    async def test(path: Path, told: Told) -> None:
        with file.open("w") as writer:
            writer.write(text(service("web")))
            writer.flush()
            await until(lambda: told.names() == ["Service web"])

    check(tmp_path, test)


@pytest.mark.parametrize(
    "damage",
    [b"kind: [", b"\xff\xfe", b"just words", b'{"kind": "Service",', text(service("one", 81)).encode() + b"--- {"],
)
def test_unreadable_file_keeps_what_it_held(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(service("one"), service("two")))
    (tmp_path / "b.yaml").write_text(text(NODE))

    async def test(path: Path, told: Told) -> None:
        file.write_bytes(damage)
        (path / "b.yaml").unlink()
        await until(lambda: "Node node-0" not in told.names())
        assert told.names() == ["Service one", "Service two"]
        file.write_text(text(service("two")))
        await until(lambda: told.names() == ["Service two"])

    check(tmp_path, test)


def test_unsound_object(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(service("one"), service("two"), service("three")))

    async def test(path: Path, told: Told) -> None:
        told.events.clear()
        file.write_text(text(service("one", 0), service("two", 81)))
        await until(lambda: len(told.events) == 3)
        assert port(told, "two") == 81
        assert port(told, "one") == 80
        unsound = told.unsound["Service", "shop", "one"]
        assert [problem.path for problem in unsound.problems] == ["spec.ports[0].port"]
        assert "Service three" not in told.names()
        told.events.clear()
        file.write_text(text(service("one")))
        await until(lambda: len(told.events) == 2)
        assert told.unsound == {}  # told again, though it is what it once was
        file.write_text(text(service("one", 0)))
        await until(lambda: told.unsound)
        file.write_text("")
        await until(lambda: told.names() == [])
        assert told.events[-1] == Gone("Service", "shop", "one")

    check(tmp_path, test)


def test_first_file_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("web", 1), service("web", 2)))
    (tmp_path / "b.yaml").write_text(text(service("web", 3)))

    async def test(path: Path, told: Told) -> None:
        assert port(told) == 1
        (path / "a.yaml").unlink()
        await until(lambda: port(told) == 3)

    assert "Unsound" not in check(tmp_path, test).counts


def test_what_inotify_cannot_see_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_RESCAN_SECONDS", 0.1)
    inside, outside = tmp_path / "in", tmp_path / "out.yaml"
    inside.mkdir()
    outside.write_text(text(service("web")))
    (inside / "a.yaml").symlink_to(outside)

    async def test(path: Path, told: Told) -> None:
        outside.write_text(text(service("web", 81)))
        await until(lambda: port(told) == 81)
        # Even the directory itself may go and come back.
        inside.rename(tmp_path / "away")
        await asyncio.sleep(0.3)
        assert told.names() == ["Service web"]
        inside.mkdir()
        (inside / "b.yaml").write_text(text(service("other")))
        await until(lambda: told.names() == ["Service other"])

    check(inside, test)


def test_links_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("web")))
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "nowhere.yaml").symlink_to("missing")

    async def test(path: Path, told: Told) -> None:
        (path / "a.yaml").write_text(text(service("web", 81)))
        await until(lambda: port(told) == 81)

    check(tmp_path, test)


def test_restless_directory_is_read_all_the_same(tmp_path: Path) -> None:
    async def test(path: Path, told: Told) -> None:
        async def churn() -> None:
            for number in range(1, 10_000):
                (path / "busy.yaml").write_text(text(service("busy", number)))
                await asyncio.sleep(0.02)

        task = asyncio.create_task(churn())
        (path / "a.yaml").write_text(text(service("web")))
        await until(lambda: "Service web" in told.names())
        task.cancel()

    check(tmp_path, test)


def test_a_burst_is_told_once(tmp_path: Path) -> None:
    async def test(path: Path, told: Told) -> None:
        for number in range(1, 21):
            (path / "a.yaml").write_text(text(service("web", number)))
        await until(lambda: port(told) == 20)

    (tmp_path / "a.yaml").write_text(text(service("web", 1)))
    assert check(tmp_path, test).counts["Put"] <= 3


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("web")))

    async def run() -> None:
        for round_ in range(5):
            async with following(tmp_path) as told:
                (tmp_path / "a.yaml").write_text(text(service("web", 81 + round_)))
                await until(lambda told=told: told.counts["Put"] == 2)  # type: ignore[misc]
            descriptors = len(os.listdir("/proc/self/fd"))
            if round_ == 0:
                first = descriptors
            assert descriptors <= first
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_too_many_watchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(directory, "Inotify", refuse)
    with pytest.raises(KpxError, match="inotify: Too many open files"):
        asyncio.run(DirectorySource(str(tmp_path)).run(Told()))
