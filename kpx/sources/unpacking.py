"""Bodies that were compressed on their way."""

import zlib
from collections.abc import AsyncIterator

from kpx.api.problems import plain
from kpx.sources.trouble import BrokenAnswerError, cut

_PIECE = 256 << 10
"""Bytes that are unpacked at once: a thousandth of them may have come."""
_GZIP = 31


async def unpacked(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """A body as it was before it was packed (gzip, which is what we ask for). Raises `BrokenAnswerError`."""
    if encoding in ("", "identity"):
        async for chunk in body:
            yield chunk
        return
    if encoding != "gzip":
        raise BrokenAnswerError(f"content encoding {cut(plain(encoding))} instead of gzip")
    unpacker = zlib.decompressobj(wbits=_GZIP)
    async for chunk in body:
        while chunk:
            try:
                piece = unpacker.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise BrokenAnswerError(f"no gzip: {error}") from None
            if piece:
                yield piece
            chunk = unpacker.unconsumed_tail if not unpacker.eof else b""
    if not unpacker.eof:
        raise BrokenAnswerError("no gzip: ends before its end")
