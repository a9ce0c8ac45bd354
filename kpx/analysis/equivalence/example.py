"""An example packet for a class of packets that meet different ends, in terms that people and the simulator know."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from kpx.analysis import bpf
from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.comparison import Compared, Divergence, End
from kpx.analysis.equivalence.diagram import UNIT, Diagram
from kpx.analysis.equivalence.exits import MASQUERADE
from kpx.analysis.equivalence.fields import FOREVER, TO_ITSELF, Fields
from kpx.analysis.notation import WITH_PORTS
from kpx.analysis.packet import Fate, Origin, Outcome, Packet, endpoint, number, text
from kpx.family import Family

_SOURCES = {
    Family.IPV4: ("198.51.100.7", "10.244.0.9", "192.0.2.9", "10.0.0.9", "172.16.0.9", "8.8.8.8", "203.0.113.9"),
    Family.IPV6: ("2001:db8::7", "fd00:244::9", "2001:db8:9::9", "fd00::9", "2600::9"),
}
_DESTINATIONS = {
    Family.IPV4: ("203.0.113.7", "10.96.0.1", "10.244.0.1", "8.8.8.8", "100.64.0.1", "192.168.0.1"),
    Family.IPV6: ("2001:db8:7::7", "fd00:96::1", "fd00:244::1", "2600::1"),
}
_LAST = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
_ODD = {
    Family.IPV4: (("0.0.0.0", "0.255.255.255"), ("127.0.0.0", "127.255.255.255"), ("224.0.0.0", "255.255.255.255")),
    Family.IPV6: (
        ("::", "::1"),
        ("fe80::", f"febf{_LAST[4:]}"),
        ("ff00::", "ffff" + ":ffff" * 7),
    ),
}
"""Addresses that nobody would choose for an example: no host's, this host's, of a link or a group."""

_TRIED = 4096
"""How many sources to try for one whose hashes are as wanted: a choice among hundreds is met."""

_LIKED = {fields.PORT: (80, 443, 8080), fields.SOURCE_PORT: (40_000,), fields.PROTOCOL: (6, 17, 132)}


@dataclass(frozen=True, slots=True)
class Share:
    """One thing that can become of a packet, with its probability. `noted` are lists its sender is put on."""

    outcome: Outcome
    probability: Fraction
    noted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A packet and what both sides do with it.

    `addresses` are the host's own that it takes, `known` the lists that know its sender, with seconds, `assumed` what
    else has to hold: that a match of an unknown module holds or not, that a connection was translated.
    """

    packet: Packet
    addresses: tuple[str, ...]
    known: Mapping[str, float]
    assumed: tuple[str, ...]
    sides: tuple[tuple[Share, ...], tuple[Share, ...]]

    @property
    def is_certain(self) -> bool:
        """Whether it depends on nothing that isn't known."""
        unknown = any(one.outcome.fate is Fate.UNKNOWN for side in self.sides for one in side)
        return not unknown and not any(one.startswith(_UNKNOWN) for one in self.assumed)


_UNKNOWN = "unknown: "


def examples(compared: Compared) -> list[Example]:
    """An example for each divergence found, the plainest first, those that depend on what isn't known last."""
    made = [_Maker(compared.fields, one).example() for one in compared.divergences]
    return sorted(made, key=_oddity)


def _oddity(one: Example) -> tuple[bool, int, str, int, int, int]:
    packet, family = one.packet, one.packet.family
    source, destination = number(packet.source), number(packet.destination)
    odd = sum(number(low) <= it <= number(high) for it in (source, destination) for low, high in _ODD[family])
    strange = (
        3 * odd
        + 2 * (packet.state != "NEW")
        + 2 * bool(packet.mark)
        + 2 * packet.protocol.isdecimal()
        + bool(one.known)
        + bool(one.assumed)
        + len(one.addresses)
        + (packet.origin is Origin.NODE)
        + (packet.protocol not in WITH_PORTS)
        + (source == destination)
    )
    return not one.is_certain, strange, packet.protocol, destination, packet.destination_port, source


