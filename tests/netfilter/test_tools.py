"""The real tools of both backends, and what they say when they refuse."""

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import tools as tools_module
from kpx.netfilter.refusal import RestoreError, UnconfirmedError, failed_line
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools, legacy_tables
from tests.kernel import BACKENDS, FAMILIES, needs_kernel

HEAD = "*nat\n:KUBE-C - [0:0]\n-A KUBE-C -j RETURN\n"
TAIL = "-A KUBE-C -j ACCEPT\nCOMMIT\n"
LIVE = "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n-A KUBE-A -j KUBE-B\nCOMMIT\n"
LONG = "A" * 29

# The command refused, which stands at line 4, and the line that is found: (nft, legacy). The kernel's refusals
# come without a line on the legacy backend, so that of COMMIT is found, here 6.
REFUSED = {
    "jump to a missing chain": ("-A KUBE-C -j KUBE-NOPE", (4, 4)),
    "goto to a missing chain": ("-A KUBE-C -g KUBE-NOPE", (4, 4)),
    "append to a missing chain": ("-A KUBE-NOPE -j RETURN", (4, 4)),
    "unknown match": ("-A KUBE-C -m nosuch -j RETURN", (4, 4)),
    "unknown option": ("-A KUBE-C -p tcp -m tcp --dprt 80 -j RETURN", (4, 4)),
    "bad port": ("-A KUBE-C -p tcp -m tcp --dport 99999999 -j RETURN", (4, 4)),
    "bad address": ("-A KUBE-C -d 10.300.1.1/32 -j RETURN", (4, 4)),
    "bad probability": ("-A KUBE-C -m statistic --mode random --probability 2 -j RETURN", (4, 4)),
    "missing rule": ("-D KUBE-C -s 9.9.9.9/32 -j RETURN", (4, 4)),
    "index of a missing rule": ("-D KUBE-C 9", (4, 4)),
    "insert beyond the end": ("-I KUBE-C 9 -j RETURN", (4, 4)),
    "chain in use": ("-X KUBE-B", (4, 4)),
    "missing chain": ("-X KUBE-NOPE", (4, 4)),
    "chain name too long": (f"-N {LONG}", (4, 4)),
    "target name too long": (f"-A KUBE-C -j {LONG}", (4, 4)),
    "garbage": ("hello", (4, 4)),
    "text too long": (f"-A KUBE-C -m comment --comment {'a' * 1100} -j RETURN", (4, 4)),
    "target of another table": ("-A KUBE-C -j REJECT", (4, 6)),
    "target of another hook": ("-A PREROUTING -j MASQUERADE", (4, 6)),
}  # fmt: skip

kernel = pytest.mark.kernel


