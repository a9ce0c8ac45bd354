"""Certificates, kubeconfigs and tokens, made with the `openssl` program."""

import base64
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ISSUER = "https://kubernetes.default.svc.cluster.local"
_DAYS = 2
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Pki:
    """A certificate authority in a folder, and the key pair that signs service accounts' tokens."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Pki":
        """Make both: `ca.crt`, `ca.key`, `sa.key`, `sa.pub`."""
        folder.mkdir(parents=True)
        (folder / "openssl.cnf").write_text("[req]\ndistinguished_name=name\n[name]\n")
        made = cls(folder)
        authority = {"basicConstraints": "critical,CA:TRUE", "keyUsage": "critical,keyCertSign,cRLSign"}
        made._openssl(
            "req",
            "-x509",
            "-config",
            "openssl.cnf",
            *_KEY,
            "-days",
            str(_DAYS),
            "-subj",
            "/CN=kpx-cluster",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            *_extensions(authority),
        )
        made._openssl("genrsa", "-out", "sa.key", "2048")
        made._openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        return made

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Where a certificate and its key are."""
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def issue(self, name: str, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> tuple[Path, Path]:
        """A certificate for a user in groups; with `hosts` (DNS names and addresses) for a server, too."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        extensions = {
            "basicConstraints": "critical,CA:FALSE",
            "keyUsage": "critical,digitalSignature",
            "extendedKeyUsage": "clientAuth,serverAuth" if hosts else "clientAuth",
        }
        if hosts:
            extensions["subjectAltName"] = ",".join(f"{_kind(host)}:{host}" for host in hosts)
        self._openssl(
            "req",
            "-x509",
            "-config",
            "openssl.cnf",
            *_KEY,
            "-days",
            str(_DAYS),
            "-subj",
            subject,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.crt",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            *_extensions(extensions),
        )
        return self.pair(name)

    def kubeconfig(self, name: str, server: str, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for a user with a certificate of its own."""
        certificate, key = self.issue(name, user, groups)
        return self._write_kubeconfig(name, server, {"client-certificate": str(certificate), "client-key": str(key)})

    def kubeconfig_with_token(self, name: str, server: str, token_file: Path) -> Path:
        """A kubeconfig for whoever the token in a file is."""
        return self._write_kubeconfig(name, server, {"tokenFile": str(token_file)})

    def token(self, namespace: str, account: str, uid: str, seconds: float) -> str:
        """A token of a service account as the API server would sign it, that expires in so many seconds."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + int(seconds),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": uid}},
        }
        told = ".".join(_url64(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", "sa.key"]
        signature = subprocess.run(
            command, cwd=self.folder, input=told.encode(), capture_output=True, check=True
        ).stdout
        return f"{told}.{_url64(signature)}"

    def _write_kubeconfig(self, name: str, server: str, user: Mapping[str, str]) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": str(self.ca)}}],
                    "users": [{"name": "u", "user": user}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                },
                indent=1,
            )
        )
        return path

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, capture_output=True, check=True, timeout=120)


def _extensions(wanted: Mapping[str, str]) -> list[str]:
    return [word for name, value in wanted.items() for word in ("-addext", f"{name}={value}")]


def _kind(host: str) -> str:
    return "IP" if ":" in host or host.replace(".", "").isdecimal() else "DNS"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
