"""What a terminal shows when a command is run in it, as SVG."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import xml.etree.ElementTree as ElementTree
from html import escape
from io import StringIO

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from tests.lab.kpx import ROOT

COLUMNS, LINES = 84, 60

# Rich's own, without letters from somebody's server, and with a description.
_FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" width="100%" style="max-width:{width}px" role="img" xmlns="http://www.w3.org/2000/svg">
<desc>DESCRIPTION</desc>
<style>.{unique_id}-matrix{{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:{char_height}px;line-height:{line_height}px}} .{unique_id}-title{{font:bold 18px "Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif}} {styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""  # noqa: E501


def run(*command: str) -> str:
    """What a command writes to a terminal, colours included. Raises CalledProcessError if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    written = bytearray()
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:
        pass  # the other end is closed: Linux says so with EIO
    finally:
        os.close(ours)
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, command, written.decode())
    return written.decode().replace("\r\n", "\n")


def kpx(*arguments: str) -> str:
    """The same of `kpx ARGUMENTS`."""
    return run(sys.executable, "-m", "kpx", *arguments)


def svg(typed: str, shown: str) -> str:
    """A picture of a terminal in which `typed` was entered. The same texts give the same bytes."""
    text = Text.assemble(("$ ", "dim"), (typed, "bold"), "\n") + Text.from_ansi(shown.rstrip())
    console = Console(width=COLUMNS, record=True, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text, soft_wrap=True)
    frame = _FRAME.replace("DESCRIPTION", escape(text.plain).replace("{", "{{").replace("}", "}}"))
    return console.export_svg(title="", theme=DIMMED_MONOKAI, code_format=frame, unique_id="kpx")


def described(picture: str) -> str:
    """What a picture of a terminal shows, as text."""
    found = ElementTree.fromstring(picture).find("{http://www.w3.org/2000/svg}desc")
    return (found.text or "") if found is not None else ""


def masked(words: str) -> str:
    """A text without what chance, the clock and the host decide: shares, seconds, and the backend of iptables."""
    return re.sub(r" *\d+:\d+:\d+|\d+\.\d+ s|nft|legacy", "…", words)
