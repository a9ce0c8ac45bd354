import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from kubernetes.aio.config import incluster_config

from kpx.api import KubeProxyConfiguration
from kpx.api.config import ClientConnection
from kpx.errors import KpxError
from kpx.sources import connection, credentials, sockets
from kpx.sources.answer import Answer
from kpx.sources.connection import Connection, connect
from tests.apiserver import ApiServer, ApiServerProcess, Auth, Promises, node_objects

from .told import agreed, connected, following, until

CONFIG = KubeProxyConfiguration()


async def statuses(made: Connection, count: int = 1) -> list[int]:
    found = []
    for _ in range(count):
        async with made.get("/api/v1/services", {"limit": "1"}) as answer:
            async for _ in answer.body:
                pass
            found.append(answer.status)
    return found


async def watching(made: Connection) -> AsyncIterator[Answer]:
    """One watch, after its first bytes."""
    async with made.get("/api/v1/nodes", {"watch": "1"}) as answer:
        await anext(answer.body)
        yield answer


def kubeconfig(path: Path, change: Callable[[dict[str, Any]], object] = lambda data: None) -> Path:
    """A kubeconfig for a server that isn't there, changed."""
    data: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "lab", "user": "me"}}],
        "clusters": [{"name": "lab", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
    }
    change(data)
    path.write_text(yaml.safe_dump(data))
    return path


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def plugin(command: str, *args: str) -> dict[str, Any]:
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "args": list(args)}}


BEARERS = (Auth.TOKEN, Auth.TOKEN_FILE, Auth.EXEC)


@pytest.mark.parametrize(
    ("auth", "tls"), [(Auth.CERTIFICATE, True), *((auth, tls) for auth in BEARERS for tls in (False, True))]
)
def test_every_way_to_authenticate(tmp_path: Path, auth: Auth, tls: bool) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", auth)) as made:
            assert await statuses(made, 2) == [200, 200]

    with ApiServer(tls=tls) as server:
        asyncio.run(run())
        agent = server.requests[-1].headers["user-agent"]
        assert agent.startswith("kpx/")
        assert server.stats.connections == 1


def test_the_configuration_names_the_kubeconfig(tmp_path: Path) -> None:
    async def run() -> None:
        path = str(server.kubeconfig(tmp_path / "kubeconfig"))
        made = await connect(None, CONFIG.model_copy(update={"client_connection": ClientConnection(kubeconfig=path)}))
        assert await statuses(made) == [200]
        await made.close()
        with pytest.raises(KpxError, match="other: No such file"):
            await connect(
                str(tmp_path / "other"),
                CONFIG.model_copy(update={"client_connection": ClientConnection(kubeconfig=path)}),
            )

    with ApiServer() as server:
        asyncio.run(run())


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kubeadm writes it for kube-proxy: a CA and a token in files. A newline at a token's end is none of it."""
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)

    async def run() -> None:
        def change(data: dict[str, Any]) -> None:
            data["clusters"][0]["cluster"] = {"server": server.url, "certificate-authority": "ca.crt"}
            data["users"][0]["user"] = {"tokenFile": "token"}

        (tmp_path / "etc" / "ca.crt").write_bytes(server.ca_file.read_bytes())
        (tmp_path / "etc" / "token").write_text(f"{server.token}\n")
        kubeconfig(tmp_path / "etc" / "kube:config", change)
        async with connected(Path("etc/kube:config")) as made:
            assert await statuses(made) == [200]

    with ApiServer(tls=True) as server:
        asyncio.run(run())


@pytest.mark.parametrize("content", ["one\ntwo", "\x00", "naïve 令牌"])
def test_token_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    path = kubeconfig(tmp_path / "kubeconfig", lambda data: data["users"][0].update(user={"tokenFile": "token"}))

    async def run() -> None:
        async with connected(path) as made:
            with pytest.raises((KpxError, aiohttp.ClientConnectorError)) as raised:
                await statuses(made)
            assert content not in str(raised.value)

    asyncio.run(run())


def in_cluster(server: ApiServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.service_account(directory).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(directory / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(directory / "ca.crt"))


def test_in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        made = await connect(None, CONFIG)
        assert await statuses(made) == [200]
        server.rotate_token()
        assert await statuses(made, 2) == [401, 200]
        await made.close()

    with ApiServer(tls=True) as server:
        in_cluster(server, tmp_path / "account", monkeypatch)
        asyncio.run(run())


def test_not_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KpxError, match=r"no kubeconfig is given.*Service host/port is not set"):
        asyncio.run(connect(None, CONFIG))


