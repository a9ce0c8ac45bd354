"""What has been told of one kind of object, and what is therefore news."""

from kpx.api import parse_object
from kpx.errors import InputError
from kpx.sources.events import Event, Gone, Put, Sink, Synced, Unsound
from kpx.sources.wire import Entry


class RewoundError(Exception):
    """The server's resourceVersions have gone back: it remembers another past than we do."""


class Mirror:
    """Turns what a server says of one kind into events. Keeps names and resourceVersions, no objects.

    A census (`begin` ... `finish`) goes through everything there is; between censuses `version` is where a
    watch goes on, None if only a census helps. Old news, of an object or of the whole kind, changes nothing:
    servers repeat themselves, and of several servers one may lag behind another.
    """

    def __init__(self, kind: str, sink: Sink) -> None:
        self.version: int | None = None
        self._kind = kind
        self._sink = sink
        self._known: dict[tuple[str, str], int] = {}
        self._seen: set[tuple[str, str]] = set()
        self._newest = 0
        self._synced = False

    def __len__(self) -> int:
        return len(self._known)

    def begin(self) -> None:
        """Start a census; one that wasn't finished is forgotten."""
        self.version = None
        self._seen = set()

    def finish(self, version: int) -> None:
        """End a census: what it didn't come across is gone. Raises `RewoundError` if it has to be repeated."""
        if version < self._newest:  # an etcd was restored from a backup, say
            self._known = dict.fromkeys(self._known, 0)
            self._newest = 0
            raise RewoundError
        for key in self._known.keys() - self._seen:
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
        if self._is_old(entry) or entry.version == self._known.get(key):
            return
        self._known[key] = entry.version
        self._sink(self._judge(entry))
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

    def _is_old(self, entry: Entry) -> bool:
        """Whether this was true once, before what we know of the object, or of the kind."""
        return entry.version < max(self._known.get((entry.namespace, entry.name), 0), self.version or 0)

    def _advance(self, version: int) -> None:
        if self.version is not None:
            self.version = self._newest = max(self.version, version)

    def _drop(self, key: tuple[str, str]) -> None:
        del self._known[key]
        self._sink(Gone(self._kind, *key))

    def _judge(self, entry: Entry) -> Event:
        try:
            return Put(parse_object(self._kind, entry.raw))
        except InputError as error:
            return Unsound(self._kind, entry.namespace, entry.name, error.problems)
