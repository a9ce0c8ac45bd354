"""What runs in the pods: to every connection and datagram on port 8080 it says `POD PORT CLIENT`.

Alone in its image, so it imports nothing of ours. On SIGTERM it goes on answering for some seconds, as a server does
that wants to lose no connection: its endpoint is still in some rules.
"""

import os
import selectors
import signal
import socket
import sys
import threading

PORT = 8080
GRACE = 8.0


def main() -> None:
    name = socket.gethostname()
    selector = selectors.DefaultSelector()
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", PORT))
        if kind is socket.SOCK_STREAM:
            sock.listen(1024)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(GRACE, os._exit, (0,)).start())
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            _answer(key.fileobj, name)


def _answer(sock: socket.socket, name: str) -> None:
    try:
        if sock.type == socket.SOCK_STREAM:
            connection, peer = sock.accept()
            with connection:
                connection.sendall(_text(name, peer[0]))
        else:
            _, peer = sock.recvfrom(2048)
            sock.sendto(_text(name, peer[0]), peer)
    except OSError as error:
        print(error, file=sys.stderr)


def _text(name: str, client: str) -> bytes:
    return f"{name} {PORT} {client.removeprefix('::ffff:')}\n".encode()


if __name__ == "__main__":
    main()
