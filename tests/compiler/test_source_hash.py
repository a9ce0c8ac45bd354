"""Choice by a hash of the client's address: even, always the same, and little disturbed by changes."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from statistics import mean

import pytest

from kpx.analysis.bpf import matches, parse
from kpx.compiler.choice import Arm, hashed
from kpx.compiler.source_hash import SPACE, below, seed_of
from kpx.family import Family
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import Rules
from kpx.netfilter.tools import Backend
from tests.chance import as_shared
from tests.compiler.test_rounds import CHAIN, FIRST, arms
from tests.kernel import BACKENDS, Namespace, needs_kernel

Address = IPv4Address | IPv6Address
BYTECODE = re.compile(r'--bytecode "([^"]+)"')


def clients(family: Family, count: int) -> list[Address]:
    """Neighbours, as clients often are: every other address in turn."""
    first = ip_address("10.0.0.1" if family is Family.IPV4 else "fd00::1")
    return [first + 2 * number for number in range(count)]


def chosen(some: Sequence[Arm], family: Family) -> dict[str, Rules]:
    return dict(hashed(family)(CHAIN, FIRST, some, None))


def endpoint_of(chains: Mapping[str, Rules], client: Address) -> str:
    chain = CHAIN
    while chain in chains:
        chain = next(
            target_of(rule) or ""
            for rule in chains[chain]
            if "KUBE-MARK-MASQ" not in rule and (not (code := BYTECODE.search(rule)) or _says(code[1], client))
        )
    return chain


def _says(bytecode: str, client: Address) -> bool:
    says = matches(parse(bytecode), int(client), None, Family.of(str(client)))
    assert says is not None
    return says


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("count", [2, 7, 40])
def test_clients_spread_by_weight(family: Family, count: int) -> None:
    some = arms([100, 50] * (count // 2) + [100] * (count % 2))
    chains = chosen(some, family)
    found = Counter(endpoint_of(chains, client) for client in clients(family, 2000))
    weights = [arm.weight for arm in some]
    assert as_shared([found[arm.chain] for arm in some], weights, 1e-4)  # the same in every run


@pytest.mark.parametrize(("count", "most"), [(3, 1.4), (10, 1.8), (50, 2.2), (200, 3.5)])
def test_a_change_moves_few_of_the_others_clients(count: int, most: float) -> None:
    """One endpoint of n takes 1/n of all clients with it; of the others about as many again move, on average."""
    some = arms([100] * count)
    everybody = clients(Family.IPV4, 1000)
    before = {client: endpoint_of(chosen(some, Family.IPV4), client) for client in everybody}
    moved = []
    for gone in range(0, count, 1 + count // 6):
        chains = chosen(some[:gone] + some[gone + 1 :], Family.IPV4)
        moved.append(sum(endpoint_of(chains, client) != before[client] for client in everybody))
    assert mean(moved) * count / len(everybody) < most


SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
for source in sys.argv[2:]:
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(*((socket.IPPROTO_IPV6, 78) if ":" in source else (socket.IPPROTO_IP, 15)), 1)  # FREEBIND
        sender.bind((source, 0))
        sender.sendto(b"x", (sys.argv[1], 9))
"""


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_sees_it_the_same_way(backend: Backend, family: Family, namespace: Namespace) -> None:
    some, everybody = arms([100, 300, 50, 100, 7, 90, 100]), clients(family, 200)
    chains = chosen(some, family) | {arm.chain: () for arm in some}
    chains = {
        chain: tuple(rule.replace(" -j ", " -g ") for rule in rules if rule not in FIRST)
        for chain, rules in chains.items()
    }
    lines = [f":{chain} - [0:0]" for chain in chains]
    lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
    lines += [f"-A {arm.chain} -j RETURN" for arm in some]
    namespace.run(["ip", "link", "set", "lo", "up"])
    for name in ("disable_ipv6", "accept_dad"):
        namespace.run(["sysctl", "-q", f"net.ipv6.conf.lo.{name}=0"])
    target = "10.255.0.1" if family is Family.IPV4 else "fd01::1"
    network = "10.0.0.0/8" if family is Family.IPV4 else "fd00::/8"
    namespace.run(["ip", "route", "add", "local", network, "dev", "lo"])
    namespace.restore(
        backend, family, "\n".join(["*filter", *lines, f"-A OUTPUT -d {target} -j {CHAIN}", "COMMIT", ""])
    )
    namespace.run([sys.executable, "-c", SEND, target, *map(str, everybody)])
    counted = re.findall(r"^\[(\d+):\d+\] -A (KUBE-SEP-\S+) -j RETURN", namespace.save(backend, family, True), re.M)
    expected = Counter(endpoint_of(chosen(some, family), client) for client in everybody)
    assert {chain: int(packets) for packets, chain in counted} == {arm.chain: expected[arm.chain] for arm in some}


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
def test_a_threshold_is_a_share_of_all_sources(chance: float) -> None:
    program = parse(BYTECODE.findall(below(Family.IPV4, seed_of("web"), int(SPACE * chance) - (chance == 1.0)))[0])
    hits = sum(matches(program, int(client), None, Family.IPV4) is True for client in clients(Family.IPV4, 4000))
    assert abs(hits / 4000 - chance) < 0.03
