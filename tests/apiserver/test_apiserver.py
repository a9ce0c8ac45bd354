"""The test API server itself: every promise and every fault, once, over real HTTP."""

import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPException, RemoteDisconnected
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from . import ALLOW_ALL, ApiServer, ApiServerProcess, Auth, Faults, Next, Promises, Rule, population
from .client import Client, Stream
from .faults import BODY, BOOKMARK, DELIVERY, REQUEST
from .resources import NODES as NODE_RESOURCE
from .resources import Object
from .store import Store

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"
kube: Any = kubernetes  # its own types aren't complete
PROMISES = Promises(bookmark_interval=30, fresh_wait=0.1, rules=ALLOW_ALL)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(promises=PROMISES) as running:
        yield running


@pytest.fixture
def client(server: ApiServer) -> Client:
    return Client(server)


def service(name: str, namespace: str = "shop", **more: Any) -> Object:
    metadata: Object = {"name": name, "namespace": namespace, "labels": more.pop("labels", {})}
    if "uid" in more:
        metadata["uid"] = more.pop("uid")
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": more}


def node(name: str) -> Object:
    return {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}}


def services(server: ApiServer, *names: str) -> None:
    server.put_all(service(name) for name in names)


# Reading.


def test_list_has_items_without_type_in_key_order_and_the_newest_version(server: ApiServer, client: Client) -> None:
    server.put(service("b", clusterIP="10.96.0.2"))
    server.put(service("a"))
    server.put(service("a", namespace="other"))
    server.put(node("node-0"))
    answer = client.get(SERVICES)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json["kind"] == "ServiceList"
    assert answer.json["metadata"] == {"resourceVersion": str(server.version)}
    items = answer.json["items"]
    assert [(i["metadata"]["namespace"], i["metadata"]["name"]) for i in items] == [
        ("other", "a"),
        ("shop", "a"),
        ("shop", "b"),
    ]
    assert "kind" not in items[0]
    assert {"uid", "creationTimestamp", "resourceVersion"} <= items[2]["metadata"].keys()
    assert items[2]["spec"]["clusterIP"] == "10.96.0.2"


