"""The chart through Helm's own engine: Helm's Go libraries, as the package helm-python-sdk binds them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart, HelmError, lint

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kpx"
NAMESPACE = "kube-system"
Manifest = dict[str, Any]

__all__ = ["CHART", "NAMESPACE", "ROOT", "HelmError", "Manifest", "Release", "findings", "release"]


@dataclass(frozen=True, slots=True)
class Release:
    """What `helm install kpx charts/kpx` would send, as objects and as text, and the notes that it would print."""

    manifests: tuple[Manifest, ...]
    text: str
    notes: str

    def one(self, kind: str, name: str = "") -> Manifest:
        """The only object of a kind, or the one of this name."""
        (found,) = (one for one in self.manifests if one["kind"] == kind and name in ("", one["metadata"]["name"]))
        return found

    @property
    def pod(self) -> Manifest:
        """The DaemonSet's pod specification."""
        spec: Manifest = self.one("DaemonSet")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Manifest:
        """The agent's container."""
        (container,) = self.pod["containers"]
        found: Manifest = container
        return found


def release(values: Mapping[str, Any] | None = None, name: str = "kpx") -> Release:
    """Render. Raises HelmError for values that the schema or a template refuses."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(dict(values or {}))
        files = chart.render(dict(values or {}), name=name, namespace=NAMESPACE, is_install=True)
    parts = (f"---\n# {path}\n{text.strip()}\n" for path, text in sorted(files.items()) if _holds_objects(path, text))
    text = "".join(parts)
    (notes,) = (text for path, text in files.items() if path.endswith("NOTES.txt"))
    return Release(tuple(one for one in yaml.safe_load_all(text) if one), text, notes)


def _holds_objects(path: str, text: str) -> bool:
    return path.endswith(".yaml") and bool(text.strip())


def findings(values: Mapping[str, Any] | None = None) -> list[str]:
    """What `helm lint --strict` has to say, but for mere information."""
    report = lint(CHART, dict(values or {}), strict=True, namespace=NAMESPACE)
    return [*report["errors"], *(one["error"] for one in report["messages"] if one["severity"] > 1)]
