"""Open files are few: who may have how many. What syncing and its tools need is never lent to anybody else."""

import resource

RESERVE = 256
"""Files for all but HTTP: pipes to tools, netlink sockets, connections to the API server, logs."""
SHARE = 8
"""One in so many of the others is for connections, and as many for those that come and go; the rest is for listening
sockets."""
MOST = 256
"""Connections, at most, however many files there may be."""


def raise_limit() -> None:
    """Let this process open as many files as it is allowed to ask for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections() -> int:
    """How many connections may be open at a time, on all ports together."""
    return min(MOST, max(8, (_limit() - RESERVE) // SHARE))


def listeners() -> int:
    """How many sockets may listen for health checks of Services, in both families together."""
    return max(0, _limit() - RESERVE - connections())


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
