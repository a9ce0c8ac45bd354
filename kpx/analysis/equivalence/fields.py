"""What rules can ask of a packet, as variables of decision diagrams, with all their values. For one comparison.

The order decides how large diagrams become: entries of dispatch chains name protocol, port and destination, and are
far apart in this order from what Services ask for below: lists of clients, hashes of sources, and then sources, which
each endpoint asks for by itself.
"""

import re
from collections.abc import Hashable, Iterable, Mapping
from itertools import count

from kpx.analysis.equivalence.diagram import PLACE, Diagram, Diagrams
from kpx.analysis.packet import number
from kpx.family import Family
from kpx.netfilter.options import PROTOCOLS

STATE, TRANSLATED, REPLACED, PROTOCOL, PORT, DESTINATION, DESTINATION_LOCAL = range(0, 7 * PLACE, PLACE)
HOME, AGE = 7 * PLACE, 8 * PLACE
"""The endpoint whose list (`KUBE-SEP-...`) knows the sender, 0 for none; for how many seconds it has known it."""
FIRST_HASH = 9 * PLACE
"""From here on, numbers that programs (`-m bpf`) make of the source."""
SOURCE, SOURCE_LOCAL, SOURCE_PORT, IN, OUT = range(10 * PLACE, 15 * PLACE, PLACE)
MARK = 15 * PLACE
"""The first of 32 variables, one for each bit of the mark."""
FIRST_NAMED = 16 * PLACE
"""From here on, variables that are made by name."""

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
NEW, RELATED, INVALID, UNTRACKED = 0, 2, 3, 4

TO_ITSELF = ("to itself",)
"""The name of the variable that tells packets whose source is their destination."""

HOMES = "KUBE-SEP-"
"""Lists of this name exclude each other: of a Service's endpoints one knows a client, because only one was chosen."""

FOREVER = 1 << 33
"""More seconds than any list remembers, and one more than that for a client that is on no list."""

NOWHERE = 0
"""The interface of a packet that has none on that side."""

ICMP = PROTOCOLS["icmp"]
TCP = PROTOCOLS["tcp"]
_NUMBER = re.compile("[0-9]{1,3}")


def is_hash(var: int) -> bool:
    """Whether a variable is a number that a program makes of the source."""
    return FIRST_HASH <= var < SOURCE


class Fields:
    """The variables of one comparison: those above, and more that are made by name as rules ask for them."""

    def __init__(self, diagrams: Diagrams, family: Family, interfaces: Iterable[str]) -> None:
        self.diagrams, self.family = diagrams, family
        self.interfaces = _classes({*interfaces, "lo"})
        self.homes: dict[str, int] = {}
        self._protocols: dict[str, int] = dict(PROTOCOLS)
        self._named: dict[tuple[Hashable, ...], int] = {}
        self._names: dict[int, tuple[Hashable, ...]] = {}
        self.loopback = self._loopback()

    def named(self, *name: Hashable) -> int:
        """The variable of this name. Its first word says what it is: an unknown match, a list, an address, …"""
        found = self._named.get(name)
        if found is None:
            first = FIRST_HASH if name[0] == "hash" else FIRST_NAMED
            found = self._named[name] = first + len(self._names)
            self._names[found] = name
        return found

    def name(self, var: int) -> tuple[Hashable, ...]:
        """The name under which a variable was made; empty for those that are always there."""
        return self._names.get(var, ())

    def size(self, var: int) -> int:
        """How many values a variable has."""
        sizes: Mapping[int, int] = {
            STATE: len(STATES),
            PROTOCOL: 1 << 16,
            PORT: 1 << 16,
            SOURCE_PORT: 1 << 16,
            DESTINATION: 1 << self.family.host_bits,
            SOURCE: 1 << self.family.host_bits,
            IN: len(self.interfaces),
            OUT: len(self.interfaces),
            HOME: 1 << 32,
            AGE: FOREVER + 2,
        }
        if var in sizes:
            return sizes[var]
        match self.name(var):
            case ("list", *_):
                return FOREVER + 2
            case ("source", *_):
                return 1 << self.family.host_bits
            case ("hash" | "hash of a new source", *_):
                return 1 << 32
        return 2

    # -- tests -----------------------------------------------------------------------------------------

    def between(self, var: int, first: int, last: int) -> Diagram:
        """The test that a variable lies in an interval."""
        return self.diagrams.between(var, first, last, self.size(var))

    def holds(self, var: int) -> Diagram:
        """The test that a variable with the values 0 and 1 is 1."""
        return self.between(var, 1, 1)

    def unknown(self, *name: Hashable) -> Diagram:
        """A test of which nothing is known but its name: the same for packets that are the same when they are asked."""
        return self.holds(self.named("unknown", *name))

    def local(self, var: int, is_local: int) -> Diagram:
        """The test that an address is the host's. Of loopback that is known, of others it is a variable of its own."""
        first, last = self.loopback
        return self.diagrams.pick(self.between(var, first, last), self.diagrams.true, self.holds(is_local))

    def to_itself(self) -> Diagram:
        """The test that a packet's source is its destination: a variable of its own while both may be any."""
        return self.holds(self.named(*TO_ITSELF))

    def protocol(self, name: str) -> int:
        """A protocol's number; names that aren't known get numbers beyond all."""
        if _NUMBER.fullmatch(name) and int(name) < 256:
            return int(name)
        return self._protocols.setdefault(name, 256 + len(self._protocols))

    def protocol_name(self, value: int) -> str:
        """The name of a protocol, or its number."""
        return next((name for name, one in self._protocols.items() if one == value), str(value))

    def home(self, name: str) -> int:
        """The value of HOME for the list of an endpoint."""
        return self.homes.setdefault(name, len(self.homes) + 1)

    def interface(self, var: int, wanted: str) -> Diagram:
        """The test that an interface has a name, or starts with what stands before a `+`."""
        result = self.diagrams.false
        for index, one in enumerate(self.interfaces):
            is_it = one.startswith(wanted[:-1]) if wanted.endswith("+") else one == wanted
            if is_it:
                result = self.diagrams.pick(self.between(var, index, index), self.diagrams.true, result)
        return result

    def _loopback(self) -> tuple[int, int]:
        if self.family is Family.IPV6:
            return number("::1"), number("::1")
        return number("127.0.0.0"), number("127.255.255.255")


def _classes(names: set[str]) -> tuple[str, ...]:
    """An example for each kind of interface that names and prefixes tell apart. The first one is no interface."""
    exact = {name for name in names if not name.endswith("+")}
    examples = [_example(name[:-1], names) for name in sorted(names - exact)]
    return ("", *dict.fromkeys((*sorted(exact), *examples, _example("eth", names - {"eth+"}))))


def _example(prefix: str, names: set[str]) -> str:
    """An interface that starts with a prefix and isn't one of others, nor starts with a longer prefix of theirs."""
    others = {name.removesuffix("+") for name in names} - {prefix}
    longer = tuple(other for other in others if other.startswith(prefix))
    return next(one for one in (f"{prefix}{number}" for number in count()) if not one.startswith(longer))
