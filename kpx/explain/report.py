"""What an explanation tells, as data: the shape of `kpx explain --json`."""

from collections.abc import Sequence

from pydantic import Field

from kpx.analysis.report import OutcomeReport
from kpx.analysis.setting import NOTHING_KNOWN, About
from kpx.shape import Part


class Finding(Part):
    """Something that is wrong, or that one should know, and what to do about it."""

    code: str = Field(description="what it is, in one word for programs: no-pods, none-ready, vip-taken, …")
    what: str
    advice: str = Field(description="what to do, empty if nothing needs to be done")
    wrong: bool = Field(default=True, description="false for what is as it should be, and worth knowing")


class UseReport(Part):
    """What becomes of packets of one kind of sender, according to the rules."""

    sender: str
    packet: str = Field(description="an example, as `kpx trace` takes it")
    origin: str = Field(description="pod, outside or node: the option --from of `kpx trace`")
    outcomes: Sequence[OutcomeReport]
    stopped: Sequence[str] = Field(
        description="for each outcome what keeps the packet from an endpoint, in words; empty where nothing does"
    )


class WayReport(Part):
    """One way in: an address and port that clients use."""

    kind: str = Field(description="cluster IP, external IP, load balancer IP or node port")
    address: str = Field(description="of a node port the address that was tried")
    port: int
    policy: str = Field(description="Cluster or Local; empty if only rules are known")
    uses: Sequence[UseReport]


class EndpointReport(Part):
    """One endpoint behind a service port."""

    address: str = Field(description="address:port")
    pod: str = Field(description="the object behind it, empty if unknown")
    node: str = Field(description="empty if unknown")
    takes_part: bool = Field(description="whether this node sends any traffic there")
    why_not: str = Field(description="what keeps it out, or out of a part of the traffic; empty if nothing does")
    weight: int | None = Field(description="how much it counts among others, 100 by default; null if unknown")


class ServicePortReport(Part):
    """One port of a Service in one IP family."""

    name: str = Field(description="namespace/name:port")
    family: str
    protocol: str
    chains: Sequence[str]
    affinity_seconds: int = Field(description="0 without session affinity")
    affinity_scope: str = Field(description="port; service: a client stays with one pod for all ports")
    balance: str = Field(description="random, round-robin or source-hash")
    local_weight: int = Field(description="by how many percent endpoints on this node count more")
    source_ranges: Sequence[str] = Field(description="who may use the load balancer's addresses; empty for everybody")
    ways: Sequence[WayReport]
    endpoints: Sequence[EndpointReport]
    findings: Sequence[Finding]


class Explanation(Part):
    """The answer to `kpx explain ASKED`."""

    asked: str
    about: str = Field(description="what that is")
    rules: str = Field(description="where the rules are from: a file, the kernel, manifests")
    about_rules: About = Field(default=NOTHING_KNOWN, description="what one has to know of the rules first")
    node: str = Field(description="the node's name; empty if only rules are known")
    findings: Sequence[Finding] = Field(description="what concerns no single port")
    ports: Sequence[ServicePortReport]

    @property
    def every_finding(self) -> tuple[Finding, ...]:
        """All findings, those that concern no single port first, each once."""
        found = (*self.findings, *(one for port in self.ports for one in port.findings))
        return tuple(dict.fromkeys(found))

    @property
    def is_open(self) -> bool:
        """Whether it can't be known what becomes of packets of some sender."""
        uses = (use for port in self.ports for way in port.ways for use in way.uses)
        return any(one.fate == "unknown" for use in uses for one in use.outcomes)

    @property
    def refuses(self) -> bool:
        """Whether packets of some sender don't get to an endpoint."""
        return any(any(use.stopped) for port in self.ports for way in port.ways for use in way.uses)
