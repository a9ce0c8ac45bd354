"""The SVG of `kpx graph`: sorted; lines go across and down only, and meet nothing on their way. Also as rendered."""

import json
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from selenium.webdriver import Chrome

import kpx
from kpx.analysis.fold import folded
from kpx.analysis.picture import FEW, Picture, picture
from kpx.analysis.simulate import tables_of, tables_of_save
from kpx.analysis.svg import svg
from kpx.analysis.svg.width import bold, plain
from kpx.family import Family
from kpx.netfilter.save import parse_save
from tests.compiler.clusters import Manifest, clusters
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG, town
from tests.graph.browser import browser, missing
from tests.graph.sheets import Area, Sheet, Way, read
from tests.kernel import FAMILIES, KUBE_PROXY_1_20, case_path
from tests.lab.kpx import dry_kpx
from tests.manifests import endpoint_slice, node, service, write

SHOP = ("-f", "tests/demo/shop", "--config", "tests/demo/config.yaml", "--node", "node-0")
CASES = sorted(path.name for path in case_path("").iterdir() if path.is_dir())
SIZES = [1, 5, 12, 50]


def of_town(count: int, family: Family = Family.IPV4) -> Picture:
    return folded(picture(tables_of(Input.of(town(count, seed=1), CONFIG, family).tree()))).legible()


def of_dump(path: Path) -> Picture:
    tables, _ = tables_of_save(parse_save(path.read_text()))
    return folded(picture(tables)).legible()


def assert_tidy(drawn: Picture) -> Sheet:
    """Everything is there, nothing lies on anything else, and every line leads from its box to its box."""
    sheet = read(svg(drawn))
    assert sheet.boxes.keys() == drawn.boxes.keys()
    assert tuple(sheet.panels) == (*_with_endpoints(drawn), *_refused(drawn))
    for one, other in combinations(sheet.boxes.values(), 2):
        assert not one.area.touches(other.area), (one.id, other.id)
    ways = {(way.source, way.target): way for way in sheet.ways}
    assert ways.keys() == {(one.source, one.target) for one in drawn.arrows if _is_drawn(drawn, one.source, one.target)}
    said = [*_panel_titles(sheet), *_headings(sheet)]
    for way in ways.values():
        _assert_leads(way.points, sheet.boxes[way.source].area, sheet.boxes[way.target].area)
        for part in way.parts():
            assert part.left == part.right or part.top == part.bottom, way
            for box in sheet.boxes.values():
                own = box.id in (way.source, way.target)
                assert not part.touches(box.area, 1 if own else 0), (way, box)
            assert not [area for area in said if part.touches(area)], way
    for area in said:
        assert not [box.id for box in sheet.boxes.values() if area.touches(box.area)]
    for way, beside in combinations(sheet.ways, 2):
        assert way.source == beside.source or way.target == beside.target or not _hides(way, beside), (way, beside)
    assert not [(a, b) for a, b in combinations(list(_labels(sheet)), 2) if a[1].touches(b[1], 1)]
    assert not [
        (label, box.id) for label, area in _labels(sheet) for box in sheet.boxes.values() if area.touches(box.area, 1)
    ]
    return sheet


def _assert_leads(points: tuple[tuple[float, float], ...], source: Area, target: Area) -> None:
    (x, y), (a, b) = points[0], points[-1]
    assert x == source.right
    assert source.top <= y <= source.bottom
    assert a == target.left
    assert target.top <= b <= target.bottom


def _hides(one: Way, other: Way) -> bool:
    """Whether two lines have a part of their way in common."""
    for a, b in product(one.parts(), other.parts()):
        across = a.top == a.bottom == b.top == b.bottom and min(a.right, b.right) - max(a.left, b.left) > 1
        down = a.left == a.right == b.left == b.right and min(a.bottom, b.bottom) - max(a.top, b.top) > 1
        if across or down:
            return True
    return False


def _is_drawn(drawn: Picture, source: str, target: str) -> bool:
    here, there = drawn.boxes[source], drawn.boxes[target]
    return here.group == there.group or (not here.group and there.kind == "way in")


