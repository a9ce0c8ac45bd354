"""What can go wrong for a reason that the user can mend."""

from collections.abc import Iterable
from dataclasses import dataclass


class KpxError(Exception):
    """Bad input or a bad environment: commands print it in one line and exit with status 2."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one input object.

    `subject` names the object as operators do (`Service shop/web`, or a file), `path` the field in the
    object's own spelling (`spec.ports[0].port`, empty for the whole object), `value` what stood there.
    """

    subject: str
    message: str
    path: str = ""
    value: object = None

    def __str__(self) -> str:
        field = f" {self.path}:" if self.path else ""
        value = "" if self.value is None else f" (got {_short(self.value)})"
        return f"{self.subject}:{field} {self.message}{value}"


class InputError(KpxError):
    """One or more objects can't be used; `problems` says which and why."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
