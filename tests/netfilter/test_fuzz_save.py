"""Any text, read as a dump and as rules; and again all texts that searches led by coverage have found worth keeping."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.netfilter.fuzz_save import check, check_rule

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
EXAMPLES = int(os.environ.get("KPX_EXAMPLES", "300"))

_TEXT = r"""
-s -d -i -o -p -f ! -m -j -g tcp udp icmpv6 6 all 0 mh comment statistic recent addrtype conntrack state multiport mark
connmark iprange sctp nonsense --comment --name --dport --sport --dports --syn --tcp-flags --icmp-type --mh-type --mark
--ctstate --ctproto --ctorigdst --ctorigdstport --src-type --mode --probability --every --rcheck --seconds --mask
--rsource --src-range --log-prefix --set-xmark --set-mark --and-mark --or-mark --xor-mark --reject-with --to-source
--to-destination --random DNAT SNAT MARK CONNMARK REJECT MASQUERADE RETURN KUBE-SVC-A "a "a" a"b "" \ \" "a\"b" a,-b
NEW,-x 10.0.0.0/8 10.0.0.0/33 10.0.0.0/255.0.255.0 ::/0 fd00::1 0:65535 80: :80 090 0x4000/0x4000 1/2/3 -1 -5,-4
1-2 1.2.3.4-5.6.7.8 [fd00::1]:80 1.2.3.4:80 0.5 nan 1e999 ٣ random nth FIN,SYN,RST,ACK ALL tcp-rst no-route
"""
WORDS = _TEXT.split()
words = st.sampled_from(WORDS) | st.text(max_size=4)
rules = st.lists(words, max_size=9).map(" ".join)
lines = st.one_of(
    rules.map("-A A {}".format),
    st.sampled_from(["*nat", "*filter", ":A - [0:0]", ":A DROP [1:2]", "COMMIT", "# x", "", "[1:2] -A A -j B",
    "-I A 1 -j B"]),
    st.text(max_size=6),
)  # fmt: skip


@given(rules)
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_words_are_a_rule_or_refused(rule: str) -> None:
    check_rule(rule)


@given(st.lists(lines, max_size=8).map("\n".join))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_lines_are_a_dump_or_refused(text: str) -> None:
    check(text.encode(errors="surrogatepass"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_was_worth_keeping(path: Path) -> None:
    check(path.read_bytes())
