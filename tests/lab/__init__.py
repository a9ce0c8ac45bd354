"""A Kubernetes node in network namespaces, with real servers in its pods and real clients around it.

    with Node() as node:
        web = node.pod("web-1", "10.244.0.10", "fd00:244::10")
        with Backends(web, tcp=[8080]):
            node.load(rules)                                    # or run kpx in node.host.namespace
            result = connect(node.client, "10.96.1.10", 80, count=100)
            assert result.backends == {"web-1": 100}

The namespaces have no names: this process holds them open by file descriptor, so the kernel removes them when
the process ends in whatever way, and labs that run side by side can't meet. Works as root, and as "root" of an
unprivileged user namespace.
"""

from tests.lab.backends import Backends
from tests.lab.client import Answer, Failure, Outcome, Protocol, Result, Traffic, connect, continuous
from tests.lab.namespace import LabError, Namespace, require
from tests.lab.node import Backend, Host, Node
from tests.lab.sctp import Arrival, send_sctp_init

__all__ = [
    "Answer",
    "Arrival",
    "Backend",
    "Backends",
    "Failure",
    "Host",
    "LabError",
    "Namespace",
    "Node",
    "Outcome",
    "Protocol",
    "Result",
    "Traffic",
    "connect",
    "continuous",
    "require",
    "send_sctp_init",
]
