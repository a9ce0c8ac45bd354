"""`kpx run --external-ip-ranges`, looked at in the kernel."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kpx.api import KubeProxyConfiguration, Service, parse_object
from kpx.compiler.compile import Target, compile_objects
from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.external import parse_ranges, without_external_ips
from kpx.netfilter.tools import Backend
from tests.agent.harness import AgentProcess, save
from tests.kernel import BACKENDS, FAMILIES, needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service, write

ALLOWED, REFUSED = "203.0.113.7", "198.51.100.7"
ALLOWED_6, REFUSED_6 = "2001:db8::7", "2001:db9::7"
EVERY = (ALLOWED, REFUSED, ALLOWED_6, REFUSED_6)


def shop(*external: str) -> list[Manifest]:
    made = service("web", "10.96.0.10", clusterIPs=["10.96.0.10", "fd00:96::10"], externalIPs=list(external))
    six = endpoint_slice("web", ["fd00:244::1"])
    six["metadata"] |= {"name": "web-six"}
    return [node(), made, endpoint_slice("web", ["10.244.0.1"]), six]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        made.ip("link set lo up")
        yield made


def once(namespace: Namespace, folder: Path, backend: Backend, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "manifests").mkdir(exist_ok=True)
    write(folder / "manifests" / "all.json", shop(*EVERY))
    source = ("--once", "--manifests", folder / "manifests", "--node", "node-0")
    agent = AgentProcess(namespace, folder, None, *source, *options, backend=backend)
    with namespace.entered():
        return subprocess.run(agent.command, env=agent.environment, capture_output=True, text=True, check=False)


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "there"),
    [
        ((), set(EVERY)),
        (("--external-ip-ranges", "203.0.113.0/24,2001:db8::/64"), {ALLOWED, ALLOWED_6}),
        (("--external-ip-ranges", "203.0.113.0/24", "--external-ip-ranges", "2001:db9::/64"), {ALLOWED, REFUSED_6}),
        (("--external-ip-ranges", "0.0.0.0/0"), {ALLOWED, REFUSED}),
        (("--external-ip-ranges", ""), set()),
    ],
    ids=["not given", "two ranges", "given twice", "one family", "empty"],
)
def test_what_is_outside_has_no_rules_and_the_rest_has(
    options: tuple[str, ...], there: set[str], backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    done = once(namespace, tmp_path, backend, *options)
    assert done.returncode == 0, done.stderr
    rules = "".join(save(namespace, backend, family) for family in FAMILIES)
    assert {one for one in EVERY if f"-d {one}/" in rules} == there
    assert "-d 10.96.0.10/32" in rules
    assert "-d fd00:96::10/128" in rules
    told = [line for line in done.stderr.splitlines() if "external IPs refused" in line]
    assert len(told) == bool(set(EVERY) - there)
    for line in told:
        assert "shop/web" in line
        assert "spec.externalIPs" in line
        assert all(one in line for one in set(EVERY) - there)


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("text", ["203.0.113.7", "203.0.113.0/33", "all", "10.0.0.0/8,2001:db8::/129"])
def test_what_is_no_range_ends_it_before_it_writes_anything(text: str, namespace: Namespace, tmp_path: Path) -> None:
    done = once(namespace, tmp_path, Backend.NFT, "--external-ip-ranges", text)
    assert done.returncode == 2
    assert "--external-ip-ranges" in done.stderr
    assert text.rpartition(",")[2] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "KUBE-" not in save(namespace, Backend.NFT, Family.IPV4)


@pytest.mark.kernel
@needs_kernel
def test_it_is_told_once_for_each_service_until_it_changes(namespace: Namespace, tmp_path: Path) -> None:
    event = "external IPs refused: outside --external-ip-ranges"
    folder = tmp_path / "manifests"
    folder.mkdir()

    def put(number: int, *external: str) -> None:
        objects = shop(*external)
        objects[1]["metadata"] |= {"labels": {"version": str(number)}}
        objects[2]["endpoints"][0]["addresses"] = [f"10.244.0.{number}"]
        write(folder / "all.json", objects)

    def wait(agent: AgentProcess, what: str, gone: str = "nothing that is there") -> None:
        for _ in agent.patiently(20, f"{what} in the rules, and {gone} not"):
            rules = save(namespace, Backend.NFT, Family.IPV4)
            if what in rules and gone not in rules:
                return

    put(1, ALLOWED, REFUSED)
    arguments = ("--manifests", folder, "--node", "node-0", "--external-ip-ranges", "203.0.113.0/24")
    with AgentProcess(namespace, tmp_path, None, *arguments) as agent:
        wait(agent, "10.244.0.1:8080")
        put(2, ALLOWED, REFUSED)
        wait(agent, "10.244.0.2:8080")
        assert len(agent.log(event)) == 1
        put(3, "203.0.113.9", REFUSED)
        wait(agent, "203.0.113.9", gone=ALLOWED)
        assert len(agent.log(event)) == 1
        put(4, ALLOWED, "198.51.100.8")
        wait(agent, ALLOWED)
        told = agent.wait_for_log(event, 2)
        assert told[-1]["addresses"] == ["198.51.100.8"]
        assert REFUSED not in save(namespace, Backend.NFT, Family.IPV4)


def test_a_service_that_asks_for_nothing_else_is_as_one_without() -> None:
    objects = shop(REFUSED)
    whole = parse_object("Service", objects[1])
    assert isinstance(whole, Service)
    assert parse_ranges(["203.0.113.0/24"]).refused(whole) == (REFUSED,)
    rest = [parse_object(one["kind"], one) for one in (objects[0], objects[2])]
    without = parse_object("Service", shop()[1])
    rules = [
        compile_objects([one, *rest], KubeProxyConfiguration(), Target("node-0"))
        for one in (without_external_ips(whole, (REFUSED,)), without)
    ]
    assert rules[0] == rules[1]


def test_ranges() -> None:
    assert parse_ranges([""]).cidrs == ()
    assert parse_ranges([" 203.0.113.9/24 ,2001:DB8::/32", "203.0.113.0/24"]).cidrs == (
        "203.0.113.0/24",
        "2001:db8::/32",
    )
    with pytest.raises(KpxError, match="'x' is no CIDR"):
        parse_ranges(["10.0.0.0/8,x"])