def _with_endpoints(drawn: Picture) -> list[str]:
    return [one for one in drawn.groups if any(box.kind == "endpoint" for box in drawn.grouped[one])]


def _refused(drawn: Picture) -> list[str]:
    return [one for one in drawn.groups if one not in _with_endpoints(drawn)]


def _panel_titles(sheet: Sheet) -> Iterator[Area]:
    for one in sheet.names.values():
        yield Area(one.x, one.y - 11, one.x + bold(one.text, 14) * 0.8, one.y + 3)


def _headings(sheet: Sheet) -> Iterator[Area]:
    for one in sheet.headings:
        yield Area(one.x, one.y - 12, one.x + bold(one.text, 16) * 0.8, one.y + 4)


def _labels(sheet: Sheet) -> Iterator[tuple[str, Area]]:
    """Labels end at their places."""
    for one in sheet.labels:
        yield one.text, Area(one.x - plain(one.text, 10), one.y - 8, one.x, one.y + 2)


# ---- what stands where ----


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_towns_are_tidy(count: int, family: Family) -> None:
    sheet = assert_tidy(of_town(count, family))
    tops = [area.top for area in sheet.panels.values()]
    assert tops == sorted(tops)


@pytest.mark.parametrize("layout", list(kpx.Layout))
@pytest.mark.parametrize("seed", [*range(8), 20, 58])
def test_pictures_of_small_towns_are_tidy_in_every_layout(seed: int, layout: kpx.Layout) -> None:
    inputs = Input.of(town(7, seed=seed), CONFIG, Family.IPV4)
    tables = tables_of(inputs.tree() if layout is kpx.Layout.TREE else inputs.classic())
    assert_tidy(folded(picture(tables)).legible())


@pytest.mark.parametrize("case", CASES)
def test_pictures_of_kube_proxys_rules_are_tidy(case: str) -> None:
    for family in FAMILIES:
        assert_tidy(of_dump(case_path(case) / f"{family}.save"))


def test_a_picture_of_an_old_kube_proxys_rules_is_tidy() -> None:
    assert_tidy(of_dump(KUBE_PROXY_1_20 / "ipv4.save"))


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(clusters())
def test_pictures_of_any_cluster_are_tidy(manifests: list[Manifest]) -> None:
    objects = [kpx.parse_object(one["kind"], one) for one in manifests]
    tables = tables_of(kpx.compile(objects, node_name="node-0"))
    drawn = picture(tables)
    assert_tidy(folded(drawn).legible())
    assert_tidy(drawn)


def test_services_are_sorted_as_people_count(tmp_path: Path) -> None:
    names = ["web-10", "web-9", "a-100", "a-20", "web-2"]
    objects = [one for name in names for one in (service(name, f"10.96.0.{names.index(name) + 9}"),)]
    pods = [endpoint_slice(name, ["10.244.1.10", "10.244.1.9", "10.244.0.200"]) for name in names]
    done = dry_kpx("graph", "-f", write(tmp_path / "a.json", [node(), *objects, *pods]), "--node", "node-0")
    sheet = read(done.stdout)
    by_height = sorted(sheet.panels, key=lambda one: sheet.panels[one].top)
    assert by_height == [f"shop/{name}:http" for name in ("a-20", "a-100", "web-2", "web-9", "web-10")]
    ends = sorted((box for box in sheet.boxes.values() if box.kind == "endpoint"), key=lambda box: box.area.top)
    places = [box.words[0].text for box in ends]
    assert places == ["10.244.0.200:8080", "10.244.1.9:8080", "10.244.1.10:8080"] * 5


def test_refusals_stand_under_a_heading_of_their_own() -> None:
    drawn = of_town(50)
    refused = _refused(drawn)
    sheet = read(svg(drawn))
    shared, served, heading = sheet.headings
    assert [one.text for one in (shared, served, heading)] == [
        "Chains that all Services share",
        f"Services ({len(drawn.groups) - len(refused)})",
        f"Refused ({len(refused)}): no endpoint here",
    ]
    assert len(refused) > 3
    assert {group for group, area in sheet.panels.items() if area.top > heading.y} == set(refused)
    assert all(served.y < area.top < heading.y for group, area in sheet.panels.items() if group not in refused)
    assert max(box.area.bottom for box in sheet.boxes.values() if not drawn.boxes[box.id].group) < served.y


