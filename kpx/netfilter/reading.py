from collections.abc import Iterable, Mapping

from kpx.netfilter.save import SavedChain, scan_save
from kpx.netfilter.tools import Tools


def read_chains(tools: Tools, table: str, names: Iterable[str], niceness: int = 0) -> Mapping[str, SavedChain | None]:
    saved = scan_save(tools.save(table))
    chains = saved[table].chains if table in saved else {}
    return {name: chains.get(name) for name in names}
