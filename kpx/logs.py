"""Logging: structlog to standard error, for people or as JSON.

structlog takes longer to import than most commands to run, and most have nothing to say. So it is imported with the
first line that is logged; nothing else in kpx imports it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kpx.printable import printable

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

DEBUG, INFO = 10, 20
"""Levels, those of `logging`."""


def configure(json: bool = False, level: int = INFO) -> None:
    """Send all log events to standard error, as lines for people or (`json`) as one JSON object a line."""
    _settings.append(_Settings(json, level))
    if "structlog" in sys.modules:
        load()


def load() -> None:
    """Import what logging needs, now: who runs for long may have neither memory nor files left later."""
    with _without("rich"):
        import structlog  # noqa: F401
    if _settings:
        _apply(_settings[-1])
        _settings.clear()


@dataclass(frozen=True, slots=True)
class _Settings:
    json: bool
    level: int


_settings: list[_Settings] = []
"""What was asked for and not done yet."""


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Let a package not be there. If rich is, structlog imports it, for tracebacks that nobody prints here."""
    absent = package not in sys.modules
    if absent:
        vars(sys)["modules"][package] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules[package]


class Logger:
    """Takes events as structlog's loggers do: a text, and values by name."""

    def debug(self, event: str, **values: object) -> None:
        """Details, for who asked for them."""
        _logger().debug(event, **values)

    def info(self, event: str, **values: object) -> None:
        """What is done."""
        _logger().info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """What may not be as it was meant."""
        _logger().warning(event, **values)

    def error(self, event: str, **values: object) -> None:
        """What is wrong."""
        _logger().error(event, **values)

    def exception(self, event: str, **values: object) -> None:
        """What is wrong, with the traceback of the exception that is being handled."""
        _logger().exception(event, **values)


_LOGGER = Logger()


def get_logger() -> Logger:
    """The logger of every module."""
    return _LOGGER


def _logger() -> "FilteringBoundLogger":
    load()
    import structlog

    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def _apply(settings: _Settings) -> None:
    import structlog

    last: tuple[Processor, ...] = (_line,)
    if settings.json:
        last = (structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer())
    structlog.configure(
        processors=[structlog.processors.add_log_level, *last],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _line(_: "WrappedLogger", __: str, event: "EventDict") -> str:
    """`[level] event key=value …`, keys in the order of the call: what people paste into tickets."""
    level, what = event.pop("level"), event.pop("event")
    line = " ".join([f"[{level}] {what}", *(f"{key}={value}" for key, value in event.items() if value is not None)])
    return printable(line)
