"""The agent's HTTP ports, with kube-proxy 1.36's paths and bodies, and no others.

Sources: `cmd/kube-proxy/app/server.go`, and `pkg/proxy/healthcheck/`.
"""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from kpx import logs
from kpx.agent import files
from kpx.agent.health import Health
from kpx.agent.listener import Listener, Reply
from kpx.agent.metrics import CONTENT_TYPE, Metrics
from kpx.agent.store import ServiceKey
from kpx.api import KubeProxyConfiguration
from kpx.compiler.compile import Layout
from kpx.family import Family, host_port
from kpx.version import __version__

log = logs.get_logger()

Clock = Callable[[], float]
"""Seconds since the epoch."""

_CODES = {True: 200, False: 503}


class HealthServer(Listener):
    """`/healthz` and `/livez`, for load balancers and for kubelet."""

    def __init__(
        self,
        health: Health,
        metrics: Metrics,
        address: str,
        *,
        hard_fail: bool = False,
        clock: Clock = time.time,
    ) -> None:
        self._health, self._metrics, self._clock = health, metrics, clock
        super().__init__(address, self._probe, hard_fail=hard_fail)

    def _probe(self, path: str) -> Reply | None:
        match path:
            case "/healthz":
                status = self._health.healthz(self._clock())
                self._metrics.probed("healthz", status.ok)
            case "/livez":
                status = self._health.livez(self._clock())
                self._metrics.probed("livez", status.ok)
            case _:
                return None
        return _json(status.body, _CODES[status.ok])


class MetricsServer(Listener):
    """`/metrics`, and what the proxy runs with: `/proxyMode` and `/configz`.

    `/configz` shows the configuration as a document that `--config` takes, all defaults filled in, and beside it
    what kpx adds. `config` may be set anew at any time.
    """

    def __init__(
        self,
        metrics: Metrics,
        address: str,
        config: KubeProxyConfiguration,
        layout: Layout,
    ) -> None:
        self.config = config
        self._metrics, self._layout = metrics, layout
        super().__init__(address, self._page, hard_fail=config.bind_address_hard_fail)

    def _page(self, path: str) -> Reply | None:
        match path:
            case "/metrics":
                return Reply(self._metrics.exposition(), content_type=CONTENT_TYPE)
            case "/proxyMode":
                return Reply(self.config.mode.encode())
            case "/configz":
                kpx = {"version": __version__, "layout": self._layout.value}
                return _json({"kubeproxy.config.k8s.io": config_document(self.config), "kpx": kpx})
            case "/healthz":
                return Reply(b"ok")
        return None


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What the health check of a Service tells: how many ready endpoints this node has; and on which port."""

    port: int
    local_ready: int


class ServiceHealthServers:
    """The health checks of one family's Services with policy Local, for load balancers.

    `addresses` says where to listen: on these addresses of the node, or, if None, on all of the family. kube-proxy
    1.36 has an IPv4 and an IPv6 socket with counts of their own for a dual-stack Service, too.
    """

    def __init__(
        self,
        family: Family,
        health: Health,
        addresses: Callable[[], Collection[str] | None],
        *,
        clock: Clock = time.time,
    ) -> None:
        self.family = family
        self._health, self._addresses, self._clock = health, addresses, clock
        self._checks: dict[ServiceKey, ServiceHealth] = {}
        self._open: dict[tuple[ServiceKey, str], Listener] = {}
        self._left_out = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sync({})

    async def sync(self, checks: Mapping[ServiceKey, ServiceHealth]) -> None:
        """Serve exactly these checks. Those that stay are not interrupted; a freed port can be taken at once."""
        self._checks = dict(checks)
        wanted = {(key, address) for key, check in checks.items() for address in self._where(check.port)}
        gone = self._open.keys() - wanted
        await asyncio.gather(*(self._open[one].close() for one in gone))
        for one in gone:
            del self._open[one]
        new = sorted(wanted - self._open.keys())
        room = max(0, files.listeners() // 2 - len(self._open))  # the other family has as many
        before, self._left_out = self._left_out, len(new[room:])
        if self._left_out != before:
            tell = log.error if self._left_out else log.info
            tell("health check node ports that can't be served", family=self.family, count=self._left_out)
        for key, address in new[:room]:
            listener = Listener(address, partial(self._check, key), family=self.family, service=key)
            self._open[key, address] = listener
            await listener.open()

    def tell(self, checks: Mapping[ServiceKey, ServiceHealth]) -> None:
        """From now on, tell this of some of the Services that are served, at the same ports as before."""
        self._checks |= checks

    def _where(self, port: int) -> tuple[str, ...]:
        hosts = self._addresses()
        anywhere = "0.0.0.0" if self.family is Family.IPV4 else "::"
        return tuple(host_port(host, port) for host in ((anywhere,) if hosts is None else hosts))

    def _check(self, key: ServiceKey, _path: str) -> Reply | None:
        check = self._checks.get(key)
        if check is None:
            return None
        namespace, name = key
        well = self._health.livez(self._clock()).ok
        body = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": check.local_ready,
            "serviceProxyHealthy": well,
        }
        weight = {"X-Load-Balancing-Endpoint-Weight": str(check.local_ready)}
        return _json(body, _CODES[well and check.local_ready > 0], weight)


def config_document(config: KubeProxyConfiguration) -> Mapping[str, object]:
    """A configuration in the spelling of its file, with every field."""
    return {key: _as_written(key, value) for key, value in config.model_dump(mode="json", by_alias=True).items()}


def _as_written(key: str, value: object) -> object:
    if isinstance(value, dict):
        return {inner: _as_written(inner, one) for inner, one in value.items()}
    # Every number with a fraction is a duration there, but one.
    return _duration(value) if isinstance(value, float) and key != "qps" else value


def _duration(seconds: float) -> str:
    """A duration as Go prints it, to the nanosecond: `1h0m0s`, `1.5s`, `250ms`."""
    if 0 < seconds < 1:
        return f"{seconds * 1e3:.6f}".rstrip("0").rstrip(".") + "ms"
    if seconds < 0:
        return "-" + _duration(-seconds)
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    large = (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "")
    return large + f"{rest:.9f}".rstrip("0").rstrip(".") + "s"


def _json(value: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(json.dumps(value).encode(), status, "application/json", headers or {})
