"""Of the kubernetes client: configuration, authentication, transport.

Its packages import all that they have when any part of them is imported: a second client that is synchronous, OAuth,
WebSockets. That takes 9 MB of memory and a quarter of a second at every start, for nothing. So the parts are imported
as if `kubernetes/__init__.py` and `kubernetes/aio/__init__.py` were empty; whoever imports those later gets them whole.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def _bare(*packages: str) -> Iterator[None]:
    """Let packages be there, as far as they aren't yet, without what their `__init__.py` would import."""
    missing = [name for name in packages if name not in sys.modules]
    try:
        for name in missing:
            if spec := find_spec(name):
                sys.modules[name] = module_from_spec(spec)
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


with _bare("kubernetes", "kubernetes.aio"):
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.client.rest import RESTClientObject
    from kubernetes.aio.config.exec_provider import ExecProvider
    from kubernetes.aio.config.incluster_config import load_incluster_config
    from kubernetes.aio.config.kube_config import ConfigNode, KubeConfigLoader

__all__ = [
    "ConfigNode",
    "Configuration",
    "ExecProvider",
    "KubeConfigLoader",
    "RESTClientObject",
    "load_incluster_config",
]
