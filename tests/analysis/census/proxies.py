"""What kube-proxy left on a node, from 1.6 to 1.36, for one small cluster."""

from base64 import b32encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from tests.analysis.census.dump import Dump, Part

PODS = "10.244.0.0/16"


@dataclass(frozen=True)
class Place:
    """One service port."""

    name: str
    vip: str
    port: int
    endpoints: tuple[str, ...] = ()
    protocol: str = "tcp"
    node_port: int = 0
    balancer: str = ""
    ranges: tuple[str, ...] = ()
    external: str = ""
    local: bool = False
    sticky: bool = False

    def chain(self, kind: str, endpoint: str = "") -> str:
        """The name of one of its chains."""
        return (
            f"KUBE-{kind}-{b32encode(sha256(f'{self.name}{self.protocol}{endpoint}'.encode()).digest()[:10]).decode()}"
        )

    def to(self, address: str, words: str) -> str:
        """A rule's match of a destination."""
        comment = f'-m comment --comment "{self.name} {words}"'
        return f"-d {address}/32 -p {self.protocol} {comment} -m {self.protocol} --dport {self.port}"

    @property
    def at_node(self) -> str:
        """A rule's match of its node port."""
        return f'-p {self.protocol} -m comment --comment "{self.name}" -m {self.protocol} --dport {self.node_port}'


PLACES = (
    Place("kube-system/kube-dns:dns", "10.96.0.10", 53, ("10.244.0.2:53", "10.244.1.2:53"), "udp"),
    Place("shop/web:http", "10.96.0.50", 80, ("10.244.0.5:8080", "10.244.1.5:8080"), node_port=30080),
    Place(
        "shop/edge:https", "10.96.0.51", 443, ("10.244.0.6:8443", "10.244.1.6:8443"),
        node_port=30443, balancer="203.0.113.10", local=True,
    ),
    Place("shop/paid:http", "10.96.0.54", 80, ("10.244.1.7:8080",), "tcp", 30081, "203.0.113.11", ("198.51.100.0/24",)),
    Place("shop/ext:http", "10.96.0.55", 80, ("10.244.0.8:8080",), external="203.0.113.20"),
    Place("shop/sticky:http", "10.96.0.53", 80, ("10.244.0.5:9090", "10.244.1.5:9090"), sticky=True),
    Place("shop/empty:http", "10.96.0.52", 80),
)  # fmt: skip


@dataclass(frozen=True)
class Era:
    """What tells versions apart.

    `marks_in_front`: what comes from outside is marked in KUBE-SERVICES, not in the Service's chain.
    `early_masquerade`: KUBE-POSTROUTING asks for the mark in the rule that masquerades.
    `local_chains`: KUBE-EXT and KUBE-SVL, not KUBE-XLB.
    `drop_by_kubelet`: what is refused is marked and dropped in KUBE-FIREWALL. `forward` is the age of KUBE-FORWARD:
    0 none, 1 with CIDRs, 2 with INVALID too, 3 without CIDRs. `new_only`: jumps ask for new connections.
    """

    forward: int = 3
    marks_in_front: bool = False
    early_masquerade: bool = False
    local_chains: bool = True
    drop_by_kubelet: bool = False
    new_only: bool = True
    random_fully: bool = True


ERAS = {
    "1.6": Era(0, True, True, False, True, False, False),
    "1.9": Era(1, True, True, False, True, False, False),
    "1.14": Era(2, True, True, False, True, True, False),
    "1.18": Era(3, True, False, False, True),
    "1.22": Era(3, False, False, False, True),
    "1.24": Era(3, False, False, True, True),
    "1.28": Era(),
    "1.36": Era(),
}


def kube_proxy(version: str) -> Part:
    """The rules of this version, and of the kubelet beside it."""
    return _Writer(ERAS[version]).write


