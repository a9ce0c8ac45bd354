"""No rule is ever lost: not in a long run of small edits, not at a threshold of sizes, not unnoticed."""

import random
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.fresh import Lines, differences, loaded, our_lines, wait_until_fresh
from tests.agent.harness import PATIENCE, ROOT, AgentProcess, desired, of_both_families
from tests.agent.scene import LABEL, Scene, dual, scene
from tests.apiserver import ApiServer, ApiServerProcess, churn, node_objects
from tests.kernel import BACKENDS, FAMILIES, PROGRAM, needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service, write

pytestmark = [pytest.mark.kernel, needs_kernel]

FLEET = 1000
CHANGES = 400
MANY = 400
IPTABLES = {"minSyncPeriod": "100ms"}


def pod(number: int, family: Family = Family.IPV4) -> str:
    high, low = divmod(number, 250)
    return f"10.244.{high}.{low + 1}" if family is Family.IPV4 else f"fd00:10:244::{high + 1:x}:{low + 1:x}"


def many() -> Iterator[Manifest]:
    """Services with one endpoint each."""
    yield node()
    for number in range(MANY):
        yield service(f"service-{number}", f"10.96.{number // 250}.{number % 250 + 1}")
        yield endpoint_slice(f"service-{number}", [pod(number)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_once_with_another_pod_network_leaves_no_old_rule(tmp_path: Path, backend: Backend) -> None:
    """In every chain one rule is another: a long run of edits that don't make a chain."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    write(manifests / "all.json", many())
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        for network in ("10.244.0.0/16", "10.245.0.0/16"):
            config = {"clusterCIDR": network}
            agent = AgentProcess(
                namespace, tmp_path, None, "--once", "--manifests", manifests, backend=backend, config=config
            )
            with namespace.entered():
                done = subprocess.run(
                    agent.command, cwd=ROOT, env=agent.environment, capture_output=True, text=True, check=False
                )
            assert done.returncode == 0, done.stderr
            for ruleset in of_both_families(agent, many()).values():
                assert differences(ruleset, loaded(ruleset, backend), namespace, backend)[:5] == []


# Thresholds.


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[AgentProcess, ApiServer]]:
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put(node())
        yield AgentProcess(namespace, tmp_path, server, backend=request.param, config={"iptables": IPTABLES}), server


def test_a_service_grows_and_shrinks_across_the_sizes_of_its_trees(place: tuple[AgentProcess, ApiServer]) -> None:
    agent, server = place
    server.put_all([dual("web", 1), dual("other", 2, sessionAffinity="ClientIP")])
    with agent:
        for size in (15, 16, 17, 63, 64, 65, 300, 65, 64, 63, 17, 16, 15, 1, 0, 64):
            for name, family in (("web", Family.IPV4), ("web", Family.IPV6), ("other", Family.IPV4)):
                one = endpoint_slice(name, [pod(number, family) for number in range(size)])
                one["addressType"] = LABEL[family]
                one["metadata"]["name"] += f"-{family}"
                server.put(one)
            wait_until_fresh(agent, desired(agent, server))


def test_a_cluster_grows_and_shrinks_across_1000_endpoints(place: tuple[AgentProcess, ApiServer]) -> None:
    """Where comments go; those of rules that are there already may do so later, but they all do."""
    agent, server = place
    objects: list[Manifest] = []
    for number in range(200):
        objects.append(service(f"service-{number}", f"10.96.1.{number + 1}"))
        objects.append(endpoint_slice(f"service-{number}", [pod(5 * number + one) for one in range(5)]))
    server.put_all(objects)
    server.put(service("last", "10.96.0.1"))

    def last(*numbers: int) -> None:
        server.put(endpoint_slice("last", [pod(2000 + number) for number in numbers]))

    with agent:
        wait_until_fresh(agent, desired(agent, server))
        for numbers in ((1, 2, 3), (), (4, 5), (5,), ()):
            last(*numbers)
            server.put(endpoint_slice("service-0", [pod(number) for number in range(5)], f"node-{len(numbers)}"))
        for numbers in ((1, 2, 3), ()):  # in peace, and with changes of others on the way
            last(*numbers)
            for number in range(1, 30):
                server.delete("EndpointSlice", "shop", f"service-{number}-a")
                pods = [pod(5 * number + (one + 1) % 5) for one in range(5)]
                server.put(endpoint_slice(f"service-{number}", pods))
            wait_until_fresh(agent, desired(agent, server))


# At full speed.


def fleet() -> Iterator[Manifest]:
    """Dual-stack Services, each followed by its slices."""
    for number in range(FLEET):
        name, low = f"fleet-{number}", divmod(number, 250)
        addresses = [f"10.97.{low[0]}.{low[1] + 1}", f"fd00:97::{low[0] + 1:x}:{low[1] + 1:x}"]
        yield service(name, addresses[0], clusterIPs=addresses, ipFamilies=["IPv4", "IPv6"])
        for family in FAMILIES:
            one = endpoint_slice(name, [pod(number + other, family) for other in range(3)])
            one["metadata"]["name"] += f"-{family}"
            yield one


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fleet_that_comes_one_by_one_and_then_changes(tmp_path: Path, backend: Backend) -> None:
    rng = random.Random(11)
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        namespace.ip("link set lo up")
        server = stack.enter_context(ApiServerProcess(prefix=["nsenter", f"--net={namespace.path}"]))
        server.put(node_objects(1)[0])
        agent = AgentProcess(namespace, tmp_path, server, backend=backend, config={"iptables": IPTABLES})
        stack.enter_context(agent)
        agent.wait_for_log("caches complete")
        for one in fleet():
            server.put(one)
        changes = churn(11)
        for number in range(CHANGES):
            if number % 2:
                server.change(*next(changes))
            else:
                change_one_of_the_fleet(server, rng)
        for change in islice(changes, CHANGES // 2):
            server.change(*change)
        wait_until_fresh(agent, desired(agent, server), timeout=2 * PATIENCE)
        for family in FAMILIES:
            services = [chain for _, chain in our_lines_of(agent, family) if chain.startswith("KUBE-SVC-")]
            assert len(services) >= FLEET  # it isn't two empty kernels that are the same


def our_lines_of(agent: AgentProcess, family: Family) -> Lines:
    return our_lines(agent.namespace.run([f"{PROGRAM[family]}-{agent.backend}-save"]).stdout)


def change_one_of_the_fleet(server: ApiServerProcess, rng: random.Random) -> None:
    number, family = rng.randrange(FLEET), rng.choice(FAMILIES)
    one = endpoint_slice(
        f"fleet-{number}", [pod(number + rng.randrange(40), family) for _ in range(rng.randrange(1, 4))]
    )
    one["endpoints"] = list({tuple(each["addresses"]): each for each in one["endpoints"]}.values())
    one["metadata"]["name"] += f"-{family}"
    server.put(one)


# Damage that nobody announces.


DAMAGES = (
    (
        "ipt -t nat -D KUBE-SERVICES 1",
        "ipt -t nat -I KUBE-SERVICES -j ACCEPT",
        "ipt -t nat -F $chain",
        "ipt -t nat -N KUBE-SVC-AAAAAAAAAAAAAAAA",
        "ipt -t nat -D PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES",
        "ipt -F KUBE-FORWARD",
    ),
    (
        "ipt -t nat -I $chain -j RETURN",
        "ipt -t nat -A KUBE-MARK-MASQ -m comment --comment mine -j RETURN",
        "ipt -F INPUT",
        "ipt -F OUTPUT",
    ),
    ("ipt -t nat -F",),
)
"""What is done at a time, to a family."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_that_no_notification_announces_is_found_and_repaired(tmp_path: Path, backend: Backend) -> None:
    with ExitStack() as stack:
        one = scene(stack, tmp_path, backend)
        one.agent.command[one.agent.command.index("kpx")] = "tests.agent.deaf"
        stack.enter_context(one.agent)
        one.wait_until_right()
        for damages in DAMAGES:
            for family in FAMILIES:
                harm(one, family, damages)
            one.wait_until_right()
        for label in LABEL.values():
            name = f'kpx_last_verified_timestamp_seconds{{ip_family="{label}"}}'
            before = one.agent.metrics().get(name, 0.0)
            for _ in one.agent.patiently(PATIENCE, "verified since"):
                if one.agent.metrics().get(name, 0.0) > before:
                    break


def harm(one: Scene, family: Family, damages: Iterable[str]) -> None:
    """Do damages, and see that each is one. The agent stands still meanwhile, so that it can't be quicker."""
    lock = one.agent.environment["XTABLES_LOCKFILE"]
    tool = f'export XTABLES_LOCKFILE={lock}; ipt() {{ {PROGRAM[family]}-{one.agent.backend} -w "$@"; }}'
    one.agent.signal(signal.SIGSTOP)
    try:
        for damage in damages:
            before = our_lines(one.save(family))
            chain = next(name for (_, name), rules in before.items() if name.startswith("KUBE-SVC-") and rules)
            one.agent.namespace.run(["sh", "-ec", f"{tool}; chain={chain}; {damage}"])
            assert our_lines(one.save(family)) != before, damage
    finally:
        one.agent.signal(signal.SIGCONT)