@pytest.mark.usefixtures("own_network")
@needs_kernel
@kernel
class TestRestore:
    """Payloads that are refused, and what is known of it."""

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(("command", "found"), REFUSED.values(), ids=REFUSED)
    def test_the_refused_line_is_found(self, backend: Backend, command: str, found: tuple[int, int]) -> None:
        tools = Tools(backend, Family.IPV4)
        tools.restore(LIVE)
        with pytest.raises(RestoreError) as caught:
            tools.restore(f"{HEAD}{command}\n{TAIL}")
        error = caught.value
        expected = found[BACKENDS.index(backend)]
        assert error.line_number == expected, error.stderr
        assert error.line == (command if expected == 4 else "COMMIT")
        assert error.table == "nat"
        assert error.command == f"iptables-{backend}-restore --noflush -w 5"
        assert f"> {expected:>6}  {error.line}" in str(error)
        assert "-A KUBE-C -j ACCEPT" in str(error)
        assert ("as a whole" in str(error)) == (expected == 6)
        assert "KUBE-C" not in parse_save(tools.save("nat"))["nat"].chains  # nothing of the section went in

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_section_that_is_refused_is_named_and_those_before_it_stand(self, backend: Backend) -> None:
        tools = Tools(backend, Family.IPV4)
        first = "*nat\n:KUBE-A - [0:0]\n:KUBE-NOPE - [0:0]\n-A KUBE-A -j KUBE-NOPE\nCOMMIT\n"
        second = "*filter\n:KUBE-B - [0:0]\n-A KUBE-B -j KUBE-NOPE\nCOMMIT\n"
        with pytest.raises(RestoreError) as caught:
            tools.restore(first + second)
        assert (caught.value.line_number, caught.value.line) == (8, "-A KUBE-B -j KUBE-NOPE")
        assert caught.value.table == "filter"
        assert "KUBE-A" in parse_save(tools.save("nat"))["nat"].chains
        assert "KUBE-B" not in tools.save("filter")

    @pytest.mark.parametrize(("backend", "line"), [(Backend.NFT, 4), (Backend.LEGACY, 6)])
    def test_a_loop_of_jumps_is_found_by_nft_alone(self, backend: Backend, line: int) -> None:
        tools = Tools(backend, Family.IPV4)
        tools.restore(LIVE)
        with pytest.raises(RestoreError) as caught:
            tools.restore("*nat\n:KUBE-C - [0:0]\n-A KUBE-B -j KUBE-A\n-A PREROUTING -j KUBE-A\n-A KUBE-C\nCOMMIT\n")
        assert caught.value.line_number == line

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(
        ("payload", "line"),
        [
            ("*foo\n:X - [0:0]\nCOMMIT\n", "*foo"),
            ("*nat\n:PREROUTING FOO [0:0]\nCOMMIT\n", ":PREROUTING FOO [0:0]"),
            ("*nat\n:KUBE-C\nCOMMIT\n", ":KUBE-C"),
            (f"*nat\n:{LONG} - [0:0]\nCOMMIT\n", f":{LONG} - [0:0]"),
            ("-A X -j Y\n", "-A X -j Y"),
            ("*nat\n:KUBE-C - [0:0]\n", ""),
        ],
    )
    def test_a_broken_frame_is_found(self, backend: Backend, payload: str, line: str) -> None:
        with pytest.raises(RestoreError) as caught:
            Tools(backend, Family.IPV4).restore(payload)
        assert caught.value.line == line, caught.value.stderr

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_what_is_restored_is_saved(self, backend: Backend, family: Family) -> None:
        tools = Tools(backend, family)
        tools.restore(LIVE)
        tools.restore("*nat\n:KUBE-B - [0:0]\n-A KUBE-B -j ACCEPT\nCOMMIT\n")
        saved = parse_save(tools.save("nat", counters=True))["nat"].chains
        assert saved["KUBE-A"].rules == ("-j KUBE-B",)
        assert saved["KUBE-B"].rules == ("-j ACCEPT",)
        assert saved["KUBE-B"].counters == ((0, 0),)
        assert set(parse_save(tools.save())) == {"nat"}
        assert tools.version().split(".")[:2] == ["1", "8"]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_payload_is_fed_while_it_is_made(self, backend: Backend) -> None:
        tools = Tools(backend, Family.IPV4)

        def pieces() -> Iterator[str]:
            yield LIVE
            for _ in range(1000):  # the tool takes in the first while the second isn't there yet
                if "KUBE-A" in tools.save("nat"):
                    break
            yield "*nat\n:KUBE-LATE - [0:0]\n-A KUBE-LATE -j KUBE-A\nCOMMIT\n"

        tools.restore(pieces())
        assert parse_save(tools.save("nat"))["nat"].chains["KUBE-LATE"].rules == ("-j KUBE-A",)
        with pytest.raises(RestoreError) as caught:
            tools.restore(iter((LIVE, "*nat\n-A KUBE-A -j NOPE\nCOMMIT\n")))
        assert caught.value.line == "-A KUBE-A -j NOPE"

    def test_asking_for_a_legacy_table_does_not_make_it(self) -> None:
        tools = Tools(Backend.LEGACY, Family.IPV6)
        assert tools.save("nat") == tools.save() == ""
        assert legacy_tables(Family.IPV6) == ()
        tools.restore("*filter\n:X - [0:0]\nCOMMIT\n")
        assert legacy_tables(Family.IPV6) == ("filter",)
        assert tools.save("nat") == ""
        assert legacy_tables(Family.IPV4) == ()

    def test_a_table_that_iptables_cannot_read_is_an_error(self) -> None:
        tools = Tools(Backend.NFT, Family.IPV4)
        tools.restore(LIVE)
        subprocess.run(["nft", "add rule ip nat KUBE-A numgen inc mod 2 0 accept"], check=True)
        with pytest.raises(KpxError, match="table nat holds rules of nft"):
            tools.save("nat")


