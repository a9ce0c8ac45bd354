"""Clients that ask the API server all the time under somebody's token, so that it has no time for that somebody."""

import http.client
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.cluster.control import Control
from tests.cluster.layout import API_PORT, CONTROL

CLIENTS = 8
_HEADERS = {"User-Agent": "crowd", "Accept": "application/json"}


@contextmanager
def crowd(control: Control, token: str) -> Iterator[None]:
    """Ask for all Services again and again, over many connections at once."""
    ended = threading.Event()
    threads = [threading.Thread(target=_ask, args=(control, token, ended)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _ask(control: Control, token: str, ended: threading.Event) -> None:
    control.space.network.enter()
    context = ssl.create_default_context(cafile=str(control.pki.ca))
    while not ended.wait(0.01):
        connection = http.client.HTTPSConnection(CONTROL.ipv4, API_PORT, context=context, timeout=30)
        with suppress(OSError, http.client.HTTPException):  # it is killed meanwhile
            while not ended.is_set():
                connection.request("GET", "/api/v1/services", headers={**_HEADERS, "Authorization": f"Bearer {token}"})
                connection.getresponse().read()
        connection.close()
