"""The image, built without a container engine from its Dockerfile, and the pod run from its root file system."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import pytest

from kpx.cli import COMMANDS
from kpx.netfilter.tools import Backend
from kpx.version import __version__
from tests.apiserver import ApiServer
from tests.chart.helm import ROOT
from tests.chart.pod import Image
from tests.chart.test_pod import check_work
from tests.kernel import BACKENDS, needs_kernel
from tests.lab import Namespace

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.timeout(1200)]

UNUSED: tuple[str, ...] = run_path(str(ROOT / "charts/image/prune.py"))["UNUSED"]
MOST = 160_000_000
"""Bytes of all files."""
DOCKERFILE = (ROOT / "charts/image/Dockerfile").read_text()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """What `make image` builds; takes about a minute."""
    folder = tmp_path_factory.mktemp("image") / "root"
    build = ["sh", str(ROOT / "charts/image/build.sh"), "rootfs", str(folder)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    yield Image(folder, json.loads(entrypoint))
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pod_does_its_work_from_the_image(
    image: Image, namespace: Namespace, server: ApiServer, tmp_path: Path, backend: Backend
) -> None:
    check_work(namespace, server, tmp_path, backend, image)


def test_the_image_holds_what_it_needs_and_no_compiler(image: Image) -> None:
    def inside(*command: str) -> str:
        return subprocess.run(["chroot", image.root, *command], capture_output=True, text=True, check=True).stdout

    assert inside(*image.entrypoint, "--version") == f"kpx, version {__version__}\n"
    for tool in ("iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-save", "ip6tables-legacy-save"):
        assert inside(tool, "--version")
    where = inside("/opt/kpx/bin/python", "-c", "import kpx, iptc; print(kpx.__file__)")
    assert where.startswith("/opt/kpx/lib/")  # installed, not a source tree
    for absent in ("usr/bin/gcc", "opt/kpx/bin/pip", "src"):
        assert not (image.root / absent).exists()


def test_the_image_is_without_what_is_never_imported(image: Image) -> None:
    (packages,) = image.root.glob("opt/kpx/lib/python3*/site-packages")
    assert (packages / "kubernetes/aio/config").is_dir()
    left = [name for name in UNUSED if (packages / name.removesuffix("/*")).exists()]
    assert left == ["kubernetes/aio/client/models/*"]
    assert [one.name for one in (packages / "kubernetes/aio/client/models").iterdir()] == ["__init__.py"]
    sizes = {(found := path.lstat()).st_ino: found.st_size for path in image.root.rglob("*")}
    assert sum(sizes.values()) <= MOST


@pytest.mark.parametrize("command", [*sorted(COMMANDS), "cluster source", "progress"])
def test_every_command_finds_what_it_imports(image: Image, command: str) -> None:
    modules = {"cluster source": "kpx.sources.cluster, kpx.sources.connection", "progress": "rich.live, rich.progress"}
    code = f"import {modules.get(command, f'kpx.cli.{command}')}; print('found')"
    done = subprocess.run(["chroot", image.root, "/opt/kpx/bin/python", "-c", code], capture_output=True, text=True)
    assert done.stdout == "found\n", done.stderr


def test_the_labels_tell_the_version() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE
    assert "org.opencontainers.image.version" in DOCKERFILE
