"""The images of the cluster, in one archive: kpx's, and two that have a layer over it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "docker.io/library"
POD_IMAGE = f"{PREFIX}/kpx-cluster-pod:1"
"""A server, see pod.py; without a command it sleeps, which is what a pod's sandbox does."""
KUBE_PROXY_IMAGE = f"{PREFIX}/kpx-cluster-kube-proxy:1"
POD_COMMAND = ["/usr/bin/python3", "-I", "-u", "/pod.py"]
KUBE_PROXY_PATH = "/usr/local/bin/kube-proxy"


@dataclass(frozen=True, slots=True)
class Addition:
    """An image made of kpx's: its name, files that it has besides, and what it starts."""

    name: str
    files: Mapping[str, Path]
    entrypoint: list[str]


def additions(kube_proxy: Path) -> list[Addition]:
    """The pods' image, and kube-proxy's."""
    server = Path(__file__).with_name("pod.py")
    return [
        Addition(POD_IMAGE, {"/pod.py": server}, ["/usr/bin/sleep", "infinity"]),
        Addition(KUBE_PROXY_IMAGE, {KUBE_PROXY_PATH: kube_proxy}, [KUBE_PROXY_PATH]),
    ]


def write(base: Path, made: list[Addition], target: Path) -> str:
    """Write an archive with all images, for `ctr images import`; returns the name of the base's image.

    `base` is an archive as `docker save` makes it, with one image. Raises ValueError if it isn't.
    """
    with tarfile.open(base) as source, tarfile.open(target, "w") as archive:
        try:
            (manifest,) = json.load(_file(source, "manifest.json"))
            config = json.load(_file(source, manifest["Config"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{base} isn't an archive of one image: {error}") from error
        for layer in manifest["Layers"]:
            member = source.getmember(layer)
            archive.addfile(member, _file(source, layer))
        base_name = _full_name(manifest["RepoTags"][0])
        entries = [_entry(archive, [base_name], config, manifest["Layers"])]
        for one in made:
            layer, digest = _add_layer(archive, one.files)
            entries.append(_entry(archive, [one.name], _over(config, digest, one), [*manifest["Layers"], layer]))
        _add(archive, "manifest.json", json.dumps(entries).encode())
    return base_name


def _entry(archive: tarfile.TarFile, names: list[str], config: Any, layers: list[str]) -> dict[str, Any]:
    data = json.dumps(config).encode()
    path = f"{hashlib.sha256(data).hexdigest()}.json"
    _add(archive, path, data)
    return {"Config": path, "RepoTags": names, "Layers": layers}


def _over(config: Any, digest: str, one: Addition) -> Any:
    """The configuration of an image with one layer more."""
    return {
        **{key: config[key] for key in ("architecture", "os")},
        "config": {**config["config"], "Entrypoint": one.entrypoint, "Cmd": [], "Labels": {}},
        "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], f"sha256:{digest}"]},
    }


def _add_layer(archive: tarfile.TarFile, files: Mapping[str, Path]) -> tuple[str, str]:
    """Add a layer of some files; its path in the archive and its digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for path, source in files.items():
            _add(layer, path.lstrip("/"), source.read_bytes(), mode=0o755)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    _add(archive, f"{digest}.tar", buffer.getvalue())
    return f"{digest}.tar", digest


def _add(archive: tarfile.TarFile, path: str, data: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def _file(archive: tarfile.TarFile, path: str) -> Any:
    """A file of the archive, through symbolic links."""
    found = archive.extractfile(path)
    if found is None:
        raise KeyError(path)
    return found


def _full_name(name: str) -> str:
    """As a container runtime calls it: `kpx:1` is `docker.io/library/kpx:1`."""
    return name if "/" in name else f"{PREFIX}/{name}"
