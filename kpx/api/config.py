"""KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), with kube-proxy's defaults and checks.

Sources: `staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go`, and `defaults.go` and `validation.go` under
`pkg/proxy/apis/config`, of kube-proxy 1.36. Durations are in seconds. As there, a zero that a default
replaces is the same as nothing.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kpx.api.addresses import Address, Cidr, canonical, canonical_cidr, one_per_family
from kpx.api.durations import FlushSeconds, Seconds
from kpx.api.grammar import (
    EXPLAINED,
    SUBDOMAIN,
    SUBDOMAIN_PATTERN,
    Fault,
    Flag,
    FreeText,
    Items,
    Line,
    Unset,
    Word,
    api_spelling,
    raise_faults,
)
from kpx.family import Family, host_port

API_VERSION: Final = "kubeproxy.config.k8s.io/v1alpha1"
KIND: Final = "KubeProxyConfiguration"
GONE: Final = frozenset(
    {
        ("resourceContainer",),  # until 1.15
        ("conntrack", "max"),  # until 1.15
        ("udpIdleTimeout",),  # until 1.25, for the userspace mode
        ("udpTimeoutMilliseconds",),  # how it was spelled in 1.9
        ("clientConnection", "cps"),  # how `qps` was spelled in 1.9
    }
)
"""Paths of fields that v1alpha1 once had. Managed clusters still ship them; kube-proxy 1.36 warns and goes on."""
PRIMARY = "primary"
"""The entry of `node_port_addresses` that stands for the node's primary address of each family."""