def test_namespace_and_single_reads(server: ApiServer, client: Client) -> None:
    server.put(service("a"))
    server.put(service("a", namespace="other"))
    server.put(node("node-0"))
    assert client.get("/api/v1/namespaces/shop/services").names == ["a"]
    found = client.get("/api/v1/namespaces/other/services/a").json
    assert (found["kind"], found["apiVersion"], found["metadata"]["namespace"]) == ("Service", "v1", "other")
    assert client.get(f"{NODES}/node-0").json["kind"] == "Node"
    missing = client.get("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/gone")
    assert missing.status == 404
    assert missing.json["message"] == 'endpointslices.discovery.k8s.io "gone" not found'


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", ["plain", "tier"]),
        ("tier", ["tier"]),
        ("tier=front", ["tier"]),
        ("tier==back", []),
        ("tier!=front", ["headless", "other", "plain"]),
        ("tier in (front, back)", ["tier"]),
        ("tier notin (front)", ["headless", "other", "plain"]),
        ("rank>4", ["tier"]),
        ("rank<5", []),
        ("service.kubernetes.io/headless=", ["headless"]),
    ],
)
def test_label_selectors(server: ApiServer, client: Client, selector: str, names: list[str]) -> None:
    server.put(service("plain"))
    server.put(service("tier", labels={"tier": "front", "rank": "5"}))
    server.put(service("headless", labels={"service.kubernetes.io/headless": ""}))
    server.put(service("other", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    assert client.get(SERVICES, labelSelector=selector).names == names


def test_field_selectors(server: ApiServer, client: Client) -> None:
    server.put(service("headless", clusterIP="None"))
    server.put(service("plain", clusterIP="10.96.0.1", type="NodePort"))
    server.put(service("plain", namespace="other"))
    for selector, count in {
        "metadata.name=plain": 2,
        "metadata.name=plain,metadata.namespace!=shop": 1,
        "spec.clusterIP!=None": 2,
        "spec.type==NodePort": 1,
    }.items():
        assert len(client.get(SERVICES, fieldSelector=selector).names) == count, selector
    refused = client.get(SERVICES, fieldSelector="spec.foo=1")
    assert (refused.status, refused.json["reason"]) == (400, "BadRequest")
    assert client.get(SERVICES, labelSelector="a b c").status == 400


def test_pages_show_one_snapshot(server: ApiServer, client: Client) -> None:
    services(server, "a", "b", "c", "d", "e")
    first = client.get(SERVICES, limit=2)
    metadata = first.json["metadata"]
    assert (first.names, metadata["remainingItemCount"]) == (["a", "b"], 3)
    server.delete("Service", "shop", "d")
    services(server, "bb")
    second = client.get(SERVICES, limit=2, **{"continue": metadata["continue"]})
    assert second.names == ["c", "d"]
    assert second.json["metadata"]["resourceVersion"] == metadata["resourceVersion"]
    third = client.get(SERVICES, limit=2, **{"continue": second.json["metadata"]["continue"]})
    assert (third.names, third.json["metadata"].get("continue")) == (["e"], None)
    filtered = client.get(SERVICES, limit=1, labelSelector="!x").json["metadata"]
    assert "continue" in filtered
    assert "remainingItemCount" not in filtered
    assert client.get(SERVICES, limit=1, resourceVersion=0).names == ["a", "b", "bb", "c", "e"]


def test_an_expired_page_can_go_on_inconsistently(server: ApiServer, client: Client) -> None:
    services(server, "a", "b", "c")
    token = client.get(SERVICES, limit=1).json["metadata"]["continue"]
    services(server, "aa")
    server.compact()
    refused = client.get(SERVICES, limit=1, **{"continue": token})
    assert (refused.status, refused.json["reason"]) == (410, "Expired")
    rest = client.get(SERVICES, **{"continue": refused.json["metadata"]["continue"]})
    assert rest.names == ["aa", "b", "c"]
    assert client.get(SERVICES, **{"continue": "nonsense"}).status == 400


def test_resource_versions_of_lists(server: ApiServer, client: Client) -> None:
    services(server, "a")
    old = server.version
    services(server, "b")
    server.put(service("a", type="NodePort"))
    exact = client.get(SERVICES, resourceVersion=old, resourceVersionMatch="Exact")
    assert (exact.names, exact.json["items"][0]["spec"]) == (["a"], {})
    assert exact.json["metadata"]["resourceVersion"] == str(old)
    assert client.get(SERVICES, resourceVersion=old, limit=5).names == ["a"]
    assert client.get(SERVICES, resourceVersion=old).names == ["a", "b"]
    assert client.get(SERVICES, resourceVersion=0).names == ["a", "b"]
    wrong: list[tuple[dict[str, object], int]] = [
        ({"resourceVersion": 0, "resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersion": old, "resourceVersionMatch": "Newest"}, 422),
        ({"sendInitialEvents": "true"}, 422),
        ({"resourceVersion": "x"}, 400),
        ({"limit": "-1"}, 400),
        ({"resourceVersion": old, "continue": "x"}, 400),
    ]
    for query, status in wrong:
        assert client.get(SERVICES, **query).status == status, query
    server.compact()
    gone = client.get(SERVICES, resourceVersion=old, resourceVersionMatch="Exact")
    assert (gone.status, gone.json["reason"]) == (410, "Expired")


def test_a_version_to_come_is_waited_for(server: ApiServer, client: Client) -> None:
    early = client.get(SERVICES, resourceVersion=server.version + 1)
    assert (early.status, early.headers["Retry-After"]) == (504, "1")
    assert early.json["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    server.promises = replace(PROMISES, fresh_wait=3)
    threading.Timer(0.05, services, (server, "late")).start()
    assert client.get(SERVICES, resourceVersion=server.version + 1).names == ["late"]


# Watching.


def test_watch_shows_every_change_in_order(server: ApiServer, client: Client) -> None:
    services(server, "before")
    stream = client.watch(SERVICES, resourceVersion=server.version)
    services(server, "a", "b")
    server.put(service("a", type="NodePort"))
    server.put(service("a", type="NodePort"))  # no difference, no event
    server.put(node("node-0"))
    server.delete("Service", "shop", "a")
    events = [stream.event() for _ in range(4)]
    assert [kind for kind, _ in events] == ["ADDED", "ADDED", "MODIFIED", "DELETED"]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
    assert versions == sorted(set(versions))
    assert versions[-1] == server.version
    deleted = events[-1][1]
    assert (deleted["kind"], deleted["apiVersion"], deleted["spec"]) == ("Service", "v1", {"type": "NodePort"})
    server.wait_for(lambda s: [watch.events for watch in s.open_watches] == [4])


def test_watch_resumes_where_it_was(server: ApiServer, client: Client) -> None:
    services(server, "a")
    first = client.watch(SERVICES, resourceVersion=server.version)
    services(server, "b")
    seen = first.event()[1]["metadata"]["resourceVersion"]
    first.connection.close()
    services(server, "c")
    server.delete("Service", "shop", "b")
    assert client.watch(SERVICES, resourceVersion=seen).kinds(2) == [("ADDED", "c"), ("DELETED", "b")]


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
def test_watch_without_a_version_begins_with_the_state(
    server: ApiServer, client: Client, query: dict[str, str]
) -> None:
    services(server, "a", "b")
    stream = client.watch(SERVICES, **query, allowWatchBookmarks="true")
    services(server, "c")
    assert stream.kinds(3) == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]


def test_selectors_turn_changes_into_additions_and_deletions(server: ApiServer, client: Client) -> None:
    stream = client.watch(SERVICES, resourceVersion=server.version, labelSelector="!other")
    server.put(service("a"))
    server.put(service("a", labels={"other": "x"}, type="NodePort"))
    server.put(service("a", labels={"other": "y"}))
    server.put(service("a"))
    server.put(service("b", labels={"other": "y"}))
    server.delete("Service", "shop", "b")
    server.put(service("a", type="NodePort"))
    events = [stream.event() for _ in range(4)]
    assert [kind for kind, _ in events] == ["ADDED", "DELETED", "ADDED", "MODIFIED"]
    gone = events[1][1]
    assert (gone["metadata"]["labels"], gone["spec"]) == ({}, {})
    assert int(gone["metadata"]["resourceVersion"]) > int(events[0][1]["metadata"]["resourceVersion"])
    narrow = client.watch(NODES, fieldSelector="metadata.name=node-1")
    server.put(node("node-0"))
    server.put(node("node-1"))
    assert narrow.kinds(1) == [("ADDED", "node-1")]


def test_another_uid_is_another_object(server: ApiServer, client: Client) -> None:
    server.put(service("a", uid="1"))
    stream = client.watch(SERVICES, resourceVersion=server.version)
    server.put(service("a", uid="2"))
    (first, old), (second, new) = stream.event(), stream.event()
    assert (first, old["metadata"]["uid"], second, new["metadata"]["uid"]) == ("DELETED", "1", "ADDED", "2")


def test_bookmarks_tell_the_version_of_everything(server: ApiServer, client: Client) -> None:
    server.promises = replace(PROMISES, bookmark_interval=0.05)
    start = server.version
    stream = client.watch(SLICES, resourceVersion=start, allowWatchBookmarks="true")
    silent = client.watch(SLICES, resourceVersion=start)
    services(server, "unrelated")
    while True:
        kind, obj = stream.event()
        assert kind == "BOOKMARK"
        assert (obj["kind"], obj["endpoints"], obj["metadata"].keys()) == (
            "EndpointSlice",
            None,
            {"resourceVersion"},
        )
        if obj["metadata"]["resourceVersion"] == str(server.version):
            break
    with pytest.raises(TimeoutError):
        silent.line(0.15)


def test_timeout_ends_a_watch_cleanly_and_keeps_the_connection(server: ApiServer, client: Client) -> None:
    begun = time.monotonic()
    stream = client.watch(SERVICES, timeoutSeconds=1, allowWatchBookmarks="true")
    assert stream.event()[0] == "BOOKMARK"
    assert stream.line() == b""
    assert time.monotonic() - begun > 0.9
    services(server, "a")
    _, response = client.open(SERVICES, connection=stream.connection)
    assert len(json.loads(response.read())["items"]) == 1
    assert {request.connection for request in server.requests} == {1}


def watch_list(client: Client, **query: object) -> Stream:
    asked = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    return client.watch(SERVICES, **{**asked, "allowWatchBookmarks": "true", **query})


def test_watch_list_ends_the_state_with_a_bookmark(server: ApiServer, client: Client) -> None:
    services(server, "a", "b")
    stream = watch_list(client, resourceVersion=server.version)
    assert stream.kinds(2) == [("ADDED", "a"), ("ADDED", "b")]
    kind, obj = stream.event()
    assert (kind, obj["metadata"]) == (
        "BOOKMARK",
        {
            "annotations": {"k8s.io/initial-events-end": "true"},
            "resourceVersion": str(server.version),
        },
    )
    services(server, "c")
    assert stream.kinds(1) == [("ADDED", "c")]
    without_bookmarks = watch_list(client, allowWatchBookmarks="false")
    assert without_bookmarks.kinds(3)[-1] == ("ADDED", "c")
    with pytest.raises(TimeoutError):
        without_bookmarks.line(0.1)
    no_state = watch_list(client, sendInitialEvents="false")
    services(server, "d")
    assert no_state.kinds(1) == [("ADDED", "d")]
    too_new = watch_list(client, resourceVersion=server.version + 1)
    assert too_new.event()[1]["code"] == 504


def test_a_server_without_watch_list_refuses_it(server: ApiServer, client: Client) -> None:
    asked = {"watch": "1", "sendInitialEvents": "true"}
    assert client.get(SERVICES, **asked).status == 422
    assert client.get(SERVICES, watch=1, resourceVersionMatch="NotOlderThan").status == 422
    server.promises = replace(PROMISES, watch_list=False)
    refused = client.get(SERVICES, **asked, resourceVersionMatch="NotOlderThan")
    assert (refused.status, refused.json["reason"]) == (422, "Invalid")
    assert "unless the WatchList feature gate is enabled" in refused.json["message"]
    server.promises = replace(PROMISES, watch_list=False, watch_list_refusal=400)
    assert client.get(SERVICES, **asked, resourceVersionMatch="NotOlderThan").status == 400


def test_a_forgotten_version_is_gone(server: ApiServer, client: Client) -> None:
    server.promises = replace(PROMISES, history=2)
    services(server, "a")
    old = server.version
    services(server, "b", "c")
    assert client.watch(SERVICES, resourceVersion=old).kinds(2) == [("ADDED", "b"), ("ADDED", "c")]
    services(server, "d")
    stream = client.watch(SERVICES, resourceVersion=old)
    kind, status = stream.event()
    assert (kind, status["kind"], status["code"], status["reason"]) == ("ERROR", "Status", 410, "Expired")
    assert stream.line() == b""
    server.promises = replace(PROMISES, history=2, gone_as_status=True)
    assert client.get(SERVICES, watch=1, resourceVersion=old).status == 410


def test_a_watch_that_is_too_slow_is_gone(server: ApiServer, client: Client) -> None:
    server.promises = replace(PROMISES, history=1)
    server.faults = Faults(freeze=Next(1), freeze_seconds=1.0)
    stream = client.watch(SERVICES, resourceVersion=server.version)
    server.wait_for(lambda s: s.open_watches)
    services(server, "a")
    server.wait_for(lambda s: s.stats.faults)
    services(server, "b", "c")
    assert stream.kinds(1) == [("ADDED", "a")]
    assert stream.event()[1]["code"] == 410


def test_a_watch_from_the_future_shows_what_comes_after_it(server: ApiServer, client: Client) -> None:
    stream = client.watch(SERVICES, resourceVersion=server.version + 1)
    services(server, "a", "b")
    assert stream.kinds(1) == [("ADDED", "b")]


def test_a_bookmark_behind_a_part_of_the_log_claims_that_part_only() -> None:
    store = Store(history=10)
    first, second = store.put(node("a")), store.put(node("b"))
    store.jump(5)
    part = store.since(NODE_RESOURCE, 0, 1)
    rest = store.since(NODE_RESOURCE, part.cursor, 1)
    assert (part.version, rest.version) == (first, second + 5)


def test_a_leap_of_the_version_costs_nothing(server: ApiServer, client: Client) -> None:
    stream = client.watch(SERVICES, resourceVersion=server.version)
    server.jump(10**9)
    services(server, "a")
    assert int(stream.event()[1]["metadata"]["resourceVersion"]) == server.version > 10**9


# HTTP, authentication, authorisation.


def test_large_answers_are_gzipped_on_wish(server: ApiServer, client: Client) -> None:
    server.put(service("big", note="x" * 200_000))
    plain = client.send("GET", SERVICES)
    packed = client.send("GET", SERVICES, Accept_Encoding="gzip, deflate")
    assert (plain.headers["Content-Encoding"], packed.headers["Content-Encoding"]) == (None, "gzip")
    assert gzip.decompress(packed.body) == plain.body
    server.delete("Service", "shop", "big")
    assert client.send("GET", SERVICES, Accept_Encoding="gzip").headers["Content-Encoding"] is None


@pytest.mark.parametrize("offered", [True, False])
def test_what_is_accepted_is_served(server: ApiServer, client: Client, offered: bool) -> None:
    server.promises = Promises(protobuf=offered)
    packed, plain = "application/vnd.kubernetes.protobuf", "application/json"
    for accept, wanted in {
        packed: packed if offered else "",
        f"{packed}, */*": packed if offered else plain,
        f"{packed},{plain};q=0.9": packed if offered else plain,
        f"{packed};q=0.5,{plain}": plain,
        "application/json;as=Table;v=v1;g=meta.k8s.io": "",
        "application/json;as=Table;v=v1;g=meta.k8s.io, application/json": plain,
        "text/html": "",
    }.items():
        answer = client.send("GET", SERVICES, Accept=accept)
        assert answer.status == (200 if wanted else 406)
        assert answer.headers["Content-Type"] == (wanted or plain)


def test_paths_and_methods_that_are_not_served(client: Client) -> None:
    for path in ("/api/v1/unheard", "/apis/apps/v1/deployments", f"{NODES}/a/status", "/", "/api/v1"):
        assert client.get(path).status == 404, path
    for method in ("POST", "DELETE", "PUT", "PATCH", "HEAD"):
        assert client.send(method, SERVICES).status == 405
    assert client.get("/version").json["gitVersion"] == "v1.36.0"
    assert client.get("/readyz").body == b"ok"


def test_tokens(server: ApiServer) -> None:
    wrong = Client(server, token="wrong").get(SERVICES)
    assert (wrong.status, wrong.json["reason"]) == (401, "Unauthorized")
    nobody = Client(server, token="").get(SERVICES)
    assert (nobody.status, nobody.json["reason"]) == (403, "Forbidden")
    old = Client(server)
    server.rotate_token()
    assert (old.get(SERVICES).status, Client(server).get(SERVICES).status) == (401, 200)


def test_rules_allow_no_more_than_they_say(server: ApiServer, client: Client) -> None:
    server.put(node("node-0"))
    server.promises = Promises()
    assert client.get(SERVICES).status == 200
    assert client.send("DELETE", SERVICES).status == 403
    refused = client.get("/api/v1/namespaces/shop/services/a")
    assert refused.status == 403
    assert refused.json["message"] == (
        'services "a" is forbidden: User "system:serviceaccount:kube-system:kpx" cannot get '
        'resource "services" in API group "" in the namespace "shop"'
    )
    assert client.get("/apis/apps/v1/deployments").status == 403
    server.promises = Promises(rules=(Rule(("list",), "", ("endpointslices",)),))
    assert client.get(SLICES).status == 403
    server.promises = Promises(rules=(Rule(("get", "list", "watch"), "", ("nodes",), ("node-0",)),))
    assert client.get(NODES).status == 403
    assert client.get(NODES, fieldSelector="metadata.name=node-1").status == 403
    assert client.get(NODES, fieldSelector="metadata.name=node-0").names == ["node-0"]
    assert client.get(f"{NODES}/node-0").status == 200


@pytest.mark.parametrize("auth", list(Auth))
def test_the_kubernetes_client_finds_its_way_in(tmp_path: Path, auth: Auth) -> None:
    with ApiServer(tls=True, promises=PROMISES) as server:
        services(server, "a")
        config = server.kubeconfig(tmp_path / "kubeconfig", auth)

        def read() -> int:
            api = kube.client.CoreV1Api(kube.config.new_client_from_config(str(config)))
            try:
                answer = api.list_service_for_all_namespaces(_preload_content=False)
                return len(json.loads(answer.data)["items"])
            except kube.client.ApiException as problem:
                return -int(problem.status)

        assert read() == (-403 if auth is Auth.NONE else 1)
        server.rotate_token()
        expected = {Auth.TOKEN: -401, Auth.NONE: -403}.get(auth, 1)
        assert read() == expected
        if auth is Auth.EXEC:
            assert (tmp_path / "kubeconfig.credential.runs").read_text() == "run\nrun\n"


def test_a_pod_finds_its_service_account(tmp_path: Path) -> None:
    with ApiServer(tls=True, promises=PROMISES) as server:
        env = server.service_account(tmp_path / "account")
        loader = kube.config.incluster_config.InClusterConfigLoader(
            token_filename=str(tmp_path / "account/token"),
            cert_filename=str(tmp_path / "account/ca.crt"),
            try_refresh_token=True,
            environ=env,
        )
        configuration = kube.client.Configuration()
        loader.load_and_set(configuration)
        api = kube.client.CoreV1Api(kube.client.ApiClient(configuration))
        assert api.list_node(_preload_content=False).status == 200


# Faults of single requests.


@pytest.mark.parametrize(
    ("faults", "status"),
    [
        (Faults(throttle=Next(2), retry_after=7), 429),
        (Faults(internal=Next(2)), 500),
        (Faults(unavailable=Next(2)), 503),
        (Faults(timeout=Next(2)), 504),
        (Faults(gone=Next(2)), 410),
        (Faults(internal=1.0), 500),
    ],
)
def test_refusals(server: ApiServer, client: Client, faults: Faults, status: int) -> None:
    server.faults = faults
    answers = [client.get(SERVICES), client.get(SLICES)]
    assert [answer.status for answer in answers] == [status, status]
    if status == 429:
        assert answers[0].body == b"Too many requests, please try again later.\n"
    else:
        assert answers[0].json["code"] == status
    assert answers[0].headers["Retry-After"] == ("7" if status == 429 else None)
    assert client.get("/version").status == 200
    if faults.internal == 1.0:
        server.faults = Faults()
    assert client.get(SERVICES).status == 200
    assert sum(server.stats.faults.values()) == 2


def test_gone_storm_on_watches(server: ApiServer, client: Client) -> None:
    server.faults = Faults(gone=Next(2), only=("watch",))
    assert client.get(SERVICES).status == 200
    assert client.watch(SERVICES).event()[1]["code"] == 410
    server.promises = replace(PROMISES, gone_as_status=True)
    assert client.get(SERVICES, watch=1).status == 410


def test_faults_can_be_narrowed(server: ApiServer, client: Client) -> None:
    server.faults = Faults(internal=1.0, only=("list", "services", "nodes"))
    assert client.get(SERVICES).status == 500
    assert client.get(NODES).status == 500
    assert client.get(SLICES).status == 200
    assert client.get(f"{NODES}/none").status == 404


def test_reset_before_the_answer(server: ApiServer, client: Client) -> None:
    server.faults = Faults(reset=Next(1))
    with pytest.raises((ConnectionResetError, RemoteDisconnected)):
        client.get(SERVICES)
    assert client.get(SERVICES).status == 200


def test_mute_never_answers(server: ApiServer, client: Client) -> None:
    server.faults = Faults(mute=Next(1))
    connection = client.connection()
    connection.timeout = 0.15
    with pytest.raises(TimeoutError):
        client.open(SERVICES, connection=connection)
    assert client.get(SERVICES).status == 200


def test_hold_brings_old_news_after_new(server: ApiServer, client: Client) -> None:
    server.faults = Faults(hold=Next(1), only=("list",))
    order: list[tuple[str, list[str]]] = []

    def older() -> None:
        order.append(("older", client.get(SERVICES).names))

    thread = threading.Thread(target=older)
    thread.start()
    server.wait_for(lambda s: s.stats.faults)
    time.sleep(0.5)  # the answer is made, and held
    services(server, "new")
    newer = client.get(SERVICES).names
    thread.join(60)
    assert (newer, order) == (["new"], [("older", [])])


def test_hold_lets_an_older_watch_speak_after_a_newer(server: ApiServer, client: Client) -> None:
    start = server.version
    server.faults = Faults(hold=Next(1), only=("watch",), hold_seconds=60)
    old: list[Stream] = []
    thread = threading.Thread(target=lambda: old.append(client.watch(SERVICES, resourceVersion=start)))
    thread.start()
    server.wait_for(lambda s: s.stats.faults)
    services(server, "a")
    assert not old
    newer = client.watch(SERVICES, resourceVersion=start)
    assert newer.kinds(1) == [("ADDED", "a")]
    thread.join(60)
    assert old[0].kinds(1) == [("ADDED", "a")]


def test_hold_ends_by_itself(server: ApiServer, client: Client) -> None:
    server.faults = Faults(hold=Next(1), hold_seconds=0.1)
    begun = time.monotonic()
    assert client.get(SERVICES).status == 200
    assert time.monotonic() - begun > 0.1


# Faults of bodies.


def test_cut_ends_in_the_middle_of_a_body(server: ApiServer, client: Client) -> None:
    services(server, "a")
    server.faults = Faults(cut=Next(1))
    with pytest.raises((HTTPException, ConnectionError)):
        client.get(SERVICES)
    assert client.get(SERVICES).names == ["a"]


def test_truncate_is_sound_http_with_half_the_json(server: ApiServer, client: Client) -> None:
    services(server, "a")
    server.faults = Faults(truncate=Next(1))
    answer = client.get(SERVICES)
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json  # noqa: B018
    assert client.get(SERVICES).names == ["a"]


def test_drip_slows_down_a_body_and_then_not(server: ApiServer, client: Client) -> None:
    services(server, *"abcdefghij")
    connection = client.connection()
    times = []
    server.faults = Faults(drip=Next(1), drip_rate=10_000)
    for _ in range(6):
        begun = time.monotonic()
        _, response = client.open(SERVICES, connection=connection)
        size = len(response.read())
        times.append(time.monotonic() - begun)
    assert times[0] > size / 10_000 * 0.8
    assert min(times) < times[0]


def test_oversize_puts_megabytes_into_one_object(server: ApiServer, client: Client) -> None:
    services(server, "a", "b")
    server.faults = Faults(oversize=Next(2), oversize_bytes=3_000_000)
    answer = client.get(SERVICES)
    assert answer.names == ["a", "b"]
    assert len(answer.body) > 3_000_000
    stream = client.watch(SERVICES, resourceVersion=server.version)
    services(server, "c")
    kind, obj = stream.event()
    assert (kind, obj["metadata"]["name"]) == ("ADDED", "c")
    assert len(obj["metadata"]["annotations"]["test.invalid/padding"]) == 3_000_000
    services(server, "d")
    assert "annotations" not in stream.event()[1]["metadata"]


# Faults of watches.


def struck(server: ApiServer, client: Client, **faults: Any) -> Stream:
    """A watch on whose first event the faults strike; a second event follows."""
    server.faults = Faults(**faults)
    stream = client.watch(SERVICES, resourceVersion=server.version)
    services(server, "a", "b")
    return stream


def is_broken(stream: Stream, within: float = 60.0) -> bool:
    """Whether the connection is gone behind what was read, by FIN or RST."""
    sock = stream.connection.sock
    assert sock is not None
    sock.settimeout(within)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("seed", [0, 1])
def test_drop_mid_line(server: ApiServer, client: Client, seed: int) -> None:
    stream = struck(server, client, drop_mid_line=Next(1), seed=seed)
    with pytest.raises((HTTPException, ConnectionError)):
        stream.line()
    assert is_broken(stream)


@pytest.mark.parametrize("seed", [0, 1])
def test_drop_between_events(server: ApiServer, client: Client, seed: int) -> None:
    stream = struck(server, client, drop=Next(1), seed=seed)
    assert stream.kinds(1) == [("ADDED", "a")]
    assert is_broken(stream)


def test_end_before_the_time(server: ApiServer, client: Client) -> None:
    stream = struck(server, client, end=Next(1))
    assert stream.kinds(1) == [("ADDED", "a")]
    assert stream.line() == b""
    assert not is_broken(stream, 0.2)


def acknowledges(stream: Stream, within: float = 60.0) -> bool:
    """Whether the other end's kernel acknowledges what is sent (tcp(7), TCP_INFO, tcpi_unacked)."""
    sock = stream.connection.sock
    assert sock is not None
    sock.send(b"x")
    end = time.monotonic() + within
    while struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64), 24)[0]:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("fault", ["stall", "blackhole"])
