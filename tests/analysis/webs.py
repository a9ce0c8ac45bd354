"""Chains that branch and join, lead back to themselves, or lie deep: what a text may hold, if not a kernel."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

from kpx.netfilter.ruleset import Rules

HALF = "-m statistic --mode random --probability 0.5"
ASKS = (HALF, "-m mark --mark 0x1/0x1", "-s 10.244.0.0/16", "-m set --match-set some src", "-i cali+", "")
"""What rules may ask for: chance, what is known, what isn't, nothing."""

SMALL = ("-j MARK --set-xmark 0x1/0x1", "-j MARK --set-xmark 0x2/0x2", "-j LOG")
ENDS = ("-j RETURN", "-j ACCEPT", "-p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080")

Chains = Mapping[str, Rules]


def ladder(count: int, rungs: Sequence[str], prefix: str = "C-", end: str = f"{HALF} -j RETURN") -> Chains:
    """Chains each of which leads to the next one by several rules: as many ways as rungs to the power of chains."""
    names = [_name(prefix, at) for at in range(count)]
    chains = {here: tuple(f"{asks} -j {there}".strip() for asks in rungs) for here, there in pairwise(names)}
    return {**chains, names[-1]: (end,)}


def web(seed: int, count: int, prefix: str = "C-", loops: bool = False) -> Chains:
    """Chains that lead to some that come later, or, with `loops`, to any."""
    pick = random.Random(seed)
    names = [_name(prefix, at) for at in range(count)]
    return {
        name: tuple(_rule(pick, names if loops else names[at + 1 :]) for _ in range(4)) for at, name in enumerate(names)
    }


def _rule(pick: random.Random, names: Sequence[str]) -> str:
    asks = pick.choice(ASKS)
    if names and pick.random() < 0.6:
        return f"{asks} -{pick.choice('jjg')} {pick.choice(names[:6])}".strip()
    return f"{asks} {pick.choice((*SMALL, *ENDS))}".strip()


def _name(prefix: str, at: int) -> str:
    """A name like those of a Service's chains, if the prefix is one of theirs."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    return f"{prefix}{'A' * 13}{letters[at // 1024]}{letters[at // 32 % 32]}{letters[at % 32]}"


def tables(chains: Chains, filtering: Chains | None = None) -> dict[str, dict[str, Rules]]:
    """A host with a Service whose first chain is the first of these, and with chains in front of forwarding."""
    first = next(iter(chains))
    entry = f'-d 10.96.0.50/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j {first}'
    filtering = filtering or {"F": ()}
    return {
        "nat": {
            "PREROUTING": ('-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',),
            "INPUT": (),
            "OUTPUT": ('-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',),
            "POSTROUTING": ("-j KUBE-POSTROUTING",),
            "KUBE-MARK-MASQ": ("-j MARK --set-xmark 0x4000/0x4000",),
            "KUBE-POSTROUTING": ("-m mark --mark 0x4000/0x4000 -j MASQUERADE",),
            "KUBE-PROXY-CANARY": (),
            "KUBE-SERVICES": (entry,),
            **chains,
        },
        "filter": {
            "INPUT": (),
            "FORWARD": (f"-j {next(iter(filtering))}", "-j KUBE-FORWARD"),
            "OUTPUT": (),
            "KUBE-FORWARD": ("-m mark --mark 0x4000/0x4000 -j ACCEPT",),
            **filtering,
        },
    }
