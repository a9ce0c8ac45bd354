"""Run the API server by hand: `python -m tests.apiserver --objects DIR --tls --churn 7`.

Prints one JSON line with its URL, its token and its kubeconfig, and runs until SIGTERM or SIGINT.
"""

import argparse
import json
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .access import Auth
from .churn import churn, node_objects
from .faults import Faults
from .process import serve_control
from .resources import BY_KIND, Object
from .server import ApiServer


def main() -> None:
    """Parse the command line, serve, stop."""
    arguments = _parser().parse_args()
    with ApiServer(host=arguments.host, port=arguments.port, tls=arguments.tls) as server:
        if arguments.control is not None:
            serve_control(server, arguments.control)
            return
        done = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: done.set())
        if arguments.objects:
            server.put_all(_read(arguments.objects))
        chances: dict[str, Any] = {name: float(chance) for name, chance in arguments.fault}
        server.faults = Faults(**chances)
        with tempfile.TemporaryDirectory() as directory:
            file = arguments.kubeconfig or Path(directory) / "kubeconfig"
            server.kubeconfig(file, Auth(arguments.auth))
            words = {"url": server.url, "token": server.token, "kubeconfig": str(file)}
            print(json.dumps(words), flush=True)
            _follow(server, arguments.churn, arguments.rate, done)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.apiserver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--tls", action="store_true", help="HTTPS with a CA of its own")
    parser.add_argument("--objects", type=Path, help="directory of YAML or JSON files to begin with")
    parser.add_argument("--kubeconfig", type=Path, help="where to write it")
    parser.add_argument("--auth", choices=list(Auth), default=Auth.TOKEN)
    parser.add_argument("--churn", type=int, metavar="SEED", help="change objects at random")
    parser.add_argument("--rate", type=float, default=10.0, help="changes a second")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME=CHANCE", type=lambda text: text.split("=")
    )
    parser.add_argument("--control", type=int, metavar="FD", help=argparse.SUPPRESS)
    return parser


def _read(directory: Path) -> Iterator[Object]:
    """All objects of kinds that the server has, from a directory tree."""
    for path in sorted(directory.rglob("*")):
        if path.suffix in (".yaml", ".yml", ".json"):
            for document in yaml.safe_load_all(path.read_text()):
                found = document or {}
                items = found.get("items", []) if found.get("kind") == "List" else [found]
                yield from (item for item in items if item.get("kind") in BY_KIND)


def _follow(server: ApiServer, seed: int | None, rate: float, done: threading.Event) -> None:
    if seed is None:
        done.wait()
        return
    server.put_all(node_objects())
    for verb, obj in churn(seed):
        server.change(verb, obj)
        if done.wait(1 / rate):
            return


if __name__ == "__main__":
    main()
