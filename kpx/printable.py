"""Texts from files and from the kernel, fit for a terminal and a log."""


def printable(text: str) -> str:
    """A text with nothing in it that a terminal would act on or can't show, in one line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def excerpt(text: str, limit: int = 100) -> str:
    """The same, and not longer than `limit` characters."""
    shown = printable(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
