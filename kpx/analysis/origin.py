"""Where packets come from."""

from enum import StrEnum


class Origin(StrEnum):
    """Where a packet comes from: it enters the host from a pod or from outside, or the host itself sends it."""

    POD = "pod"
    OUTSIDE = "outside"
    NODE = "node"
