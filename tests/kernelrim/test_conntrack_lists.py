"""Lists of conntrack entries: what the kernel leaves out, kernels that can't, and what else may go wrong on the way."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.conntrack import count_entries, delete, list_udp
from kpx.netfilter.flows import Query, packed
from kpx.netfilter.netlink import NFGENMSG, Netlink
from tests.kernel import FAMILIES, needs_kernel
from tests.kernelrim.entries import Where, entry, insert

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.usefixtures("own_network")]

PLACES = [("dns", 53), ("web", 443), ("other", 53), ("dns", 443), ("other", 443)]
_INTERRUPTED = 0x10


def address(name: str, family: Family) -> str:
    number = ("client", "pod", "dns", "web", "other").index(name) + 1
    return f"10.0.0.{number}" if family is Family.IPV4 else f"fd00::{number}"


def fill(family: Family) -> None:
    """One UDP entry to each place, and one of TCP to each."""
    pod = address("pod", family)
    insert(
        entry((address("client", family), 1000 + at), (address(name, family), port), (pod, 8000), protocol)
        for at, (name, port) in enumerate(PLACES)
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
    )


def listed(family: Family, *queries: Query) -> list[Where]:
    """The places of the entries that come, in order of `PLACES`, each as often as it comes."""
    found = [flow.destination for flow in list_udp(family, queries)]
    names = {packed(address(name, family)): name for name, _ in PLACES}
    return sorted([(names[where], port) for where, port in found], key=PLACES.index)


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the kernel is asked for from now on."""
    asked: list[bytes] = []
    real = Netlink.dump

    def dump(self: Netlink, kind: int, body: bytes) -> Iterator[bytes]:
        asked.append(body)
        return real(self, kind, body)

    monkeypatch.setattr(Netlink, "dump", dump)
    return asked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_leaves_out_what_is_not_asked_for(family: Family) -> None:
    fill(family)
    fill(Family.IPV6 if family is Family.IPV4 else Family.IPV4)
    assert listed(family, Query()) == PLACES
    assert listed(family, Query(53)) == [("dns", 53), ("other", 53)]
    assert listed(family, Query(53), Query(443)) == PLACES
    assert listed(family, Query(7)) == []


def test_the_kernel_leaves_out_other_ipv4_addresses() -> None:
    fill(Family.IPV4)
    assert listed(Family.IPV4, Query(53, packed("10.0.0.3"))) == [("dns", 53)]
    assert listed(Family.IPV4, Query(53, packed("10.0.0.9"))) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kernel_that_ignores_the_filter_is_noticed_and_asked_once(
    family: Family, dumps: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.8."""
    fill(family)
    counting = Netlink.dump
    monkeypatch.setattr(Netlink, "dump", lambda self, kind, body: counting(self, kind, body[: NFGENMSG.size]))
    assert listed(family, Query(53), Query(443)) == PLACES
    assert len(dumps) == 1
    assert listed(family, Query(7)) == PLACES  # who asks has to look at what comes


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_kernel_that_refuses_the_filter_is_asked_for_everything(
    family: Family, code: int, dumps: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(family)
    counting = Netlink.dump

    def dump(self: Netlink, kind: int, body: bytes) -> Iterator[bytes]:
        if len(body) > NFGENMSG.size:
            raise OSError(code, os.strerror(code))
        return counting(self, kind, body)

    monkeypatch.setattr(Netlink, "dump", dump)
    assert listed(family, Query(53), Query(443)) == PLACES
    assert len(dumps) == 1


def test_what_the_kernel_refuses_outright_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def dump(*_: object) -> Iterator[bytes]:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(Netlink, "dump", dump)
    with pytest.raises(KpxError, match="can't list conntrack entries: No buffer space available"):
        listed(Family.IPV4, Query(53))


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the kernel call its first lists inconsistent."""
    real, left = Netlink._receive, [times]

    def receive(self: Netlink) -> Iterator[tuple[int, int, bytes]]:
        for kind, flags, body in real(self):
            if kind == 3 and left[0]:
                left[0] -= 1
                flags |= _INTERRUPTED
            yield kind, flags, body

    monkeypatch.setattr(Netlink, "_receive", receive)


def test_an_interrupted_list_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Family.IPV4)
    interrupted(monkeypatch, 2)
    assert listed(Family.IPV4, Query(53)) == [("dns", 53)] * 3 + [("other", 53)] * 3


def test_a_list_that_is_interrupted_again_and_again_is_an_error_after_what_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(Family.IPV4)
    interrupted(monkeypatch, 100)
    flows = list_udp(Family.IPV4, [Query(53)])
    assert len(list(islice(flows, 6))) == 6
    with pytest.raises(KpxError, match="can't list conntrack entries: it changed each time"):
        next(flows)


def test_entries_are_counted_of_all_kinds() -> None:
    before = count_entries()
    fill(Family.IPV4)
    fill(Family.IPV6)
    assert count_entries() - before == 20


def test_all_deletions_are_tried_though_some_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of flows in a flow table are: EBUSY."""
    fill(Family.IPV4)
    flows = list(list_udp(Family.IPV4))
    real = Netlink.acknowledged

    def acknowledged(self: Netlink, messages: Sequence[bytes]) -> Iterator[int]:
        yield from real(self, messages[:2])
        yield errno.EBUSY
        yield from real(self, messages[3:])

    monkeypatch.setattr(Netlink, "acknowledged", acknowledged)
    deleted = delete(flows)
    assert deleted.count == 4
    assert str(deleted.error) == "the kernel refused to delete a conntrack entry: Device or resource busy"
    assert list(list_udp(Family.IPV4)) == [flows[2]]


def test_answers_that_the_socket_has_no_room_for_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(entry(("10.1.0.1", port), ("10.0.0.3", 53), ("10.0.0.2", 8000)) for port in range(1, 600))
    flows = list(list_udp(Family.IPV4))
    real = Netlink.__init__

    def tiny(self: Netlink, protocol: int, groups: int = 0, receive_buffer: int = 0) -> None:
        real(self, protocol, groups, receive_buffer)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    monkeypatch.setattr(Netlink, "__init__", tiny)
    assert str(delete(flows).error) == "can't delete conntrack entries: No buffer space available"


def test_this_kernel_finds_an_entry_by_its_answers_source() -> None:
    """The request that `insert` makes is understood as meant: an entry made twice exists already."""
    one = entry(("10.1.0.1", 1), ("10.0.0.3", 53), ("10.0.0.2", 8000))
    insert([one])
    with Netlink(12) as link:
        assert list(link.acknowledged([one])) == [errno.EEXIST]
    (flow,) = list_udp(Family.IPV4, [Query(53)])
    assert flow[1:4] == ((packed("10.1.0.1"), 1), (packed("10.0.0.3"), 53), (packed("10.0.0.2"), 8000))
