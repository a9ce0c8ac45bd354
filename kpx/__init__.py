"""kpx: Kubernetes Services as iptables rules.

The compiler is a function from objects to a ruleset:

    import kpx
    from kpx.sources import manifests

    objects = manifests.load(["shop/"]).objects
    ruleset = kpx.compile(objects, kpx.parse_config(open("config.yaml", "rb").read())[0], node_name="node-0")
    print(ruleset.tables["nat"].chains["KUBE-SERVICES"])
"""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from kpx.version import __version__

if TYPE_CHECKING:
    from kpx.api import KubeProxyConfiguration, Object, parse_config, parse_object
    from kpx.compiler.compile import Layout
    from kpx.errors import InputError, KpxError, Problem
    from kpx.family import Family
    from kpx.netfilter.ruleset import Ruleset, Table

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


_HOMES = {
    "Family": "kpx.family",
    "InputError": "kpx.errors",
    "KpxError": "kpx.errors",
    "KubeProxyConfiguration": "kpx.api",
    "Layout": "kpx.compiler.compile",
    "Object": "kpx.api",
    "Problem": "kpx.errors",
    "Ruleset": "kpx.netfilter.ruleset",
    "Table": "kpx.netfilter.ruleset",
    "parse_config": "kpx.api",
    "parse_object": "kpx.api",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is: the command line takes signals before it takes half a second to import."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kpx' has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def compile(
    objects: "Iterable[Object]",
    config: "KubeProxyConfiguration | None" = None,
    *,
    node_name: str = "",
    family: "Family | None" = None,
    layout: "Layout | None" = None,
) -> "Ruleset":
    """Compile Services, EndpointSlices and a Node into the ruleset of one family on one node.

    `node_name` is the node to compile for (default: the configuration's hostnameOverride); endpoints count as
    local by it. `family` is IPv4 and `layout` tree unless given. Raises InputError if two Services claim the same
    address and port or node port.
    """
    from kpx.api import KubeProxyConfiguration
    from kpx.compiler.compile import Layout, Target, compile_objects
    from kpx.family import Family

    settings = config or KubeProxyConfiguration()
    target = Target(node_name or settings.hostname_override, family or Family.IPV4, layout or Layout.TREE)
    return compile_objects(objects, settings, target)
