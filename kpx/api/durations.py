"""Go durations (`1h2m3.5s`) as seconds."""

import re
from typing import Annotated

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_STEP = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"([-+]?)(0|(?:{_STEP.pattern})+)")
_MOST = float(1 << 63) * 1e-9


def seconds(text: str) -> float:
    """Seconds of a Go duration; `ValueError` for what `time.ParseDuration` refuses.

    >>> seconds("1h2m3.5s")
    3723.5
    """
    parts = _DURATION.fullmatch(text)
    if not parts or len(text) > 100:
        raise ValueError(f"not a duration: {text!r}")
    total = sum(float(number) * _UNITS[unit] for number, unit in _STEP.findall(text))
    if total >= _MOST:  # time.Duration is an int64 of nanoseconds
        raise ValueError(f"duration out of range: {text!r}")
    return -total if parts[1] == "-" else total


def _duration(value: object) -> float:
    try:
        return seconds(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise PydanticCustomError("duration", "must be a duration such as 30s or 1h5m") from None


def _nanoseconds_or_duration(value: object) -> float:
    return value * 1e-9 if type(value) is int and abs(value) < 1 << 63 else _duration(value)


Seconds = Annotated[float, PlainValidator(_duration)]
"""A duration in seconds; in a document, text such as `1m30s`."""
FlushSeconds = Annotated[float, PlainValidator(_nanoseconds_or_duration)]
"""A duration in seconds; in a document, text, or a number of nanoseconds."""
