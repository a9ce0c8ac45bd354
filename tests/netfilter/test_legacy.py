"""The legacy tables read through libiptc."""

import os
import subprocess
import sys

import pytest

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.legacy import ChainCounters, Jump, survey
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools, legacy_tables
from tests.kernel import FAMILIES, needs_kernel

PAYLOAD = """\
*filter
:INPUT DROP [3:180]
:KUBE-A - [0:0]
:KUBE-B - [0:0]
[5:300] -A INPUT -m comment --comment "a b" -j KUBE-A
[6:360] -A INPUT -m conntrack --ctstate NEW -g KUBE-B
[7:420] -A INPUT
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -j ACCEPT
-A KUBE-A -j KUBE-B
COMMIT
"""


def test_the_nft_backend_is_refused() -> None:
    with pytest.raises(KpxError, match="nft"):
        survey(Family.IPV4, Backend.NFT)


@pytest.mark.usefixtures("own_network")
@needs_kernel
@pytest.mark.kernel
class TestSurvey:
    """Surveys in a network namespace of their own."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_chains_counters_and_jumps(self, family: Family) -> None:
        program = "iptables" if family is Family.IPV4 else "ip6tables"
        subprocess.run([f"{program}-legacy-restore", "--counters"], input=PAYLOAD, text=True, check=True)
        surveyed = survey(family)
        assert list(surveyed) == ["filter"]
        chains = surveyed["filter"].chains
        assert set(chains) == {"INPUT", "FORWARD", "OUTPUT", "KUBE-A", "KUBE-B"}
        assert chains["INPUT"] == ChainCounters("DROP", 3, 180)
        assert chains["OUTPUT"] == ChainCounters("ACCEPT", 0, 0)
        assert chains["KUBE-A"] == ChainCounters(None, 0, 0)
        assert surveyed["filter"].jumps == {
            "INPUT": (
                Jump("KUBE-A", 5, 300),
                Jump("KUBE-B", 6, 360),
                Jump(None, 7, 420),
                Jump("REJECT", 0, 0),
                Jump("ACCEPT", 0, 0),
            ),
            "FORWARD": (),
            "OUTPUT": (),
        }

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_survey_is_new_and_agrees_with_iptables_save(self, family: Family) -> None:
        tools = Tools(Backend.LEGACY, family)
        for number in range(20):
            tools.restore(f"*nat\n:KUBE-{number} - [0:0]\n-A OUTPUT -j KUBE-{number}\nCOMMIT\n")
            found = survey(family)["nat"]
            saved = parse_save(tools.save("nat"))["nat"].chains
            assert list(found.jumps["OUTPUT"])[-1].target == f"KUBE-{number}"
            assert len(found.jumps["OUTPUT"]) == number + 1
            assert set(found.chains) == set(saved)

    def test_no_table_is_made(self) -> None:
        assert survey(Family.IPV4) == survey(Family.IPV6) == {}
        Tools(Backend.LEGACY, Family.IPV4).restore("*mangle\n:X - [0:0]\nCOMMIT\n")
        assert survey(Family.IPV4) == {}
        assert legacy_tables(Family.IPV4) == ("mangle",)
        assert legacy_tables(Family.IPV6) == ()

    def test_without_a_table_python_iptables_is_not_even_imported(self) -> None:
        code = (
            "import sys; from kpx.family import Family; from kpx.netfilter.legacy import survey\n"
            "assert survey(Family.IPV4) == {}; print('iptc' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"

    def test_many_surveys_leak_no_file(self) -> None:
        Tools(Backend.LEGACY, Family.IPV4).restore("*nat\n:X - [0:0]\nCOMMIT\n")
        survey(Family.IPV4)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            survey(Family.IPV4)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_large_table_is_surveyed_fast(self) -> None:
        chains = [f"KUBE-SEP-{index:016d}" for index in range(30_000)]
        lines = [f":{chain} - [0:0]" for chain in chains] + [f"-A {chain} -j RETURN" for chain in chains]
        Tools(Backend.LEGACY, Family.IPV4).restore("\n".join(["*nat", *lines, "COMMIT", ""]))
        assert set(survey(Family.IPV4)["nat"].chains) >= set(chains)

    def test_threads_at_the_same_time(self) -> None:
        """In a process of its own, since a fault here would end it by a signal."""
        for program in ("iptables", "ip6tables"):
            subprocess.run([f"{program}-legacy-restore", "--counters"], input=PAYLOAD, text=True, check=True)
        script = (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "from kpx.family import Family\n"
            "from kpx.netfilter.legacy import survey\n"
            "def look(number):\n"
            "    return [len(survey(list(Family)[number % 2])['filter'].jumps['INPUT']) for _ in range(200)]\n"
            "with ThreadPoolExecutor(4) as pool:\n"
            "    print({length for found in pool.map(look, range(8)) for length in found})\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "{5}\n"), done.stderr
