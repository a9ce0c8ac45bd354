"""Writing rules, and seeing that the kernel holds them. Nothing counts as written because a tool ended with status 0.

On nft the kernel's notifications tell what each commit did (`kpx.netfilter.witness`); where they don't settle it, the
chains that the payload names are read back. On legacy, whose kernel tells nobody, they are looked at before and after.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from kpx.errors import KpxError
from kpx.netfilter.deeds import sections
from kpx.netfilter.legacy_witness import LegacyWitness
from kpx.netfilter.readback import Leaves, differing, leaves
from kpx.netfilter.reading import read_chains
from kpx.netfilter.refusal import UnconfirmedError
from kpx.netfilter.save import SavedChain
from kpx.netfilter.tools import Backend, Tools
from kpx.netfilter.witness import Witness


class _Proof(Protocol):
    """Sees whether what is expected is done."""

    def announced(self, pieces: Iterable[str]) -> Iterator[str]:
        """The payload, given in pieces of whole sections, as it is to be fed to the tool."""

    def missing(self) -> Sequence[str]:
        """What hasn't been done, in words, once the tool has ended."""


def restore(tools: Tools, payload: str | Iterable[str]) -> None:
    """`Tools.restore`, confirmed by the kernel.

    Raises RestoreError if the tool refuses the payload, ToolError if it can't work, and UnconfirmedError if it says
    that all went well and the kernel holds something else.
    """
    pieces = (payload,) if isinstance(payload, str) else payload
    with _proof(tools) as proof:
        tools.restore(proof.announced(pieces))
        missing = proof.missing()
    if missing:
        raise UnconfirmedError(f"{tools.program}-restore", missing)


def _proof(tools: Tools) -> AbstractContextManager[_Proof]:
    return _NftProof(tools) if tools.backend is Backend.NFT else LegacyWitness(tools.family)


class _NftProof:
    """The kernel's notifications; what the chains hold where these don't say that all is done."""

    def __init__(self, tools: Tools) -> None:
        self._tools, self._witness = tools, Witness(tools.family)
        self._fed: list[str] = []

    def announced(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            self._fed.append(piece)
            self._witness.expect(sections(piece))
            yield piece

    def missing(self) -> Sequence[str]:
        if not self._witness.missing():
            return ()
        left = leaves("".join(self._fed))
        try:
            return tuple(differing(left, _live(self._tools, left), self._tools.family))
        except KpxError as error:
            return (f"and it can't be read back: {error}",)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._witness.close()


def _live(tools: Tools, left: Leaves) -> Mapping[str, Mapping[str, SavedChain | None]]:
    return {table: read_chains(tools, table, tuple(chains)) for table, chains in left.items()}