def test_silence_without_an_end(server: ApiServer, client: Client, fault: str) -> None:
    stream = struck(server, client, **{fault: Next(1)})
    with pytest.raises(TimeoutError):
        stream.line(0.15)
    assert [watch.stalled for watch in server.open_watches] == [True]
    assert acknowledges(stream, 0.3 if fault == "blackhole" else 60.0) == (fault == "stall")


def test_silence_for_the_watches_that_are_open(server: ApiServer, client: Client) -> None:
    stream = client.watch(SERVICES)
    server.wait_for(lambda s: s.open_watches)
    server.stall_watches(blackhole=True)
    services(server, "a")
    with pytest.raises(TimeoutError):
        stream.line(0.1)
    assert not acknowledges(stream, 0.3)
    assert client.watch(SERVICES).kinds(1) == [("ADDED", "a")]


def test_freeze_goes_on_afterwards(server: ApiServer, client: Client) -> None:
    begun = time.monotonic()
    stream = struck(server, client, freeze=Next(1), freeze_seconds=0.2)
    assert stream.kinds(2) == [("ADDED", "a"), ("ADDED", "b")]
    assert time.monotonic() - begun > 0.2


def test_garbage_and_lost_lines(server: ApiServer, client: Client) -> None:
    stream = struck(server, client, garbage=Next(1), truncate_line=Next(1))
    assert stream.line().startswith(b"\x00\xff}")
    assert stream.kinds(1) == [("ADDED", "a")]
    half = stream.line()
    assert half.startswith(b'{"type":"ADDED"')
    assert b"}\n" not in half
    services(server, "c")
    assert stream.kinds(1) == [("ADDED", "c")]


