"""Which Services and EndpointSlices a kube-proxy serves, by their labels and cluster IP; what to ask a server for.

As kube-proxy 1.36 selects (`cmd/kube-proxy/app/server.go`): Services that aren't another proxy's and whose cluster IP
isn't `None`, whatever the label says that marks slices of headless Services; and of the slices all but these, whatever
their other labels say. A slice inherits its Service's labels, but is used only if its Service is served.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kpx.api.endpointslice import EndpointSlice
from kpx.api.service import HEADLESS, Service

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
"""On a Service: another proxy than kube-proxy serves it."""

HEADLESS_LABEL = "service.kubernetes.io/headless"
"""On an EndpointSlice: it belongs to a Service without a cluster IP."""


@dataclass(frozen=True, slots=True)
class Selectors:
    """Selectors for a list or a watch. Old servers refuse `fields`; what comes without them does no harm."""

    labels: str
    fields: str = ""


SERVICES = Selectors(labels=f"!{PROXY_NAME_LABEL}", fields=f"spec.clusterIP!={HEADLESS}")
SLICES = Selectors(labels=f"!{HEADLESS_LABEL}")


def serves(service: Service) -> bool:
    """Whether a Service is kube-proxy's to serve: not another proxy's, not headless, not only a name in DNS."""
    return not (is_left_to_another(service.metadata.labels) or is_headless(service) or _is_external_name(service))


def uses(endpoint_slice: EndpointSlice) -> bool:
    """Whether the endpoints of a slice count where its Service is served."""
    return HEADLESS_LABEL not in endpoint_slice.metadata.labels


def is_left_to_another(labels: Mapping[str, str]) -> bool:
    """Whether a Service with these labels is another proxy's."""
    return PROXY_NAME_LABEL in labels


def is_headless(service: Service) -> bool:
    """Whether a Service wants no cluster IP."""
    return service.spec.cluster_ip == HEADLESS


def _is_external_name(service: Service) -> bool:
    return service.spec.type == "ExternalName"
