"""What `kpx verify` tells, as data: the shape of its `--json`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from pydantic import Field

from kpx.analysis.checks import Finding
from kpx.analysis.equivalence import Example, Share
from kpx.analysis.report import AskedPacket, OutcomeReport, outcome_fields, packet_fields
from kpx.analysis.setting import NOTHING_KNOWN, About
from kpx.family import Family
from kpx.printable import printable
from kpx.shape import Part


class FindingReport(Part):
    """One thing that is wrong."""

    check: str = Field(description="which check found it: a word for programs")
    severity: Literal["error", "warning", "note"]
    table: str
    chain: str
    position: int = Field(description="the rule's place in its chain, counted from 1; 0 for the chain as a whole")
    rule: str = Field(description="the rule, as iptables-save prints it behind -A CHAIN; empty for the chain")
    owner: str = Field(description="the service port concerned (namespace/name:port), empty if unknown")
    message: str
    advice: str


class RulesReport(Part):
    """What was found in the rules of one family."""

    rules: str = Field(description="where the rules are from: a file, the kernel, manifests")
    family: Literal["ipv4", "ipv6"]
    about: About = Field(description="what one has to know of the rules first")
    count: int = Field(description="how many rules were looked at")
    findings: tuple[FindingReport, ...]


class Verification(Part):
    """`kpx verify --json`."""

    verified: tuple[RulesReport, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, notes aside, and everything could be read."""
        wrong = any(one.severity != "note" for report in self.verified for one in report.findings)
        return not wrong and not any(report.about.unread for report in self.verified)


class ShareReport(OutcomeReport):
    """One thing that can become of the example packet."""

    noted: tuple[str, ...] = Field(description="lists of xt_recent that the sender is put on")


class ExampleReport(AskedPacket):
    """A packet that tells two rulesets apart."""

    addresses: tuple[str, ...] = Field(description="addresses that have to be the host's own")
    assumed: tuple[str, ...] = Field(description="what else has to hold, in words")
    outcomes: tuple[tuple[ShareReport, ...], tuple[ShareReport, ...]] = Field(description="on both sides")


class Equivalence(Part):
    """`kpx verify --equivalent --json`."""

    rules: tuple[str, str]
    family: Literal["ipv4", "ipv6"]
    equivalent: bool | None = Field(description="null if that depends on matches of which nothing is known")
    unknown: tuple[str, ...] = Field(description="matches and targets that were taken to be the same on both sides")
    example: ExampleReport | None = Field(description="a packet that tells them apart; null if they are equivalent")


def rules_report(
    rules: str, family: Family, count: int, findings: Sequence[Finding], about: About = NOTHING_KNOWN
) -> RulesReport:
    """The report of what was found in the rules of a family."""
    found = tuple(FindingReport.model_validate(_shown(one)) for one in findings)
    return RulesReport(rules=rules, family=family.value, about=about, count=count, findings=found)


def _shown(one: Finding) -> dict[str, object]:
    fields = {**asdict(one), "advice": one.advice.words}
    return {key: printable(str(value)) if isinstance(value, str) else value for key, value in fields.items()}


def equivalence_report(
    rules: tuple[str, str], family: Family, unknown: tuple[str, ...], example: Example | None
) -> Equivalence:
    """The report of a comparison; `example` is None if nothing tells both sides apart."""
    equivalent = True if example is None else False if example.is_certain else None
    told = example and _example(example)
    return Equivalence(
        rules=rules, family=family.value, equivalent=equivalent, unknown=tuple(map(printable, unknown)), example=told
    )


def _example(one: Example) -> ExampleReport:
    return ExampleReport(
        addresses=one.addresses,
        assumed=tuple(map(printable, one.assumed)),
        outcomes=(_shares(one.sides[0]), _shares(one.sides[1])),
        **packet_fields(one.packet, one.known),
    )


def _shares(side: Sequence[Share]) -> tuple[ShareReport, ...]:
    return tuple(
        ShareReport(noted=tuple(map(printable, one.noted)), **outcome_fields(one.outcome, one.probability))
        for one in side
    )
