"""Service traffic that a built-in chain drops at its end, because no rule there accepts it. For `kpx verify`."""

from collections.abc import Iterator

from kpx.analysis.checks import Finding, Severity
from kpx.analysis.checks.advice import ACCEPTED
from kpx.analysis.packet import Origin
from kpx.analysis.simulate import Simulator
from kpx.explain.rules_alone import trials
from kpx.explain.stops import Kind, stops

MOST = 40
"""Service ports of which packets are sent: what a policy drops it drops of many."""


def unaccepted(simulator: Simulator) -> Iterator[Finding]:
    """Policies that drop what pods and clients outside send to Services: one finding for each built-in chain."""
    if all(policy == "ACCEPT" for policy in simulator.policies.values()):
        return
    met: dict[tuple[str, str], list[str]] = {}
    for way, sender in trials(simulator, MOST):
        if sender.origin is not Origin.NODE:
            packet = sender.packet(way)
            for stop in stops(simulator, packet).values():
                if stop.kind is Kind.AT_END:
                    words = f"{way.protocol} from {sender.words} to the {way.kind} {way.address}:{way.port}"
                    met.setdefault((stop.table, stop.chain), []).append(words)
    for (table, chain), some in met.items():
        yield Finding(
            "nothing-accepts",
            Severity.ERROR,
            table,
            chain,
            f"its policy drops packets for Services that no rule accepts, such as {some[0]}",
            ACCEPTED,
        )
