"""Which backend a host uses."""

import os
from pathlib import Path

import pytest

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.backend import Evidence, available, decide, detect
from kpx.netfilter.tools import Backend, Tools, legacy_tables, plain_backend
from tests.kernel import BACKENDS, FAMILIES, PROGRAM, needs_kernel

NFT, LEGACY = Backend.NFT, Backend.LEGACY


@pytest.mark.parametrize(
    ("nft", "legacy", "default", "chosen"),
    [
        (Evidence(True, 0), Evidence(False, 900), LEGACY, NFT),
        (Evidence(False, 900), Evidence(True, 0), NFT, LEGACY),
        (Evidence(True, 1), Evidence(True, 9), LEGACY, NFT),
        (Evidence(False, 2), Evidence(False, 1), LEGACY, NFT),
        (Evidence(False, 1), Evidence(False, 2), NFT, LEGACY),
        (Evidence(False, 0), Evidence(False, 0), LEGACY, LEGACY),
        (Evidence(False, 0), Evidence(False, 0), NFT, NFT),
        (Evidence(False, 5), Evidence(False, 5), None, NFT),
        (None, Evidence(False, 0), None, LEGACY),
        (Evidence(False, 0), None, LEGACY, NFT),
    ],
)
def test_hints_come_first_then_rules_then_the_default(
    nft: Evidence | None, legacy: Evidence | None, default: Backend | None, chosen: Backend
) -> None:
    installed = {backend: found for backend, found in ((NFT, nft), (LEGACY, legacy)) if found is not None}
    assert decide(installed, default) is chosen


def test_a_host_without_iptables_is_told_what_to_install() -> None:
    with pytest.raises(KpxError, match="install the package iptables"):
        decide({}, None)


@pytest.mark.usefixtures("own_network")
@needs_kernel
@pytest.mark.kernel
class TestDetect:
    """Detection in a fresh network namespace."""

    def test_an_empty_host_uses_the_default_and_no_table_appears(self) -> None:
        assert available() == BACKENDS
        assert detect() is plain_backend()
        assert legacy_tables(Family.IPV4) == legacy_tables(Family.IPV6) == ()
        assert Tools(NFT, Family.IPV4).save() == ""

    def test_others_that_commit_all_the_time_hold_nothing_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Tools(NFT, Family.IPV4).restore("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n")
        Tools(LEGACY, Family.IPV4).restore("*filter\n-A INPUT -j ACCEPT\nCOMMIT\n")
        for program in PROGRAM.values():  # iptables-nft-save starts over and over, and never prints
            (tmp_path / f"{program}-nft-save").write_text("#!/bin/sh\nexec sleep 1000\n")
            (tmp_path / f"{program}-nft-save").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        assert detect() is NFT

    @pytest.mark.parametrize("hint", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_kubelets_hint_decides(self, backend: Backend, family: Family, hint: str) -> None:
        other = LEGACY if backend is NFT else NFT
        Tools(other, Family.IPV4).restore("*filter\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n")
        assert detect() is other
        Tools(backend, family).restore(f"*mangle\n:{hint} - [0:0]\nCOMMIT\n")
        assert detect() is backend

    def test_looking_for_hints_makes_no_table(self) -> None:
        Tools(LEGACY, Family.IPV4).restore("*nat\n-A PREROUTING -j ACCEPT\nCOMMIT\n")
        assert detect() is LEGACY
        assert legacy_tables(Family.IPV4) == ("nat",)
        assert legacy_tables(Family.IPV6) == ()
