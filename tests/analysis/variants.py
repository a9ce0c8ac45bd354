"""Small clusters of several kinds, compiled in every layout."""

import kpx
from kpx.family import Family
from kpx.netfilter.ruleset import Ruleset
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG, town


def variant(services: int, seed: int, family: Family) -> tuple[Ruleset, Ruleset, Ruleset]:
    """`classic`, `tree` and `compact` for a cluster: with a bit of everything, affinity, or other ways to balance."""
    manifests = town(services, seed=seed)
    for number, one in enumerate(one for one in manifests if one["kind"] == "Service"):
        if seed % 3 == 1:
            one["spec"]["sessionAffinity"] = "ClientIP"
        if seed % 3 == 2:
            one["metadata"]["annotations"] = {"kpx.dev/balance": ("source-hash", "round-robin")[number % 2]}
    some = Input.of(manifests, CONFIG, family)
    if seed % 3 < 2:
        return some.classic(), some.tree(), some.compact()
    classic, tree, compact = (
        kpx.compile(some.objects, some.config, family=family, layout=one)
        for one in (kpx.Layout.CLASSIC, kpx.Layout.TREE, kpx.Layout.COMPACT)
    )
    return classic, tree, compact
