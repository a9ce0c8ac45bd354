"""Objects from a directory of manifests that somebody edits: everything runs without a cluster."""

import asyncio
import contextlib
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from asyncinotify import Event as Change
from asyncinotify import Inotify, Mask

from kpx import logs
from kpx.api import Node, Object
from kpx.api.problems import plain
from kpx.errors import KpxError, Problem
from kpx.sources.events import Gone, Put, Sink, Synced, Unsound
from kpx.sources.manifests import API_VERSIONS, SUFFIXES, Loaded, load_found

Key = tuple[str, str, str]
"""Kind, namespace (empty for a Node), name."""

Content = Mapping[Key, Object | Unsound]
"""What a file holds."""

Stamp = tuple[int, ...]
"""What changes when a file does."""

_SUBJECT = re.compile(r"(\w+) (?:([-A-Za-z0-9_.]+)/)?([-A-Za-z0-9_.]+)")
_MASK = Mask.MODIFY | Mask.CLOSE_WRITE | Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.ATTRIB
_QUIET_SECONDS = 0.05
_LONGEST_UNREST = 1.0
_LONGEST_WRITE = 5.0
_RESCAN_SECONDS = 5.0

log = logs.get_logger()


class DirectorySource:
    """A `Source`: follows the `*.yaml`, `*.yml` and `*.json` below a directory, hidden ones left out.

    Changes are told when the directory has been quiet for 50 ms (or restless for a second) and no sooner than
    the writer has closed the file; every 5 s all is looked through for what inotify can't see, such as links
    that lead out of the directory. A file that can't be read keeps what it held. Of objects with the same kind
    and name that in the first file stays. All Nodes are told, not only this one.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    async def run(self, sink: Sink) -> None:
        """Tell everything there is, then every change, until cancelled.

        Raises `KpxError` where there is no directory to begin with.
        """
        if not os.path.isdir(self._path):
            raise KpxError(f"{self._path}: is not a directory")
        files, books = _Files(self._path), _Books(sink)
        with _watcher() as watcher:
            books.tell(await files.read(watcher))
            for kind in API_VERSIONS:
                sink(Synced(kind))
            while True:
                await watcher.wait()
                books.tell(await files.read(watcher))


class _Books:
    """What has been told."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._told: Content = {}

    def tell(self, content: Content) -> None:
        """Tell how this differs from what was told before."""
        for key in self._told.keys() - content.keys():
            self._sink(Gone(*key))
        for key, value in content.items():
            known = self._told.get(key)
            if known is value or known == value:  # what wasn't read again is the very same
                continue
            self._sink(value if isinstance(value, Unsound) else Put(value))
        self._told = content


class _Files:
    """The files below a directory, read as they change."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._stamps: Mapping[str, Stamp] = {}
        self._contents: dict[str, Content] = {}
        self._missing = False

    async def read(self, watcher: "_Watcher") -> Content:
        """Everything there is now, as far as it could be read; in order of the files' paths."""
        stamps = await self._survey(watcher)
        for file in self._contents.keys() - stamps.keys():
            del self._contents[file]
        unfinished = watcher.unfinished()
        read = {file: stamp for file, stamp in self._stamps.items() if file in stamps}
        for file, stamp in stamps.items():
            if stamp != read.get(file) and file not in unfinished:
                loaded = await asyncio.to_thread(load_found, file)
                self._contents[file] = _merge(file, self._contents.get(file, {}), loaded)
                read[file] = stamp
        self._stamps = read
        return self._all()

    async def _survey(self, watcher: "_Watcher") -> Mapping[str, Stamp]:
        """The files that are there now; those of before while that can't be seen."""
        try:
            stamps = await asyncio.to_thread(_survey, self._root, watcher.add)
        except OSError as error:
            if not self._missing:
                log.warning("directory unreadable, nothing changes", path=self._root, error=error.strerror)
            self._missing = True
            return self._stamps
        self._missing = False
        return stamps

    def _all(self) -> Content:
        everything: dict[Key, Object | Unsound] = {}
        for file in sorted(self._contents):
            for key, value in self._contents[file].items():
                everything.setdefault(key, value)
        return everything


