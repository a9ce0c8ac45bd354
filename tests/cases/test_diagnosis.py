"""Situations from public reports: what `verify`, `trace`, `explain` and `diff` say of them, and never say.

The dumps are rules that a real kube-proxy 1.36.2 wrote, changed as the reports tell.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kpx.analysis.verdict import FindingReport, Verification
from kpx.explain.report import Explanation
from tests.cli.inprocess import Done, run

HERE = Path(__file__).parent
NODE = ("--node-address", "192.0.2.10")
OBJECTS = ("-f", str(HERE / "cluster.yaml"), "--config", str(HERE / "config.yaml"))
SOUND = (HERE / "nfacct" / "kube-proxy.save").read_text()
NOTHING = "Nothing is wrong"


def dump(case: str) -> str:
    return str(HERE / case / "dump.save")


def told(*arguments: str, stdin: str = "") -> str:
    """What a command says, in one line."""
    done = run(*arguments, stdin=stdin.encode())
    return " ".join(done.stdout.split())


def verified(text: str, *options: str) -> list[FindingReport]:
    done = run("verify", "--rules", "-", "--json", *NODE, *options, stdin=text.encode())
    (report,) = Verification.model_validate_json(done.stdout).verified
    assert done.status == (1 if any(one.severity != "note" for one in report.findings) else 0)
    return list(report.findings)


def explained(text: str, asked: str = "shop/web", *options: str) -> Explanation:
    done = run("explain", asked, "--rules", "-", "--json", *(options or NODE), stdin=text.encode())
    assert done.status == 0, done.complaint
    return Explanation.model_validate_json(done.stdout)


def changed(*changes: tuple[str, str], text: str = SOUND) -> str:
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
        assert count, pattern
    return text


# ---- the cases ----


def test_a_drop_that_has_lost_its_mark() -> None:
    (finding,) = verified(Path(dump("firewall-lost-mark")).read_text())
    assert (finding.severity, finding.chain, finding.position) == ("error", "KUBE-FIREWALL", 2)
    assert "every packet" in finding.message
    assert not re.search("KUBE-SERVICES|KUBE-PROXY-FIREWALL|KUBE-EXTERNAL-SERVICES", finding.advice)
    answer = told("explain", "shop/web", "--rules", dump("firewall-lost-mark"), *NODE)
    assert NOTHING not in answer
    assert "from the node itself to the node port 192.0.2.10:30080" in answer
    assert "dropped by rule 2 of filter KUBE-FIREWALL" in answer
    differs = run("diff", *OBJECTS, "--against", dump("firewall-lost-mark"))
    assert differs.status == 1
    assert "extra   filter KUBE-FIREWALL  -m comment" in differs.stdout


def test_one_rule_thousands_of_times() -> None:
    (finding,) = verified(Path(dump("firewall-duplicates")).read_text())
    assert (finding.severity, finding.chain) == ("warning", "KUBE-FIREWALL")
    assert "4190 times" in finding.message


def test_an_external_ip_that_undoes_source_ranges() -> None:
    folder = HERE / "externalip-equals-lbip"
    objects = ("-f", str(folder / "cluster.yaml"), "--config", str(HERE / "config.yaml"))
    answer = told("trace", "tcp 192.0.2.200 -> 203.0.113.10:443", "--from", "outside", *objects)
    assert "1 translated 10.244.0.6:8443 masqueraded" in answer
    answer = told("explain", "shop/edge", *objects)
    assert "only" not in answer
    assert NOTHING not in answer
    assert "opens it to everybody" in answer
    text = re.sub(" -m nfacct --nfacct-name  [a-z_]*", "", (folder / "kube-proxy.save").read_text())
    text = "".join(line for line in text.splitlines(True) if "-d 127.0.0.0/8 -p" not in line)
    differs = run("diff", *objects, "--against", "-", stdin=text.encode())
    lines = [line for line in differs.stdout.splitlines() if line.startswith("  ")]
    assert len(lines) == 2
    assert all(line.startswith("  extra ") for line in lines)


def test_a_policy_that_drops_what_nothing_accepts() -> None:
    options = ("--from", "outside", "--rules", dump("forward-drop"), *NODE)
    answer = told("trace", "tcp 198.51.100.7 -> 203.0.113.10:443", *options)
    assert answer.endswith("1 dropped filter FORWARD policy")
    assert "→ policy DROP" in answer
    assert "nothing there matches) Share" not in answer
    answer = told("trace", "tcp 198.51.100.7 -> 192.0.2.10:30080", *options)
    assert "1/2 translated 10.244.0.5:8080 masqueraded 1/2 translated 10.244.1.5:8080 masqueraded" in answer
    answer = told("explain", "shop/edge", "--rules", dump("forward-drop"), *NODE)
    assert NOTHING not in answer
    assert "dropped by the policy of filter FORWARD" in answer


def test_verify_tells_of_it_too() -> None:
    (finding,) = verified(Path(dump("forward-drop")).read_text())
    assert (finding.check, finding.severity, finding.table, finding.chain) == (
        "nothing-accepts", "error", "filter", "FORWARD",
    )  # fmt: skip
    accepted = "-A FORWARD -s 10.244.0.0/16 -j ACCEPT\n-A FORWARD -d 10.244.0.0/16 -j ACCEPT\n-A OUTPUT "
    text = Path(dump("forward-drop")).read_text().replace("-A OUTPUT ", accepted, 1)
    assert verified(text) == []
    # By interfaces, which are not known: no alarm.
    accepted = "-A FORWARD -i cni0 -j ACCEPT\n-A FORWARD -o cni0 -j ACCEPT\n-A OUTPUT "
    text = Path(dump("forward-drop")).read_text().replace("-A OUTPUT ", accepted, 1)
    assert verified(text) == []


def test_network_policies_come_first_and_should() -> None:
    """Before them, KUBE-FORWARD would let past what they are to filter."""
    done = run("verify", "--rules", dump("kube-router-netpol"), *NODE)
    assert (done.status, "KUBE-FORWARD" in done.stdout, "kpx apply" in done.stdout) == (0, False, False)


def test_a_slice_by_hand_without_a_name_for_its_port() -> None:
    path = str(HERE / "manual-slice-portname" / "cluster.yaml")
    answer = told("explain", "shop/ext-db", "-f", path, "--node", "node-0")
    assert "have no port called 'pg'; theirs: '' (unnamed)" in answer
    assert "rejected" in answer


def test_dns_that_a_cache_on_the_node_answers() -> None:
    options = ("--rules", dump("nodelocaldns"), *NODE)
    answer = told("trace", "udp 10.244.0.9 -> 10.96.0.10:53", "--from", "pod", *options)
    assert answer.endswith("1 passes, not translated kept")
    answer = told("explain", "kube-system/kube-dns", *options)
    assert "no rule leads to an endpoint" not in answer
    assert "kept from conntrack, and so from nat, by rule 1 of raw PREROUTING" in answer
    assert "NodeLocal DNSCache answers them" in answer
    assert "! " not in answer
    assert [one.severity for one in verified(Path(dump("nodelocaldns")).read_text())] == ["note"]


# ---- verify looks where packets pass ----

IN_THE_WAY = {
    "flannel of old": ("nat", "POSTROUTING", "-s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN", "KUBE-POSTROUTING"),
    "all is accepted": ("nat", "POSTROUTING", "-j ACCEPT", "KUBE-POSTROUTING"),
    "pods are accepted": ("nat", "POSTROUTING", "-s 10.244.0.0/16 -j ACCEPT", "KUBE-POSTROUTING"),
    "not tracked": ("raw", "PREROUTING", "-d 10.96.0.0/16 -j NOTRACK", "KUBE-SERVICES"),
    "not tracked by CT": ("raw", "PREROUTING", "-p tcp -m tcp --dport 80 -j CT --notrack", "KUBE-SERVICES"),
    "not tracked from the node": ("raw", "OUTPUT", "-d 10.96.0.50/32 -j NOTRACK", "KUBE-SERVICES"),
    "dropped in raw": ("raw", "PREROUTING", "-s 198.51.100.0/24 -j DROP", "KUBE-SERVICES"),
    "dropped in mangle": ("mangle", "PREROUTING", "-d 10.96.0.0/16 -j DROP", "KUBE-SERVICES"),
    "dropped in mangle FORWARD": ("mangle", "FORWARD", "-j DROP", "KUBE-FORWARD"),
    "dropped in mangle POSTROUTING": ("mangle", "POSTROUTING", "-d 10.244.0.0/16 -j DROP", "KUBE-POSTROUTING"),
    "dropped in mangle OUTPUT": ("mangle", "OUTPUT", "-p tcp -j DROP", "KUBE-SERVICES"),
    "a port is taken": (
        "nat",
        "PREROUTING",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.9.9.9",
        "KUBE-SERVICES",
    ),
}


def placed(table: str, hook: str, rule: str, text: str = SOUND) -> str:
    """The rule as the first one of a built-in chain, whose table may have to be added."""
    if f"\n*{table}\n" not in text:
        return f"*{table}\n:{hook} ACCEPT [0:0]\n-A {hook} {rule}\nCOMMIT\n{text}"
    before, start, after = text.partition(f"\n*{table}\n")
    found = re.search("^-A .*\n|^COMMIT\n", after, re.MULTILINE)
    assert found
    return f"{before}{start}{after[: found.start()]}-A {hook} {rule}\n{after[found.start() :]}"


@pytest.mark.parametrize(("table", "hook", "rule", "chain"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_who_is_in_the_way_is_named(table: str, hook: str, rule: str, chain: str) -> None:
    found = verified(placed(table, hook, rule))
    assert {(one.check, one.severity) for one in found} == {("caught-before", "error")}
    assert {(one.table, one.chain, one.position, one.rule) for one in found} == {(table, hook, 1, rule)}
    assert chain in " ".join(one.message for one in found)


LEFT_ALONE = {
    "flannel": ("nat", "POSTROUTING", "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully"),
    "docker": ("nat", "POSTROUTING", "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"),
    "EKS": ("nat", "POSTROUTING", "! -d 192.0.2.0/24 -m addrtype ! --dst-type LOCAL -j SNAT --to-source 192.0.2.10"),
    "answers of a cache": ("raw", "OUTPUT", "-s 10.96.0.10/32 -p udp -m udp --sport 53 -j NOTRACK"),
    "docker 28": ("raw", "PREROUTING", "-d 172.17.0.2/32 ! -i docker0 -j DROP"),
    "marks of a policy": ("mangle", "FORWARD", "-m mark --mark 0x10000/0x10000 -j ACCEPT"),
    "a clamp": ("mangle", "FORWARD", "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"),
    "tracked elsewhere": ("raw", "PREROUTING", "-d 172.16.0.0/12 -j CT --notrack"),
}


@pytest.mark.parametrize(("table", "hook", "rule"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_who_is_in_nobodys_way_is_not(table: str, hook: str, rule: str) -> None:
    assert verified(placed(table, hook, rule)) == []


# ---- endpoints' rules that are broken ----

TO_WEB = "(-A KUBE-SEP-2QFQVMZDRZXAQWB2 .*) --to-destination 10.244.0.5:8080"
BROKEN = {
    "none": ("", "names no destination"),
    "only options": (" --persistent", "names no destination"),
    "nobody": (" --to-destination 0.0.0.0:8080", "sends packets to 0.0.0.0"),
    "port 0": (" --to-destination 10.244.0.5:0", "sends packets to port 0"),
    "no address": (" --to-destination :0 --persistent", "names no address"),
    "several": (" --to-destination :0 --persistent --to-destination :0 --persistent --to-destination 0.0.0.0",
                "names 3 destinations"),
    "persistent": (" --to-destination 10.244.0.5:8080 --persistent", "--persistent"),
    "random": (" --to-destination 10.244.0.5:8080 --random", "--random"),
    "a range": (" --to-destination 10.244.0.5-10.244.0.9:8080", "names a range"),
}  # fmt: skip


@pytest.mark.parametrize(("target", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_translation_is_an_error_that_names_the_rule(target: str, words: str) -> None:
    text = changed((TO_WEB, rf"\1{target}"))
    found = verified(text)
    assert {(one.check, one.severity) for one in found} == {("broken-translation", "error")}
    assert {(one.chain, one.position, one.owner) for one in found} == {
        ("KUBE-SEP-2QFQVMZDRZXAQWB2", 2, "shop/web:http")
    }
    assert any(words in one.message for one in found)


@pytest.mark.parametrize("kind", ["none", "nobody", "port 0", "no address", "several", "a range"])
def test_explain_tells_of_a_broken_translation(kind: str) -> None:
    text = changed((TO_WEB, rf"\1{BROKEN[kind][0]}"))
    (finding,) = [one for one in explained(text).every_finding if one.wrong]
    assert finding.code == "broken-translation"
    assert "rule 2 of nat KUBE-SEP-2QFQVMZDRZXAQWB2" in finding.what
    assert NOTHING not in told("explain", "shop/web", "--rules", "-", *NODE, stdin=text)


# ---- explain, with rules alone ----

STOPS: dict[str, tuple[Callable[[], str], str]] = {
    "RETURN in KUBE-SERVICES": (
        lambda: changed(("^-A KUBE-SERVICES ", r"-A KUBE-SERVICES -j RETURN\n\g<0>")),
        "taken by rule 1 of nat KUBE-SERVICES (-j RETURN)",
    ),
    "FORWARD drops": (
        lambda: changed(("^:FORWARD ACCEPT", ":FORWARD DROP"), text=filtered()),
        "dropped by the policy of filter FORWARD",
    ),
    "NOTRACK": (
        lambda: placed("raw", "PREROUTING", "-d 10.96.0.0/16 -j NOTRACK"),
        "kept from conntrack, and so from nat, by rule 1 of raw PREROUTING",
    ),
    "KUBE-FIREWALL": (
        lambda: changed(("^-A KUBE-FIREWALL .*$", r"\g<0>\n-A KUBE-FIREWALL -j DROP")),
        "dropped by rule 2 of filter KUBE-FIREWALL",
    ),
    "a firewall": (
        lambda: placed("filter", "FORWARD", "-s 10.244.0.0/16 -j REJECT --reject-with icmp-port-unreachable"),
        "rejected by rule 1 of filter FORWARD",
    ),
    "mangle": (lambda: placed("mangle", "FORWARD", "-d 10.244.0.0/16 -j DROP"), "dropped by rule 1 of mangle FORWARD"),
    "ACCEPT in nat": (
        lambda: placed("nat", "PREROUTING", "-s 10.244.0.0/16 -j ACCEPT"),
        "taken by rule 1 of nat PREROUTING",
    ),
    "RETURN in POSTROUTING": (
        lambda: placed("nat", "POSTROUTING", "-s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN"),
        "although marked for masquerading: taken by rule 1 of nat POSTROUTING",
    ),
    "ACCEPT in POSTROUTING": (
        lambda: placed("nat", "POSTROUTING", "-j ACCEPT"),
        "although marked for masquerading: taken by rule 1 of nat POSTROUTING",
    ),
    "nobody masquerades": (
        lambda: changed(("^-A KUBE-POSTROUTING .*MASQUERADE.*\n", "")),
        "sent to endpoints with their own source, although marked for masquerading",
    ),
    "no jump": (lambda: changed(("^-A PREROUTING .*KUBE-SERVICES\n", "")), "no rule leads to an endpoint"),
}  # fmt: skip


def filtered() -> str:
    """The dump without mangle, whose FORWARD comes first."""
    return SOUND.partition("COMMIT\n")[2]


@pytest.mark.parametrize(("make", "words"), STOPS.values(), ids=STOPS)
def test_what_stops_packets_is_said(make: Callable[[], str], words: str) -> None:
    answer = told("explain", "shop/web", "--rules", "-", *NODE, stdin=make())
    assert words in answer
    assert NOTHING not in answer
    assert any(one.wrong for one in explained(make()).every_finding)


def test_nothing_is_wrong_where_nothing_is() -> None:
    for asked in ("shop/web", "shop/edge", "kube-system/kube-dns"):
        assert explained(SOUND, asked).every_finding == ()
        assert NOTHING in told("explain", asked, "--rules", "-", *NODE, stdin=SOUND)


DUMPS = [
    *sorted((HERE / "config-matrix").glob("kp*.save")),
    *sorted((HERE.parent / "conformance" / "cases").glob("*/ipv*.save")),
    *sorted((HERE.parent / "analysis" / "kube-proxy-1.20").glob("ipv*.save")),
]
EXPLAINED = {"none-ready", "no-local-endpoint"}
"""What is so in some of these dumps, and told."""


@pytest.mark.parametrize(
    "path", [one for one in DUMPS if one.stat().st_size], ids=lambda one: f"{one.parent.name} {one.name}"
)
def test_no_false_alarm(path: Path) -> None:
    """Of what real kube-proxies wrote, where nobody is in the way, nothing is said to be wrong, and all is known."""
    services = set(re.findall(r'-d \S+ .*--comment "([a-z0-9-]+/[a-z0-9-]+)', path.read_text()))
    addresses = ("--node-address", "192.0.2.10", "--node-address", "10.200.0.2", "--node-address", "fd00:200::2")
    for asked in sorted(services):
        done = run("explain", asked, "--rules", str(path), *addresses, "--json")
        found = Explanation.model_validate_json(done.stdout)
        closed = {"node-port-closed"} if path.stem in ("kp5", "kpp5") else set()
        assert {one.code for one in found.every_finding if one.wrong} <= EXPLAINED | closed, asked
        assert "not-known" not in {one.code for one in found.every_finding}


def test_pods_are_known_where_no_rule_tells_their_addresses() -> None:
    """As on EKS: no rule asks for a network of pods; but endpoints are some."""
    text = re.sub("^-A KUBE-SVC-.* ! -s .*\n|^-A KUBE-EXT-.* -s 10.*\n", "", SOUND, flags=re.MULTILINE)
    text = re.sub("^-A KUBE-SVC-[A-Z0-9]* ! -s .*\n", "", text, flags=re.MULTILINE)
    assert "10.244.0.0/16" not in text
    for port in explained(text).ports:
        assert {use.sender for way in port.ways for use in way.uses} == {"pods", "the node itself", "outside"}
    assert NOTHING in told("explain", "shop/web", "--rules", "-", *NODE, stdin=text)


def test_what_a_service_refuses_it_refuses_on_purpose() -> None:
    folder = HERE.parent / "conformance" / "cases" / "loadbalancer-source-ranges"
    answer = told("explain", "shop/web", "--rules", str(folder / "ipv4.save"), *NODE)
    assert "from pods, elsewhere outside: dropped" in answer
    assert NOTHING not in answer
    assert "refuse what they are to refuse" in answer
    assert "! " not in answer


# ---- more that operators ask ----


def explain_objects(objects: str, *options: str) -> Done:
    return run("explain", "shop/edge", "-f", "-", *options, stdin=objects.encode())


EDGE = (HERE / "externalip-equals-lbip" / "cluster.yaml").read_text()


@pytest.mark.parametrize(
    ("address", "field", "alarm"), [("192.0.2.10", "externalIPs", True), ("192.0.2.10", "ingress", False)]
)
def test_an_address_that_is_a_nodes_own_is_warned_of(address: str, field: str, alarm: bool) -> None:
    text = EDGE.replace("externalIPs: [203.0.113.10]", f"externalIPs: [{address if alarm else '203.0.113.9'}]")
    text = (
        text
        if alarm
        else text.replace("ingress: [{ip: 203.0.113.10}, {ip: 203.0.113.10}]", f"ingress: [{{ip: {address}}}]")
    )
    done = explain_objects(text, "--node", "node-0", "--json")
    found = Explanation.model_validate_json(done.stdout)
    (own,) = [one for one in found.every_finding if one.code == "own-address"]
    assert (own.wrong, field in own.what, "address of the node node-0 itself" in own.what) == (alarm, True, True)


def test_rules_alone_tell_it_where_the_nodes_address_is_known() -> None:
    text = changed(("-d 203.0.113.10/32 (.*) loadbalancer IP", r"-d 192.0.2.10/32 \1 external IP"))
    (own,) = [one for one in explained(text, "shop/edge").every_finding if one.code == "own-address"]
    assert own.wrong
    assert "192.0.2.10" in own.what


def test_it_is_said_that_addresses_are_restricted_where_they_are() -> None:
    done = explain_objects(EDGE.replace("  externalIPs: [203.0.113.10]\n", ""), "--node", "node-0")
    assert "The load balancer's addresses are for 198.51.100.0/24 only." in done.stdout


def test_a_chain_that_was_emptied_is_one_paragraph() -> None:
    """First what packets suffer, then the rules; and nobody takes part to whom nothing gets."""
    for pattern in ("^-A KUBE-SVC-67NZLRHBNDSAWJRO .*\n", "^-A KUBE-SERVICES .*\n", "^-A KUBE-EXT-67NZ.*\n"):
        text = re.sub(pattern, "", SOUND, flags=re.MULTILINE)
        done = run("explain", "shop/web", *OBJECTS, "--rules", "-", stdin=text.encode())
        assert done.stdout.count("\n! ") == 1
        answer = " ".join(done.stdout.split())
        assert 0 < answer.index("are not translated") < answer.index("are not as they should be: missing in nat")
        assert ("takes part" in answer) == ("EXT" in pattern)


def test_what_differs_is_named_on_both_sides() -> None:
    text = SOUND  # each endpoint's chain marks what comes from the other one
    for chain, own, other in (("2QFQVMZDRZXAQWB2", "0.5", "1.5"), ("34ZZ2QFGO32YYXXO", "1.5", "0.5")):
        text = changed(
            (f"^-A KUBE-SEP-{chain} -s 10.244.{own}/32", f"-A KUBE-SEP-{chain} -s 10.244.{other}/32"), text=text
        )
    answer = told("explain", "shop/web", *OBJECTS, "--rules", "-", stdin=text)
    for one, other in re.findall("are (sent [^;.]*(?:[.][0-9][^;.]*)*); they should be ([^;]*?)[.] ", answer):
        assert one != other.strip()
    assert "they should be 1/2 masqueraded to 10.244.0.5:8080" in answer


def test_a_rule_that_moved_is_no_change_of_its_words() -> None:
    lines = SOUND.splitlines(True)
    at = [number for number, line in enumerate(lines) if line.startswith("-A KUBE-EXT-TFCKRJ4VVZESZDQY")]
    lines[at[0]], lines[at[2]] = lines[at[2]], lines[at[0]]
    done = run("diff", *OBJECTS, "--against", "-", stdin="".join(lines).encode())
    assert done.status == 1
    assert "  moved   nat KUBE-EXT-TFCKRJ4VVZESZDQY" in done.stdout
    assert "changed" not in done.stdout


def test_without_a_node_it_is_said_what_that_decides() -> None:
    config = (HERE / "config.yaml").read_text().replace("hostnameOverride: node-0\n", "")
    cluster = (HERE / "cluster.yaml").read_text()
    done = run("render", "-f", "-", stdin=cluster.encode())
    assert "without --node this is taken to be" in done.complaint
    assert "shop/edge (externalTrafficPolicy Local)" in done.complaint
    assert "without --node" not in run("render", "-f", "-", "--node", "node-1", stdin=cluster.encode()).complaint
    nowhere = cluster.replace("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster")
    nowhere = nowhere.replace("  healthCheckNodePort: 31999\n", "")
    assert "without --node" not in run("render", "-f", "-", stdin=nowhere.encode()).complaint
    assert "hostnameOverride" not in config


@pytest.mark.parametrize(("kind", "times"), [("-A KUBE-FORWARD", 3), ("-A KUBE-SVC-67NZLRHBNDSAWJRO .*34ZZ", 5)])
def test_rules_that_repeat_are_counted(kind: str, times: int) -> None:
    text = re.sub(f"^({kind}.*\n)", r"\1" * times, SOUND, count=1, flags=re.MULTILINE)
    (finding, *_) = verified(text)
    assert f"{times} times" in finding.message
