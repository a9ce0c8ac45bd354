"""The parts of the harness that need no cluster: certificates, plans, images, judgement, the table."""

import base64
import hashlib
import io
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from kpx.api import parse_object
from tests.cluster import images, layout, manifests, migration
from tests.cluster.__main__ import groups_of
from tests.cluster.churn import Size
from tests.cluster.judge import differences, rules
from tests.cluster.pki import Pki
from tests.cluster.plan import Claim, Group, run, select
from tests.cluster.pod import PORT
from tests.cluster.table import Line, into, markdown
from tests.cluster.town import Town
from tests.cluster.waiting import NotSeenError, demand, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki") / "made")


# Certificates and tokens.


def test_a_server_and_a_client_of_one_authority_trust_each_other(pki: Pki) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*pki.issue("server", "kube-apiserver", hosts=("localhost", "127.0.0.1")))
    server.load_verify_locations(pki.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(pki.ca))
    client.load_cert_chain(*pki.issue("client", "system:node:a", ["system:nodes"]))
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(theirs, ours, server_hostname="127.0.0.1")
    other = server.wrap_bio(ours, theirs, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    peer = other.getpeercert()
    assert peer
    subject = dict(pair for part in peer["subject"] for pair in part)  # type: ignore[misc]
    assert subject == {"organizationName": "system:nodes", "commonName": "system:node:a"}


def test_a_token_is_signed_and_says_when_it_ends(pki: Pki) -> None:
    head, body, signature = pki.token("kube-system", "kpx", "uid-1", -30).split(".")
    claims = json.loads(_unpacked(body))
    assert claims["sub"] == "system:serviceaccount:kube-system:kpx"
    assert claims["exp"] < time.time()
    assert claims["kubernetes.io"]["serviceaccount"] == {"name": "kpx", "uid": "uid-1"}
    (pki.folder / "signature").write_bytes(_unpacked(signature))
    words = ["openssl", "dgst", "-sha256", "-verify", "sa.pub", "-signature", "signature"]
    subprocess.run(words, cwd=pki.folder, input=f"{head}.{body}".encode(), check=True, capture_output=True)


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_kubeconfig_names_files_that_are_there(pki: Pki) -> None:
    made = json.loads(pki.kubeconfig("someone", "https://127.0.0.1:6443", "someone").read_text())
    user, cluster = made["users"][0]["user"], made["clusters"][0]["cluster"]
    for path in (*user.values(), cluster["certificate-authority"]):
        assert Path(path).is_file()
    assert cluster["server"] == "https://127.0.0.1:6443"


# Plans.


def test_no_address_is_given_twice_and_pods_are_in_the_cluster_s_ranges() -> None:
    addresses = [address for site in layout.SITES for address in site.addresses]
    assert len(set(addresses)) == len(addresses)
    for node in layout.NODES:
        for pods, whole in zip(node.pods, layout.POD_CIDRS, strict=True):
            assert ipaddress.ip_network(pods).subnet_of(ipaddress.ip_network(whole))  # type: ignore[arg-type]
    assert not set(layout.NODES[0].pods) & set(layout.NODES[1].pods)


def test_every_place_has_routes_to_all_pods_that_aren_t_its_own() -> None:
    for site in layout.SITES:
        told = " ".join(layout.routes(site))
        for node in layout.NODES:
            for pods in node.pods:
                assert (pods in told) == (node is not site)


def test_groups_are_chosen_by_name_in_their_own_order() -> None:
    every = groups_of(Size())
    assert [group.name for group in select(every, ["churn", "ways"])] == ["ways", "churn"]
    assert select(every, []) == every
    with pytest.raises(ValueError, match="no group wayz; there are migration, ways"):
        select(every, ["wayz"])


def test_a_claim_that_fails_is_a_line_and_the_next_is_looked_at() -> None:
    def wrong(_: str) -> str:
        raise NotSeenError("it rained")

    group = Group("g", "Weather", (Claim("sun", wrong), Claim("wind", lambda where: f"wind at {where}")))
    rain, wind = run([group], "sea")
    assert (rain.fine, rain.seen) == (False, "NotSeenError: it rained")
    assert (wind.fine, wind.seen, wind.group) == (True, "wind at sea", "Weather")


def test_ctrl_c_ends_a_run_at_once() -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run([Group("g", "G", (Claim("c", interrupted),))], ""))


