"""`kpx apply`, `diff` and `cleanup` on the real kernel."""

import json
import shutil
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend
from tests.kernel import BACKENDS, Namespace, needs_kernel, rules_only
from tests.manifests import endpoint_slice, node, service, write

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.parametrize("backend", BACKENDS)]

IPV4 = Family.IPV4
FOREIGN = """*filter
:CNI-FORWARD - [0:0]
-A INPUT -s 192.0.2.1/32 -m comment --comment "admin's rule" -j DROP
-A FORWARD -j CNI-FORWARD
-A CNI-FORWARD -s 10.244.0.0/16 -j ACCEPT
COMMIT
*nat
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT
-A CNI-HOSTPORT -p tcp -m tcp --dport 9999 -j DNAT --to-destination 10.244.0.99:80
-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE
COMMIT
"""


def shop(*extra: dict[str, object]) -> list[dict[str, object]]:
    return [
        node(),
        service("web", "10.96.1.1"),
        endpoint_slice("web", ["10.244.0.10", "10.244.1.10", "10.244.2.10"]),
        service("cart", "10.96.1.2", sessionAffinity="ClientIP"),
        endpoint_slice("cart", ["10.244.0.11", "10.244.1.11"]),
        service("empty", "10.96.1.3"),
        *extra,
    ]


def apply(
    namespace: Namespace, backend: Backend, folder: Path, objects: list[dict[str, object]], *more: str,
    check: bool = True, env: dict[str, str] | None = None,
) -> dict[str, object]:  # fmt: skip
    write(folder / "objects.json", objects)
    done = namespace.kpx(
        "apply", "-f", str(folder), "--node", "node-0", "--backend", backend, "--format", "json", *more,
        check=check, env=env,
    )  # fmt: skip
    record: dict[str, object] = json.loads(done.stdout)
    return record | {"status": done.returncode, "stderr": done.stderr}


