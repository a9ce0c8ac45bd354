"""Files that are too large, that never end, that grow, or that are none: refused, and before they are read."""

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
import structlog
import yaml

from kpx.sources.directory import DirectorySource
from kpx.sources.files import LONGEST_FILE, UnfitFileError, read_named, read_regular, read_stream
from kpx.sources.manifests import load
from tests.api.samples import SERVICE, changed

from .told import Told, running, until

HUGE = 3 << 30


def sparse(path: Path) -> Path:
    """A file of 3 GB that takes no place."""
    with path.open("wb") as file:
        file.truncate(HUGE)
    return path


def read_bytes() -> int:
    """How many bytes this process has read so far (proc(5): rchar)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    sparse(tmp_path / "huge.yaml")
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(SERVICE))
    before = read_bytes()
    for path in (tmp_path / "huge.yaml", tmp_path):
        loaded = load([str(path)])
        (problem,) = loaded.problems
        assert str(problem) == f"{tmp_path}/huge.yaml: is too large, at most 512 MiB are read: it has {HUGE} bytes"
        assert len(loaded.objects) == (path == tmp_path)
    assert read_bytes() - before < 1 << 20


def test_what_a_huge_file_has_held_stays(tmp_path: Path) -> None:
    async def run() -> None:
        told = Told()
        async with running(DirectorySource(str(tmp_path)), told):
            await until(told.complete)
            assert told.names() == ["Service web"]
            sparse(file)
            (tmp_path / "other.yaml").write_text(yaml.safe_dump(changed(SERVICE, ("metadata", "name"), "other")))
            await until(lambda: told.names() == ["Service other", "Service web"])
            assert any(entry["event"] == "manifest problem" and "is too large" in entry["problem"] for entry in logged)
            file.write_text(yaml.safe_dump(changed(SERVICE, ("metadata", "name"), "again")))
            await until(lambda: told.names() == ["Service again", "Service other"])

    file = tmp_path / "web.yaml"
    file.write_text(yaml.safe_dump(SERVICE))
    before = read_bytes()
    with structlog.testing.capture_logs() as logged:
        asyncio.run(run())
    assert read_bytes() - before < 1 << 20


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/dev/tty", "/dev/null"])
def test_devices_are_not_read(path: str, tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(path)
    for name in (path, str(tmp_path / "link.yaml")):
        (problem,) = load([name]).problems
        assert "is no regular file" in str(problem) or "No such" in str(problem)
    (problem,) = load([str(tmp_path)]).problems
    assert "has no *.yaml" in str(problem)


def test_sockets_are_not_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "web.yaml"))
        assert [str(problem) for problem in load([str(tmp_path / "web.yaml")]).problems] == [
            f"{tmp_path}/web.yaml: is no regular file"
        ]


def test_a_named_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """As a shell makes one of `-f <(kubectl get …)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(yaml.safe_dump(SERVICE),))
    writer.start()
    assert [found.metadata.name for found in load([str(pipe)]).objects] == ["web"]
    writer.join()


def test_a_pipe_in_a_directory_is_waited_for_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(SERVICE))
    loaded = load([str(tmp_path)])
    assert [found.metadata.name for found in loaded.objects] == ["web"]
    with pytest.raises(UnfitFileError, match="is no regular file"):
        read_regular(str(tmp_path / "pipe.yaml"))


def test_a_pipe_without_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 65536)
            except BrokenPipeError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(UnfitFileError, match="is too large, at most 3 MiB are read"):
        read_named(str(pipe), 3 << 20)
    writer.join()


def test_a_file_that_is_longer_than_it_says() -> None:
    """As one is that grows while it is read."""
    assert Path("/proc/kallsyms").stat().st_size == 0
    with pytest.raises(UnfitFileError, match="has over 65536 bytes"):
        read_regular("/proc/kallsyms", 1 << 16)
    assert len(read_regular("/proc/kallsyms")) > 1 << 16


def test_a_file_of_just_the_size_that_may_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 4096)
    assert read_regular(str(file), 4096) == b"x" * 4096
    with pytest.raises(UnfitFileError):
        read_regular(str(file), 4095)
    with file.open("rb") as stream, pytest.raises(UnfitFileError):
        read_stream(stream, 4095)
    assert LONGEST_FILE < HUGE


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnfitFileError, match="is a directory"):
        read_named(str(tmp_path))
