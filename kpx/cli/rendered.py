"""What `kpx render` prints as JSON."""

from collections.abc import Mapping

from pydantic import Field

from kpx.cli.output import json_text
from kpx.family import Family
from kpx.netfilter.ruleset import Rules, Ruleset, TableName
from kpx.shape import Part


class RenderedTable(Part):
    """The rules of one table, in order, as iptables-save prints them behind `-A CHAIN`."""

    chains: Mapping[str, Rules] = Field(description="the proxy's own chains by their names")
    jumps: Mapping[str, Rules] = Field(description="what the proxy adds to built-in chains, by their names")


class Rendered(Part):
    """The rules of one IP family."""

    family: Family
    node: str = Field(description="the name of the node that they are for")
    tables: Mapping[TableName, RenderedTable]


SHAPE = Rendered


def rendered(ruleset: Ruleset, node_name: str) -> str:
    """The rules for a node as JSON."""
    tables = {name: RenderedTable(chains=table.chains, jumps=table.jumps) for name, table in ruleset.tables.items()}
    return json_text(Rendered(family=ruleset.family, node=node_name, tables=tables), Rendered) + "\n"