def test_duplicates(server: ApiServer, client: Client) -> None:
    stream = struck(server, client, duplicate=Next(1))
    assert stream.kinds(3) == [("ADDED", "a"), ("ADDED", "a"), ("ADDED", "b")]


def test_split_lines_are_still_lines(server: ApiServer, client: Client) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    server.faults = Faults(split=Next(1))
    request = f"GET {SERVICES}?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    connection.sendall(request.encode())
    server.wait_for(lambda s: s.open_watches)
    services(server, "a")
    server.wait_for(lambda s: s.open_watches[0].events == 1)
    connection.settimeout(60)
    raw = b""
    while len([size for size in raw.partition(b"\r\n\r\n")[2].split(b"\r\n")[::2] if size]) < 3:
        raw += connection.recv(65536)
    connection.close()


def test_errors_inside_of_a_stream(server: ApiServer, client: Client) -> None:
    for fault, code in {"gone_event": 410, "error_event": 500}.items():
        stream = struck(server, client, **{fault: Next(1)})
        kind, status = stream.event()
        assert (kind, status["code"]) == ("ERROR", code)
        assert stream.line() == b""
        server.delete("Service", "shop", "a")
        server.delete("Service", "shop", "b")


def test_a_dripping_watch_stays_slow(server: ApiServer, client: Client) -> None:
    begun = time.monotonic()
    stream = struck(server, client, drip=Next(1), drip_rate=2000)
    assert stream.kinds(2) == [("ADDED", "a"), ("ADDED", "b")]
    assert time.monotonic() - begun > 0.15


