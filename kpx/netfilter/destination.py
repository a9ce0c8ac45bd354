"""Where a DNAT rule sends packets, and what is odd about it."""

from dataclasses import dataclass
from ipaddress import ip_address

from kpx.netfilter.options import Options

_KNOWN = frozenset({"--to-destination", "--random", "--persistent"})


@dataclass(frozen=True, slots=True)
class Destination:
    """An address and a port, both as they are written, and empty where a packet keeps its own.

    Ranges stay as they are written: `10.0.0.1-10.0.0.9`, `8080-8090`.
    """

    address: str
    port: str

    @property
    def is_one_address(self) -> bool:
        """Whether it names one address, which somebody can have."""
        return bool(self.address) and "-" not in self.address and not _is_nobodys(self.address)

    @classmethod
    def parsed(cls, value: str) -> "Destination":
        """The value of `--to-destination`: `10.0.0.1:80`, `[fd00::1]:80`, `:80`, `fd00::1`."""
        if value.startswith("["):
            address, _, port = value[1:].partition("]")
            return cls(address, port.removeprefix(":"))
        if value.count(":") > 1:
            return cls(value, "")
        address, _, port = value.partition(":")
        return cls(address, port)


def destination_of(options: Options) -> Destination | None:
    """Where a DNAT rule with these options sends packets; None if it doesn't say, or more than one place.

    iptables takes no such rule; but one version prints so what a newer one wrote (kubernetes/kubernetes #114537).
    """
    values = [option.values for option in options if option.name == "--to-destination"]
    if len(values) != 1 or any(option.negated or option.name not in _KNOWN for option in options):
        return None
    return Destination.parsed(values[0][0]) if len(values[0]) == 1 else None


def oddities(options: Options) -> tuple[str, ...]:
    """What keeps a DNAT rule from sending packets to one port of one endpoint, in words; nothing if it does."""
    values = [value for option in options if option.name == "--to-destination" for value in option.values]
    if not values:
        return ("names no destination",)
    if len(values) > 1:
        return (f"names {len(values)} destinations",)
    found = []
    to = Destination.parsed(values[0])
    if "-" in to.address or "-" in to.port:
        found.append(f"names a range, {values[0]}")
    elif not to.address:
        found.append("names no address: packets keep the Service's own")
    elif _is_nobodys(to.address):
        found.append(f"sends packets to {to.address}, which is nobody's address")
    if to.port and not to.port.strip("0"):
        found.append("sends packets to port 0")
    extra = sorted({option.name for option in options if option.name != "--to-destination"})
    if extra:
        found.append(f"has {' and '.join(extra)}, which no Service proxy writes")
    return tuple(found)


def _is_nobodys(address: str) -> bool:
    try:
        return ip_address(address).is_unspecified
    except ValueError:
        return True
