"""Where the API server is and what proves who we are: a kubeconfig, or what a pod finds in its file system.

The kubernetes client reads both. How a kubeconfig is spelled: kubernetes.io/docs/reference/config-api/kubeconfig.v1.
"""

import base64
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kpx.api.documents import yaml_documents
from kpx.api.problems import plain
from kpx.errors import KpxError
from kpx.sources.client import ConfigNode, Configuration, ExecProvider, KubeConfigLoader, load_incluster_config
from kpx.sources.files import read_named

FILE_PERIOD = 60.0
"""How long, in seconds, what was read from files is believed (as long as client-go believes a token file)."""

_LONGEST_KUBECONFIG = 16 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client configuration, and for how many seconds it may be used before it is to be loaded again."""

    configuration: Configuration
    lasts: float


async def from_cluster() -> Credentials:
    """What every pod is given: the API server's address in the environment, a token and a CA in files.

    Raises `KpxError` where it isn't there.
    """
    configuration = _blank()
    try:
        load_incluster_config(configuration, try_refresh_token=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise KpxError(f"no kubeconfig is given, and this is no pod that could do without: {error}") from None
    return Credentials(configuration, FILE_PERIOD)


async def from_kubeconfig(path: str) -> Credentials:
    """The current context of a kubeconfig. Its exec plugin is run, if it has one.

    Raises `KpxError` that names the file and what is wrong with it, or with what it refers to.
    """
    configuration = _blank()
    try:
        cluster, user = _current_context(_read(path))
        lasts = await _ask_plugin(user)
        loader = KubeConfigLoader(  # type: ignore[no-untyped-call]
            {
                "clusters": [{"name": "this", "cluster": cluster}],
                "users": [{"name": "this", "user": user}],
                "contexts": [{"name": "this", "context": {"cluster": "this", "user": "this"}}],
                "current-context": "this",
            },
            config_base_path=os.path.dirname(os.path.abspath(path)),
        )
        await loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
    except Exception as error:  # of a malformed file the client complains by whatever it stumbles over
        reason = error.strerror if isinstance(error, OSError) and error.filename == path else None
        raise KpxError(f"kubeconfig {path}: {plain(reason or str(error))}") from None
    return Credentials(configuration, lasts)


def _blank() -> Configuration:
    configuration = Configuration()
    # From Python 3.13 on OpenSSL is told to insist on extensions that kubeadm's CA certificates don't have.
    configuration.disable_strict_ssl_verification = True
    return configuration


def _read(path: str) -> dict[str, Any]:
    documents = [document for document in yaml_documents(read_named(path, _LONGEST_KUBECONFIG)) if document is not None]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ValueError("must be one document, a mapping")
    return documents[0]


def _current_context(kubeconfig: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster and the user of the current context. Raises ValueError."""
    if not kubeconfig.get("current-context"):
        raise ValueError("has no current-context")
    context = _named(kubeconfig, "context", kubeconfig["current-context"])
    cluster = _named(kubeconfig, "cluster", context.get("cluster"))
    if not cluster.get("server"):
        raise ValueError(f"cluster {context['cluster']!r} has no server")
    return cluster, _named(kubeconfig, "user", context["user"]) if context.get("user") else {}


def _named(kubeconfig: dict[str, Any], what: str, name: object) -> dict[str, Any]:
    for entry in kubeconfig.get(f"{what}s") or ():
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(what), dict | None):
            return dict(entry.get(what) or {})
    raise ValueError(f"has no {what} {name!r}")


async def _ask_plugin(user: dict[str, Any]) -> float:
    """Put the answer of a user's exec plugin in the plugin's place; for how many seconds it may be used.

    `KubeConfigLoader` would run the plugin, too, but where that fails it goes on without credentials, and it
    keeps to itself what is to become of the answer.
    """
    spec = user.pop("exec", None)
    if spec is None:
        return FILE_PERIOD
    provider = ExecProvider(ConfigNode("exec", spec))  # type: ignore[no-untyped-call]
    status = await provider.run()  # type: ignore[no-untyped-call]
    if status.get("token"):
        user["token"] = status["token"]
    if status.get("clientCertificateData"):
        for field, given in (("client-certificate", "clientCertificateData"), ("client-key", "clientKeyData")):
            user[f"{field}-data"] = base64.b64encode(status[given].encode()).decode()
    elif "token" not in user:
        raise ValueError(f"exec: {spec['command']} gave neither a token nor a certificate")
    return _lifetime(status.get("expirationTimestamp"))


def _lifetime(expiry: str | None) -> float:
    """Four fifths of what is left, so that nothing expires on its way; endless if nothing is said."""
    if not expiry:
        return float("inf")
    left = (datetime.fromisoformat(expiry).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(left * 0.8, 1.0)