LocalMode = Literal["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]

_HEALTHZ_PORT, _METRICS_PORT = 10256, 10249
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_INTERFACE = re.compile(r"[A-Za-z0-9_.@][-A-Za-z0-9_.@]*")
_INT32_MAX = 2**31 - 1


def _host_port(default_port: int) -> AfterValidator:
    """Canonical `host:port`, IPv6 in brackets, the port added if it is missing; "" stays."""

    def check(text: str) -> str:
        if not text:
            return text
        match = _HOST_PORT.fullmatch(text)
        host = canonical(match[1] or match[2] if match else text)
        port = int(match[3]) if match else default_port
        if host is None or not 1 <= port <= 65535:
            raise PydanticCustomError("host_port", "must be an IP address and a port, such as 0.0.0.0:10256")
        return host_port(host, port)

    return AfterValidator(check)


def _cidr_pair(text: str) -> str:
    cidrs = tuple(canonical_cidr(part) for part in text.split(",")) if text else ()
    valid = tuple(cidr for cidr in cidrs if cidr is not None)
    if len(valid) != len(cidrs) or not one_per_family(valid):
        raise PydanticCustomError("cidrs", "must be a CIDR, or an IPv4 and an IPv6 one joined by a comma")
    return ",".join(valid)


def _node_port_address(text: str) -> str:
    cidr = text if text == PRIMARY else canonical_cidr(text)
    if cidr is None:
        raise PydanticCustomError("cidr", f'must be a CIDR such as 10.0.0.0/8, or "{PRIMARY}" alone')
    return cidr


def _interface(longest: int) -> AfterValidator:
    def check(text: str) -> str:
        if text and (len(text) > longest or not _INTERFACE.fullmatch(text) or text in (".", "..")):
            raise PydanticCustomError("interface", f"must name an interface in at most {longest} characters")
        return text

    return AfterValidator(check)


def _node_name(text: str) -> str:
    """As kube-proxy reads an override: trimmed, in lower case."""
    name = text.strip().lower()
    if name and (len(name) > 253 or not SUBDOMAIN.fullmatch(name)):
        raise PydanticCustomError("node_name", EXPLAINED[SUBDOMAIN_PATTERN])
    return name


Text = Annotated[Line, Unset("")]
"""One line of text that never reaches a rule."""
Switch = Annotated[Flag, Unset(False)]
Count = Annotated[int, Field(strict=True, ge=0, le=_INT32_MAX)]
Bit = Annotated[int, Field(strict=True, ge=0, le=31)]
Period = Annotated[Seconds, Field(ge=0), Unset("0s")]
HealthzAddress = Annotated[FreeText, _host_port(_HEALTHZ_PORT), Unset("")]
MetricsAddress = Annotated[FreeText, _host_port(_METRICS_PORT), Unset("")]
NodePortAddress = Annotated[FreeText, AfterValidator(_node_port_address)]
NodeName = Annotated[FreeText, AfterValidator(_node_name), Unset("")]


def _quantity(value: object) -> object:
    return str(value) if type(value) is int else value


def _zero_means(default: float) -> AfterValidator:
    return AfterValidator(lambda value: value or default)


class Section(BaseModel):
    """Base of every part of the configuration: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=api_spelling,
        validate_by_name=True,
        validate_by_alias=True,
    )


class ClientConnection(Section):
    """How to reach the API server."""

    kubeconfig: Text = ""
    accept_content_types: Text = ""
    content_type: Text = ""
    qps: Annotated[float, Field(strict=True, ge=-1e9, le=1e9), _zero_means(5.0), Unset(0.0)] = 5.0
    burst: Annotated[Count, _zero_means(10), Unset(0)] = 10


class OutputRouting(Section):
    """Where log lines go."""

    split_stream: Switch = False
    info_buffer_size: Annotated[Text, BeforeValidator(_quantity)] = ""


class LoggingOptions(Section):
    """Settings of each log format."""

    text: Annotated[OutputRouting, Unset(OutputRouting())] = OutputRouting()
    json_: Annotated[OutputRouting, Unset(OutputRouting())] = Field(default=OutputRouting(), alias="json")


class VModuleItem(Section):
    """Verbosity of the source files that match a pattern."""

    file_pattern: Text = ""
    verbosity: Annotated[Count, Unset(0)] = 0


class Logging(Section):
    """Logging, as component-base has it."""

    format: Text = ""
    flush_frequency: Annotated[FlushSeconds, Unset("0s")] = 0.0
    verbosity: Annotated[Count, Unset(0)] = 0
    vmodule: Items[VModuleItem] = ()
    options: Annotated[LoggingOptions, Unset(LoggingOptions())] = LoggingOptions()


class IPTables(Section):
    """Settings of iptables mode.

    `min_sync_period` is in `model_fields_set` only where the document gives one other than zero.
    """

    masquerade_bit: Annotated[Bit, Unset(14)] = 14
    masquerade_all: Switch = False
    localhost_node_ports: Annotated[Flag, Unset(True)] = True
    sync_period: Annotated[Period, _zero_means(30.0)] = 30.0
    min_sync_period: Period = 1.0

    @model_validator(mode="after")
    def _periods(self) -> Self:
        if not self.min_sync_period:
            object.__setattr__(self, "min_sync_period", 1.0)
            self.model_fields_set.discard("min_sync_period")
        if self.min_sync_period > self.sync_period:
            message = f"must be at most syncPeriod, {self.sync_period:g} s"
            raise_faults([Fault(("minSyncPeriod",), message, f"{self.min_sync_period:g} s")])
        return self


class IPVS(Section):
    """Settings of ipvs mode, without meaning here."""

    sync_period: Period = 0.0
    min_sync_period: Period = 0.0
    scheduler: Text = ""
    exclude_cidrs: Items[Cidr] = ()
    strict_arp: Switch = False
    tcp_timeout: Period = 0.0
    tcp_fin_timeout: Period = 0.0
    udp_timeout: Period = 0.0


class NFTables(Section):
    """Settings of nftables mode, without meaning here."""

    masquerade_bit: Annotated[Bit, Unset(None)] | None = None
    masquerade_all: Switch = False
    sync_period: Period = 0.0
    min_sync_period: Period = 0.0


class Winkernel(Section):
    """Settings of Windows nodes, without meaning here."""

    network_name: Text = ""
    source_vip: Text = ""
    enable_dsr: Switch = False
    root_hns_endpoint_name: Text = ""
    forward_health_check_vip: Switch = False


class DetectLocal(Section):
    """Interfaces that `detectLocalMode` may look at.

    A prefix has room for the `+` that iptables wants after it: a name there has 15 characters.
    """

    bridge_interface: Annotated[FreeText, _interface(15), Unset("")] = ""
    interface_name_prefix: Annotated[FreeText, _interface(14), Unset("")] = ""


class Conntrack(Section):
    """Connection tracking: sizes in entries, timeouts where above 0."""

    max_per_core: Annotated[Count, Unset(32768)] = 32768
    min: Annotated[Count, Unset(131072)] = 131072
    tcp_established_timeout: Annotated[Period, Unset("24h")] = 86400.0
    tcp_close_wait_timeout: Annotated[Period, Unset("1h")] = 3600.0
    tcp_be_liberal: Switch = False
    udp_timeout: Period = 0.0
    udp_stream_timeout: Period = 0.0


class KubeProxyConfiguration(Section):
    """The file that a kube-proxy DaemonSet mounts.

    Bind addresses are canonical `host:port`. `cluster_cidrs` has the parts of `cluster_cidr`.
    `node_port_addresses` holds CIDRs or `PRIMARY` alone; empty means all addresses.
    """

    api_version: Literal["kubeproxy.config.k8s.io/v1alpha1"] = API_VERSION
    kind: Literal["KubeProxyConfiguration"] = KIND
    feature_gates: Annotated[dict[Word, Flag], Unset({})] = {}
    client_connection: Annotated[ClientConnection, Unset(ClientConnection())] = ClientConnection()
    logging: Annotated[Logging, Unset(Logging())] = Logging()
    hostname_override: NodeName = ""
    bind_address: Annotated[Address, Unset("0.0.0.0")] = "0.0.0.0"
    healthz_bind_address: HealthzAddress = ""
    metrics_bind_address: MetricsAddress = ""
    bind_address_hard_fail: Switch = False
    enable_profiling: Switch = False
    show_hidden_metrics_for_version: Text = ""
    mode: Annotated[Literal["iptables"], Unset("iptables")] = "iptables"
    iptables: Annotated[IPTables, Unset(IPTables())] = IPTables()
    ipvs: Annotated[IPVS, Unset(IPVS())] = IPVS()
    nftables: Annotated[NFTables, Unset(NFTables())] = NFTables()
    winkernel: Annotated[Winkernel, Unset(Winkernel())] = Winkernel()
    detect_local_mode: Annotated[LocalMode, Unset("ClusterCIDR")] = "ClusterCIDR"
    detect_local: Annotated[DetectLocal, Unset(DetectLocal())] = DetectLocal()
    cluster_cidr: Annotated[FreeText, AfterValidator(_cidr_pair), Unset("")] = ""
    node_port_addresses: Items[NodePortAddress] = ()
    oom_score_adj: Annotated[int, Field(strict=True, ge=-1000, le=1000), Unset(-999)] = -999
    conntrack: Annotated[Conntrack, Unset(Conntrack())] = Conntrack()
    config_sync_period: Annotated[Period, _zero_means(900.0)] = 900.0
    port_range: Text = ""
    windows_run_as_service: Switch = False

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """The pod networks of the cluster, at most one of each family."""
        return tuple(self.cluster_cidr.split(",")) if self.cluster_cidr else ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        ipv6 = Family.of(self.bind_address) is Family.IPV6
        anywhere, loopback = ("[::]", "[::1]") if ipv6 else ("0.0.0.0", "127.0.0.1")
        if not self.healthz_bind_address:
            object.__setattr__(self, "healthz_bind_address", f"{anywhere}:{_HEALTHZ_PORT}")
        if not self.metrics_bind_address:
            object.__setattr__(self, "metrics_bind_address", f"{loopback}:{_METRICS_PORT}")
        raise_faults(list(_faults(self)))
        return self


def _faults(config: KubeProxyConfiguration) -> Iterator[Fault]:
    if PRIMARY in config.node_port_addresses and len(config.node_port_addresses) > 1:
        yield Fault(("nodePortAddresses",), f'must hold nothing else beside "{PRIMARY}"')
    required = {
        "BridgeInterface": ("bridgeInterface", config.detect_local.bridge_interface),
        "InterfaceNamePrefix": ("interfaceNamePrefix", config.detect_local.interface_name_prefix),
    }
    field, value = required.get(config.detect_local_mode, ("", "unused"))
    if not value:
        message = f"is required where detectLocalMode is {config.detect_local_mode}"
        yield Fault(("detectLocal", field), message)


_IDLE_SECTIONS = ("ipvs", "nftables", "winkernel")
_IDLE_FIELDS = (
    "feature_gates",
    "enable_profiling",
    "show_hidden_metrics_for_version",
    "port_range",
    "windows_run_as_service",
)


def idle_fields(config: KubeProxyConfiguration) -> Iterator[str]:
    """The fields, as the document spells them, that are set and that nothing here looks at.

    A field that holds what it would hold anyway doesn't count: kubeadm writes files that name every field.
    """
    yield from (api_spelling(field) for field in _IDLE_FIELDS if _is_set(config, field))
    for name in _IDLE_SECTIONS:
        section: Section = getattr(config, name)
        fields = type(section).model_fields
        yield from (f"{name}.{api_spelling(field)}" for field in fields if _is_set(section, field))


def _is_set(section: Section, field: str) -> bool:
    return bool(getattr(section, field) != type(section).model_fields[field].default)
