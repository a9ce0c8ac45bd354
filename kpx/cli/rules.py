"""Rules to ask questions about: those in the kernel, those that manifests compile to, or a dump's. For any command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar

from kpx import host
from kpx.analysis.packet import Host
from kpx.analysis.setting import About, setting_of
from kpx.analysis.simulate import Simulator, tables_of, tables_of_save, translated_to
from kpx.api import Node
from kpx.cli.dumps import STDIN, Dump, load_dump
from kpx.cli.inputs import Inputs, read_inputs, tools_for
from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.node import node_view
from kpx.netfilter.reading import BUILT_IN, read_tables, unreadable
from kpx.netfilter.save import Saved

Command = TypeVar("Command", bound=Callable[..., Any])

NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Held:
    """Rules of one family: where they are from, in words, and what tells the way of a packet through them.

    Where the host's addresses aren't known, those that the rules translate to are taken to be others'.

    `saved` is what a dump or the kernel told, None if the rules were compiled. `notes` is what one has to know of a
    dump before any answer.
    """

    origin: str
    simulator: Simulator
    saved: Saved | None = None
    notes: tuple[str, ...] = ()

    @property
    def pods(self) -> str | None:
        """The interfaces by which only pods come in, as rules write them; None if the rules don't tell."""
        found = setting_of(self.simulator.tables).pods if self.saved else ()
        return found[0] if len(found) == 1 else None

    @property
    def about(self) -> About:
        """What one has to know of these rules before any answer."""
        unread = (f"{why}: what it does isn't known" for why in self.simulator.unread.values())
        setting = "" if self.saved is None else str(setting_of(self.simulator.tables))
        return About(setting=setting, unread=tuple(unread), notes=self.notes)

    def require_whole(self) -> None:
        """Raise KpxError if a table could not be read, for a command that compares rules."""
        if self.simulator.unread:
            why = ", and ".join(self.simulator.unread.values())
            raise KpxError(f"{self.origin}: {why}: what isn't there can't be compared; give all of iptables-save")


@dataclass(frozen=True)
class RuleSource:
    """Where the options of `rule_options` say that rules are to be found.

    Of what they name, a dump comes before the kernel, and the kernel before manifests; without any it is the kernel.
    """

    files: tuple[str, ...]
    node: str | None
    config_file: str | None
    layout: str
    keep_going: bool
    rules: str | None
    live: bool
    backend: str
    node_addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rules is not None and self.live:
            raise KpxError("--rules and --live: choose one of them")
        if self.rules == STDIN and STDIN in self.files:
            raise KpxError("--rules - and -f -: standard input can be read only once")

    @property
    def compiles(self) -> bool:
        """Whether the rules are those that manifests compile to."""
        return bool(self.files) and self.rules is None and not self.live

    @cached_property
    def inputs(self) -> Inputs | None:
        """The objects and the configuration; None if no manifests are named. Raises KpxError."""
        if not self.files:
            return None
        return read_inputs(self.files, self.node, self.config_file, self.layout, self.keep_going)

    def held(self, family: Family) -> Held:
        """The rules of a family. Raises KpxError; InputError if objects are unsound, unless told to keep going."""
        if self.compiles and self.inputs:
            ruleset = self.inputs.compile((family,)).rulesets[family]
            return Held("manifests", Simulator(tables_of(ruleset), family, self.host(family)))
        if self.rules is None:
            tools = tools_for(family, self.backend)
            saved = read_tables(tools, tuple(BUILT_IN))
            return Held(f"the kernel ({tools.backend})", self._simulator(saved, family, unreadable(tools)), saved)
        one = self._dump.of(family)
        return Held(self._dump.origin, self._simulator(one.saved, family, one.unread), one.saved, one.notes)

    def _simulator(self, saved: Saved, family: Family, unread: Mapping[str, str] = NOTHING) -> Simulator:
        tables, policies = tables_of_save(saved)
        host = self.host(family)
        if not host.known:
            host = Host(None, elsewhere=translated_to(tables))
        return Simulator(tables, family, host, policies, unread)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that there are rules of: those of a dump, else both."""
        return tuple(Family) if self.rules is None else self._dump.families

    @property
    def dump_family(self) -> Family | None:
        """The family of a dump; None if the rules are no dump's, or no address tells. Raises KpxError."""
        return None if self.rules is None else self._dump.saves[0].family

    def host(self, family: Family) -> Host:
        """The host that the rules act on: the addresses named, else those in the kernel, or of the Node object."""
        if self.node_addresses:
            return Host(self.node_addresses)
        if self.inputs:
            node = next((one for one in self.inputs.objects if _is_node(one, self.inputs.node_name)), None)
            if isinstance(node, Node):
                bound = self.inputs.config.bind_address
                addresses = node_view(self.inputs.node_name, family, node, bound).addresses
                return Host((*addresses, *(host.interface_addresses(family) if self.is_live else ())))
        return Host(host.interface_addresses(family) if self.is_live else None)

    @property
    def is_live(self) -> bool:
        """Whether the rules are those in the kernel."""
        return self.rules is None and not self.compiles

    @cached_property
    def _dump(self) -> Dump:
        return load_dump(self.rules or STDIN)


def _is_node(one: object, name: str) -> bool:
    return isinstance(one, Node) and one.metadata.name == name


def with_rules(command: Command) -> Callable[..., Any]:
    """Give a command a RuleSource as its first argument in place of what the options of `rule_options` say."""

    @wraps(command)
    def with_source(**values: Any) -> Any:
        source = RuleSource(**{name: values.pop(name) for name in RuleSource.__dataclass_fields__})
        return command(source, **values)

    return with_source