def test_bookmarks_can_be_withheld(server: ApiServer, client: Client) -> None:
    server.promises = replace(PROMISES, bookmark_interval=0.2)
    server.faults = Faults(no_bookmark=Next(1))
    kind, obj = watch_list(client).event()
    assert kind == "BOOKMARK"
    assert "annotations" not in obj["metadata"]


def test_the_initial_state_is_one_opportunity(server: ApiServer, client: Client) -> None:
    services(server, *"abcdefghij")
    server.faults = Faults(end=1.0, seed=3)
    stream = watch_list(client)
    seen = 0
    while stream.line():
        seen += 1
    assert 1 <= seen <= 10
    assert server.stats.faults == {"end": 1}


def test_dice_are_repeatable(server: ApiServer, client: Client) -> None:
    def statuses() -> list[int]:
        server.faults = Faults(internal=0.3, throttle=0.2, seed=5)
        return [client.get(SERVICES).status for _ in range(20)]

    first = statuses()
    assert first == statuses()
    assert set(first) == {200, 429, 500}


def test_every_fault_is_tested_above() -> None:
    text = Path(__file__).read_text()
    for name in {*REQUEST, *BODY, *DELIVERY, *BOOKMARK} - {"stall", "blackhole"}:
        assert f"{name}=Next(" in text or f'"{name}": ' in text, name