def test_errors_without_a_line_are_errors_all_the_same() -> None:
    error = RestoreError(["iptables-restore"], "Another app is currently holding the xtables lock", "*nat\nCOMMIT\n")
    assert (error.line_number, error.line, error.table) == (None, None, None)
    assert str(error) == "iptables-restore: Another app is currently holding the xtables lock"
    assert failed_line("iptables-restore: line 99 failed", ["*nat", "COMMIT"]) is None


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("iptables-restore: line 2 failed", 2),
        ("iptables-restore v1.8.7 (nf_tables): \nline 3: RULE_APPEND failed (No such file): rule in chain X", 3),
        ("iptables-nft-restore v1.8.11 (nf_tables): line 3: RULE_INSERT failed (Invalid argument): rule in chain X", 3),
        ("iptables-restore v1.8.9 (legacy): host/network `line 1 failed' not found\nError occurred at line: 2\n", 2),
        ("iptables-restore v1.8.9 (nf_tables): Chain 'B' does not exist\nError occurred at line: 4\n", 3),
        ("iptables-restore v1.8.9 (nf_tables): Chain 'C' does not exist\nError occurred at line: 4\n", 4),
    ],
)  # fmt: skip
def test_each_way_to_name_a_line(stderr: str, line: int) -> None:
    assert failed_line(stderr, ["*nat", ":A - [0:0]", "-A A -j B", "COMMIT", ""]) == line


class TestProcesses:
    """Programs that are missing, slow or called otherwise."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(tools_module, "SBIN", ())
        tools_module.plain_backend.cache_clear()
        yield tmp_path
        tools_module.plain_backend.cache_clear()

    def test_missing_tools_name_the_package(self, path: Path) -> None:
        with pytest.raises(KpxError, match="ip6tables-legacy-restore not found: install the package iptables"):
            Tools(Backend.LEGACY, Family.IPV6).restore("*nat\nCOMMIT\n")

    def test_plain_names_serve_if_they_are_of_the_backend(self, path: Path) -> None:
        for name in ("iptables", "iptables-restore", "iptables-save"):
            (path / name).symlink_to("/usr/sbin/xtables-legacy-multi")
        if not (path / "iptables").exists():
            pytest.skip("needs the legacy iptables of Debian's package")
        assert tools_module.binary(Backend.LEGACY, Family.IPV4, "-restore") == "iptables-restore"
        assert tools_module.binary(Backend.NFT, Family.IPV4, "-restore") is None
        assert Tools(Backend.LEGACY, Family.IPV4).version().startswith("1.")

    def test_folders_of_programs_for_root_are_searched_too(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = path / "sbin"
        folder.mkdir()
        program = folder / "iptables-nft"
        program.write_text("#!/bin/sh\necho 'iptables v1.8.11 (nf_tables)'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(tools_module, "SBIN", (str(folder),))
        assert Tools(Backend.NFT, Family.IPV4).version() == "1.8.11"

    def test_a_process_that_hangs_is_given_up(self, path: Path) -> None:
        slow = path / "iptables-nft-restore"
        slow.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
        slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
        with pytest.raises(KpxError, match=r"iptables-nft-restore .*: no answer after 0.2 s"):
            Tools(Backend.NFT, Family.IPV4, timeout=0.2).restore("*nat\nCOMMIT\n")

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_tool_that_ends_well_without_reading_all_is_not_believed(self, backend: Backend, path: Path) -> None:
        tool = path / f"iptables-{backend}-restore"
        tool.write_text("#!/bin/sh\nexit 0\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        lines = "".join(f"-A KUBE-A -s 10.0.{number // 250}.{number % 250}/32 -j RETURN\n" for number in range(20_000))
        with pytest.raises(UnconfirmedError, match="did not read all"):
            Tools(backend, Family.IPV4).restore(f"*nat\n:KUBE-A - [0:0]\n{lines}COMMIT\n")