def test_few_services_stand_beside_the_chains_that_lead_to_them() -> None:
    sheet = read(dry_kpx("graph", *SHOP).stdout)
    assert len(sheet.panels) <= FEW
    shared = [box for box in sheet.boxes.values() if box.kind in ("hook", "dispatch")]
    left = max(box.area.right for box in shared)
    assert all(area.left > left for area in sheet.panels.values())
    led = {way.target for way in sheet.ways if way.source in {box.id for box in shared}}
    assert {box.id for box in sheet.boxes.values() if box.kind == "way-in"} <= led


def test_the_legend_tells_what_is_drawn_and_nothing_else() -> None:
    whole = read(dry_kpx("graph", *SHOP).stdout)
    assert whole.legend == ["hook", "dispatch", "way-in", "chain", "endpoint", "refusal", "arrow", "arrow seldom"]
    refused = read(dry_kpx("graph", "shop/search", *SHOP).stdout)
    assert refused.legend == ["way-in", "refusal", "arrow", "arrow seldom"]


def test_one_service_as_svg_tells_all_about_it() -> None:
    said = read(dry_kpx("graph", "shop/front-end", *SHOP).stdout).texts
    for words in ("shop/front-end:http", "10.96.0.10:80/tcp", "node port 30080/tcp", "10.244.0.11:8080",
                  "KUBE-SVC-XUASX56CAPHY7UFH", "KUBE-EXT-XUASX56CAPHY7UFH"):  # fmt: skip
        assert said.count(words) == 1
    assert said.count("1/3") == 3


def test_pods_are_named_where_objects_tell_them(tmp_path: Path) -> None:
    pods = endpoint_slice("web", ["10.244.1.5", "10.244.1.6"])
    pods["endpoints"][0]["targetRef"] = {"kind": "Pod", "name": "web-6d4cf56db6-x7k2p", "namespace": "shop"}
    path = write(tmp_path / "a.json", [node(), service("web", "10.96.0.9"), pods])
    sheet = read(dry_kpx("graph", "-f", path, "--node", "node-0").stdout)
    named, other = (box.words for box in sheet.boxes.values() if box.kind == "endpoint")
    assert [(one.text, one.style.split()[0]) for one in named[:2]] == [
        ("web-6d4cf56db6-x7k2p", "name"),
        ("10.244.1.5:8080", "name"),
    ]
    assert [one.style.split()[0] for one in other] == ["name", "hash"]
    for form in ("dot", "mermaid"):
        told = dry_kpx("graph", "-f", path, "--node", "node-0", "--format", form).stdout
        assert "<b>web-6d4cf56db6-x7k2p</b>" in told
        assert "<b>KUBE-" not in told


# ---- what no kernel takes ----

CIRCLE = (
    "*nat\n-A PREROUTING -j KUBE-SERVICES\n"
    '-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment --comment "a/b:c cluster IP" -m tcp --dport 80 -j KUBE-SVC-A\n'
    "-A KUBE-SVC-A -j KUBE-SVC-B\n-A KUBE-SVC-B -j KUBE-SVC-C\n-A KUBE-SVC-C -j KUBE-SVC-A\n"
    "-A KUBE-SVC-B -j KUBE-SVC-B\n-A KUBE-SVC-C -j KUBE-SEP-A\n"
    "-A KUBE-SEP-A -p tcp -j DNAT --to-destination 1.2.3.4:5\nCOMMIT\n"
)


def test_circles_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.save").write_text(CIRCLE)
    sheet = read(dry_kpx("graph", "--rules", tmp_path / "a.save").stdout)
    ends = {(way.source.split()[-1], way.target.split()[-1]) for way in sheet.ways}
    assert {("KUBE-SVC-C", "KUBE-SVC-A"), ("KUBE-SVC-B", "KUBE-SVC-B"), ("KUBE-SVC-C", "KUBE-SEP-A")} <= ends
    for way in sheet.ways:
        assert all(part.left == part.right or part.top == part.bottom for part in way.parts())


