"""Clients: how many connections were answered, by whom, and what became of the others."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

from tests.lab.node import Host

Protocol = Literal["tcp", "udp"]
Source = tuple[str, int]

_ANY_SOURCE: Source = ("", 0)
# Below the second after which TCP repeats a lost SYN: so one lost packet is one failed connection.
_PATIENCE = 0.9
# The rest of a connection waits for a backend to get its turn on a busy machine.
_ANSWER_PATIENCE = 30.0
# Between continuous connections, so that they don't starve what they are to watch.
_BREATH = 0.0005
_RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Outcome(StrEnum):
    """What became of one connection, or one datagram and its reply."""

    ANSWERED = "answered"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    BROKEN = "broken"


class Answer(NamedTuple):
    """What a backend says: its name, the port it was reached on, and the client address it saw."""

    backend: str
    port: int
    source: str


class Attempt(NamedTuple):
    """One connection: the answer, if any, and how long it all took in seconds."""

    outcome: Outcome
    answer: Answer | None
    seconds: float


class Failure(NamedTuple):
    """A connection that got no answer; `at` is `time.monotonic()` when that was known."""

    at: float
    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a number of connections came to.

    `icmp_unreachable` counts the "destination unreachable" messages that the client's host received meanwhile: a
    refusal with one comes from a REJECT rule, without one from a TCP reset.
    """

    attempts: tuple[Attempt, ...]
    icmp_unreachable: int = 0

    @property
    def backends(self) -> Counter[str]:
        """Answers by backend name."""
        return Counter(answer.backend for answer in self._answers())

    @property
    def ports(self) -> Counter[int]:
        """Answers by the port on the backend."""
        return Counter(answer.port for answer in self._answers())

    @property
    def sources(self) -> Counter[str]:
        """Answers by the client address that the backend saw."""
        return Counter(answer.source for answer in self._answers())

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Connections by outcome."""
        return Counter(attempt.outcome for attempt in self.attempts)

    @property
    def answered(self) -> bool:
        """There were connections, and all of them were answered."""
        return set(self.outcomes) == {Outcome.ANSWERED}

    @property
    def latencies(self) -> tuple[float, ...]:
        """Seconds from connecting to the whole answer, of every answered connection."""
        return tuple(attempt.seconds for attempt in self.attempts if attempt.answer)

    def all(self, outcome: Outcome) -> bool:
        """There were connections, and all of them came to this."""
        return set(self.outcomes) == {outcome}

    def _answers(self) -> Iterable[Answer]:
        return (attempt.answer for attempt in self.attempts if attempt.answer)


def connect(
    host: Host,
    address: str,
    port: int,
    *,
    protocol: Protocol = "tcp",
    count: int = 1,
    source: Source = _ANY_SOURCE,
    parallel: int = 2,
    patience: float = _PATIENCE,
) -> Result:
    """Connect `count` times from a host, at most `parallel` at once, each from a new port unless `source` gives one.

    What isn't answered within `patience` seconds has timed out: a datagram, or the first packet of a connection,
    which takes the other host's kernel alone.
    """

    def once(_: int) -> Attempt:
        return _attempt(address, port, protocol, source, patience)

    with _workers(host, min(parallel, count)) as workers:
        before = workers.submit(_icmp_unreachable).result()
        attempts = tuple(workers.map(once, range(count)))
        after = workers.submit(_icmp_unreachable).result()
    return Result(attempts, after - before)


@dataclass(slots=True)
class Traffic:
    """Connections that go on in the background; read `result` and `failures` at any time."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _attempts: list[Attempt] = field(default_factory=list)
    _failures: list[Failure] = field(default_factory=list)
    _ended: bool = False

    @property
    def result(self) -> Result:
        """All connections so far."""
        with self._changed:
            return Result(tuple(self._attempts))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Connections without answer so far, in the order in which they failed."""
        with self._changed:
            return tuple(self._failures)

    def wait_for(self, more: int, timeout: float = 30) -> None:
        """Wait until that many more connections are over. Raises TimeoutError."""
        with self._changed:
            goal = len(self._attempts) + more
            if not self._changed.wait_for(lambda: len(self._attempts) >= goal, timeout):
                raise TimeoutError(f"fewer than {more} connections in {timeout} s")

    def keep(self, attempt: Callable[[], Attempt]) -> None:
        """Attempt again and again until the end."""
        while not self._ended:
            self._record(attempt())
            time.sleep(_BREATH)

    def end(self) -> None:
        """No new connections from now on."""
        self._ended = True

    def _record(self, attempt: Attempt) -> None:
        with self._changed:
            self._attempts.append(attempt)
            if attempt.answer is None:
                self._failures.append(Failure(time.monotonic(), attempt.outcome, attempt.seconds))
            self._changed.notify_all()


@contextmanager
def continuous(
    host: Host,
    address: str,
    port: int,
    *,
    protocol: Protocol = "tcp",
    source: Source = _ANY_SOURCE,
    parallel: int = 1,
    patience: float = _PATIENCE,
) -> Iterator[Traffic]:
    """Connect without pause while in the context; see `connect`."""
    traffic = Traffic()

    def once() -> Attempt:
        return _attempt(address, port, protocol, source, patience)

    with _workers(host, parallel) as workers:
        try:
            running = [workers.submit(traffic.keep, once) for _ in range(parallel)]
            yield traffic
        finally:
            traffic.end()
        for future in running:
            future.result()


@contextmanager
def _workers(host: Host, count: int) -> Iterator[ThreadPoolExecutor]:
    workers = ThreadPoolExecutor(count, initializer=host.namespace.enter)
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)


def _attempt(address: str, port: int, protocol: Protocol, source: Source, patience: float) -> Attempt:
    start = time.monotonic()
    ask = _ask_udp if protocol == "udp" else _ask_tcp
    answer: Answer | None = None
    try:
        text = ask(address, port, source, patience)
        backend, reached, seen = text.split()
        answer = Answer(backend, int(reached), seen)
        outcome = Outcome.ANSWERED
    except (ConnectionRefusedError, PermissionError):  # EPERM: a rule of the sender's own host, found while sending
        outcome = Outcome.REFUSED
    except TimeoutError:
        outcome = Outcome.TIMED_OUT
    except (ConnectionError, ValueError):
        outcome = Outcome.BROKEN
    except OSError:
        outcome = Outcome.UNREACHABLE
    return Attempt(outcome, answer, time.monotonic() - start)


def _ask_tcp(address: str, port: int, source: Source, patience: float) -> str:
    with _socket(address, socket.SOCK_STREAM, source, patience) as sock:
        # Closing with a reset leaves no TIME_WAIT behind, which would use up the client's ports.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.connect((address, port))
        sock.settimeout(max(patience, _ANSWER_PATIENCE))
        text = b""
        while part := sock.recv(256):
            text += part
        return text.decode()


def _ask_udp(address: str, port: int, source: Source, patience: float) -> str:
    with _socket(address, socket.SOCK_DGRAM, source, patience) as sock:
        sock.connect((address, port))
        sock.send(b"who are you?\n")
        return sock.recv(256).decode()


def _socket(address: str, kind: socket.SocketKind, source: Source, patience: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.settimeout(patience)
    # Over a veth the ICMP error arrives while connect() still holds the socket, and the kernel then acts on it a
    # second later; with IP_RECVERR, IPV6_RECVERR (ip(7)) it wakes us at once, as on a wire with a length.
    sock.setsockopt(*_RECEIVE_ERRORS[family], 1)
    if source != _ANY_SOURCE:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
    return sock


def _icmp_unreachable() -> int:
    """How many such messages this thread's namespace received, from its SNMP counters."""
    with open("/proc/thread-self/net/snmp") as file:
        names, values = [line.split() for line in file if line.startswith("Icmp:")]
    with open("/proc/thread-self/net/snmp6") as file:
        counters = dict(line.split() for line in file)
    return int(values[names.index("InDestUnreachs")]) + int(counters["Icmp6InDestUnreachs"])