@pytest.mark.parametrize("auth", [Auth.TOKEN_FILE, Auth.EXEC])
def test_rotation_noticed_by_401(tmp_path: Path, auth: Auth) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", auth)) as made:
            assert await statuses(made) == [200]
            server.rotate_token()
            assert await statuses(made, 2) == [401, 200]

    with ApiServer() as server:
        asyncio.run(run())


def test_token_file_is_read_again_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "FILE_PERIOD", 0.1)

    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", Auth.TOKEN_FILE)) as made:
            for _ in range(3):
                assert await statuses(made) == [200]
                server.rotate_token()
                await asyncio.sleep(0.15)
            assert await statuses(made) == [200]

    with ApiServer() as server:
        asyncio.run(run())
        assert server.stats.connections == 1  # a new token is no reason for a new connection


def test_exec_plugin_runs_again_before_its_answer_expires(tmp_path: Path) -> None:
    async def run() -> None:
        path = server.kubeconfig(tmp_path / "kubeconfig", Auth.EXEC, expires_in=3600)
        async with connected(path) as made:
            assert await statuses(made, 5) == [200] * 5
            assert runs() == 1
        server.kubeconfig(tmp_path / "kubeconfig", Auth.EXEC, expires_in=2)
        async with connected(path) as made:
            assert await statuses(made, 3) == [200] * 3
            before = runs()
            server.rotate_token()
            await asyncio.sleep(1.7)
            assert await statuses(made, 3) == [200] * 3
            assert runs() > before

    def runs() -> int:
        return len((tmp_path / "kubeconfig.credential.runs").read_text().splitlines())

    with ApiServer() as server:
        asyncio.run(run())


def test_one_renewal_for_many_requests(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", Auth.EXEC)) as made:
            server.rotate_token()
            assert await asyncio.gather(*(statuses(made) for _ in range(5))) == [[401]] * 5
            assert await asyncio.gather(*(statuses(made) for _ in range(5))) == [[200]] * 5
        assert len((tmp_path / "kubeconfig.credential.runs").read_text().splitlines()) == 2

    with ApiServer() as server:
        asyncio.run(run())


def test_client_certificate_from_a_plugin(tmp_path: Path) -> None:
    async def run() -> None:
        directory = server.ca_file.parent
        status = {
            "clientCertificateData": (directory / "client.crt").read_text(),
            "clientKeyData": (directory / "client.key").read_text(),
        }
        answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}

        def change(data: dict[str, Any]) -> None:
            data["clusters"][0]["cluster"] = {"server": server.url, "certificate-authority": str(server.ca_file)}
            data["users"][0]["user"] = plugin("cat", str(tmp_path / "answer.json"))

        (tmp_path / "answer.json").write_text(json.dumps(answer))
        async with connected(kubeconfig(tmp_path / "kubeconfig", change)) as made:
            assert await statuses(made) == [200]

    with ApiServer(tls=True) as server:
        asyncio.run(run())


def test_renewal_that_fails_leaves_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "FILE_PERIOD", 0.0)
    monkeypatch.setattr(connection, "_RETRY_SECONDS", 0.0)

    async def run() -> None:
        path = server.kubeconfig(tmp_path / "kubeconfig", Auth.TOKEN_FILE)
        async with connected(path) as made:
            token = tmp_path / "kubeconfig.token"
            token.rename(tmp_path / "away")
            assert await statuses(made, 2) == [200, 200]
            server.rotate_token()
            assert token.exists()
            token.unlink()
            assert await statuses(made) == [401]
            with pytest.raises(KpxError, match="No such file"):
                await statuses(made)
            token.write_text(server.token)
            assert await statuses(made) == [200]

    with ApiServer() as server:
        asyncio.run(run())


def test_rotated_certificates_are_loaded(tmp_path: Path) -> None:
    """Another CA under the same name, as when a control plane renews its own."""

    async def run(first: ApiServer, second: ApiServer) -> None:
        ca, token = tmp_path / "ca.crt", tmp_path / "token"

        def point(server: ApiServer) -> None:
            def change(data: dict[str, Any]) -> None:
                data["clusters"][0]["cluster"] = {"server": server.url, "certificate-authority": str(ca)}
                data["users"][0]["user"] = {"tokenFile": str(token)}

            kubeconfig(tmp_path / "kubeconfig", change)
            token.write_text(server.token)

        point(first)
        ca.write_bytes(second.ca_file.read_bytes())
        async with connected(tmp_path / "kubeconfig") as made:
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                await statuses(made)
            ca.write_bytes(first.ca_file.read_bytes())
            assert await statuses(made) == [200]

    with ApiServer(tls=True) as first, ApiServer(tls=True) as second:
        asyncio.run(run(first, second))


