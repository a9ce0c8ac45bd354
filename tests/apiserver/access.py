"""Who may do what, and the files by which a client proves who it is.

Tokens and client certificates authenticate; RBAC-like rules authorise. Certificates are made by the
`openssl` program.
"""

import base64
import json
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

USER = "system:serviceaccount:kube-system:kpx"
ANONYMOUS = "system:anonymous"
_SAN = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost,DNS:kubernetes.default.svc"


class Auth(StrEnum):
    """How a kubeconfig proves who its user is."""

    TOKEN = "token"
    TOKEN_FILE = "tokenFile"
    EXEC = "exec"
    CERTIFICATE = "certificate"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Rule:
    """Verbs allowed on resources of one API group; `*` stands for all.

    With `names`, only on these objects: a list or a watch must then ask for `metadata.name=` one of them.
    """

    verbs: tuple[str, ...]
    group: str
    resources: tuple[str, ...]
    names: tuple[str, ...] = ()

    def allows(self, verb: str, group: str, plural: str, name: str) -> bool:
        return (
            _within(verb, self.verbs)
            and self.group in (group, "*")
            and _within(plural, self.resources)
            and (not self.names or name in self.names)
        )


NODE_PROXIER = (
    Rule(("list", "watch"), "", ("services", "endpoints")),
    Rule(("get", "list", "watch"), "", ("nodes",)),
    Rule(("list", "watch"), "discovery.k8s.io", ("endpointslices",)),
    Rule(("list", "watch"), "networking.k8s.io", ("servicecidrs",)),
    Rule(("create", "patch", "update"), "", ("events",)),
    Rule(("create", "patch", "update"), "events.k8s.io", ("events",)),
)
"""What the ClusterRole `system:node-proxier` grants."""
ALLOW_ALL = (Rule(("*",), "*", ("*",)),)


class Credentials:
    """The valid token, the certificates, and every file that was written with them.

    `directory` must exist; certificates are put there if `tls` is asked for.
    """

    def __init__(self, directory: Path, tls: bool) -> None:
        self.directory = directory
        self.tls = tls
        self.token = secrets.token_urlsafe(24)
        self._writers: list[Callable[[], None]] = []
        if tls:
            _make_certificates(directory)

    def user(self, authorization: str, certified: bool) -> str | None:
        """The user behind an Authorization header or a client certificate; None for a wrong token."""
        if authorization:
            scheme, _, token = authorization.partition(" ")  # the scheme in any case: RFC 9110, 11.1
            return USER if scheme.lower() == "bearer" and token == self.token else None
        return USER if certified else ANONYMOUS

    def rotate(self) -> str:
        """A new token, valid from now on; the old one isn't any more. Token files are rewritten."""
        self.token = secrets.token_urlsafe(24)
        for write in self._writers:
            write()
        return self.token

    def server_context(self, http2: bool) -> ssl.SSLContext | None:
        """TLS for the listener, or None."""
        if not self.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.crt", self.directory / "server.key")
        context.load_verify_locations(self.directory / "ca.crt")
        context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        return context

    def kubeconfig(self, path: Path, url: str, auth: Auth, expires_in: float) -> None:
        """Write a kubeconfig, and next to it the files that it names (`path` with another suffix).

        `expires_in` (seconds) is what an exec plugin's answer says about its token.
        """
        cluster: dict[str, str] = {"server": url}
        if self.tls:
            cluster["certificate-authority-data"] = _base64(self.directory / "ca.crt")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "kpx", "user": self._user_entry(path, auth, expires_in)}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "kpx"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(config))

    def service_account(self, directory: Path) -> None:
        """Write `token`, `ca.crt` and `namespace`, as a pod finds them; the token file follows `rotate`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "namespace").write_text("kube-system")
        if self.tls:
            (directory / "ca.crt").write_bytes((self.directory / "ca.crt").read_bytes())
        self._keep_writing(lambda: _replace(directory / "token", self.token))

    def _user_entry(self, path: Path, auth: Auth, expires_in: float) -> dict[str, Any]:
        match auth:
            case Auth.TOKEN:
                return {"token": self.token}
            case Auth.TOKEN_FILE:
                file = path.with_suffix(".token").absolute()
                self._keep_writing(lambda: _replace(file, self.token))
                return {"tokenFile": str(file)}
            case Auth.EXEC:
                return {"exec": self._exec_entry(path.with_suffix(".credential").absolute(), expires_in)}
            case Auth.CERTIFICATE:
                return {
                    "client-certificate-data": _base64(self.directory / "client.crt"),
                    "client-key-data": _base64(self.directory / "client.key"),
                }
            case Auth.NONE:
                return {}

    def _exec_entry(self, file: Path, expires_in: float) -> dict[str, Any]:
        """A plugin that prints `file`, and adds a line to `file`.runs every time it is run."""
        version = "client.authentication.k8s.io/v1"

        def write() -> None:
            expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + expires_in))
            status = {"token": self.token, "expirationTimestamp": expiry}
            _replace(file, json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}))

        self._keep_writing(write)
        script = 'echo run >> "$0.runs"; cat "$0"'
        return {
            "apiVersion": version,
            "command": "sh",
            "args": ["-c", script, str(file)],
            "interactiveMode": "Never",
        }

    def _keep_writing(self, write: Callable[[], None]) -> None:
        write()
        self._writers.append(write)


def allowed(rules: tuple[Rule, ...], verb: str, group: str, plural: str, name: str) -> bool:
    """Whether any rule allows the verb."""
    return any(rule.allows(verb, group, plural, name) for rule in rules)


def _within(word: str, words: tuple[str, ...]) -> bool:
    return word in words or "*" in words


def _replace(path: Path, text: str) -> None:
    """Write so that a reader sees the old file or the new one, never half of it."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.rename(path)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _make_certificates(directory: Path) -> None:
    """ca, server and client, each as NAME.crt and NAME.key; P-256, valid for two days."""
    config = directory / "openssl.cnf"
    config.write_text("[req]\ndistinguished_name=name\n[name]\n")
    usage = {"server": "serverAuth", "client": "clientAuth"}
    authority = {"basicConstraints": "critical,CA:TRUE", "keyUsage": "critical,keyCertSign,cRLSign"}
    _certificate(directory, "ca", "/CN=test-ca", authority)
    for name, subject in (("server", "/CN=kube-apiserver"), ("client", f"/O=system:nodes/CN={USER}")):
        extensions = {"basicConstraints": "critical,CA:FALSE", "keyUsage": "critical,digitalSignature"}
        extensions["extendedKeyUsage"] = usage[name]
        _certificate(directory, name, subject, extensions)


def _certificate(directory: Path, name: str, subject: str, extensions: Mapping[str, str]) -> None:
    command = ["openssl", "req", "-x509", "-config", "openssl.cnf", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject]
    command += ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    for extension in (*extensions.items(), ("subjectKeyIdentifier", "hash")):
        command += ["-addext", "=".join(extension)]
    if name != "ca":
        command += ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "authorityKeyIdentifier=keyid"]
    if name == "server":
        command += ["-addext", _SAN]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=120)
