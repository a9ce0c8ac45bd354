"""What a browser shows of the page of `kpx graph --html`, as PNG."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.lab.kpx import dry_kpx

WIDTH, HEIGHT = 1280, 640
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BEFORE = b"Description\0" + b"\0\0\0\0"
"""Keyword, no compression, no language, no translated keyword."""
_SAID = "return [...document.querySelectorAll('nav, main, aside')].map(one => one.innerText).join('\\n')"


def page(folder: Path) -> Path:
    """The page of the demo's shop."""
    path = folder / "shop.html"
    done = dry_kpx(
        "graph", "--html", "-o", path, "-f", "tests/demo/shop", "--config", "tests/demo/config.yaml", "--node", "node-0"
    )
    done.check_returncode()
    return path


def opened(chrome: Chrome, path: Path, scheme: str = "light") -> str:
    """Open the page, send a packet to the shop's front end, show the rules of a chain; returns what the page says."""
    _emulate(chrome, scheme)
    chrome.get("about:blank")
    chrome.get(f"file://{quote(str(path))}#shop/front-end:http")
    WebDriverWait(chrome, 60).until(lambda one: one.find_element(By.ID, "name").text == "shop/front-end:http")
    field = chrome.find_element(By.ID, "packet")
    field.clear()
    field.send_keys("tcp 198.51.100.7 -> 10.96.0.10:80" + Keys.ENTER)
    WebDriverWait(chrome, 60).until(lambda one: one.find_elements(By.CSS_SELECTOR, "#result table"))
    next(one for one in chrome.find_elements(By.CSS_SELECTOR, ".box.chain") if "KUBE-SVC" in one.text).click()
    chrome.execute_script("document.activeElement.blur()")  # a caret blinks
    return str(chrome.execute_script(_SAID))


def shot(chrome: Chrome, path: Path, scheme: str) -> bytes:
    """A picture of the page, which says in words what it shows."""
    said = opened(chrome, path, scheme)
    return _with_description(chrome.get_screenshot_as_png(), said)


def described(picture: bytes) -> str:
    """What such a picture says."""
    return next((data[len(_BEFORE) :].decode() for kind, data in _chunks(picture) if _is_ours(kind, data)), "")


def _emulate(chrome: Chrome, scheme: str) -> None:
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chrome.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


# ---- PNG: https://www.w3.org/TR/png/#11textinfo ----


def _with_description(picture: bytes, words: str) -> bytes:
    """The picture with a text in it, behind its head."""
    head, *rest = _chunks(picture)
    text = (b"iTXt", _BEFORE + words.encode())
    return _SIGNATURE + b"".join(_chunk(*one) for one in (head, text, *rest))


def _is_ours(kind: bytes, data: bytes) -> bool:
    return kind == b"iTXt" and data.startswith(_BEFORE)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at < len(picture):
        (length,) = struct.unpack_from(">I", picture, at)
        yield picture[at + 4 : at + 8], picture[at + 8 : at + 8 + length]
        at += length + 12
