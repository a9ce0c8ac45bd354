"""Where the rules that are there differ from what the objects ask for: rule by rule, and by what packets meet."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from kpx.analysis.packet import Fate, Outcome, Packet
from kpx.explain.report import Finding
from kpx.explain.stopped import who
from kpx.explain.ways import Sender, Way
from kpx.explain.world import World
from kpx.printable import printable
from kpx.reconcile.report import FRAME, Difference

_SHOWN = 3


def of_rules(world: World, owner: str) -> Iterator[Finding]:
    """The rules of a service port, or those of no Service in particular, that differ."""
    found = world.differences.get(owner, ())
    if found:
        said = "; ".join(_words(one) for one in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        whose = "Rules that all Services need" if owner == FRAME else f"Rules of {owner}"
        yield Finding(
            code="rules-differ",
            what=f"{whose} are not as they should be: {said}{more}.",
            advice="`kpx diff` shows all differences, `kpx apply` puts them right. If they come back, some other "
            "program changes the rules.",
        )


def _words(one: Difference) -> str:
    rule = one.live or one.desired or "(the chain itself)"
    return printable(f"{one.kind} in {one.table} {one.chain}: {rule}")


def of_packets(world: World, ways: Sequence[Way], senders: Sequence[Sender]) -> Iterator[Finding]:
    """Packets that meet something else than they should: all in one finding, who meets the same in one sentence."""
    if world.actual is None:
        return
    met: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for way in ways:
        for sender in senders:
            packet = sender.packet(way)
            actual, desired = world.actual.outcomes(packet), world.desired.outcomes(packet)
            if not _same(actual, desired):
                place = f"{way.kind} {way.address}:{way.port}"
                key = _contrast(actual, desired), _decisive(world, packet, desired)
                met.setdefault((*key[0], key[1]), {}).setdefault(place, []).append(sender.words)
    if met:
        sentences = [
            f"Packets {who(places)} are {now}{rule}; they should be {wanted}."
            for (now, wanted, rule), places in met.items()
        ]
        yield Finding(
            code="packets-differ",
            what=" ".join(sentences),
            advice="`kpx trace` shows the way of such a packet step by step.",
        )


def _contrast(actual: Mapping[Outcome, Fraction], desired: Mapping[Outcome, Fraction]) -> tuple[str, str]:
    """What is and what should be, in words that differ."""
    arrive = {one.fate for one in desired} == {Fate.TRANSLATED}
    if arrive and not any(one.fate is Fate.TRANSLATED for one in actual):
        # To whom nothing gets, it doesn't matter how it should have got there.
        desired = {Outcome(Fate.TRANSLATED, place): Fraction(1) for place in {one.destination for one in desired}}
    now, wanted = _said(actual), _said(desired)
    if now != wanted:
        return now, wanted
    places = sorted({one.destination for one in (*actual, *desired)})
    odd = [place for place in places if _at(actual, place) != _at(desired, place)]
    return (
        "sent " + ", ".join(f"{_at(actual, place)} to {place}" for place in odd[:_SHOWN]),
        ", ".join(f"{_at(desired, place)} to {place}" for place in odd[:_SHOWN]),
    )


def _at(outcomes: Mapping[Outcome, Fraction], place: str) -> str:
    """How packets get to one place: which share, and with which source."""
    some = {one.masqueraded: share for one, share in outcomes.items() if one.destination == place}
    parts = [f"{_share(share)}{' masqueraded' if hidden else ''}" for hidden, share in sorted(some.items())]
    return " and ".join(parts) or "never"


def _share(share: Fraction) -> str:
    plain = share.limit_denominator(10_000)
    return (
        "always" if plain == 1 else str(plain) if abs(plain - share) < Fraction(1, 1 << 20) else f"{float(share):.4f}"
    )


def _same(one: Mapping[Outcome, Fraction], other: Mapping[Outcome, Fraction]) -> bool:
    """Shares may be off by the rounding of rules' probabilities."""
    return one.keys() == other.keys() and all(abs(one[key] - other[key]) < Fraction(1, 1 << 20) for key in one)


def _said(outcomes: Mapping[Outcome, Fraction]) -> str:
    """Outcomes in a few words."""
    fates = {outcome.fate for outcome in outcomes}
    if fates == {Fate.TRANSLATED}:
        places = sorted({outcome.destination for outcome in outcomes})
        shown = ", ".join(places[:4]) + (", …" if len(places) > 4 else "")
        hidden = {outcome.masqueraded for outcome in outcomes}
        source = " masqueraded" if hidden == {True} else "" if hidden == {False} else " partly masqueraded"
        shares = {round(float(share), 6) for share in outcomes.values()}
        return f"sent{source} to {shown}" + ("" if len(shares) == 1 else " (not equally often)")
    words = {
        Fate.TRANSLATED: "sent to endpoints",
        Fate.UNTOUCHED: "not translated",
        Fate.REJECTED: "rejected",
        Fate.DROPPED: "dropped",
        Fate.UNKNOWN: "not to be judged",
    }
    return " or ".join(words[fate] for fate in Fate if fate in fates)


def _decisive(world: World, packet: Packet, desired: Mapping[Outcome, Fraction]) -> str:
    """The rule that makes the difference, where one does: the last one on a way that should not end so."""
    paths = world.actual.paths(packet) if world.actual else ()
    wrong = next((path for path in paths if path.outcome not in desired and path.steps), None)
    if wrong is None or wrong.outcome.fate not in (Fate.DROPPED, Fate.REJECTED, Fate.UNKNOWN):
        return ""
    step = wrong.steps[-1]
    where = f"rule {step.position} of {step.table} {step.chain}" if step.position else f"{step.table} {step.chain}"
    return printable(f" by {where} ({step.rule})")
