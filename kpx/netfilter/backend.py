"""Which backend does this host use? Two sets of rules side by side would both act on every packet."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import nft
from kpx.netfilter.names import KUBELET_HINTS
from kpx.netfilter.reading import BUILT_IN, read_tables
from kpx.netfilter.save import SavedTable, parse_save
from kpx.netfilter.tools import Backend, Tools, binary, plain_backend


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one installed backend: kubelet's hint found there, and how many rules it holds."""

    hinted: bool
    rules: int


def decide(installed: Mapping[Backend, Evidence], default: Backend | None) -> Backend:
    """The backend to use: kubelet's hint first (nft if both have one), then the one with more rules, then the
    one that plain `iptables` speaks.

    Raises KpxError if none is installed.
    """
    if not installed:
        raise KpxError("no iptables found: install the package iptables (Debian, Ubuntu) or set PATH")
    hinted = [backend for backend in Backend if backend in installed and installed[backend].hinted]
    if hinted:
        return hinted[0]
    most = max(evidence.rules for evidence in installed.values())
    holding = [backend for backend in Backend if backend in installed and installed[backend].rules == most]
    return default if default in holding else holding[0]


def available() -> tuple[Backend, ...]:
    """The backends whose tools are installed, for IPv4 at least."""
    return tuple(backend for backend in Backend if binary(backend, Family.IPV4, "-restore"))


def detect() -> Backend:
    """The backend that this network namespace uses. Needs root; makes no table. Raises KpxError."""
    backends = available()
    if len(backends) < 2:
        return decide({backend: Evidence(False, 0) for backend in backends}, None)
    found = {backend: Evidence(_hinted(backend), 0) for backend in backends}
    if not any(evidence.hinted for evidence in found.values()):  # counting reads every rule, so only then
        found = {backend: Evidence(False, _rules(backend)) for backend in backends}
    return decide(found, plain_backend())


def _hinted(backend: Backend) -> bool:
    return any(hint in _mangle(tools) for tools in _tools(backend) for hint in KUBELET_HINTS)


def _mangle(tools: Tools) -> Collection[str]:
    """The chains of the mangle table: on nft without a save, which reads all tables, and again while others commit."""
    if tools.backend is Backend.NFT:
        return nft.chain_names(tools.family, "mangle")
    return parse_save(tools.save("mangle")).get("mangle", SavedTable({})).chains


def _rules(backend: Backend) -> int:
    tables = (read_tables(tools, tuple(BUILT_IN)) for tools in _tools(backend))
    return sum(len(chain.rules) for saved in tables for table in saved.values() for chain in table.chains.values())


def _tools(backend: Backend) -> list[Tools]:
    """Tools for both families, as far as they are installed."""
    return [Tools(backend, family) for family in Family if binary(backend, family, "-save")]