# The server as a whole.


def test_refused_connections_and_a_listener_that_comes_back(server: ApiServer, client: Client) -> None:
    stream = client.watch(SERVICES)
    server.refuse(1.0)
    with pytest.raises(ConnectionRefusedError):
        client.get(SERVICES)
    services(server, "a")
    assert stream.kinds(1) == [("ADDED", "a")]  # who is in stays in
    server.wait_for(lambda s: answers(client))


def answers(client: Client) -> bool:
    try:
        return client.get(SERVICES).status == 200
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("keep_history", [True, False])
def test_restart_on_the_same_port(server: ApiServer, client: Client, keep_history: bool) -> None:
    services(server, "a")
    start = server.version
    stream = client.watch(SERVICES, resourceVersion=start)
    services(server, "b")
    assert stream.kinds(1) == [("ADDED", "b")]
    server.restart(keep_history=keep_history)
    assert is_broken(stream)
    kind, obj = client.watch(SERVICES, resourceVersion=start).event()
    assert (kind, obj.get("code")) == (("ADDED", None) if keep_history else ("ERROR", 410))
    assert client.get(SERVICES).names == ["a", "b"]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_drop_watches(tls: bool, reset: bool) -> None:
    with ApiServer(tls=tls, promises=PROMISES) as server:
        client = Client(server)
        idle = client.connection()
        client.open(SERVICES, connection=idle)[1].read()
        streams = [client.watch(SERVICES), client.watch(SLICES)]
        server.wait_for(lambda s: len(s.open_watches) == 2)
        server.drop_watches(reset)
        assert [is_broken(stream) for stream in streams] == [True, True]
        server.wait_for(lambda s: not s.open_watches)
        assert client.open(SERVICES, connection=idle)[1].status == 200