@pytest.mark.parametrize("form", [("--format", "svg"), ("--html",)])
def test_ladders_and_long_chains_are_drawn(form: tuple[str, ...], tmp_path: Path) -> None:
    """Two thousand chains, one behind the other, and every third behind the one before the last, too."""
    rules = [f"-A KUBE-SVC-{at} -j KUBE-SVC-{at + 1}" for at in range(2000)]
    rules += [f"-A KUBE-SVC-{at} -m mark --mark 0x1 -j KUBE-SVC-{at + 2}" for at in range(0, 1998, 3)]
    (tmp_path / "a.save").write_text(
        "*nat\n-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment --comment a/b:c -m tcp --dport 80 -j KUBE-SVC-0\n"
        + "\n".join(rules)
        + "\n-A KUBE-SVC-2000 -j RETURN\nCOMMIT\n"
    )
    done = dry_kpx("graph", "--rules", tmp_path / "a.save", *form)
    assert done.returncode == 0, done.stderr
    if form == ("--format", "svg"):
        assert len(read(done.stdout).boxes) == 2003


def test_what_rules_say_is_text_only(tmp_path: Path) -> None:
    evil = '<img/src=x> ]]> </text><script>alert(1)</script> & \\"x\\"'
    (tmp_path / "a.save").write_text(
        "*nat\n-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment "
        f'--comment "a/b:http {evil}" -m tcp --dport 80 -j KUBE-SVC-A\n-A KUBE-SVC-A -j DROP\nCOMMIT\n'
    )
    sheet = read(dry_kpx("graph", "--rules", tmp_path / "a.save").stdout)
    assert not [one for one in sheet.root.iter() if one.tag.endswith(("script", "img"))]
    assert any("alert(1)" in text for text in sheet.texts)


# ---- as rendered ----

RENDERED = """
const inside = (from, long, start, length) => from >= start && from + long <= start + length;
const within = (a, b) => inside(a.x, a.width, b.x, b.width) && inside(a.y, a.height, b.y - 1, b.height + 2);
const all = selector => [...document.querySelectorAll(selector)], box = one => one.getBBox();
const wide = all("g.node, g.cluster").filter(one => {
  const [frame, ...words] = [...one.children].slice(1).map(box);
  return !words.every(word => within(word, frame));
});
const root = document.documentElement, frame = root.getBoundingClientRect(), sheet = root.viewBox.baseVal;
const weight = selector => [...new Set(all(selector).map(one => +getComputedStyle(one).fontWeight))];
return JSON.stringify({
  wide: wide.map(one => one.textContent),
  beyond: all("rect, text, path.arrow").map(box).filter(one => !within(one, sheet)),
  width: frame.width, height: frame.height, window: innerWidth, own: [sheet.width, sheet.height],
  known: weight(".name, .service"), chains: weight(".hash"),
  background: getComputedStyle(document.querySelector(".sheet")).fill,
});
"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")
@pytest.mark.parametrize("count", [12, 50])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [700, 1900])
def test_it_is_as_wide_as_the_window_and_texts_fit(
    count: int, scheme: str, width: int, chrome: Chrome, tmp_path: Path
) -> None:
    path = tmp_path / "town.svg"
    path.write_text(svg(of_town(count)))
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    chrome.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        chrome.get(f"file://{path}")
        found = json.loads(chrome.execute_script(RENDERED))
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (found["wide"], found["beyond"]) == ([], [])
    wide, high = found["own"]
    scrolled = 20
    assert min(found["window"], wide) - scrolled <= found["width"] <= min(found["window"], wide)
    assert found["height"] == pytest.approx(high * found["width"] / wide, abs=1)
    assert min(found["known"]) == 700
    assert max(found["chains"]) == 400
    assert found["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]


def test_it_says_that_it_is_as_wide_as_there_is_room() -> None:
    root = read(svg(of_town(12))).root
    assert root.get("width") == "100%"
    left, top, wide, high = map(int, (root.get("viewBox") or "").split())
    assert (left, top) == (0, 0)
    assert wide > 500
    assert high > 500
    assert root.get("height") is None
