"""The bridge that joins all places, and their links to it."""

from pathlib import Path

from tests.cluster.layout import Site, routes
from tests.lab import Namespace


class Wire:
    """A bridge in a network namespace of its own."""

    def __init__(self) -> None:
        self._namespace = Namespace()
        self._namespace.sysctl(ipv6__conf__default__accept_dad=0)
        self._namespace.ip("link set lo up", "link add br0 type bridge", "link set br0 up")

    def join(self, network: Namespace, site: Site) -> None:
        """Give a namespace its link `eth0`, its addresses and its routes."""
        network.sysctl(
            ipv6__conf__default__accept_dad=0,
            ipv6__conf__default__accept_ra=0,
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
            # The kernel limits how often REJECT answers; clients here reconnect at once.
            ipv4__icmp_ratemask=0,
            ipv6__icmp__ratemask=0,
        )
        port = f"w{site.number}"
        self._namespace.ip(
            f"link add {port} type veth peer name eth0 netns {network.path}",
            f"link set {port} master br0",
            f"link set {port} up",
        )
        network.ip(
            "link set eth0 up",
            f"address add {site.ipv4}/24 dev eth0",
            f"address add {site.ipv6}/64 dev eth0 nodad",
            *routes(site),
        )

    def close(self) -> None:
        """Let the bridge go."""
        self._namespace.close()


def bytes_of(network: Namespace) -> tuple[int, int]:
    """Bytes received and sent on `eth0` so far."""
    with network.entered():
        text = Path("/proc/thread-self/net/dev").read_text()
    (numbers,) = [rest for name, _, rest in map(_parted, text.splitlines()) if name.strip() == "eth0"]
    fields = numbers.split()
    return int(fields[0]), int(fields[8])


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(":")
