"""Rules that ask for what a packet doesn't tell, in the shapes in which programs on nodes write them."""

import random
from collections.abc import Callable

DOCKER = """
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP-A - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -j KUBE-SERVICES
-A DOCKER -i docker0 -j RETURN
-A DOCKER -i br-1f0c -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A KUBE-SERVICES -d 10.96.0.50/32 -p tcp -m tcp --dport 80 -j KUBE-SEP-A
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 30080 -j KUBE-SEP-A
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8080
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -d 10.244.0.0/16 -j ACCEPT
-A FORWARD -s 10.244.0.0/16 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
COMMIT
"""

EKS = """
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i vlan+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -i eni+ -m state --state NEW -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-CONNMARK-CHAIN-0 -d 10.244.0.0/16 -j RETURN
-A AWS-CONNMARK-CHAIN-0 -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 10.244.0.0/16 -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source 192.0.2.10 --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.50/32 -p tcp -m tcp --dport 80 -j KUBE-SEP-A
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8080
COMMIT
"""

OPENSHIFT = """
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP-A - [0:0]
:OPENSHIFT-MASQUERADE - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A POSTROUTING -j OPENSHIFT-MASQUERADE
-A OPENSHIFT-MASQUERADE -s 10.244.0.0/16 -m mark --mark 0x1/0x1 -j RETURN
-A KUBE-SERVICES -d 10.96.0.50/32 -p tcp -m tcp --dport 80 -j KUBE-SEP-A
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8080
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OPENSHIFT-ADMIN-OUTPUT-RULES - [0:0]
:OPENSHIFT-FIREWALL-FORWARD - [0:0]
-A FORWARD -j OPENSHIFT-FIREWALL-FORWARD
-A FORWARD -i tun0 ! -o tun0 -j OPENSHIFT-ADMIN-OUTPUT-RULES
-A OPENSHIFT-FIREWALL-FORWARD -s 10.244.0.0/16 -m conntrack --ctstate INVALID -j DROP
-A OPENSHIFT-FIREWALL-FORWARD -d 10.244.0.0/16 -j ACCEPT
-A OPENSHIFT-FIREWALL-FORWARD -s 10.244.0.0/16 -j ACCEPT
COMMIT
"""

NAMES = ("eth0", "eth1", "docker0", "cni0", "cali1")
PATTERNS = (*NAMES, "eth+", "cali+", "+")


def rules(chance: random.Random) -> str:
    """Tables with tests of interfaces, of marks that depend on them, and with matches that nobody here knows."""
    nat = [f"-A PREROUTING {_match(chance)} {_act(chance, True)}" for _ in range(chance.randrange(1, 6))]
    inner = [f"-A A {_match(chance)} {_act(chance, False)}" for _ in range(chance.randrange(4))]
    behind = [f"-A FORWARD {_match(chance)} {_end(chance)}" for _ in range(chance.randrange(1, 6))]
    lines = ["*nat", ":PREROUTING ACCEPT [0:0]", ":A - [0:0]", *nat, *inner, "COMMIT"]
    return "\n".join([*lines, "*filter", ":FORWARD ACCEPT [0:0]", ":INPUT DROP [0:0]", *behind, "COMMIT", ""])


def _match(chance: random.Random) -> str:
    negation = chance.choice(("", "! "))
    kinds: tuple[Callable[[], str], ...] = (
        lambda: f"{negation}-i {chance.choice(PATTERNS)}",
        lambda: f"-m mark {negation}--mark 0x{chance.choice((1, 2, 4))}/0x{chance.choice((1, 2, 4, 7))}",
        lambda: "-m statistic --mode random --probability 0.5",
        lambda: f"-m addrtype {negation}--dst-type LOCAL",
        lambda: f"-m set --match-set {chance.choice(('mine', 'yours'))} src",
        lambda: chance.choice(("-p tcp -m tcp --dport 80", "-p udp")),
    )
    return " ".join(kind() for kind in chance.sample(kinds, chance.randrange(3)))


def _act(chance: random.Random, outer: bool) -> str:
    return chance.choice(
        (
            "-j RETURN",
            "-j ACCEPT",
            f"-j MARK --set-xmark 0x{chance.choice((1, 2, 4, 8))}/0x{chance.choice((1, 2, 4, 15))}",
            "-j CONNMARK --save-mark --nfmask 0x3 --ctmask 0x3",
            "-j CONNMARK --restore-mark --nfmask 0x3 --ctmask 0x3",
            f"-j DNAT --to-destination 10.244.0.{chance.choice((5, 6))}:8080",
            "-j A" if outer else "-j LOG",
        )
    )


def _end(chance: random.Random) -> str:
    return chance.choice(("-j DROP", "-j ACCEPT", "-j REJECT --reject-with icmp-port-unreachable", "-j LOG"))