def test_the_table_has_a_line_for_each_claim_and_no_cell_is_broken() -> None:
    lines = [Line("G", "a", "x | y\nz", True, 1.4), Line("H", "b", "bad", False, 2)]
    text = markdown(lines, {"date": "2026-01-02"})
    assert text.startswith("- date: 2026-01-02\n\n### G\n")
    assert "| a | x \\| y z | ✓ | 1 |\n" in text
    assert "### H\n" in text
    assert "| b | bad | ✗ failed | 2 |\n" in text


def test_the_table_goes_between_the_marks_of_a_page_and_comes_anew_each_time() -> None:
    page = "# P\n<!-- seen -->\nold\n<!-- end -->\nrest\n"
    once = into(page, "| a |\n")
    assert once == "# P\n<!-- seen -->\n| a |\n<!-- end -->\nrest\n"
    assert into(once, "| b |\n") == once.replace("| a |", "| b |")
    with pytest.raises(ValueError, match="no marks"):
        into("# P\n", "")


def test_waiting_tells_the_last_answer() -> None:
    answers = iter([0, 0, 7])
    assert eventually("seven", lambda: next(answers), pause=0) == 7
    with pytest.raises(NotSeenError, match="never; last: ValueError: no"):
        eventually("never", lambda: int("no", 3) if False else _fail(), seconds=0)
    with pytest.raises(NotSeenError, match="two"):
        demand([], "two")


def _fail() -> int:
    raise ValueError("no")


# Objects.


def test_the_same_seed_makes_the_same_requests_and_the_objects_are_sound() -> None:
    def requests(seed: int) -> list[tuple[str, str, str]]:
        town = Town(seed, ("node-a", "node-b"))
        made = [request for _ in range(40) for request in town.create()]
        made += [request for _ in range(200) for request in town.change()]
        for request in made:
            if request.method == "POST":
                assert request.body
                _parse(request.body)
        bodies = [json.dumps(request.body, default=str) for request in made]
        return [(one.method, one.path, _unstamped(body)) for one, body in zip(made, bodies, strict=True)]

    assert requests(1) == requests(1) != requests(2)


def _unstamped(body: str) -> str:
    return body.partition('"annotations"')[0]


def _parse(body: manifests.Object) -> None:
    """As the API server would have it back: with the addresses that it allots."""
    if body["kind"] == "Service":
        ports = [{**port, "nodePort": 30001} for port in body["spec"]["ports"]]
        allotted = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:10:96::9"], "ports": ports}
        body = {**body, "spec": {**body["spec"], **allotted, "type": body["spec"].get("type", "NodePort")}}
    parse_object(body["kind"], body)


def test_no_two_pods_of_the_town_have_one_address() -> None:
    town = Town(3, ("node-a",))
    made = [request for _ in range(600) for request in town.create()]
    found = [
        address
        for request in made
        if request.body and request.body["kind"] == "EndpointSlice"
        for endpoint in request.body["endpoints"]
        for address in endpoint["addresses"]
    ]
    assert len(found) == len(set(found)) > 1200


def test_the_steps_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert f"patch daemonset kube-proxy -p '{migration.PATCH}'" in text
    assert "--set kubeProxyConfigMap=kube-proxy --set nodeSelector.kpx=here" in text


# Images.


