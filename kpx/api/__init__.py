"""The objects kpx reads, validated to the Kubernetes API's own grammar."""

from kpx.api.config import KubeProxyConfiguration
from kpx.api.endpointslice import Conditions, Endpoint, EndpointPort, EndpointSlice, Hints
from kpx.api.meta import ObjectMeta
from kpx.api.node import Node, NodeAddress
from kpx.api.parse import Object, parse_config, parse_object
from kpx.api.service import LoadBalancerIngress, Service, ServicePort, ServiceSpec

__all__ = [
    "Conditions",
    "Endpoint",
    "EndpointPort",
    "EndpointSlice",
    "Hints",
    "KubeProxyConfiguration",
    "LoadBalancerIngress",
    "Node",
    "NodeAddress",
    "Object",
    "ObjectMeta",
    "Service",
    "ServicePort",
    "ServiceSpec",
    "parse_config",
    "parse_object",
]
