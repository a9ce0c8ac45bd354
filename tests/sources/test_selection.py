"""Which Services have rules and which slices count, as kube-proxy 1.36 selects them, whichever way objects come in."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import kpx
from kpx.agent.desired import Desired
from kpx.agent.store import Store
from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target
from kpx.family import Family
from kpx.sources.cluster import ClusterSource
from kpx.sources.directory import DirectorySource
from kpx.sources.events import Event, Source, Synced
from kpx.sources.manifests import load
from tests.apiserver import ApiServer, Promises, node_objects

from .told import STEADY, connected, running, until

NODE = "node-0"
HEADLESS = "service.kubernetes.io/headless"
PROXIED = "service.kubernetes.io/service-proxy-name"
ADDRESS = "10.244.1.7"


def labels(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "")


def cluster(of_service: Iterable[str], of_slice: Iterable[str], **spec: Any) -> list[dict[str, Any]]:
    """A Service `shop/web` and its slice of one endpoint, with these labels, and a node."""
    spec = {"clusterIP": "10.96.0.9", "ports": [{"port": 80, "targetPort": 8080}]} | spec
    owner = {"kubernetes.io/service-name": "web"}
    service = {"name": "web", "namespace": "shop", "labels": labels(*of_service)}
    piece = {"name": "web-a", "namespace": "shop", "labels": {**labels(*of_slice), **owner}}
    endpoints = [{"addresses": [ADDRESS], "conditions": {"ready": True}}]
    return [
        {"kind": "Service", "apiVersion": "v1", "metadata": service, "spec": spec},
        {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": piece,
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"port": 8080}],
        },
        *node_objects(1),
    ]


Rules = str
NONE, REJECTED, SERVED = "no rules", "no endpoints", "endpoints"

CASES: Mapping[str, tuple[list[dict[str, Any]], Rules]] = {
    "plain": (cluster((), ()), SERVED),
    "other labels": (cluster(("app",), ("app",)), SERVED),
    "another proxy's Service": (cluster((PROXIED,), (PROXIED,)), NONE),
    "another proxy's Service, not its slice": (cluster((PROXIED,), ()), NONE),
    "another proxy's slice": (cluster((), (PROXIED,)), SERVED),
    "headless by label, with an address": (cluster((HEADLESS,), ()), SERVED),
    "headless by label, its slice, too": (cluster((HEADLESS,), (HEADLESS,)), REJECTED),
    "headless slice": (cluster((), (HEADLESS,)), REJECTED),
    "headless by address": (cluster((), (), clusterIP="None"), NONE),
    "headless by address, with its slice's label": (cluster((), (HEADLESS,), clusterIP="None"), NONE),
    "both labels": (cluster((HEADLESS, PROXIED), (HEADLESS, PROXIED)), NONE),
    "a name in DNS": (cluster((), (), type="ExternalName", clusterIP="", externalName="a.example"), NONE),
}


def rules_of(ruleset: kpx.Ruleset) -> Rules:
    text = [str(rule) for table in ruleset.tables.values() for chain in table.chains.values() for rule in chain]
    mine = [rule for rule in text if "10.96.0.9" in rule or ADDRESS in rule]
    if any(f"{ADDRESS}:8080" in rule for rule in mine):
        return SERVED
    return REJECTED if any("REJECT" in rule for rule in mine) else NONE


def compiled(objects: Iterable[Object]) -> Rules:
    return rules_of(kpx.compile(objects, node_name=NODE))


async def followed(source: Source) -> Rules:
    """What an agent would write that follows this source."""

    def sink(event: Event) -> None:
        store.take(event)
        if isinstance(event, Synced):
            synced.append(event.kind)

    store, synced = Store(NODE), list[str]()
    async with running(source, sink):
        await until(lambda: len(synced) == 3)
    desired = Desired(store, KubeProxyConfiguration(), Target(NODE, Family.IPV4, Layout.TREE))
    desired.load_all()
    return rules_of(desired.ruleset())


def library(objects: list[dict[str, Any]], folder: Path) -> Rules:
    return compiled(parse_object(one["kind"], one) for one in objects)


def manifest(objects: list[dict[str, Any]], folder: Path) -> Rules:
    (folder / "all.json").write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": objects}))
    loaded = load([str(folder / "all.json")])
    assert loaded.problems == ()
    return compiled(loaded.objects)


def directory(objects: list[dict[str, Any]], folder: Path) -> Rules:
    manifest(objects, folder)
    return asyncio.run(followed(DirectorySource(str(folder))))


def server_of(objects: list[dict[str, Any]], folder: Path, promises: Promises) -> Rules:
    async def run() -> Rules:
        async with connected(server.kubeconfig(folder / "kubeconfig")) as made:
            return await followed(ClusterSource(made, NODE, lambda kind, reason: None, STEADY))

    with ApiServer(promises=promises) as server:
        server.put_all(objects)
        return asyncio.run(run())


def listed(objects: list[dict[str, Any]], folder: Path) -> Rules:
    return server_of(objects, folder, Promises(watch_list=False))


def streamed(objects: list[dict[str, Any]], folder: Path) -> Rules:
    return server_of(objects, folder, Promises())


@pytest.mark.parametrize("way", [library, manifest, directory, listed, streamed])
@pytest.mark.parametrize("case", CASES)
def test_selection(case: str, way: Callable[[list[dict[str, Any]], Path], Rules], tmp_path: Path) -> None:
    objects, wanted = CASES[case]
    assert way(objects, tmp_path) == wanted


def test_what_is_asked_for(tmp_path: Path) -> None:
    """kube-proxy's selectors, in lists and in watches: so nothing that isn't ours is even sent."""
    for promises in (Promises(watch_list=False), Promises()):
        with ApiServer(promises=promises) as server:
            server.put_all(CASES["plain"][0])
            asyncio.run(_follow(server, tmp_path))
            asked = {
                request.path: (request.query.get("labelSelector"), request.query.get("fieldSelector"))
                for request in server.requests
            }
            kinds = {query for request in server.requests if (query := request.query.get("watch"))}
        assert kinds
        assert asked == {
            "/api/v1/services": (f"!{PROXIED}", "spec.clusterIP!=None"),
            "/apis/discovery.k8s.io/v1/endpointslices": (f"!{HEADLESS}", None),
            "/api/v1/nodes": (None, f"metadata.name={NODE}"),
        }


async def _follow(server: ApiServer, folder: Path) -> None:
    async with connected(server.kubeconfig(folder / "kubeconfig")) as made:
        assert await followed(ClusterSource(made, NODE, lambda kind, reason: None, STEADY)) == SERVED
