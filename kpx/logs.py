"""Logging: structlog to standard error, for people or as JSON."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from kpx.printable import printable


def configure(json: bool = False, level: int = logging.INFO) -> None:
    """Send all log events to standard error, as lines for people or (`json`) as one JSON object a line."""
    last: tuple[Processor, ...] = (_line,)
    if json:
        last = (structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer())
    structlog.configure(
        processors=[structlog.processors.add_log_level, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """`[level] event key=value …`, keys in the order of the call: what people paste into tickets."""
    level, what = event.pop("level"), event.pop("event")
    line = " ".join([f"[{level}] {what}", *(f"{key}={value}" for key, value in event.items() if value is not None)])
    return printable(line)
