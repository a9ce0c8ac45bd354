"""Values to payloads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.netfilter.names import ours, shared
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.rule import RuleError, split


def test_a_payload_has_a_section_for_each_transaction() -> None:
    assert payload(
        [
            Transaction("nat", ("KUBE-SVC-A",), ("-A KUBE-SVC-A -j RETURN", "-I PREROUTING 1 -j KUBE-SVC-A")),
            Transaction("filter", lines=("-D INPUT 3", "-X KUBE-OLD")),
            Transaction("nat"),
        ]
    ) == (
        "*nat\n:KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -j RETURN\n-I PREROUTING 1 -j KUBE-SVC-A\nCOMMIT\n"
        "*filter\n-D INPUT 3\n-X KUBE-OLD\nCOMMIT\n*nat\nCOMMIT\n"
    )
    assert payload([]) == ""


@pytest.mark.parametrize("chain", ["", "A B", "A\n-A X", "A\0", "-A", "!", 'A"', "A\tB", "A\x0bB"])
def test_a_name_that_is_none_is_refused(chain: str) -> None:
    with pytest.raises(ValueError, match="not a chain name"):
        payload([Transaction("nat", (chain,))])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "COMMIT",
        "*filter",
        ":X - [0:0]",
        "# gone",
        "-A X -j Y\n-F",
        "-A X\0",
        '-A X -m comment --comment "open -j DROP',
        '-A X -m comment --comment "a\\" -j DROP',
        '-A X -m comment --comment "a" b" -j DROP',
    ],
)
def test_a_line_that_is_not_one_command_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not one command"):
        payload([Transaction("nat", lines=(line,))])


def test_quotes_and_backslashes_that_are_closed_pass() -> None:
    line = '-A X -m comment --comment "a\\"b\\\\" -m comment --comment back\\slash -j DROP'
    assert line in payload([Transaction("nat", lines=(line,))])


@given(st.text(st.sampled_from('-A "\\\n\0*:#X')))
def test_no_line_changes_the_structure(line: str) -> None:
    try:
        text = payload([Transaction("nat", ("X",), (line,))])
    except ValueError:
        return
    assert text.split("\n") == ["*nat", ":X - [0:0]", line, "COMMIT", ""]
    try:
        split(line)
    except RuleError:
        pytest.fail("an open quote would swallow what follows")


@pytest.mark.parametrize(
    ("chain", "mine"),
    [
        ("KUBE-SERVICES", True), ("KUBE-NODEPORTS", True), ("KUBE-POSTROUTING", True), ("KUBE-MARK-MASQ", True),
        ("KUBE-FORWARD", True), ("KUBE-EXTERNAL-SERVICES", True), ("KUBE-PROXY-FIREWALL", True),
        ("KUBE-FIREWALL", True), ("KUBE-SVC-67NZLRHBNDSAWJRO", True), ("KUBE-SVL-A", True), ("KUBE-EXT-A", True),
        ("KUBE-FW-A", True), ("KUBE-SEP-A", True), ("KUBE-XLB-A", True), ("KPX-T-1", True),
        ("KUBE-PROXY-CANARY", False),
        ("KUBE-IPTABLES-HINT", False), ("KUBE-KUBELET-CANARY", False), ("KUBE-PORTALS-HOST", False),
        ("KUBE-MARK-DROP", False), ("KUBE-NWPLCY-A", False), ("KUBE-ROUTER-INPUT", False), ("KUBE-SVC", False),
        ("PREROUTING", False), ("cali-FORWARD", False), ("DOCKER", False), ("kube-services", False),
    ],
)  # fmt: skip
def test_whose_chain_it_is(chain: str, mine: bool) -> None:
    assert ours(chain) is mine
    assert shared(chain) is (chain == "KUBE-FIREWALL")