def test_log_and_counts(server: ApiServer, client: Client) -> None:
    before = time.monotonic()
    client.get(SERVICES, labelSelector="!a", limit=5)
    client.get("/nowhere")
    first, second = server.requests
    assert (first.method, first.path, first.query) == ("GET", SERVICES, {"labelSelector": "!a", "limit": "5"})
    assert first.headers["authorization"] == f"Bearer {server.token}"
    assert before < first.time < second.time < time.monotonic()
    stats = server.stats
    assert stats.requests == {"list services": 1, "/nowhere": 1}
    assert stats.answers == {200: 1, 404: 1}
    assert stats.connections == 2
    assert stats.bytes_sent > 300


def test_bytes_that_are_no_request_end_the_connection(server: ApiServer, client: Client) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"hello\r\n\r\n")
        raw.settimeout(60)
        assert raw.recv(100) == b""
    assert client.get(SERVICES).status == 200


def test_a_process_of_its_own(tmp_path: Path) -> None:
    with ApiServerProcess(tls=True, promises=PROMISES) as server:
        services_list = list(population(3))
        server.put_all(services_list)
        with pytest.raises(KeyError):
            server.delete("Service", "shop", "none")
        server.delete("Service", "fleet", "service-0")
        server.faults = Faults(internal=Next(1))
        config = str(server.kubeconfig(tmp_path / "kubeconfig"))
        api = kube.client.CoreV1Api(kube.config.new_client_from_config(config))
        with pytest.raises(kube.client.ApiException):
            api.list_service_for_all_namespaces(_preload_content=False)
        answer = json.loads(api.list_service_for_all_namespaces(_preload_content=False).data)
        assert answer["items"][0]["metadata"]["name"] == "service-1"
        assert server.stats.faults == {"internal": 1}
        assert len(server.objects("Service")) == 2
        assert server.requests[0].path == SERVICES


