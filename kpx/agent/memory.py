"""The process' memory, once the first load is done."""

import ctypes
import gc
from contextlib import suppress


def settle() -> None:
    """Start the garbage collector, which the command line keeps off, and let it pass over what is there already.

    While caches fill it would walk through them again and again: at 20,000 objects it stalls the loop for a second.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    trim()


def trim() -> None:
    """Give back to the kernel what glibc keeps of large texts that are gone; other C libraries have no such call."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