def test_images_share_their_layers_and_every_digest_is_right(tmp_path: Path) -> None:
    base = _archive(tmp_path / "base.tar", {"etc/base": b"base"})
    (program := tmp_path / "kube-proxy").write_bytes(b"#!")
    name = images.write(base, images.additions(program), tmp_path / "all.tar")
    assert name == "docker.io/library/kpx:1"
    with tarfile.open(tmp_path / "all.tar") as archive:
        entries = json.loads(_read(archive, "manifest.json"))
        assert [one["RepoTags"] for one in entries] == [[name], [images.POD_IMAGE], [images.KUBE_PROXY_IMAGE]]
        for entry in entries:
            config = json.loads(_read(archive, entry["Config"]))
            digests = [hashlib.sha256(_read(archive, layer)).hexdigest() for layer in entry["Layers"]]
            assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}" for digest in digests]
        with tarfile.open(fileobj=io.BytesIO(_read(archive, entries[2]["Layers"][-1]))) as layer:
            assert layer.getnames() == [images.KUBE_PROXY_PATH.lstrip("/")]
            assert layer.getmembers()[0].mode == 0o755


def test_what_isn_t_an_image_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="isn't an archive of one image"):
        images.write(tmp_path / "empty.tar", [], tmp_path / "all.tar")


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as inner:
        for name, data in files.items():
            _put(inner, name, data)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"]}}
    with tarfile.open(path, "w") as archive:
        _put(archive, "layer.tar", layer.getvalue())
        _put(archive, "config.json", json.dumps({**config, "rootfs": {"diff_ids": [f"sha256:{digest}"]}}).encode())
        entry = {"Config": "config.json", "RepoTags": ["kpx:1"], "Layers": ["layer.tar"]}
        _put(archive, "manifest.json", json.dumps([entry]).encode())
    return path


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file
    return file.read()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_pod_says_who_it_is_and_whom_it_sees(kind: socket.SocketKind) -> None:
    program = Path(images.__file__).with_name("pod.py")
    words = ["unshare", "-n", "sh", "-c", f"ip link set lo up; exec {sys.executable} -I -u {program}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            script = (
                "import socket, sys; s = socket.socket(socket.AF_INET, int(sys.argv[1])); "
                f"s.connect(('127.0.0.1', {PORT})); s.send(b'?'); print(s.recv(99).decode(), end='')"
            )
            ask = ["nsenter", "-t", str(process.pid), "-n", sys.executable, "-c", script, str(int(kind))]
            done = subprocess.run(ask, capture_output=True, text=True, check=True)
            assert done.stdout == f"{os.uname().nodename} {PORT} 127.0.0.1\n"
        finally:
            process.kill()


# Judgement.

SAVED = """\
*nat
:KUBE-SVC-A - [0:0]
:OTHER - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -j OTHER
-A KUBE-SVC-A -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SVC-A -m nfacct --nfacct-name  x -j KUBE-SEP-3
COMMIT
"""


def test_only_a_proxy_s_rules_are_compared() -> None:
    found = rules(SAVED)
    assert found["nat", "PREROUTING"] == ("-j KUBE-SERVICES",)
    assert found["nat", "KUBE-SVC-A"][2] == "-j KUBE-SEP-3"
    assert ("nat", "OTHER") not in found
    assert "nfacct" in rules(SAVED, counting=True)["nat", "KUBE-SVC-A"][2]
    assert differences(found, found) == []


def test_a_rule_too_many_one_missing_and_another_order_are_told() -> None:
    want = rules(SAVED)
    lines = SAVED.splitlines()
    less = rules("\n".join(line for line in lines if "SEP-1" not in line))
    assert differences(less, want) == ["- KUBE-SVC-A -j KUBE-SEP-1"]
    assert differences(want, less) == ["+ KUBE-SVC-A -j KUBE-SEP-1"]
    lines[5], lines[6] = lines[6], lines[5]
    assert differences(rules("\n".join(lines)), want) == ["another order in KUBE-SVC-A"]
