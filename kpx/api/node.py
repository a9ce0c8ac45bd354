"""Node (v1)."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from kpx.api.addresses import Cidr, canonical
from kpx.api.grammar import FreeText, Items, LabelKey, LabelValue, Part, Unset, Word
from kpx.api.meta import ObjectMeta

_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")


class Taint(Part):
    """A taint on a node."""

    key: LabelKey
    value: Annotated[LabelValue, Unset("")] = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class NodeSpec(Part):
    """What a node is told: its pod networks and taints."""

    pod_cidr: Annotated[Cidr, Unset(None)] | None = None
    pod_cidrs: Items[Cidr] = ()
    taints: Items[Taint] = ()


class NodeAddress(Part):
    """An address of a node, of a type such as `InternalIP`, `ExternalIP` or `Hostname`."""

    type: Word
    address: FreeText


def _usable(addresses: tuple[NodeAddress, ...]) -> tuple[NodeAddress, ...]:
    """Those addresses that are what their type says, in canonical text.

    The API server stores whatever a kubelet or a cloud reports here, and kube-proxy passes over what it can't
    parse; so do we.
    """
    return tuple(
        NodeAddress(type=entry.type, address=text) for entry in addresses if (text := _text(entry)) is not None
    )


def _text(entry: NodeAddress) -> str | None:
    if entry.type.endswith("IP"):
        return canonical(entry.address)
    return entry.address if _HOST_NAME.fullmatch(entry.address) else None


class NodeStatus(Part):
    """Observed state of a node; addresses that aren't what their type says are left out."""

    addresses: Annotated[Items[NodeAddress], AfterValidator(_usable)] = ()


class Node(Part):
    """A Node."""

    metadata: ObjectMeta
    spec: Annotated[NodeSpec, Unset(NodeSpec())] = NodeSpec()
    status: Annotated[NodeStatus, Unset(NodeStatus())] = NodeStatus()