def test_by_hand(tmp_path: Path) -> None:
    (tmp_path / "objects.json").write_text(json.dumps({"kind": "List", "items": [service("a"), {"kind": "X"}]}))
    command = [sys.executable, "-m", str(__package__), "--objects", str(tmp_path), "--fault", "internal=1"]
    root = Path(__file__).parents[len(str(__package__).split("."))]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        words = json.loads(process.stdout.readline())
        assert words["url"].startswith("http://127.0.0.1:")
        config = kube.config.new_client_from_config(words["kubeconfig"])
        with pytest.raises(kube.client.ApiException, match="500"):
            kube.client.CoreV1Api(config).list_service_for_all_namespaces(_preload_content=False)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_inside_of_a_network_namespace() -> None:
    hold = ["unshare", "-n", "sh", "-c", "ip link set lo up; echo ready; exec sleep infinity"]
    with subprocess.Popen(hold, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            with ApiServer(netns=f"/proc/{holder.pid}/ns/net") as server:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", server.port), timeout=60)
                fetch = ["nsenter", "-t", str(holder.pid), "-n", "curl", "-s", f"{server.url}/version"]
                found = subprocess.run(fetch, check=True, capture_output=True, timeout=60)
                assert json.loads(found.stdout)["minor"] == "36"
        finally:
            holder.kill()


def test_ten_thousand_services_and_a_thousand_events_a_second(server: ApiServer, client: Client) -> None:
    server.put_all(population(10_000, endpoints=1))
    begun = time.monotonic()
    assert len(client.get(SERVICES).body) + len(client.get(SLICES).body) > 15_000_000
    print(f"\nlisted in {time.monotonic() - begun:.2f} s")
    streams = [client.watch(SERVICES, resourceVersion=server.version) for _ in range(3)]
    begun = time.monotonic()
    for number in range(1000):
        server.put(service(f"burst-{number}"))
    for stream in streams:
        assert stream.kinds(1000)[-1] == ("ADDED", "burst-999")
    print(f"a thousand events, three times, in {time.monotonic() - begun:.2f} s")
