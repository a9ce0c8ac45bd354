"""Does this host take the rules of a layout?"""

from kpx.compiler.compile import Layout
from kpx.compiler.hairpin import to_itself
from kpx.errors import KpxError
from kpx.netfilter.tools import Tools
from kpx.netfilter.trial import refusal


def check_layout(layout: Layout, tools: Tools) -> None:
    """Try what only this layout needs. Raises KpxError, which says what to do instead, if the host doesn't take it."""
    if layout is not Layout.COMPACT:
        return
    why = refusal(tools, to_itself(tools.family))
    if why:
        raise KpxError(
            f"this host can't have the layout {layout}: {tools.program} or the kernel doesn't take `-m bpf`, by which "
            f"pods that reach themselves are told ({why}). Use --layout {Layout.TREE}, or load the module xt_bpf"
        )
