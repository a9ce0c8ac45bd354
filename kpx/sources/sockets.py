"""TCP sockets that notice within 25 s that nobody is there any more."""

import socket

CONNECT_SECONDS = 10.0
"""How long it may take until there is a connection."""

KEEPALIVE = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,
}
"""Options of tcp(7): after 10 s of silence three probes, 5 s apart; 20 s without an acknowledgement are too long."""


def new_socket(address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """A socket for an address as getaddrinfo gives it."""
    made = socket.socket(address[0], address[1], address[2])
    watch_peer(made)
    return made


def watch_peer(made: socket.socket) -> None:
    """Let TCP see to it that the peer is alive."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
