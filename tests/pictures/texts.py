"""What the pictures of terminals and of rules show."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.lab.kpx import dry_kpx
from tests.pictures import terminal

_SHOP = ("-f", "tests/demo/shop", "--config", "tests/demo/config.yaml")


@dataclass(frozen=True)
class Command:
    """What is typed, and what gives what is shown then."""

    typed: str
    shown: Callable[[], str]


def _demo() -> str:
    return terminal.run(sys.executable, "-m", "tests.demo")


def _explain() -> str:
    return terminal.kpx("explain", "shop/checkout", *_SHOP)


def _graph() -> str:
    done = dry_kpx("graph", *_SHOP)
    done.check_returncode()
    return done.stdout


COMMANDS: Mapping[str, Command] = {
    "demo.svg": Command("make demo", _demo),
    "explain.svg": Command(" ".join(("kpx explain shop/checkout", *_SHOP)), _explain),
}
DRAWN: Mapping[str, Callable[[], str]] = {"graph.svg": _graph}