def test_the_server_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "FILE_PERIOD", 0.0)

    async def run(first: ApiServer, second: ApiServer) -> None:
        async with connected(first.kubeconfig(tmp_path / "kubeconfig")) as made:
            assert await statuses(made) == [200]
            second.kubeconfig(tmp_path / "kubeconfig")
            assert await statuses(made) == [200]
        assert second.stats.requests == {"list services": 1}

    with ApiServer(tls=True) as first, ApiServer() as second:
        asyncio.run(run(first, second))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("current-context"), "has no current-context"),
        (lambda data: data.update({"current-context": "there"}), "has no context 'there'"),
        (lambda data: data.update(contexts=None), "has no context 'here'"),
        (lambda data: data.update(clusters=[]), "has no cluster 'lab'"),
        (lambda data: data.update(clusters="lab"), "has no cluster 'lab'"),
        (lambda data: data["clusters"][0].update(cluster={}), "cluster 'lab' has no server"),
        (lambda data: data["users"][0].update(name="you"), "has no user 'me'"),
        (lambda data: data["users"][0].update(user={"tokenFile": "/nowhere/token"}), "/nowhere/token"),
        (lambda data: data["clusters"][0]["cluster"].update({"certificate-authority": "/nowhere/ca"}), "/nowhere/ca"),
        (
            lambda data: data["clusters"][0]["cluster"].update({"certificate-authority-data": "bm9uZQ=="}),
            "certificates for https://127.0.0.1:1 can't be used",
        ),
        (lambda data: data["users"][0].update(user=plugin("/nowhere/plugin")), "/nowhere/plugin"),
        (lambda data: data["users"][0].update(user=plugin("sh", "-c", "echo no luck >&2; exit 3")), "3.*no luck"),
        (lambda data: data["users"][0].update(user=plugin("echo", "no JSON")), "failed to decode"),
        (
            lambda data: data["users"][0].update(
                user=plugin(
                    "echo",
                    '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}}',
                )
            ),
            "echo gave neither a token nor a certificate",
        ),
        (lambda data: data["users"][0].update(user={"exec": {}}), "missing key 'command'"),
    ],
)
def test_bad_kubeconfig(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = kubeconfig(tmp_path / "kubeconfig", change)
    with pytest.raises(KpxError, match=message) as raised:
        asyncio.run(connect(str(path), CONFIG))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "must be one document, a mapping"),
        (b"- a\n- b\n", "must be one document, a mapping"),
        (b"a: [", "is not YAML"),
        (b"\xff\xff", "is not UTF-8"),
    ],
)
def test_no_kubeconfig(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KpxError, match=f"^kubeconfig {path}: .*{message}"):
        asyncio.run(connect(str(path), CONFIG))


def test_context_without_user(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", Auth.NONE)) as made:
            assert await statuses(made) == [403]

    with ApiServer(tls=True) as server:
        asyncio.run(run())


def test_plugin_that_hangs_is_not_started_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, fine = tmp_path / "started", tmp_path / "fine"
    fine.write_text("")

    async def run() -> None:
        script = f'[ -e {fine} ] || {{ echo x >> {started}; while [ ! -e {fine} ]; do sleep 0.05; done; }}; cat "$1"'
        answer = tmp_path / "answer"

        def change(data: dict[str, Any]) -> None:
            data["clusters"][0]["cluster"] = {"server": server.url}
            data["users"][0]["user"] = plugin(str(executable(tmp_path / "plugin", script)), str(answer))

        def publish() -> None:
            version = "client.authentication.k8s.io/v1"
            status = {"token": server.token}
            answer.write_text(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}))

        publish()
        async with connected(kubeconfig(tmp_path / "kubeconfig", change)) as made:
            assert await statuses(made) == [200]
            fine.unlink()
            server.rotate_token()
            publish()
            assert await statuses(made) == [401]
            monkeypatch.setattr(connection, "_RENEWAL_SECONDS", 0.2)
            for _ in range(3):
                with pytest.raises(KpxError, match="does an exec plugin hang"):
                    await statuses(made)
            assert started.read_text() == "x\n"
            monkeypatch.setattr(connection, "_RENEWAL_SECONDS", 60.0)
            fine.write_text("")
            assert await statuses(made) == [200]

    with ApiServer() as server:
        asyncio.run(run())