class _Maker:
    """Chooses a value for each variable of one class."""

    def __init__(self, some: Fields, divergence: Divergence) -> None:
        self.fields, self.divergence, self.box = some, divergence, divergence.box
        self.family = some.family
        self._chosen: dict[int, int] = {}

    def example(self) -> Example:
        """The example."""
        for var in self.box:
            self._value(var)
        sides = (self._shares(0), self._shares(1))
        packet = self._packet()
        own = tuple(dict.fromkeys(self._own_addresses(packet)))
        return Example(packet, own, dict(self._known()), tuple(self._assumed()), sides)

    def _value(self, var: int) -> int:
        """The value of a variable: one that people like in examples, if the class has it."""
        if var not in self._chosen:
            low, high = self.box.get(var, (0, self.fields.size(var) - 1))
            if var == fields.SOURCE:
                self._chosen[var] = self._source(low, high)
            elif var == fields.DESTINATION:
                itself = self.box.get(self.fields.named(*TO_ITSELF)) == (1, 1)
                self._chosen[var] = self._value(fields.SOURCE) if itself else self._address(var, low, high)
            elif (hashed := self._hash(var, self._value(fields.SOURCE))) is not None:
                self._chosen[var] = hashed if low <= hashed <= high else low
            else:
                self._chosen[var] = next((one for one in self._liked(var) if low <= one <= high), low)
        return self._chosen[var]

    def _liked(self, var: int) -> tuple[int, ...]:
        if var in (fields.IN, fields.OUT):
            return (len(self.fields.interfaces) - 1,)
        if var == fields.SOURCE_LOCAL:
            return (int(self.divergence.sent),)
        return (FOREVER + 1,) if self.fields.name(var)[:1] == ("list",) else _LIKED.get(var, ())

    def _source(self, low: int, high: int) -> int:
        """A source whose hashes lie where the class has them, if one is found soon."""
        itself = self.box.get(self.fields.named(*TO_ITSELF), (0, 1))
        to = self.box.get(fields.DESTINATION, (0, self.fields.size(fields.DESTINATION) - 1))
        if itself == (1, 1):
            low, high = max(low, to[0]), min(high, to[1])
        first = self._address(fields.SOURCE, low, high)
        if itself == (0, 0) and to == (first, first):
            first = low if first > low else high
        hashes = [var for var in self.box if self.fields.name(var)[:1] == ("hash",)]
        for source in range(first, min(first + _TRIED, high + 1) if hashes else first):
            if all(self._is_within(var, self._hash(var, source)) for var in hashes):
                return source
        return first

    def _is_within(self, var: int, value: int | None) -> bool:
        low, high = self.box[var]
        return value is not None and low <= value <= high

    def _hash(self, var: int, source: int) -> int | None:
        """The value of a variable that is a program's number; None for others, and if that isn't known."""
        match self.fields.name(var):
            case ("hash", tuple(program)):
                return bpf.result(program, source, self.family)
        return None

    def _address(self, var: int, low: int, high: int) -> int:
        liked = _SOURCES if var == fields.SOURCE else _DESTINATIONS
        for one in map(number, liked[self.family]):
            if low <= one <= high:
                return one
        chosen = low + (low < high)  # the first address of a network is nobody's
        for first, last in _ODD[self.family]:
            if number(first) <= chosen <= number(last) < high:
                chosen = number(last) + 2
        return min(chosen, high)

    def _packet(self) -> Packet:
        sent, names = self.divergence.sent, self.fields.interfaces
        return Packet(
            source=text(self._value(fields.SOURCE), self.family),
            destination=text(self._value(fields.DESTINATION), self.family),
            protocol=self.fields.protocol_name(self._value(fields.PROTOCOL)),
            destination_port=self._value(fields.PORT),
            source_port=self._value(fields.SOURCE_PORT),
            origin=Origin.NODE if sent else Origin.OUTSIDE,
            in_interface=None if sent else names[self._value(fields.IN)],
            out_interface=names[self._value(fields.OUT)] or None,
            mark=sum(self._value(fields.MARK + bit) << bit for bit in range(32)),
            state=fields.STATES[self._value(fields.STATE)],
        )

    def _own_addresses(self, packet: Packet) -> Iterator[str]:
        if self._value(fields.DESTINATION_LOCAL):
            yield packet.destination
        if self._value(fields.SOURCE_LOCAL):
            yield packet.source
        for var, value in self._chosen.items():
            match self.fields.name(var):
                case ("local", int(address)) if value:
                    yield text(address, self.family)

    def _known(self) -> Iterator[tuple[str, float]]:
        home, age = self._value(fields.HOME), self._value(fields.AGE)
        yield from ((name, float(age)) for name, one in self.fields.homes.items() if one == home and age <= FOREVER)
        for var, value in self._chosen.items():
            match self.fields.name(var):
                case ("list", str(name)) if value <= FOREVER:
                    yield name, float(value)

    def _assumed(self) -> Iterator[str]:
        for var, value in sorted(self._chosen.items()):
            name = self.fields.name(var)
            if var in (fields.TRANSLATED, fields.REPLACED) and value:
                yield f"the {'destination' if var == fields.TRANSLATED else 'source'} of its connection was translated"
            elif name[:1] == ("hash",) and value != self._hash(var, self._value(fields.SOURCE)):
                yield f"{_UNKNOWN}a source of which a program (-m bpf) makes numbers like {value:#x}; few do, if any"
            elif name[:1] == ("unknown",):
                what = " | ".join(str(word) for word in name[1:] if word)
                yield f"{_UNKNOWN}that `{what}` {'holds' if value else 'does not hold'}"
            elif name[:1] in (("source",), ("source local",), ("hash of a new source",)):
                yield f"{_UNKNOWN}which address {name[1]} puts in as source"

    # -- ends ----------------------------------------------------------------------------------------------

    def _shares(self, side: int) -> tuple[Share, ...]:
        found: dict[tuple[Outcome, tuple[str, ...]], int] = {}
        for part, (weight, _) in self.divergence.sides[side].items():
            for end, share in self._ends(part, weight):
                key = (self._outcome(end), end.noted)
                found[key] = found.get(key, 0) + share
        shares = (Share(outcome, Fraction(weight, UNIT), noted) for (outcome, noted), weight in found.items())
        return tuple(sorted(shares, key=lambda one: (-one.probability, one.outcome, one.noted)))

    def _ends(self, part: Diagram, weight: int) -> Iterator[tuple[End, int]]:
        while part.kids:
            part = part.at(self._value(part.var))
        for end, share in part.ends.items():
            if isinstance(end, Diagram):
                yield from self._ends(end, weight * share // UNIT)
            elif isinstance(end, End):
                yield end, weight * share // UNIT

    def _outcome(self, end: End) -> Outcome:
        detail = " ".join(end.met)
        if end.why:
            fate, _, rest = end.why.partition(" ")
            return Outcome(Fate(fate.removesuffix(":")), detail=" ".join(filter(None, (rest, detail))))
        masqueraded = bool(end.source)
        if masqueraded and not end.source.startswith(MASQUERADE):
            detail = f"from {end.source}"
        if end.to is None:
            return Outcome(Fate.UNTOUCHED, masqueraded=masqueraded, detail=detail)
        address, port = end.to
        to = endpoint(address, self._value(fields.PORT) if port is None else port, self.family)
        return Outcome(Fate.TRANSLATED, to, masqueraded, detail)