def test_a_second_apply_runs_no_restore(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    assert apply(namespace, backend, tmp_path, shop())["restores"] == 1
    before = namespace.save(backend, IPV4)
    assert apply(namespace, backend, tmp_path, shop())["restores"] == 0
    assert rules_only(namespace.save(backend, IPV4)) == rules_only(before)


def test_foreign_rules_are_untouched_and_cleanup_leaves_just_them(
    backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    namespace.restore(backend, IPV4, FOREIGN)
    before = rules_only(namespace.save(backend, IPV4))
    apply(namespace, backend, tmp_path, shop())
    after = rules_only(namespace.save(backend, IPV4))
    assert [line for line in after if "KUBE-" not in line] == before
    namespace.kpx("cleanup", "--backend", backend)
    assert rules_only(namespace.save(backend, IPV4)) == before


def test_our_jumps_come_before_other_programs_rules(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    namespace.restore(backend, IPV4, FOREIGN)
    apply(namespace, backend, tmp_path, shop())
    saved = parse_save(namespace.save(backend, IPV4))
    assert [rule.split()[-1] for rule in saved["filter"].chains["INPUT"].rules] == [
        "KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "DROP",
    ]  # fmt: skip
    assert saved["nat"].chains["PREROUTING"].rules[0].endswith("-j KUBE-SERVICES")


def test_an_update_changes_only_what_it_must(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, backend, tmp_path, shop())
    count(namespace, backend, packets=7)
    changed = shop()
    changed[2] = endpoint_slice("web", ["10.244.0.10", "10.244.2.10"])
    record = apply(namespace, backend, tmp_path, changed)
    assert record["restores"] == 1
    after = parse_save(namespace.save(backend, IPV4, counters=True))
    fresh = [
        rule
        for table in ("filter", "nat")
        for chain in after[table].chains.values()
        for rule, (packets, _) in zip(chain.rules, chain.counters or (), strict=True)
        if packets != 7
    ]
    assert [rule for rule in fresh if "shop/web" not in rule] == []
    assert len(fresh) == 1  # only the probability of the endpoint that is now first of two
    assert not any("10.244.1.10" in rule for chain in after["nat"].chains.values() for rule in chain.rules)


def test_rules_of_clients_that_kube_proxy_wrote_can_be_changed(
    backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    """It gives `-m recent` no mask, and the kernel then holds another rule than with the mask that is printed."""
    apply(namespace, backend, tmp_path, shop())
    as_written = namespace.save(backend, IPV4).replace(" --mask 255.255.255.255", "")
    namespace.run([f"iptables-{backend}-restore"], as_written)
    fewer = shop()
    fewer[4] = endpoint_slice("cart", ["10.244.0.11", "10.244.3.11"])
    assert apply(namespace, backend, tmp_path, fewer)["status"] == 0
    saved = namespace.save(backend, IPV4)
    assert "10.244.3.11" in saved
    assert "10.244.1.11" not in saved
    with Namespace() as fresh:
        apply(fresh, backend, tmp_path, fewer)
        assert sorted(rules_only(saved)) == sorted(rules_only(fresh.save(backend, IPV4)))


def count(namespace: Namespace, backend: Backend, packets: int) -> None:
    """Give every rule the same counter."""
    lines = namespace.save(backend, IPV4).splitlines()
    text = "\n".join(f"[{packets}:{packets * 60}] {line}" if line.startswith("-A") else line for line in lines)
    namespace.run([f"iptables-{backend}-restore", "-c"], text + "\n")


def test_a_service_that_goes_takes_its_chains_along(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, backend, tmp_path, shop())
    apply(namespace, backend, tmp_path, [node()])
    saved = parse_save(namespace.save(backend, IPV4))
    own = ("KUBE-SVC-", "KUBE-SEP-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-")
    assert [chain for chain in saved["nat"].chains if chain.startswith(own)] == []
    assert saved["filter"].chains["KUBE-SERVICES"].rules == ()


@pytest.mark.parametrize(
    "damage",
    [
        "-t nat -F KUBE-SERVICES",
        "-t nat -D PREROUTING 1",
        "-t nat -I PREROUTING 1 -m comment --comment double -j KUBE-SERVICES",
        "-F",
        "-t nat -F",
        "-P FORWARD DROP",
        "-t filter -A KUBE-FORWARD -j DROP",
        "-t nat -I KUBE-NODEPORTS -j RETURN",
        "-t filter -I KUBE-SERVICES 1 -d 10.96.1.1 -j DROP",
    ],
)
def test_damage_is_repaired(backend: Backend, damage: str, namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, backend, tmp_path, shop())
    before = rules_only(namespace.save(backend, IPV4))
    namespace.run([f"iptables-{backend}", *damage.split()])
    harmless = damage.startswith("-P")
    assert apply(namespace, backend, tmp_path, shop())["restores"] == (0 if harmless else 1)
    after = rules_only(namespace.save(backend, IPV4))
    assert [line for line in after if line[:9] != ":FORWARD "] == [line for line in before if line[:9] != ":FORWARD "]


def test_stale_chains_that_others_need_stay(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, backend, tmp_path, shop())
    namespace.restore(backend, IPV4, "*nat\n:CNI - [0:0]\n-A CNI -j KUBE-MARK-MASQ\nCOMMIT\n")
    done = namespace.kpx("cleanup", "--backend", backend, "--family", "ipv4")
    assert "KUBE-MARK-MASQ" in done.stderr
    nat = parse_save(namespace.save(backend, IPV4))["nat"].chains
    assert [chain for chain in nat if chain.startswith("KUBE")] == ["KUBE-MARK-MASQ"]
    assert nat["KUBE-MARK-MASQ"].rules == ("-j MARK --set-xmark 0x4000/0x4000",)


def test_cleanup_leaves_kubelets_firewall(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    namespace.restore(backend, IPV4, "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n")
    apply(namespace, backend, tmp_path, shop())
    namespace.kpx("cleanup", "--backend", backend)
    saved = parse_save(namespace.save(backend, IPV4))
    assert [chain for chain in saved["filter"].chains if chain.startswith("KUBE")] == ["KUBE-FIREWALL"]
    assert saved["filter"].chains["INPUT"].rules == ("-j KUBE-FIREWALL",)
    assert len(saved["filter"].chains["KUBE-FIREWALL"].rules) == 1


def test_one_refused_service_does_not_stop_the_others(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    """iptables without its `recent` extension refuses the rules of Services with affinity."""
    libraries = extensions_without("recent", tmp_path / "xtables")
    folder = tmp_path / "objects"
    folder.mkdir()
    record = apply(namespace, backend, folder, shop(), check=False, env={"XTABLES_LIBDIR": str(libraries)})
    assert (record["status"], record["failed"]) == (2, ["shop/cart:http"])
    assert "Service shop/cart:http" in str(record["stderr"])
    assert "-m recent" in str(record["stderr"])
    rules = namespace.save(backend, IPV4)
    assert "shop/cart" not in rules
    assert "shop/web:http cluster IP" in rules
    assert "shop/empty:http has no endpoints" in rules
    assert apply(namespace, backend, folder, shop())["failed"] == []
    assert "shop/cart:http cluster IP" in namespace.save(backend, IPV4)


def test_a_refused_service_keeps_its_rules_while_trees_come_and_go(
    backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    tool = tool_that_refuses("10.244.2.7:", backend, tmp_path / "bin")
    folder = tmp_path / "objects"
    folder.mkdir()
    few, many = (shop(*(item for n in range(count) for item in another(n))) for count in (2, 40))
    apply(namespace, backend, folder, many)
    for objects in (few, many):
        objects[4] = endpoint_slice("cart", [f"10.244.{n >> 4}.{n & 15}" for n in range(20, 60)])
        record = apply(namespace, backend, folder, objects, check=False, env=tool)
        assert record["failed"] == ["shop/cart:http"]
        nat = parse_save(namespace.save(backend, IPV4))["nat"].chains
        assert any(chain.startswith("KPX-") for chain in nat) is (objects is many)
        (entry,) = [rule for chain in nat.values() for rule in chain.rules if "shop/cart:http cluster IP" in rule
                    and "-j KUBE-SVC" in rule]  # fmt: skip
        arms = [rule for rule in nat[entry.rpartition(" ")[2]].rules if "-j KUBE-SEP" in rule and "rcheck" not in rule]
        assert ["10.244.0.11:8080" in arms[0], "10.244.1.11:8080" in arms[1]] == [True, True]
        assert any("shop/more-1:http cluster IP" in rule for chain in nat.values() for rule in chain.rules)


def extensions_without(module: str, folder: Path) -> Path:
    """A copy of iptables' extensions that lacks one."""
    source = next(path for path in Path("/usr/lib").rglob("xtables") if (path / "libxt_recent.so").exists())
    shutil.copytree(source, folder, symlinks=True)
    (folder / f"libxt_{module}.so").unlink()
    return folder


def test_refusals_without_a_line_are_found_by_halving(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    """The legacy kernel refuses a whole table without saying which rule: here a tool that does the same."""
    tool = tool_that_refuses("10.244.1.11:", backend, tmp_path / "bin")
    folder = tmp_path / "objects"
    folder.mkdir()
    objects = shop(*(item for n in range(20) for item in another(n)))
    record = apply(namespace, backend, folder, objects, check=False, env=tool)
    assert (record["status"], record["failed"]) == (2, ["shop/cart:http"])
    rules = namespace.save(backend, IPV4)
    assert "shop/cart" not in rules
    assert all(f"shop/more-{n}:http cluster IP" in rules for n in range(20))


def tool_that_refuses(destination: str, backend: Backend, folder: Path) -> dict[str, str]:
    """The environment in which iptables-restore doesn't take a payload with this destination, and won't say why."""
    real = shutil.which(f"iptables-{backend}-restore")
    assert real is not None
    folder.mkdir()
    wrapper = folder / f"iptables-{backend}-restore"
    wrapper.write_text(
        "#!/bin/sh\npayload=$(cat; echo x)\npayload=${payload%x}\n"
        f'case $payload in *"to-destination {destination}"*)\n'
        '  echo "iptables-restore: failed" >&2; exit 1;; esac\n'
        f'printf %s "$payload" | exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    return {"PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"}


def another(number: int) -> tuple[dict[str, object], dict[str, object]]:
    name = f"more-{number}"
    return service(name, f"10.96.1.{number + 10}"), endpoint_slice(name, [f"10.244.3.{number}"])


def test_a_failed_restore_leaves_the_old_rules(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, backend, tmp_path, shop())
    before = rules_only(namespace.save(backend, IPV4))
    libraries = extensions_without("comment", tmp_path / "xtables")
    write(tmp_path / "objects.json", shop()[:3])
    done = namespace.kpx(
        "apply", "-f", str(tmp_path / "objects.json"), "--node", "node-0", "--backend", backend,
        check=False, env={"XTABLES_LIBDIR": str(libraries)},
    )  # fmt: skip
    assert done.returncode == 2
    assert rules_only(namespace.save(backend, IPV4)) == before


def test_diff_tells_services_apart(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, backend, tmp_path, shop())
    arguments = ["diff", "-f", str(tmp_path), "--node", "node-0"]
    same = namespace.kpx(*arguments, "--backend", backend)
    assert same.stdout == "same\n"
    changed = shop()
    changed[2] = endpoint_slice("web", ["10.244.0.10", "10.244.1.10", "10.244.2.99"])
    del changed[5]
    write(tmp_path / "objects.json", changed)
    done = namespace.kpx(*arguments, "--backend", backend, "--format", "json", check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)["ipv4"]
    assert set(found) == {"shop/web:http", "shop/empty:http"}
    assert {one["kind"] for one in found["shop/empty:http"]} == {"extra"}
    dump = tmp_path / "dump.save"
    dump.write_text(namespace.save(backend, IPV4))
    against = namespace.kpx(*arguments, "--against", str(dump), "--format", "json", check=False)
    assert json.loads(against.stdout)["ipv4"] == found


def test_ipv6_has_its_own_tables(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    objects = shop(service("six", "fd00:10::6"), endpoint_slice("six", ["fd00:244::6", "fd00:244:1::6"]))
    write(tmp_path / "objects.json", objects)
    arguments = ["-f", str(tmp_path), "--node", "node-0", "--backend", backend, "--family", "dual"]
    namespace.kpx("apply", *arguments)
    assert "shop/six" not in namespace.save(backend, IPV4)
    assert "--to-destination [fd00:244::6]:8080" in namespace.save(backend, Family.IPV6)
    done = namespace.kpx("apply", *arguments)
    assert done.stdout.count("nothing written") == 2
    namespace.kpx("cleanup", "--backend", backend)
    for family in Family:
        assert "KUBE-" not in namespace.save(backend, family)
