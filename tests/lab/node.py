"""The node, its pods, and the world outside of it.

    pod web-1 (10.244.0.10) ──veth──┐
    pod web-2 (10.244.1.10) ──veth──┤ node (10.200.0.2) ──veth eth0── client (198.51.100.7, 192.0.2.0/24)
    …                               ┘

Every pod hangs on a veth pair of its own, with host routes on both ends, as with a routing CNI. A pod "on another
node" differs in its address and in the node name that its endpoint carries, which is all a proxy can see of it.
The node routes everything it has no link for to the client, so that addresses of Services route somewhere.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tests.lab.namespace import LabError, Namespace

Backend = Literal["nft", "legacy"]

NODE_NAME = "node-0"
NODE_ADDRESSES = ("10.200.0.2", "fd00:200::2")
CLIENT_ADDRESSES = ("198.51.100.7", "2001:db8::7")
CLIENT_NETWORKS = ("192.0.2.0/24", "2001:db8:1::/64")
POD_GATEWAYS = ("10.244.0.1", "fd00:244::1")
_UP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with its addresses. `on` is the node that Kubernetes believes it to run on, empty outside."""

    name: str
    namespace: Namespace
    ipv4: str
    ipv6: str
    on: str = ""

    def address(self, family: str) -> str:
        """Its address of the family `ipv4` or `ipv6`."""
        return self.ipv6 if family == "ipv6" else self.ipv4


class Node:
    """A node `node-0` and a client outside, ready for pods. Use it as a context manager."""

    def __init__(self) -> None:
        self.pods: dict[str, Host] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._stack = undo
            self.host = Host(NODE_NAME, self._namespace(), *NODE_ADDRESSES, on=NODE_NAME)
            self.client = Host("client", self._namespace(), *CLIENT_ADDRESSES)
            self._make_router()
            self._connect_client()
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pod(self, name: str, ipv4: str, ipv6: str, *, on: str = NODE_NAME, link: str = "") -> Host:
        """Add a pod. `link` names its veth on the node (default `veth-NAME`), for rules that match on it."""
        link = link or f"veth-{name}"
        pod = Host(name, self._namespace(), ipv4, ipv6, on)
        self.host.namespace.ip(
            f"link add {link} type veth peer name eth0 netns {pod.namespace.path}",
            *(f"address add {gateway} dev {link} nodad" for gateway in POD_GATEWAYS),
            f"link set {link} up",
            f"route add {ipv4} dev {link}",
            f"route add {ipv6} dev {link}",
        )
        pod.namespace.ip("link set eth0 up", *_addresses((ipv4, ipv6)), *_default_routes(*POD_GATEWAYS, "onlink"))
        _wait_until_up(self.host.namespace, link)
        _wait_until_up(pod.namespace, "eth0")
        self.pods[name] = pod
        return pod

    def load(self, payload: str, *, family: str = "ipv4", backend: Backend = "nft") -> None:
        """Give an `iptables-save` text to the node's kernel, beside what is loaded already."""
        self.host.namespace.run([self.tool("restore", family, backend), "--noflush", "-w"], stdin=payload)

    def rules(self, *, family: str = "ipv4", backend: Backend = "nft") -> str:
        """What `iptables-save` prints on the node."""
        return self.host.namespace.run([self.tool("save", family, backend)]).stdout

    def flush(self) -> None:
        """Empty the node's filter, nat and mangle tables: both families, both backends."""
        empty = "".join(f"*{table}\nCOMMIT\n" for table in ("mangle", "filter", "nat"))
        for backend in ("nft", "legacy"):
            for family in ("ipv4", "ipv6"):
                self.host.namespace.run([self.tool("restore", family, backend), "-w"], stdin=empty)

    @staticmethod
    def tool(what: str, family: str, backend: str) -> str:
        """The name of a tool, such as `ip6tables-nft-save`."""
        return f"{'ip6tables' if family == 'ipv6' else 'iptables'}-{backend}-{what}"

    def _namespace(self) -> Namespace:
        namespace = self._stack.enter_context(Namespace())
        # Without duplicate address detection an IPv6 address works at once.
        namespace.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__default__accept_ra=0)
        namespace.ip("link set lo up")
        return namespace

    def _make_router(self) -> None:
        self.host.namespace.sysctl(
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
            ipv4__conf__all__route_localnet=1,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
            ipv4__conf__all__send_redirects=0,
            ipv4__conf__default__send_redirects=0,
            # The kernel limits how often REJECT answers, to one peer (about once a second) and to all of them;
            # clients here reconnect at once. So no type of message is limited (but type 0 of ICMPv6: reserved).
            ipv4__icmp_ratemask=0,
            ipv6__icmp__ratemask=0,
        )

    def _connect_client(self) -> None:
        node, client = self.host.namespace, self.client.namespace
        client.sysctl(ipv6__ip_nonlocal_bind=1)
        node.ip(
            f"link add eth0 type veth peer name eth0 netns {client.path}",
            f"address add {NODE_ADDRESSES[0]}/24 dev eth0",
            f"address add {NODE_ADDRESSES[1]}/64 dev eth0 nodad",
            "link set eth0 up",
            *_default_routes(*CLIENT_ADDRESSES, "onlink"),
        )
        client.ip(
            "link set eth0 up",
            *_addresses(CLIENT_ADDRESSES),
            # Any address of these networks may be used as a source, too.
            *(f"route add local {network} dev lo" for network in CLIENT_NETWORKS),
            *_default_routes(*NODE_ADDRESSES, "onlink"),
        )
        _wait_until_up(node, "eth0")
        _wait_until_up(client, "eth0")


def _wait_until_up(namespace: Namespace, link: str) -> None:
    """Wait until a link carries packets: the kernel sees to that in the background, and until then drops them."""
    end = time.monotonic() + _UP_SECONDS
    while " state UP " not in namespace.run(["ip", "-o", "link", "show", link]).stdout:
        if time.monotonic() > end:
            raise LabError(f"{link} isn't up after {_UP_SECONDS:g} s")
        time.sleep(0.01)


def _addresses(addresses: tuple[str, ...]) -> list[str]:
    return [f"address add {address} dev eth0 nodad" for address in addresses]


def _default_routes(ipv4: str, ipv6: str, *options: str) -> list[str]:
    return [f"route add default via {gateway} dev eth0 {' '.join(options)}" for gateway in (ipv4, ipv6)]