@dataclass
class _Writer:
    era: Era

    def write(self, dump: Dump) -> None:
        self._frame(dump)
        self._filter(dump)
        for place in PLACES:
            if place.endpoints:
                self._service(dump, place)
            else:
                refused = f"{place.to(place.vip, 'has no endpoints')} -j REJECT --reject-with icmp-port-unreachable"
                dump.add("filter", "KUBE-SERVICES", refused)
        last = '"kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
        dump.add("nat", "KUBE-SERVICES", f"-m comment --comment {last} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")

    def _frame(self, dump: Dump) -> None:
        portals = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
        for hook in ("PREROUTING", "OUTPUT"):
            dump.add("nat", hook, portals)
        dump.add("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING')
        fully = " --random-fully" if self.era.random_fully else ""
        snat = '-m comment --comment "kubernetes service traffic requiring SNAT"'
        if self.era.early_masquerade:
            dump.add("nat", "KUBE-POSTROUTING", f"{snat} -m mark --mark 0x4000/0x4000 -j MASQUERADE{fully}")
        else:
            mark, unmark = "-m mark ! --mark 0x4000/0x4000 -j RETURN", "-j MARK --set-xmark 0x4000/0x0"
            dump.add("nat", "KUBE-POSTROUTING", mark, unmark, f"{snat} -j MASQUERADE{fully}")
        dump.add("nat", "KUBE-MARK-MASQ", "-j MARK --set-xmark 0x4000/0x4000")
        if self.era.drop_by_kubelet:
            dump.add("nat", "KUBE-MARK-DROP", "-j MARK --set-xmark 0x8000/0x8000")
        dump.chain("nat", "KUBE-NODEPORTS")

    def _filter(self, dump: Dump) -> None:
        era = self.era
        if era.drop_by_kubelet:
            words = '"kubernetes firewall for dropping marked packets"'
            dump.add("filter", "KUBE-FIREWALL", f"-m comment --comment {words} -m mark --mark 0x8000/0x8000 -j DROP")
        if era.forward == 3:
            states = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
            words = '-m comment --comment "block incoming localnet connections"'
            dump.add("filter", "KUBE-FIREWALL", f"! -s 127.0.0.0/8 -d 127.0.0.0/8 {words} {states} -j DROP")
        new = "-m conntrack --ctstate NEW " if era.new_only else ""
        portals = f'{new}-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
        external = (
            f'{new}-m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'
        )
        balancer = f'{new}-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
        guard = [] if era.drop_by_kubelet else [balancer]
        forward = ['-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'] if era.forward else []
        visible = [external] if era.forward else []
        dump.add("filter", "INPUT", *guard, *visible, "-j KUBE-FIREWALL")
        dump.add(
            "filter", "FORWARD", *guard, *forward, *([portals] if era.forward > 1 else []), *visible[: era.forward - 1]
        )
        dump.add("filter", "OUTPUT", *guard, portals, "-j KUBE-FIREWALL")
        dump.chain("filter", "KUBE-SERVICES")
        if era.forward:
            dump.chain("filter", "KUBE-EXTERNAL-SERVICES")
            dump.add("filter", "KUBE-FORWARD", *self._forward())
        if guard:
            dump.chain("filter", "KUBE-PROXY-FIREWALL")

    def _forward(self) -> Iterator[str]:
        if self.era.forward > 1:
            yield "-m conntrack --ctstate INVALID -j DROP"
        yield '-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT'
        known = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        if self.era.forward == 3:
            yield f'-m comment --comment "kubernetes forwarding conntrack rule" {known}'
        else:
            yield f'-s {PODS} -m comment --comment "kubernetes forwarding conntrack pod source rule" {known}'
            yield f'-d {PODS} -m comment --comment "kubernetes forwarding conntrack pod destination rule" {known}'

    def _service(self, dump: Dump, place: Place) -> None:
        own = place.chain("SVC")
        way = place.to(place.vip, "cluster IP")
        if self.era.marks_in_front:
            dump.add("nat", "KUBE-SERVICES", f"! -s {PODS} {way} -j KUBE-MARK-MASQ")
        else:
            dump.add("nat", own, f"! -s {PODS} {way} -j KUBE-MARK-MASQ")
        dump.add("nat", "KUBE-SERVICES", f"{way} -j {own}")
        self._choice(dump, place, own, place.endpoints)
        if self.era.local_chains:
            self._external(dump, place, own)
        else:
            self._external_of_old(dump, place, own)

    def _choice(self, dump: Dump, place: Place, chain: str, endpoints: tuple[str, ...], extra: str = "") -> None:
        said = f'-m comment --comment "{extra or place.name}"'
        if place.sticky:
            for one in endpoints:
                name = place.chain("SEP", one)
                recent = f"-m recent --rcheck --seconds 10800 --reap --name {name} --mask 255.255.255.255 --rsource"
                dump.add("nat", chain, f"{said} {recent} -j {name}")
        for at, one in enumerate(endpoints):
            left = len(endpoints) - at
            chance = f" -m statistic --mode random --probability {1 / left:.11f}" if left > 1 else ""
            dump.add("nat", chain, f"{said}{chance} -j {place.chain('SEP', one)}")
            self._endpoint(dump, place, one)

    def _endpoint(self, dump: Dump, place: Place, endpoint: str) -> None:
        name, said = place.chain("SEP", endpoint), f'-m comment --comment "{place.name}"'
        if dump.chain("nat", name):
            return
        recent = f" -m recent --set --name {name} --mask 255.255.255.255 --rsource" if place.sticky else ""
        dump.add(
            "nat", name, f"-s {endpoint.partition(':')[0]}/32 {said} -j KUBE-MARK-MASQ",
            f"-p {place.protocol} {said}{recent} -m {place.protocol} -j DNAT --to-destination {endpoint}",
        )  # fmt: skip

    def _external(self, dump: Dump, place: Place, own: str) -> None:
        """KUBE-EXT since 1.24."""
        outer = place.chain("EXT")
        here = tuple(one for one in place.endpoints if one.startswith("10.244.0."))
        if place.node_port or place.external or place.balancer:
            if place.local:
                inner, said = place.chain("SVL"), f'"pod traffic for {place.name} external destinations"'
                dump.add("nat", outer, f"-s {PODS} -m comment --comment {said} -j {own}")
                for words, jump in (("masquerade", "KUBE-MARK-MASQ"), ("route", own)):
                    local = f'-m comment --comment "{words} LOCAL traffic for {place.name} external destinations"'
                    dump.add("nat", outer, f"{local} -m addrtype --src-type LOCAL -j {jump}")
                dump.add("nat", outer, f"-j {inner}")
                self._choice(dump, place, inner, here)
            else:
                said = f'"masquerade traffic for {place.name} external destinations"'
                dump.add("nat", outer, f"-m comment --comment {said} -j KUBE-MARK-MASQ", f"-j {own}")
        if place.node_port:
            dump.add("nat", "KUBE-NODEPORTS", f"{place.at_node} -j {outer}")
        if place.external:
            dump.add("nat", "KUBE-SERVICES", f"{place.to(place.external, 'external IP')} -j {outer}")
        if place.balancer:
            self._balancer(dump, place, outer)

    def _balancer(self, dump: Dump, place: Place, outer: str) -> None:
        way = place.to(place.balancer, "loadbalancer IP")
        if not place.ranges:
            dump.add("nat", "KUBE-SERVICES", f"{way} -j {outer}")
            return
        gate, said = place.chain("FW"), f'-m comment --comment "{place.name} loadbalancer IP"'
        dump.add("nat", "KUBE-SERVICES", f"{way} -j {gate}")
        dump.add("nat", gate, *(f"-s {one} {said} -j {outer}" for one in place.ranges))
        if self.era.drop_by_kubelet:
            dump.add("nat", gate, f"{said} -j KUBE-MARK-DROP")
        else:
            words = f"other traffic to {place.name} will be dropped by KUBE-PROXY-FIREWALL"
            dump.add("nat", gate, f'-m comment --comment "{words}"')
            refused = place.to(place.balancer, f"traffic not accepted by {gate}")
            dump.add("filter", "KUBE-PROXY-FIREWALL", f"{refused} -j DROP")

    def _external_of_old(self, dump: Dump, place: Place, own: str) -> None:
        """KUBE-XLB, and marks in front of every jump."""
        goes = place.chain("XLB") if place.local else own
        if place.local:
            words = f'"masquerade LOCAL traffic for {place.name} LB IP"'
            own_words = '"Redirect pods trying to reach external loadbalancer VIP to clusterIP"'
            dump.add("nat", goes, f"-s {PODS} -m comment --comment {own_words} -j {own}")
            if not self.era.early_masquerade:
                dump.add("nat", goes, f"-m comment --comment {words} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ")
                dump.add("nat", goes, f"-m comment --comment {words} -m addrtype --src-type LOCAL -j {own}")
            here = tuple(one for one in place.endpoints if one.startswith("10.244.0."))
            self._choice(dump, place, goes, here, f"Balancing rule 0 for {place.name}")
        if place.node_port:
            if not place.local:
                dump.add("nat", "KUBE-NODEPORTS", f"{place.at_node} -j KUBE-MARK-MASQ")
            dump.add("nat", "KUBE-NODEPORTS", f"{place.at_node} -j {goes}")
        if place.external:
            way = place.to(place.external, "external IP")
            bridged = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"
            dump.add("nat", "KUBE-SERVICES", f"{way} -j KUBE-MARK-MASQ", f"{way} {bridged} -j {own}")
            dump.add("nat", "KUBE-SERVICES", f"{way} -m addrtype --dst-type LOCAL -j {own}")
        if place.balancer:
            gate, said = place.chain("FW"), f'-m comment --comment "{place.name} loadbalancer IP"'
            dump.add("nat", "KUBE-SERVICES", f"{place.to(place.balancer, 'loadbalancer IP')} -j {gate}")
            if not place.local:
                dump.add("nat", gate, f"{said} -j KUBE-MARK-MASQ")
            froms = [f"-s {one} " for one in place.ranges] or [""]
            dump.add("nat", gate, *(f"{one}{said} -j {goes}" for one in froms), f"{said} -j KUBE-MARK-DROP")