def _merge(file: str, before: Content, loaded: Loaded) -> Content:
    """What a file holds now: sound objects, unsound ones, and what it held if it can't be read to its end."""
    content: dict[Key, Object | Unsound] = {_key(found): found for found in loaded.objects}
    faults: defaultdict[Key, list[Problem]] = defaultdict(list)
    torn = False
    for problem in loaded.problems:
        match = _SUBJECT.fullmatch(problem.subject)
        key = (match[1], match[2] or "", match[3]) if match and match[1] in API_VERSIONS else None
        if key is None or key in content:  # it is about the file, or an object that has no name or two versions
            log.warning("manifest problem", problem=str(problem))
            torn = torn or problem.subject == plain(file)
        else:
            faults[key].append(problem)
    content |= {key: Unsound(*key, tuple(found)) for key, found in faults.items()}
    return {**before, **content} if torn else content


def _key(found: Object) -> Key:
    namespace = "" if isinstance(found, Node) else found.metadata.namespace
    return type(found).__name__, namespace, found.metadata.name


def _survey(root: str, watch: Callable[[str], None]) -> dict[str, Stamp]:
    """The manifests below `root`; each directory is watched before it is read. Links are followed.

    Raises OSError if `root` can't be read.
    """
    found: dict[str, Stamp] = {}
    seen: set[tuple[int, int]] = set()
    directories = [root]
    while directories:
        directory = directories.pop()
        watch(directory)
        try:
            entries = list(os.scandir(directory))
        except OSError:
            if directory == root:
                raise
            continue
        for entry in entries:
            with contextlib.suppress(OSError):  # a link that leads nowhere, or gone a moment ago
                status = entry.stat()
                place = status.st_dev, status.st_ino
                if entry.name.startswith("."):
                    continue
                if stat.S_ISDIR(status.st_mode) and place not in seen:
                    seen.add(place)
                    directories.append(entry.path)
                if stat.S_ISREG(status.st_mode) and entry.name.endswith(SUFFIXES):
                    found[entry.path] = (*place, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return dict(sorted(found.items()))


class _Watcher:
    """inotify (inotify(7)): tells when to look again, and which files are still being written."""

    def __init__(self, inotify: Inotify) -> None:
        self._inotify = inotify
        self._writing: dict[str, float] = {}
        self._refused = False

    def add(self, directory: str) -> None:
        """Watch a directory, for as long as it exists; again is fine."""
        try:
            self._inotify.add_watch(directory, _MASK)
        except OSError as error:
            if not self._refused:
                log.warning("can't watch", path=directory, error=error.strerror, looking_every=_RESCAN_SECONDS)
            self._refused = True

    def unfinished(self) -> set[str]:
        """Files that somebody is writing to."""
        longest = time.monotonic() - _LONGEST_WRITE
        self._writing = {file: since for file, since in self._writing.items() if since > longest}
        return set(self._writing)

    async def wait(self) -> None:
        """Wait until something has changed and then nothing more does; or long enough."""
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESCAN_SECONDS):
                self._note(await self._inotify.get())
            latest = clock() + _LONGEST_UNREST
            while True:
                async with asyncio.timeout_at(min(clock() + _QUIET_SECONDS, latest)):
                    self._note(await self._inotify.get())

    def _note(self, change: Change) -> None:
        """A writer that is slow is waited for, since half a file may look whole."""
        file = str(change.path)
        if change.mask & Mask.MODIFY:
            self._writing.setdefault(file, time.monotonic())
        elif not change.mask & Mask.ATTRIB:
            self._writing.pop(file, None)


@contextlib.contextmanager
def _watcher() -> Iterator[_Watcher]:
    try:
        inotify = Inotify(cache_size=1000)
    except OSError as error:
        raise KpxError(f"inotify: {error.strerror}") from None
    with inotify:
        yield _Watcher(inotify)
