"""A ruleset as one HTML page that needs nothing else: search a Service, walk its chains, send a trace."""

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from typing import Any, Literal

from kpx.analysis.fold import folded
from kpx.analysis.picture import Picture
from kpx.analysis.simulate import Simulator
from kpx.netfilter.options import Option
from kpx.netfilter.rule import Match, Rule, RuleError, normal_rule, parse_rule
from kpx.printable import printable


@dataclass(frozen=True, slots=True)
class Trouble:
    """That packets to a service port don't all get to an endpoint.

    `broken`: none of them does; `partly`: some don't; `unknown`: of some it can't be known. `word` says it in a list,
    `says` in full, a kind of packet each.
    """

    level: Literal["broken", "partly", "unknown"]
    word: str
    says: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """What the page shows of one family: its rules, their picture, and what is wrong with service ports."""

    simulator: Simulator
    drawn: Picture
    troubles: Mapping[str, Trouble] = field(default_factory=dict)


def page(
    simulator: Simulator,
    drawn: Picture,
    origin: str,
    troubles: Mapping[str, Trouble] | None = None,
    others: Sequence[Side] = (),
) -> str:
    """The page about the rules that a simulator holds; `origin` says in words where they are from.

    `others` are the rules of other families: one family is shown at a time, this one first.
    """
    sides = (Side(simulator, drawn, troubles or {}), *others)
    parts = {one.name: one for one in files(__package__).iterdir()}
    values = {
        "TITLE": escape(f"kpx: {printable(origin)}"),
        "STYLE": parts["page.css"].read_text("utf-8"),
        "DATA": "\n".join(map(_script, sides)),
        "SCRIPTS": "\n".join(parts[name].read_text("utf-8") for name in _SCRIPTS),
    }
    return re.sub(r"%([A-Z]+)%", lambda found: values[found[1]], parts["page.html"].read_text("utf-8"))


_SCRIPTS = ("walk.js", "draw.js", "side.js", "view.js", "ask.js", "answer.js", "page.js")


def _script(side: Side) -> str:
    simulator = side.simulator
    family = simulator.family.value
    data = {
        "family": family,
        "host": list(simulator.host.addresses(simulator.family)) if simulator.host.known else None,
        "unread": {table: printable(why) for table, why in simulator.unread.items()},
        "policies": {f"{table} {chain}": policy for (table, chain), policy in simulator.policies.items()},
        "tables": _tables(simulator),
        "picture": _picture(side.drawn, folded(side.drawn)),
        "troubles": {group: asdict(trouble) for group, trouble in side.troubles.items()},
    }
    return f'<script type="text/plain" data-family="{family}">{_packed(data)}</script>'


def _packed(data: Mapping[str, Any]) -> str:
    """JSON in a tenth of its size, without a character that HTML would act on; the same data gives the same text."""
    return b64encode(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 5, mtime=0)).decode()


def _tables(simulator: Simulator) -> Mapping[str, Any]:
    return {
        table: {chain: [_rule(text, simulator) for text in rules] for chain, rules in chains.items()}
        for table, chains in simulator.tables.items()
    }


def _rule(text: str, simulator: Simulator) -> Sequence[Any]:
    """The text of a rule, and its parts: head, matches, target, options of the target, whether it is a goto.

    Where the text is no rule, `?` is a match and a target that nobody knows.
    """
    try:
        rule = normal_rule(parse_rule(text), simulator.family)
    except RuleError:
        rule = Rule(matches=(Match("?"),), target="?")
    matches = [[one.module, _options(one.options)] for one in rule.matches if one.module != "comment"]
    return [
        printable(text), _options(rule.head), matches, rule.target or "", _options(rule.target_options), int(rule.goto)
    ]  # fmt: skip


def _options(options: Sequence[Option]) -> Sequence[Any]:
    return [[one.name, int(one.negated), *one.values] for one in options]


def _picture(whole: Picture, drawn: Picture) -> Mapping[str, Any]:
    return {
        "boxes": [
            [
                box.id,
                box.kind,
                box.title,
                list(box.lines),
                box.group,
                box.table,
                box.chain,
                box.position,
                [[one, whole.boxes[one].title] for one in box.stands_for],
                [*box.rules, *(rule for one in box.stands_for for rule in whole.boxes[one].rules)],
                box.name,
            ]
            for box in drawn.boxes.values()
        ],
        "arrows": [[one.source, one.target, one.label, int(one.seldom)] for one in drawn.arrows],
    }
