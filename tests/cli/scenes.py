"""Everything that there is to ask about: clusters with their rules, and questions to every command that needs no root.

Conformance cases, golden cases, broken clusters, and one where every text is as long as Kubernetes allows.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from kpx.api import Object, Service
from kpx.family import Family
from kpx.sources import manifests
from tests.cli.inprocess import run
from tests.explain.broken import BROKEN, CONFIG
from tests.kernel import case_path
from tests.manifests import Manifest, endpoint_slice, node, service, write

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "tests/demo/shop"
Question = tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Manifests and a configuration; `rules` are those that a kernel has, empty if they are as they should be."""

    name: str
    manifests: Path
    config: Path
    rules: str = ""

    @property
    def options(self) -> Question:
        return ("-f", str(self.manifests), "--config", str(self.config), "--node", "node-0", "--keep-going")

    @property
    def objects(self) -> tuple[Object, ...]:
        return manifests.load([str(self.manifests)]).objects


def scenes() -> list[Scene]:
    """All of them."""
    return [long(), crowded(), *recorded(), *broken()]


def questions(scene: Scene, folder: Path) -> Iterator[Question]:
    """At least one to each command, of both families where there are such Services."""
    for family in Family:
        dump, damaged, counted = (folder / f"{family}.{kind}" for kind in ("save", "damaged", "counted"))
        text = scene.rules if scene.rules and family is Family.IPV4 else _as_saved(scene, family)
        rules = [line for line in text.split("\n") if line.startswith("-A KUBE-")]
        dump.write_text(text)
        damaged.write_text("\n".join(line for line in text.split("\n") if line not in rules[1::5]))
        counted.write_text(re.sub(r"^-A", "[123456789:99999999999] -A", text, flags=re.MULTILINE))
        of_family = ("--family", family.value)
        yield ("render", *scene.options, *of_family)
        yield ("diff", *scene.options, *of_family, "--against", str(damaged))
        yield ("diff", *scene.options, *of_family, "--against", str(SHOP))
        yield ("explain", "KUBE-SERVICES", "--rules", str(damaged))
        yield ("graph", "--rules", str(dump), *of_family)
        yield ("top", "--endpoints", "--rules", str(counted))
        yield ("verify", "--rules", str(damaged), *of_family)
        if scene.name != CROWDED:  # a proof for 1,000 endpoints takes a while
            yield ("verify", "--equivalent", str(dump), str(damaged), *of_family)
        services = [one for one in scene.objects if isinstance(one, Service)]
        for one in services[:2]:
            name = f"{one.metadata.namespace}/{one.metadata.name}"
            yield ("explain", name, *scene.options, "--rules", str(dump), *of_family)
            for address in (ip for ip in one.spec.cluster_ips if ip not in ("", "None") and Family.of(ip) is family):
                yield ("explain", address, "--rules", str(dump), *of_family)
                yield from (_packets(one, address, dump))


def _packets(one: Service, address: str, dump: Path) -> Iterator[Question]:
    source, place = ("10.244.1.5", address) if "." in address else ("fd00:244:0:1::9", f"[{address}]")
    for port in one.spec.ports[:2]:
        flow = f"{port.protocol.lower()} {source} -> {place}:{port.port}"
        yield ("trace", flow, "--from", "pod", "--rules", str(dump))


def _as_saved(scene: Scene, family: Family) -> str:
    """What a kernel with the rules that the manifests compile to would print."""
    done = run("render", *scene.options, "--family", family.value)
    return re.sub(r"^-I (\S+) \d+ ", r"-A \1 ", done.stdout, flags=re.MULTILINE)


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="kpx-scenes-"))


def _written(name: str, objects: list[Manifest], config: Manifest) -> tuple[Path, Path]:
    stem = _folder() / re.sub(r"\W+", "-", name)
    told = stem.with_suffix(".config")
    told.write_text(json.dumps(CONFIG | config))
    return write(stem.with_suffix(".json"), objects), told


def recorded() -> Iterator[Scene]:
    for folder in sorted(one for one in case_path("").iterdir() if one.is_dir()):
        yield Scene(folder.name, folder / "cluster.yaml", folder / "config.yaml", (folder / "ipv4.save").read_text())
    for folder in sorted((ROOT / "tests/golden").glob("*/config.yaml")):
        yield Scene(f"golden-{folder.parent.name}", folder.parent / "cluster.yaml", folder)
    yield Scene("golden-shop", SHOP, ROOT / "tests/demo/config.yaml")


def broken() -> Iterator[Scene]:
    for one in BROKEN:
        scene = Scene(f"broken: {one.name}", *_written(one.name, list(one.objects), one.config))
        yield Scene(
            scene.name, scene.manifests, scene.config, one.rules(_as_saved(scene, Family.IPV4)) if one.rules else ""
        )


CROWDED = "crowded"
LONGEST = "w" * 62 + "9"
"""The longest name of a Service, and of a namespace."""


_VIP = "fd12:3456:789a:bcde:f123:4567:89ab:{:04x}"
_POD = "fd00:2444:1111:2222:3333:4444:5555:{:04x}"
"""Addresses that nothing shortens."""


def long() -> Scene:
    """Names of 63 characters, long addresses of both families."""
    ports = [
        {"name": "p" * 62 + str(n), "port": 65530 + n, "targetPort": 65510 + n, "nodePort": 32760 + n} for n in (1, 2)
    ]
    both = service(
        LONGEST, "10.96.255.255", type="LoadBalancer", ports=ports, selector={"app": LONGEST},
        clusterIPs=["10.96.255.255", _VIP.format(0x1000)], externalIPs=["203.0.113.200", _VIP.format(0x2000)],
        ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="PreferDualStack",
        externalTrafficPolicy="Local", sessionAffinity="ClientIP", healthCheckNodePort=32750,
        loadBalancerSourceRanges=["198.51.100.128/25", "2001:db8:1234:5678:9abc:def0:1234:5670/124"],
    )  # fmt: skip
    both["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.201"}, {"ip": _VIP.format(0x3000)}]}}
    named = {"labels": {"kubernetes.io/service-name": LONGEST}, "namespace": LONGEST}
    both["metadata"]["namespace"] = LONGEST
    pods = [f"10.244.200.{n}" for n in range(200, 205)], [_POD.format(n) for n in range(0x9000, 0x9005)]
    named_ports = [{"name": one["name"], "port": one["targetPort"]} for one in ports]
    of_both = [
        endpoint_slice(LONGEST, some, "n" * 63)
        | {"metadata": named | {"name": f"{LONGEST}-{number}"}, "ports": named_ports}
        for number, some in enumerate(pods)
    ]
    for one in of_both:
        one["endpoints"][0]["targetRef"] = {"kind": "Pod", "name": "p" * 253, "namespace": LONGEST}
        one["endpoints"][1]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    return Scene("long", *_written("long", [node(), both, *of_both], {}))


def crowded() -> Scene:
    """A Service with 1,000 endpoints."""
    many = service("many", _VIP.format(7), ipFamilies=["IPv6"])
    objects = [node(), many, endpoint_slice("many", [_POD.format(n) for n in range(1000)])]
    return Scene(CROWDED, *_written(CROWDED, objects, {}))
