"""The demo's expectations can fail."""

import pytest

from tests.demo.probes import DROPPED, ONE_POD, REFUSED, Expectation, evenly
from tests.lab import Answer, Outcome, Result
from tests.lab.client import Attempt

EVEN = evenly("a", "b")


def answered(**backends: int) -> Result:
    return Result(
        tuple(
            Attempt(Outcome.ANSWERED, Answer(name, 8080, "192.0.2.9"), 0.001)
            for name, count in backends.items()
            for _ in range(count)
        )
    )


def unanswered(outcome: Outcome, icmp: int = 0) -> Result:
    return Result((Attempt(outcome, None, 0.1),) * 10, icmp)


@pytest.mark.parametrize(
    ("expectation", "result", "holds"),
    [
        (EVEN, answered(a=150, b=150), True),
        (EVEN, answered(a=120, b=180), True),
        (EVEN, answered(a=100, b=200), False),
        (EVEN, answered(a=300), False),
        (EVEN, answered(a=100, b=100, c=100), False),
        (EVEN, unanswered(Outcome.TIMED_OUT), False),
        (ONE_POD, answered(a=300), True),
        (ONE_POD, answered(a=299, b=1), False),
        (REFUSED, unanswered(Outcome.REFUSED, icmp=10), True),
        (REFUSED, unanswered(Outcome.REFUSED), False),
        (REFUSED, unanswered(Outcome.TIMED_OUT), False),
        (DROPPED, unanswered(Outcome.TIMED_OUT), True),
        (DROPPED, answered(a=1), False),
    ],
)
def test_an_expectation_holds_only_for_what_it_says(expectation: Expectation, result: Result, holds: bool) -> None:
    assert expectation.holds(result) is holds
