"""kpx: Kubernetes Services as iptables rules.

The compiler is a function from objects to a ruleset:

    import kpx
    from kpx.sources import manifests

    objects = manifests.load(["shop/"]).objects
    ruleset = kpx.compile(objects, kpx.parse_config(open("config.yaml", "rb").read())[0], node_name="node-0")
    print(ruleset.tables["nat"].chains["KUBE-SERVICES"])
"""

from collections.abc import Iterable

from kpx.api import KubeProxyConfiguration, Object, parse_config, parse_object
from kpx.compiler.compile import Layout, Target, compile_objects
from kpx.errors import InputError, KpxError, Problem
from kpx.family import Family
from kpx.netfilter.ruleset import Ruleset, Table
from kpx.version import __version__

__all__ = [
    "Family",
    "InputError",
    "KpxError",
    "KubeProxyConfiguration",
    "Layout",
    "Object",
    "Problem",
    "Ruleset",
    "Table",
    "__version__",
    "compile",
    "parse_config",
    "parse_object",
]


def compile(
    objects: Iterable[Object],
    config: KubeProxyConfiguration | None = None,
    *,
    node_name: str = "",
    family: Family = Family.IPV4,
    layout: Layout = Layout.TREE,
) -> Ruleset:
    """Compile Services, EndpointSlices and a Node into the ruleset of one family on one node.

    `node_name` is the node to compile for (default: the configuration's hostnameOverride); endpoints count as
    local by it. Raises InputError if two Services claim the same address and port or node port.
    """
    settings = config or KubeProxyConfiguration()
    target = Target(node_name or settings.hostname_override, family, layout)
    return compile_objects(objects, settings, target)
