"""The program behind `Backends`: answers on sockets that it inherits, until its stdin is closed.

Runs alone (`python -I answering.py FD:PORT:NAME...`), so it imports nothing of the lab. To every TCP connection and
UDP datagram it says `NAME PORT CLIENT\n`: who answers, on which port, and the address that the client came from. Once
it answers, it prints `ready`.
"""

import selectors
import socket
import sys
from contextlib import suppress
from functools import partial


def _answer_connections(listener: socket.socket, name: str) -> None:
    with suppress(BlockingIOError):
        while True:
            connection, peer = listener.accept()
            # A client that has gone already takes no answer, and wants none.
            with connection, suppress(OSError):
                connection.sendall(f"{name} {peer[0]}\n".encode())


def _answer_datagrams(endpoint: socket.socket, name: str) -> None:
    with suppress(BlockingIOError):
        while True:
            _, peer = endpoint.recvfrom(2048)
            with suppress(OSError):
                endpoint.sendto(f"{name} {peer[0]}\n".encode(), peer)


def main(arguments: list[str]) -> None:
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    for argument in arguments:
        fd, port, name = argument.split(":", 2)
        sock = socket.socket(fileno=int(fd))
        sock.setblocking(False)
        answer = _answer_connections if sock.type is socket.SOCK_STREAM else _answer_datagrams
        selector.register(sock, selectors.EVENT_READ, partial(answer, sock, f"{name} {port}"))
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            key.data()


if __name__ == "__main__":
    main(sys.argv[1:])
