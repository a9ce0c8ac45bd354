"""Build the node, apply the shop, send the packets, print the table."""

import os
import subprocess
import sys
import time

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tests.demo.probes import PODS, PROBES, TCP_PORTS, UDP_PORTS, Probe
from tests.lab import Backends, LabError, Node, Result, require
from tests.lab.kpx import dry_kpx, kpx

_INPUTS = ("-f", "tests/demo/shop", "--config", "tests/demo/config.yaml")
_USER_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
# The legacy backend locks a file in /run, which there belongs to the real root.
_OWN_RUN = 'mount -t tmpfs tmpfs /run && exec "$@"'

_console = Console(width=80, highlight=False)


def main() -> int:
    """Run the demo; without root in a user namespace; where that is forbidden too, show the rules only."""
    try:
        return _play()
    except KeyboardInterrupt:
        _console.print("\nInterrupted; the namespaces are gone, nothing stays behind.")
        return 130
    except LabError as reason:
        if os.geteuid() != 0 and _may_unshare():
            _become_root_of_a_user_namespace()
        return _dry_run(str(reason))


def _play() -> int:
    require("iptables-restore")
    start = time.monotonic()
    with Node() as node:
        pods = [node.pod(name, ipv4, ipv6, on=on) for name, (ipv4, ipv6, on) in PODS.items()]
        with Backends(*pods, tcp=TCP_PORTS, udp=UDP_PORTS):
            _introduce()
            applied = kpx(node, "apply", *_INPUTS, "--family", "dual", check=False)
            _console.print(Text(applied.stdout + applied.stderr))
            if applied.returncode != 0:
                return 1
            results = [(probe, probe.send(node)) for probe in PROBES]
    return _report(results, time.monotonic() - start)


def _introduce() -> None:
    _console.print("A node in network namespaces: node-0 (10.200.0.2) with the pod shop-1 on it,")
    _console.print("shop-2 and shop-3 on other nodes, and a client outside (198.51.100.7).\n")
    _console.print(f"$ kpx apply {' '.join(_INPUTS)} --family dual", style="bold", soft_wrap=True)


def _report(results: list[tuple[Probe, Result]], seconds: float) -> int:
    connections = sum(len(result.attempts) for _, result in results)
    wrong = sum(not probe.expectation.holds(result) for probe, result in results)
    verdict = Text(f"{wrong} of {len(results)} not as expected", "red") if wrong else Text("all as expected", "green")
    _console.print(_table(results))
    _console.print(f"\nShare: percent of {' : '.join(PODS)}.")
    _console.print(Text.assemble(f"{connections} connections in {seconds:.1f} s, ", verdict, "; nothing stays behind."))
    _console.print(_suggestions())
    return 1 if wrong else 0


def _table(results: list[tuple[Probe, Result]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True, header_style="bold")
    for heading in ("Service", "Way in", "Expected", "Packets"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Share", justify="right", no_wrap=True)
    table.add_column("ok", no_wrap=True)
    for probe, result in results:
        sign = Text("✔", "green") if probe.expectation.holds(result) else Text("✘", "red")
        counts = ", ".join(f"{count} {outcome}" for outcome, count in result.outcomes.items())
        row = (probe.service, probe.way_in, probe.expectation.text, counts, _shares(result))
        table.add_row(*map(Text, row), sign)
    return table


def _shares(result: Result) -> str:
    total = result.backends.total()
    return ":".join(f"{100 * result.backends[pod] / total:.0f}" for pod in PODS) if total else ""


def _suggestions() -> Group:
    inputs = " ".join(_INPUTS)
    return Group(
        Text("\nNext, without root: change a file in tests/demo/shop and see what that would do.", "bold"),
        Text(f"  kpx render {inputs} > before.save"),
        Text(f"  kpx diff {inputs} \\\n    --against before.save"),
    )


def _may_unshare() -> bool:
    try:
        return subprocess.run([*_USER_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _become_root_of_a_user_namespace() -> None:
    """Start this program anew, as the same process, where it may make network namespaces."""
    sys.stdout.flush()
    command = (*_USER_NAMESPACE, "sh", "-c", _OWN_RUN, "sh", sys.executable, "-m", "tests.demo")
    os.execvp(command[0], command)


def _dry_run(reason: str) -> int:
    _console.print(Text(f"No packets here: {reason}. These rules would be loaded:"), soft_wrap=True)
    _console.print(f"$ kpx render {' '.join(_INPUTS)}", style="bold", soft_wrap=True)
    rendered = dry_kpx("render", *_INPUTS)
    sys.stdout.write(rendered.stdout)
    sys.stderr.write(rendered.stderr)
    return rendered.returncode


if __name__ == "__main__":
    sys.exit(main())
