"""What a Service is compiled from, and how a large change is made of small ones. Pure.

A Service of many ports or endpoints that changes as a whole would hold up all others: so some ports, and some slices,
are changed at a time, and the others stand as they were.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from kpx.agent.store import Ports, Slices
from kpx.model.endpoint import Slice
from kpx.model.service import ServicePort, ServicePortName


class Inputs(NamedTuple):
    """What a Service was compiled from last: the very values of the store, but for what another Service has.

    `rest` are those of its ports that still stand as they were before, while a large change is made step by step; it is
    empty if all that is left are slices.
    """

    ports: Ports
    slices: Slices
    rest: "Inputs | None" = None

    def parts(self) -> "Iterator[Inputs]":
        """This, and its rest, each without one."""
        one: Inputs | None = self
        while one:
            yield one._replace(rest=None)
            one = one.rest


NO_INPUTS: Final = Inputs((), ())


def weight(inputs: Inputs) -> int:
    """How many rules these have, more or less."""
    endpoints = sum(len(one.states) * len(one.ports) for one in inputs.slices)
    return 3 * endpoints + sum(map(_ways_in, every_port(inputs)))


def _ways_in(port: ServicePort) -> int:
    """How many dispatch rules lead to a service port, more or less."""
    return 2 + len(port.external_ips) + len(port.load_balancer_ips)


def every_port(inputs: Inputs) -> Iterator[ServicePort]:
    """All ports, those of the rest, too."""
    return (port for part in inputs.parts() for port in part.ports)


def only(inputs: Inputs, names: Collection[ServicePortName]) -> Inputs:
    """Some of the ports."""
    return Inputs(tuple(port for port in inputs.ports if port.name in names), inputs.slices)


def nearer(before: Slices, wanted: Slices, room: int) -> Slices:
    """Slices on the way from what they were to what they should be: about `room` endpoints change, or one slice.

    Those that are gone go first, then those that changed longest ago: a store adds what changes at the end.
    """
    old, new = {one.name: one for one in before}, {one.name: one for one in wanted}
    for name in (*(one for one in old if one not in new), *new):
        if room <= 0:
            return tuple(old.values())
        room -= _changed(old.get(name), new.get(name))
        if name in new:
            old[name] = new[name]
        else:
            del old[name]
    return wanted


def _changed(old: Slice | None, new: Slice | None) -> int:
    """How many endpoints come, go or change with a slice, more or less."""
    return 0 if old == new else len(_endpoints(old) ^ _endpoints(new)) + 1


def _endpoints(one: Slice | None) -> frozenset[tuple[bytes, int]]:
    if one is None or not one.states:
        return frozenset()
    size = len(one.addresses) // len(one.states)
    return frozenset((one.addresses[at * size : (at + 1) * size], state) for at, state in enumerate(one.states))


def todo_of(before: Inputs, wanted: Inputs) -> frozenset[ServicePortName]:
    """Which service ports of a Service aren't in force as wanted, or shouldn't be."""
    ports = frozenset(wanted.ports)
    done = {
        port.name for part in before.parts() if part.slices == wanted.slices for port in part.ports if port in ports
    }
    return frozenset(port.name for port in (*every_port(before), *wanted.ports)) - done


def in_turn(todo: Collection[ServicePortName], before: Inputs) -> list[ServicePortName]:
    """What is to be done, in an order in which every port's turn comes however often the Service changes."""
    oldest_first = (port.name for part in reversed(tuple(before.parts())) for port in part.ports if port.name in todo)
    return list(dict.fromkeys((*oldest_first, *sorted(todo))))


def first_of(names: Sequence[ServicePortName], before: Inputs, wanted: Inputs, room: int) -> Iterator[ServicePortName]:
    """So many of these that their rules fit into `room`, more or less; at least one."""
    weights: Counter[ServicePortName] = Counter()
    for inputs in (*before.parts(), wanted):
        endpoints = Counter[tuple[str, str]]()
        for one in inputs.slices:
            endpoints.update({(name, protocol): len(one.states) for name, protocol, _ in one.ports})
        for port in inputs.ports:
            weights[port.name] += _ways_in(port) + 3 * endpoints[port.name.port, port.name.protocol]
    for name in names:
        yield name
        room -= weights[name]
        if room <= 0:
            return


def step(
    before: Inputs, wanted: Inputs, todo: Collection[ServicePortName], names: Collection[ServicePortName]
) -> Inputs:
    """What is in force once these of the ports that are to be done are; there is a rest in any case."""
    left = frozenset(todo) - frozenset(names)
    rest: Inputs | None = None
    for part in reversed(tuple(before.parts())):
        old = only(part, left)
        if old.ports:
            rest = Inputs(old.ports, old.slices, rest)
    ports = tuple(port for port in wanted.ports if port.name not in left)
    # Ports that are new and not yet done have no rest: an empty one says that the Service isn't finished.
    return Inputs(ports, wanted.slices, rest or NO_INPUTS)
