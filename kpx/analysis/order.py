"""The orders in which Services are listed."""

from enum import StrEnum


class Order(StrEnum):
    """What comes first: the highest rate, the highest total, or the first name."""

    RATE = "rate"
    TOTAL = "total"
    NAME = "name"
