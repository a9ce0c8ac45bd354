"""What endpoints are called: the names of their pods, as EndpointSlices tell them. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kpx import api
from kpx.analysis.picture import Picture
from kpx.family import Family, host_port
from kpx.model.endpoint import is_of, port_names, service_of, takes_over
from kpx.printable import printable


def pod_names(objects: Iterable[api.Object], family: Family) -> Mapping[tuple[str, str], str]:
    """Names of pods by service port (`namespace/name:port`) and endpoint (`address:port`)."""
    slices = (one for one in objects if isinstance(one, api.EndpointSlice) and is_of(one, family))
    found: dict[tuple[str, str], str] = {}
    for part in sorted(slices, key=lambda one: one.metadata.name):
        service = service_of(part)
        ports = [*port_names(part, service)] if service else []
        for one in part.endpoints:
            pod = one.target_ref.name if one.target_ref and one.target_ref.kind in (None, "Pod") else ""
            for name, number in ports:
                place = (str(name), host_port(one.addresses[0], number))
                if takes_over(one.conditions.terminating is True, place in found):
                    found[place] = pod
    return found


def with_pods(drawn: Picture, names: Mapping[tuple[str, str], str]) -> Picture:
    """The picture with the names of pods in the boxes of endpoints."""
    boxes = {
        key: replace(box, name=printable(names.get((box.group, box.title), ""))) if box.kind == "endpoint" else box
        for key, box in drawn.boxes.items()
    }
    return Picture(boxes, drawn.arrows)
