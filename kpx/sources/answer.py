"""An answer of a server, whatever transport has brought it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Its head, and its body as it comes, unpacked; names of `headers` are in lower case.

    `pinged`: whether the transport asks whether the server is alive where it is silent. Reading `body` raises only
    what `diagnose` knows.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    pinged: bool = False

    @property
    def media_type(self) -> str:
        """What its content is, without parameters, in lower case; empty if it doesn't say."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()
