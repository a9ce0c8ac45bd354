"""Findings about packets that don't get to an endpoint, by what keeps them from it: who meets the same in one."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from kpx.analysis.checks import advice
from kpx.analysis.simulate import Simulator
from kpx.explain.report import Finding
from kpx.explain.stops import Kind, Stop, stops
from kpx.explain.ways import Sender, Way
from kpx.netfilter.names import ours

_ADVICE = {
    Kind.POLICY: "",
    Kind.DNS_CACHE: "NodeLocal DNSCache answers them on this node. If its pod doesn't run here, these rules must go.",
    Kind.LOST_MATCH: advice.LOST_MATCH.words,
    Kind.REFUSED: advice.NARROWED.words,
    Kind.UNTRACKED: advice.NARROWED.words,
    Kind.TAKEN: advice.move_behind("KUBE-SERVICES").words,
    Kind.AT_END: advice.ACCEPTED.words,
    Kind.ELSEWHERE: advice.move_behind("KUBE-SERVICES").words,
    Kind.UNMASQUERADED: advice.move_behind("KUBE-POSTROUTING").words,
    Kind.BROKEN: advice.MIXED_VERSIONS.words,
    Kind.NOT_LED: advice.LED.words,
    Kind.NOT_KNOWN: "`kpx trace` with --interface, --out-interface or --node-address may tell.",
}
"""What to do, by what keeps packets from endpoints."""

_CODES = {
    Kind.POLICY: "refused-by-policy",
    Kind.LOST_MATCH: "lost-match",
    Kind.REFUSED: "refused",
    Kind.AT_END: "refused-at-end",
    Kind.UNTRACKED: "untracked",
    Kind.DNS_CACHE: "node-local-dns",
    Kind.TAKEN: "taken",
    Kind.NOT_LED: "not-led",
    Kind.ELSEWHERE: "sent-elsewhere",
    Kind.UNMASQUERADED: "unmasqueraded",
    Kind.BROKEN: "broken-translation",
    Kind.NOT_KNOWN: "not-known",
}


def of_stops(
    simulator: Simulator, ways: Sequence[Way], senders: Sequence[Sender], endpoints: Collection[str] | None = None
) -> Iterator[Finding]:
    """What keeps packets of these senders from endpoints, on these ways. Gravest first: what nobody can want.

    Of what the Service itself refuses, its other findings tell.
    """
    met: dict[Stop, dict[str, list[str]]] = {}
    for way in ways:
        for sender in senders:
            for stop in dict.fromkeys(stops(simulator, sender.packet(way), endpoints).values()):
                place = f"{way.kind} {way.address}:{way.port}"
                met.setdefault(stop, {}).setdefault(place, []).append(sender.words)
    met = {stop: places for stop, places in met.items() if stop.kind is not Kind.SERVICE}
    for stop, places in sorted(met.items(), key=lambda item: not item[0].is_fault):
        yield Finding(
            code=_CODES[stop.kind],
            what=f"Packets {who(places)} {'can be' if stop.kind is Kind.NOT_KNOWN else 'are'} {stop.words()}.",
            advice=_advice(stop),
            wrong=stop.is_fault,
        )


def _advice(stop: Stop) -> str:
    """What to do; a rule of somebody else in a chain of the proxy's has no place there."""
    if stop.kind is Kind.UNMASQUERADED and not stop.position:
        return advice.CHAIN_AGAIN.words
    is_foreign = stop.kind in (Kind.TAKEN, Kind.REFUSED, Kind.ELSEWHERE) and ours(stop.chain)
    return advice.STRANGER.words if is_foreign else _ADVICE[stop.kind]


def who(places: Mapping[str, Sequence[str]]) -> str:
    """Whose packets, to which places; where senders are the same, they are named once."""
    by_sender: dict[tuple[str, ...], list[str]] = {}
    for place, senders in places.items():
        by_sender.setdefault(tuple(senders), []).append(place)
    return ", and ".join(f"from {_list(senders)} to the {_list(some)}" for senders, some in by_sender.items())


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
