"""The layouts that there are."""

from enum import StrEnum


class Layout(StrEnum):
    """How fragments are made and joined into a ruleset, the default first. Every layout gives every packet the same
    verdict."""

    TREE = "tree"
    COMPACT = "compact"
    CLASSIC = "classic"

    @property
    def has_trees(self) -> bool:
        """Whether dispatch and choice are search trees, as long as there are many Services or endpoints."""
        return self is not Layout.CLASSIC