@pytest.mark.parametrize("auth", [Auth.TOKEN_FILE, Auth.EXEC])
def test_source_survives_rotation(tmp_path: Path, auth: Auth) -> None:
    """Watches that were let in before go on; what is opened afterwards is refused once, and then let in."""

    async def run() -> None:
        async with following(server, tmp_path, auth=auth) as told:
            for _ in range(3):
                await agreed(told, server)
                server.rotate_token()
                server.drop_watches()
                server.put(node_objects()[0] | {"spec": {"podCIDR": f"10.244.{server.version % 250}.0/24"}})
            await agreed(told, server)
            assert "unauthorized" in told.reasons()

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_source_waits_for_credentials(tmp_path: Path) -> None:
    async def run() -> None:
        async with following(server, tmp_path, auth=Auth.TOKEN_FILE) as told:
            await agreed(told, server)
            server.rotate_token()
            (tmp_path / "kubeconfig.token").unlink()
            server.drop_watches()
            await until(lambda: told.restarts["Node", "credentials"] >= 2)
            server.delete("Node", "", "node-0")
            (tmp_path / "kubeconfig.token").write_text(server.token)
            await agreed(told, server)

    with ApiServer() as server:
        server.put_all(node_objects())
        asyncio.run(run())


@pytest.mark.parametrize("http2", [False, True])
def test_renewal_disturbs_no_reader(tmp_path: Path, http2: bool) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", Auth.TOKEN_FILE)) as made:
            async for answer in watching(made):
                server.rotate_token()
                assert await statuses(made, 2) == [401, 200]
                assert server.stats.connections == (
                    2 if http2 else 5
                )  # new ones for new credentials; HTTP/1.1 is found out by one
                assert len(server.open_watches) == 1
                server.put({**node_objects()[0], "spec": {}})
                assert b"MODIFIED" in await anext(answer.body)
            await until(lambda: server.stats.open_connections == 1)

    with ApiServer(tls=True, promises=Promises(http2=http2)) as server:
        server.put_all(node_objects())
        asyncio.run(run())


@pytest.mark.parametrize("http2", [False, True])
def test_dead_peer_is_noticed_by_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http2: bool) -> None:
    """With times a tenth of the real ones: 10 s idle, 3 probes 5 s apart."""
    fast = {
        socket.TCP_KEEPIDLE: 1,
        socket.TCP_KEEPINTVL: 1,
        socket.TCP_KEEPCNT: 1,
        socket.TCP_USER_TIMEOUT: 1000,
    }
    idle, interval, count, patience = sockets.KEEPALIVE.values()
    assert idle + interval * count <= 25
    assert patience <= 25_000
    monkeypatch.setattr(sockets, "KEEPALIVE", fast)

    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            async for answer in watching(made):
                server.stall_watches(blackhole=True)
                async with asyncio.timeout(60):
                    with pytest.raises((aiohttp.ClientError, OSError), match="timed out"):
                        await anext(answer.body)

    with ApiServer(tls=True, promises=Promises(http2=http2)) as server:
        server.put_all(node_objects())
        asyncio.run(run())


@pytest.mark.parametrize("blackhole", [False, True])
def test_closing_leaves_nothing_open(tmp_path: Path, blackhole: bool) -> None:
    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
                async for _ in watching(made):
                    server.stall_watches(blackhole)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with ApiServerProcess(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_many_renewals_that_fail_fail_each_for_itself() -> None:
    """Whoever waited for one is told how that one ended, even if the next one has begun."""

    async def run() -> None:
        async def fail() -> credentials.Credentials:
            await asyncio.sleep(0)
            raise KpxError("no luck")

        made = Connection(fail)

        async def insist() -> None:
            for _ in range(50):
                with pytest.raises(KpxError, match="no luck"):
                    await made.renew()

        await asyncio.gather(*(insist() for _ in range(5)))
        await made.close()

    asyncio.run(run())


def test_closing_during_renewal(tmp_path: Path) -> None:
    async def run() -> None:
        async def never() -> credentials.Credentials:
            await asyncio.Event().wait()
            raise AssertionError

        made = Connection(never)
        renewal = asyncio.create_task(made.renew())
        await asyncio.sleep(0.05)
        await made.close()
        with contextlib.suppress(asyncio.CancelledError):
            await renewal
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
