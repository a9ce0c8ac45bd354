"""kube-proxy beside kpx, with the same objects: are the rules equal?"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.cluster import ROOT, Cluster
from tests.cluster.judge import TOOL, differences, rules, saved
from tests.cluster.layout import NODES
from tests.cluster.manifests import named
from tests.cluster.plan import Claim, Group
from tests.cluster.town import NAMESPACE, Town
from tests.cluster.twins import NODE, Twins
from tests.cluster.waiting import demand, eventually
from tests.lab import Namespace

SERVICES, CHANGES = 300, 300
COUNTER = "localhost_nps_accepted_pkts"


@contextmanager
def side_by_side(cluster: Cluster, layout: str) -> Iterator[Twins]:
    """Twins for a while."""
    twins = Twins(cluster, layout)
    try:
        yield twins
    finally:
        twins.close()


def settle(cluster: Cluster) -> str:
    """Random Services of all kinds beside those that are there."""
    cluster.api.post("/api/v1/namespaces", named("Namespace", NAMESPACE), allow=(409,))
    town = Town(1, tuple(site.name for site in NODES))
    for number in range(SERVICES + CHANGES):
        for request in town.create() if number < SERVICES else town.change():
            cluster.api.request(request.method, request.path, request.body, kind=_kind(request.method))
    return f"{town.size} random Services"


def _kind(method: str) -> str:
    return "application/merge-patch+json" if method == "PATCH" else "application/json"


def equal(cluster: Cluster) -> str:
    """Rule for rule, as the kernels hold them, with rules that count if there are any."""
    settle(cluster)
    with side_by_side(cluster, "classic") as twins:

        def same() -> str:
            count = counting = 0
            for family in TOOL:
                theirs, ours = (saved(twin.space.network, family) for twin in twins)
                want = rules(theirs, counting=True)
                told = differences(rules(ours, counting=True), want)
                demand(not told, f"{family}: {len(told)} differences: {told[:4]}")
                count += sum(map(len, want.values()))
                counting += theirs.count(COUNTER)
            demand(count > SERVICES, f"{count} rules only")
            return f"{count} rules equal, order too; {counting} of them count packets (nfacct)"

        return eventually("equal rules", same, seconds=180, pause=2)


def equal_without_counting(cluster: Cluster) -> str:
    """What kube-proxy writes on a kernel without nfacct, against `kpx apply --no-nfacct`."""
    file = cluster.folder / "beside.json"
    with side_by_side(cluster, "tree") as twins:
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": cluster.api.objects()}))
        config = twins.folder / "kpx.json"
        with Namespace() as empty:
            empty.ip("link set lo up")
            words = [sys.executable, "-m", "kpx", "apply", "-f", str(file), "--config", str(config), "--node", NODE]
            words += ["--family", "dual", "--layout", "classic", "--backend", "nft", "--no-nfacct", "--keep-going"]
            empty.run(words, directory=ROOT, timeout=300)
            ours = {family: saved(empty, family) for family in TOOL}
        demand(not any(COUNTER in text for text in ours.values()), "kpx wrote rules that count")

        def same() -> str:
            count = 0
            for family in TOOL:
                want = rules(saved(twins.kube_proxy.space.network, family))
                told = differences(rules(ours[family]), want)
                demand(not told, f"{family}: {len(told)} differences: {told[:4]}")
                count += sum(map(len, want.values()))
            return f"{count} rules equal"

        said = eventually("equal rules", same, seconds=180, pause=2)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=240s")
    return said


GROUP: Group[Cluster] = Group(
    "beside",
    "kube-proxy beside it",
    (
        Claim("rules of kube-proxy and of kpx (`classic`) in two kernels", equal),
        Claim("the same without counting rules (`--no-nfacct`)", equal_without_counting),
    ),
)
