"""What to do about a finding. Values: an act that a program could carry out, and the words for people.

No advice may do harm. What a proxy should have written, it writes again; nobody is told to delete or move a proxy's own
rules, or to put them before rules that other programs, such as NetworkPolicies, need to see packets first.
"""

from dataclasses import dataclass
from enum import StrEnum


class Act(StrEnum):
    """What is to be done.

    REWRITE: `kpx apply`. DELETE_RULE: delete the rule that the finding is about. DELETE_CHAIN: delete its chain, or
    `chain`, with the rules that lead there. MOVE_BEHIND: move the rule behind the proxy's jump to `chain`. NARROW:
    write the rule so that it leaves alone what it shouldn't take. EMPTY_BACKEND: `kpx cleanup --backend`. CLAIM_LESS:
    take an address out of a Service, then `kpx apply`. ACCEPT: have a last rule accept pods' packets. NOTHING: it is
    right as it is.
    """

    REWRITE = "rewrite"
    DELETE_RULE = "delete-rule"
    DELETE_CHAIN = "delete-chain"
    MOVE_BEHIND = "move-behind"
    NARROW = "narrow"
    EMPTY_BACKEND = "empty-backend"
    CLAIM_LESS = "claim-less"
    ACCEPT = "accept"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Advice:
    """An act and its words. `chain` is the one that the act is about, where it isn't the finding's."""

    act: Act
    words: str
    chain: str = ""

    def __str__(self) -> str:
        return self.words


CHAIN_AGAIN = Advice(Act.REWRITE, "Have the proxy write the chain again (`kpx apply`).")
JUMPS_AGAIN = Advice(Act.REWRITE, "Have the proxy write its jumps again (`kpx apply`).")
ONCE_AGAIN = Advice(
    Act.REWRITE,
    "Have the proxy write the chain again (`kpx apply`), each rule once; if they come back, look for what adds them.",
)
MIXED_VERSIONS = Advice(
    Act.REWRITE,
    "Have the proxy write the chain again (`kpx apply`). If it comes back: are there iptables of different versions on "
    "the node and in containers? One can't read what another wrote (kubernetes/kubernetes #114537).",
)
REFUSED = Advice(Act.DELETE_RULE, "Delete the rule; the kernel refuses rules like this.")
REFUSED_OURS = Advice(Act.REWRITE, "Have the proxy write its rules again (`kpx apply`); the kernel refuses these.")
ONE_OF_THEM = Advice(
    Act.DELETE_RULE, "Delete all but one of them; two programs, or two runs of one, may have added it."
)
NEWER_PROXY = Advice(
    Act.REWRITE, "Only kubelet before 1.28 keeps these rules; a newer kubelet needs a newer proxy (`kpx apply`)."
)
LEFT = Advice(
    Act.REWRITE,
    "`kpx apply` removes chains like this; if it should serve, find out who removed the jump to it.",
)
UNUSED = Advice(Act.DELETE_CHAIN, "Ask the program that made the chain; if nobody needs it, delete it.")
OLD_MODE = Advice(
    Act.DELETE_CHAIN,
    "If that proxy no longer runs here, have it clean up (`kube-proxy --cleanup`) or delete the chain.",
)
STRANGER = Advice(
    Act.DELETE_RULE,
    "Delete this rule, which no Service proxy writes, and find out who added it; leave the proxy's own as they are.",
)
LOST_MATCH = Advice(
    Act.DELETE_RULE,
    "Delete this rule, and no other. It asked for a mark once: an iptables of another version, in a container or of "
    "kubelet, has lost that (1.8.7 beside 1.8.8; kubernetes/kubernetes #112477), and may do so again.",
)
NARROWED = Advice(
    Act.NARROW,
    "If these packets should pass, narrow this rule so that it leaves them alone. The proxy's jumps are right where "
    "they are: before it, they could let past what others are to filter.",
)

ACCEPTED = Advice(
    Act.ACCEPT,
    "See that a rule accepts what pods send and get, as network plugins do: at the end of the chain, behind the rules "
    "of NetworkPolicies (iptables -A FORWARD -s PODS -j ACCEPT, and the same with -d).",
)
LED = Advice(Act.REWRITE, "The proxy has to write its rules again (`kpx apply`).")


def move_behind(chain: str) -> Advice:
    """For rules of others that take what a proxy's chain should decide on, where that takes nothing of theirs."""
    return Advice(
        Act.MOVE_BEHIND, f"Move this rule behind the jump to {chain}, or narrow it; leave the jump where it is.", chain
    )


def held_by(chain: str) -> Advice:
    """For chains of a proxy's that another program's chain leads to."""
    return Advice(
        Act.DELETE_CHAIN,
        f"{chain} of another program leads there, so the proxy leaves it: if nobody needs {chain}, delete that; then "
        "`kpx apply`.",
        chain,
    )


def claim_less(whom: str, field: str) -> Advice:
    """For an address that is asked for twice."""
    return Advice(Act.CLAIM_LESS, f"Take the address out of {field} of {whom}, then have the proxy write its rules.")


def empty_backend(backends: str) -> Advice:
    """For rules in two backends."""
    return Advice(
        Act.EMPTY_BACKEND,
        f"Find out which of {backends} the proxy writes to, and empty the other (`kpx cleanup --backend ...`).",
    )


def intended(words: str) -> Advice:
    """For what is right as it is, and worth knowing."""
    return Advice(Act.NOTHING, words)
