"""The control plane: etcd, API server, controller manager and scheduler, in one space."""

import json
import signal
from pathlib import Path
from typing import Any

from tests.cluster.binaries import Binaries
from tests.cluster.client import Api
from tests.cluster.layout import API_ADDRESS_AS_SERVICE, API_PORT, CONTROL, SERVICE_CIDRS
from tests.cluster.pki import ISSUER, Pki
from tests.cluster.space import Process, Space
from tests.cluster.waiting import eventually
from tests.lab import LabError

_ETCD = "http://127.0.0.1:2379"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "nonResourceURLs": ["/healthz*", "/readyz*", "/livez*"]},
        {"level": "None", "resources": [{"group": "coordination.k8s.io"}]},
        {"level": "Metadata"},
    ],
}


class Control:
    """Running processes of a control plane, and its administrator's client."""

    def __init__(self, space: Space, binaries: Binaries, pki: Pki, folder: Path) -> None:
        """Start everything and wait until the API server is ready. `folder` takes data and logs."""
        self.space, self.pki, self.folder = space, pki, folder
        self.audit_log = folder / "audit.log"
        self.url = f"https://{CONTROL.ipv4}:{API_PORT}"
        self._make_files()
        self.api = Api(space.network, CONTROL.ipv4, pki, "admin")
        self.etcd = self._process("etcd", [binaries["etcd"], "--config-file", folder / "etcd.json"])
        self.api_server = self._process("kube-apiserver", [binaries["kube-apiserver"], *self._api_server_options()])
        names = ("kube-controller-manager", "kube-scheduler")
        options = {"kube-controller-manager": self._controller_options(), "kube-scheduler": []}
        others = [self._process(name, [binaries[name], *self._leaderless(name), *options[name]]) for name in names]
        self.processes = [self.etcd, self.api_server, *others]
        self.etcd.start()
        self.start_api_server()
        for process in others:
            process.start()

    def start_api_server(self) -> None:
        """Start it and wait until it is ready."""
        self.api_server.start()
        self.api.close()
        eventually("an API server that is ready", self._is_ready)

    def kill_api_server(self) -> None:
        """SIGKILL: its clients' connections end without a word."""
        self.api_server.stop(signal.SIGKILL)
        self.api.close()

    def compact(self) -> int:
        """Let etcd forget every revision but the newest; that one. Through etcd's own gateway for JSON."""
        newest = int(self._ask_etcd("range", {"key": "AA=="})["header"]["revision"])
        self._ask_etcd("compaction", {"revision": str(newest), "physical": True})
        return newest

    def requests(self, agent: str, start: int = 0) -> list[dict[str, Any]]:
        """What the audit log has of a client, by the beginning of its User-Agent, from a place in that file on."""
        with self.audit_log.open("rb") as file:
            file.seek(start)
            lines = [line for line in file if line.endswith(b"\n")]
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [event for event in events if event.get("userAgent", "").startswith(agent)]

    def audit_size(self) -> int:
        """The place in the audit log where the next request will be."""
        return self.audit_log.stat().st_size

    def _is_ready(self) -> bool:
        if not self.api_server.running:
            raise LabError(f"kube-apiserver ended: {self.api_server.last_words()}")
        return self.api.text("GET", "/readyz") == "ok"

    def _ask_etcd(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        done = self.space.run(["curl", "-sSf", "-d", json.dumps(body), f"{_ETCD}/v3/kv/{what}"])
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _process(self, name: str, command: list[str | Path]) -> Process:
        return Process(self.space, name, command, self.folder / f"{name}.log")

    def _make_files(self) -> None:
        self.folder.mkdir()
        pki = self.pki
        hosts = (
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "127.0.0.1",
            API_ADDRESS_AS_SERVICE,
            *CONTROL.addresses,
        )
        pki.issue("apiserver", "kube-apiserver", ["system:masters"], hosts)
        pki.kubeconfig("admin", self.url, "admin", ["system:masters"])
        for name in ("kube-controller-manager", "kube-scheduler"):
            pki.kubeconfig(name, self.url, f"system:{name}")
        (self.folder / "audit.json").write_text(json.dumps(_AUDIT))
        (self.folder / "etcd.json").write_text(
            json.dumps(
                {
                    "name": "one",
                    "data-dir": str(self.folder / "etcd"),
                    "listen-client-urls": _ETCD,
                    "advertise-client-urls": _ETCD,
                    "listen-peer-urls": "http://127.0.0.1:2380",
                    "initial-advertise-peer-urls": "http://127.0.0.1:2380",
                    "initial-cluster": "one=http://127.0.0.1:2380",
                    "enable-grpc-gateway": True,
                    "unsafe-no-fsync": True,
                    "quota-backend-bytes": 4 << 30,
                    "log-level": "warn",
                }
            )
        )

    def _api_server_options(self) -> list[str]:
        certificate, key = self.pki.pair("apiserver")
        keys = self.pki.folder
        return [
            f"--etcd-servers={_ETCD}",
            f"--advertise-address={CONTROL.ipv4}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={','.join(SERVICE_CIDRS)}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            f"--client-ca-file={self.pki.ca}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--kubelet-client-certificate={certificate}",
            f"--kubelet-client-key={key}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={keys / 'sa.pub'}",
            f"--service-account-signing-key-file={keys / 'sa.key'}",
            f"--audit-policy-file={self.folder / 'audit.json'}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=blocking",
            "--profiling=false",
        ]

    def _leaderless(self, name: str) -> list[str]:
        file = self.pki.folder / f"{name}.kubeconfig"
        return ["--leader-elect=false", f"--kubeconfig={file}"]

    def _controller_options(self) -> list[str]:
        return [
            f"--service-account-private-key-file={self.pki.folder / 'sa.key'}",
            f"--root-ca-file={self.pki.ca}",
            "--use-service-account-credentials",
            "--allocate-node-cidrs=false",
            # A node that is busy with other work isn't gone.
            "--node-monitor-grace-period=200s",
        ]
