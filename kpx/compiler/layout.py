"""The layouts that there are."""

from enum import StrEnum


class Layout(StrEnum):
    """How fragments are joined into a ruleset, the default first. Every layout gives every packet the same verdict."""

    TREE = "tree"
    CLASSIC = "classic"
