"""A Kubernetes API server for tests: over real HTTP(S), true to the protocol, and wrong on demand.

with ApiServer(tls=True) as server:
    server.put(service)
    server.kubeconfig(path)
    server.faults = Faults(drop_mid_line=0.05, throttle=Next(3), seed=1)
"""

from .access import ALLOW_ALL, NODE_PROXIER, Auth, Rule
from .churn import Change, churn, node_objects, population
from .faults import Faults, Next
from .process import ApiServerProcess
from .server import ApiServer
from .state import Promises, Stats, WatchInfo
from .wire import Request

__all__ = [
    "ALLOW_ALL",
    "NODE_PROXIER",
    "ApiServer",
    "ApiServerProcess",
    "Auth",
    "Change",
    "Faults",
    "Next",
    "Promises",
    "Request",
    "Rule",
    "Stats",
    "WatchInfo",
    "churn",
    "node_objects",
    "population",
]
