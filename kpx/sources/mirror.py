"""What has been told of one kind of object, and what is therefore news."""

from kpx.api import parse_object
from kpx.errors import InputError, Problem
from kpx.sources.events import Event, Gone, Put, Sink, Synced, Unsound
from kpx.sources.trouble import RewoundError
from kpx.sources.wire import Entry

_MOST_PROBLEMS = 10
"""How much is told of what is wrong with one object."""


class Mirror:
    """Turns what a server says of one kind into events. Keeps names and resourceVersions, no objects.

    A census (`begin` ... `finish`) goes through everything there is; between censuses `version` is where a
    watch goes on, None if only a census helps. Old news, of an object or of the whole kind, changes nothing:
    servers repeat themselves, and of several servers one may lag behind another. But no object is newer than the
    census that came across it: a server that says so speaks of another past, and everything has to be told anew.
    """

    def __init__(self, kind: str, sink: Sink) -> None:
        self.version: int | None = None
        self._kind = kind
        self._sink = sink
        self._known: dict[tuple[str, str], int] = {}
        self._seen: set[tuple[str, str]] = set()
        self._unsound: set[tuple[str, str]] = set()
        self._newest = 0
        self._highest = 0
        self._doubtful = False
        self._synced = False

    def __len__(self) -> int:
        return len(self._known)

    @property
    def newest(self) -> int:
        """The newest resourceVersion that a server has told; 0 if none of them counts."""
        return self._newest

    @property
    def met(self) -> int:
        """How many objects this census has come across."""
        return len(self._seen)

    def begin(self) -> None:
        """Start a census; one that wasn't finished is forgotten."""
        self.version = None
        self._seen = set()
        self._highest = 0
        self._doubtful = False

    def doubt(self) -> None:
        """This census came across an object without a usable name: it may be any of those that it doesn't show."""
        self._doubtful = True

    def finish(self, version: int) -> None:
        """End a census: what it didn't come across is gone. Raises `RewoundError` if it has to be repeated."""
        if version < max(self._newest, self._highest):  # an etcd was restored from a backup, say
            self.rewind()
            raise RewoundError
        for key in () if self._doubtful else self._known.keys() - self._seen:
            self._drop(key)
        self._seen = set()
        self.version = self._newest = version
        if not self._synced:
            self._synced = True
            self._sink(Synced(self._kind))

    def put(self, entry: Entry) -> None:
        """An object is there."""
        key = entry.namespace, entry.name
        if self.version is None:
            self._seen.add(key)
            self._highest = max(self._highest, entry.version)
        if self._is_old(entry):
            return
        same = entry.version == self._known.get(key)
        if same and key not in self._unsound:
            return
        event = self._judge(entry)
        if same and isinstance(event, Unsound):
            return
        self._known[key] = entry.version
        (self._unsound.add if isinstance(event, Unsound) else self._unsound.discard)(key)
        self._sink(event)
        self._advance(entry.version)

    def remove(self, entry: Entry) -> None:
        """An object is no more."""
        key = entry.namespace, entry.name
        self._seen.discard(key)
        if self._is_old(entry):
            return
        if key in self._known:
            self._drop(key)
        self._advance(entry.version)

    def bookmark(self, version: int) -> None:
        """Everything up to `version` has been said; for between censuses."""
        self._advance(version)

    def expire(self) -> None:
        """The server has forgotten what came after `version`."""
        self.version = None

    def rewind(self) -> None:
        """Forget every resourceVersion: the server's past isn't the one that we know. A census comes next."""
        self.version = None
        self._known = dict.fromkeys(self._known, 0)
        self._newest = 0

    def _is_old(self, entry: Entry) -> bool:
        """Whether this was true once, before what we know of the object, or of the kind."""
        return entry.version < max(self._known.get((entry.namespace, entry.name), 0), self.version or 0)

    def _advance(self, version: int) -> None:
        if self.version is not None:
            self.version = self._newest = max(self.version, version)

    def _drop(self, key: tuple[str, str]) -> None:
        del self._known[key]
        self._unsound.discard(key)
        self._sink(Gone(self._kind, *key))

    def _judge(self, entry: Entry) -> Event:
        try:
            return Put(parse_object(self._kind, entry.content()))
        except InputError as error:
            told = error.problems[:_MOST_PROBLEMS]
            if rest := len(error.problems) - len(told):
                told += (Problem(told[0].subject, f"{rest} more problems of this object"),)
            return Unsound(self._kind, entry.namespace, entry.name, told)
