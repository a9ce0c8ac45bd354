"""Whose rule is it? The Service behind chains and rules, read from the rules themselves. Pure.

Works on any ruleset, kube-proxy's included: dispatch rules name their Service in the comment, and lead to its
chains. In large clusters that is the only place where it is named.
"""

import re
from collections.abc import Mapping

from kpx.netfilter.names import PER_PORT
from kpx.netfilter.rule import comment_of, target_of
from kpx.netfilter.ruleset import Rules

_SUBJECT = re.compile(r"(?:(?:masquerade|pod|route|other)\b.*? (?:for|to) )?([a-z0-9][^\s/]*/[^\s/]+)(?: |$)")


def rule_owner(rule: str) -> str | None:
    """The service port (`namespace/name:port`) that a rule's comment speaks of, if it does."""
    comment = comment_of(rule)
    match = _SUBJECT.match(comment) if comment else None
    return match[1] if match else None


def chain_owners(chains: Mapping[str, Rules]) -> dict[str, str]:
    """The service port behind each chain that belongs to one."""
    owners: dict[str, str] = {}
    edge: list[tuple[str, str]] = []
    for chain, rules in chains.items():
        if not is_own_chain(chain):
            for rule in rules:
                owner, target = rule_owner(rule), target_of(rule)
                if owner and target and is_own_chain(target):
                    edge.append((target, owner))
    while edge:
        chain, owner = edge.pop()
        if chain in owners or not is_own_chain(chain):
            continue
        owners[chain] = owner
        edge += ((target, owner) for rule in chains.get(chain, ()) if (target := target_of(rule)))
    return owners


def is_own_chain(chain: str) -> bool:
    """Whether a chain, by its name, belongs to one service port alone."""
    return chain.startswith(PER_PORT)
