"""One rule tried on this host's tools and kernel. Nothing of it stays, and no packet meets it."""

from kpx.netfilter.refusal import RestoreError
from kpx.netfilter.tools import Tools

_CHAIN = "KPX-TRIAL"
_PAYLOAD = "*filter\n:{chain} - [0:0]\n-A {chain} {rule}\nCOMMIT\n*filter\n-F {chain}\n-X {chain}\nCOMMIT\n"
"""Two transactions: the tools don't even ask the kernel for a rule that the same one takes back. In the filter table,
which is small: on legacy it is copied whole."""


def refusal(tools: Tools, rule: str) -> str:
    """Why a rule of the filter table isn't taken, in one line; empty if it is. Raises ToolError if nobody can say."""
    try:
        tools.restore(_PAYLOAD.format(chain=_CHAIN, rule=rule))
    except RestoreError as error:
        return next((line for line in error.stderr.splitlines() if line.strip()), "without a word")
    return ""
