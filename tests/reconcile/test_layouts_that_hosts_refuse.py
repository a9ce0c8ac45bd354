"""A host that can't have a layout: said clearly and before anything is written, by `kpx run` and `kpx apply`."""

import shutil
from pathlib import Path

import pytest

from kpx.compiler.hairpin import to_itself
from kpx.family import Family
from kpx.netfilter.tools import Backend, Tools
from kpx.netfilter.trial import refusal
from tests import lab
from tests.kernel import BACKENDS, FAMILIES, Namespace, needs_kernel
from tests.manifests import endpoint_slice, node, service, write

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.parametrize("backend", BACKENDS)]

NO_SUCH_COUNTER = "-m nfacct --nfacct-name kpx-nobody"
"""The tools take it; the kernel knows of no counter with this name, and refuses."""


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """What the tools need, but for `-m bpf`."""
    (installed,) = Path("/usr/lib").glob("*/xtables")
    partial = tmp_path / "xtables"
    shutil.copytree(installed, partial)
    (partial / "libxt_bpf.so").unlink()
    return partial


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder / "shop.json", [node(), service("web", "10.96.1.1"), endpoint_slice("web", ["10.244.0.10"])])
    return folder


@pytest.mark.parametrize("command", ["run", "apply"])
def test_it_is_refused_and_nothing_is_written(
    command: str, backend: Backend, shop: Path, libraries: Path, namespace: Namespace
) -> None:
    source = ("run", "--once", "--manifests") if command == "run" else ("apply", "--family", "dual", "-f")
    options = (*source, str(shop), "--node", "node-0", "--backend", backend)
    missing = {"XTABLES_LIBDIR": str(libraries)}
    done = namespace.kpx(*options, "--layout", "compact", check=False, env=missing)
    assert done.returncode == 2
    assert "this host can't have the layout compact" in done.stderr
    assert "Use --layout tree" in done.stderr
    for family in FAMILIES:
        held = namespace.save(backend, family)
        assert not [line for line in held.splitlines() if line.startswith(("-A ", ":K"))]
    assert namespace.kpx(*options, "--layout", "tree", env=missing).returncode == 0
    assert "KUBE-SEP-" in namespace.save(backend, Family.IPV4)


@pytest.mark.parametrize("command", ["run", "apply"])
def test_it_is_taken_where_it_can_be_had(command: str, backend: Backend, shop: Path, namespace: Namespace) -> None:
    source = ("run", "--once", "--manifests") if command == "run" else ("apply", "--family", "dual", "-f")
    namespace.kpx(*source, str(shop), "--node", "node-0", "--backend", backend, "--layout", "compact")
    for family in FAMILIES:
        held = namespace.save(backend, family)
        assert f"-A KUBE-POSTROUTING {to_itself(family)} -j KUBE-MARK-MASQ\n" in held
        assert "KPX-TRIAL" not in held
        assert "KUBE-SEP-" not in held


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_asks_the_kernel_and_leaves_nothing(family: Family, backend: Backend) -> None:
    with lab.Namespace() as place, place.entered():
        tools = Tools(backend, family)
        assert refusal(tools, to_itself(family)) == ""
        assert refusal(tools, NO_SUCH_COUNTER)
        assert refusal(tools, "-m nosuch")
        held = tools.save("filter")
    assert "KPX-TRIAL" not in held
    assert "-A " not in held
