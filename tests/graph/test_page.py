"""The page of `kpx graph --html` in a real browser: what a person does in it, and that it answers as kpx does."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import cycle, product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

import kpx
from kpx.analysis.packet import Host, Origin, Outcome, Packet
from kpx.analysis.page import page
from kpx.analysis.picture import picture
from kpx.analysis.simulate import Simulator, tables_of, tables_of_save, translated_to
from kpx.family import Family
from kpx.netfilter.save import parse_save
from tests.analysis import doubtful
from tests.analysis.probes import destinations, from_everywhere
from tests.analysis.webs import HALF, ladder, tables, web
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG, NODE_ADDRESSES, town
from tests.graph.browser import browser, missing
from tests.kernel import FAMILIES, case_path
from tests.lab.kpx import dry_kpx
from tests.manifests import endpoint_slice, service, write

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")

PATIENCE = 60
VIP = "10.96.9.1"
STATES = ("ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
MARKS = (0x1, 0x4, 0x4000, 0x8000)
CASES = sorted(path.name for path in case_path("").iterdir() if path.is_dir())
SHOP = ("-f", "tests/demo/shop", "--config", "tests/demo/config.yaml", "--node", "node-0")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def load(chrome: Chrome, path: Path) -> None:
    chrome.get(f"file://{quote(str(path))}")
    WebDriverWait(chrome, PATIENCE).until(lambda one: one.find_elements(By.CSS_SELECTOR, "#services li"))


@pytest.fixture(scope="module")
def shop_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.html"
    done = dry_kpx("graph", "--html", "-o", path, *SHOP)
    assert (done.returncode, done.stdout) == (0, "")
    return path


@pytest.fixture
def shop(chrome: Chrome, shop_page: Path) -> Chrome:
    """The demo's shop, opened."""
    chrome.get("about:blank")
    load(chrome, shop_page)
    return chrome


def find(chrome: Chrome, selector: str) -> list[WebElement]:
    return chrome.find_elements(By.CSS_SELECTOR, selector)


def texts(chrome: Chrome, selector: str) -> list[str]:
    return [one.text for one in find(chrome, selector)]


def enter(chrome: Chrome, name: str, text: str) -> None:
    field = chrome.find_element(By.ID, name)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text + Keys.ENTER)


# ---- what a person does ----


def test_a_service_is_found_by_name_by_address_and_by_chain(shop: Chrome) -> None:
    for words in ("front-e", "10.96.0.10:", "XUASX56CAPHY7UFH", "10.244.1.12:8080"):
        enter(shop, "search", words)
        assert "shop/front-end:http" in texts(shop, "#services li")
    enter(shop, "search", "front-end")
    assert texts(shop, "#services li") == [shop.find_element(By.ID, "name").text] == ["shop/front-end:http"]
    boxes = texts(shop, "#picture .box .title")
    assert {"10.96.0.10:80/tcp", "node port 30080/tcp", "10.244.0.11:8080"} < set(boxes)
    assert texts(shop, "#picture .arrow text").count("1/3") == 3


def test_a_person_walks_along_the_chains(shop: Chrome) -> None:
    enter(shop, "search", "front-end")
    next(one for one in find(shop, ".box.chain") if "KUBE-EXT" in one.text).click()
    assert texts(shop, "section.chain h3") == ["KUBE-EXT-XUASX56CAPHY7UFH"]
    for target in ("KUBE-SVC-XUASX56CAPHY7UFH", "KUBE-SEP-CZ2VVTADG2G7G6TN", "KUBE-MARK-MASQ"):
        cards = find(shop, "section.chain")
        next(one for one in cards[-1].find_elements(By.TAG_NAME, "button") if one.text == target).click()
        assert texts(shop, "section.chain h3")[-1] == target
    assert len(find(shop, "section.chain")) == 4
    find(shop, "section.chain")[1].find_elements(By.TAG_NAME, "button")[-1].click()
    assert texts(shop, "section.chain h3")[2:] == ["KUBE-SEP-7EJCTMJWPWTG5NX2"]


def test_a_packet_is_sent_and_its_way_is_marked(shop: Chrome) -> None:
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
    assert texts(shop, "#result tr") == [
        f"1/3 → {end} masqueraded" for end in ("10.244.0.11:8080", "10.244.1.12:8080", "10.244.2.13:8080")
    ]
    assert shop.find_element(By.ID, "name").text == "shop/front-end:http"
    passed = {one.text.split("\n")[0] for one in find(shop, ".box.passed")}
    assert "10.96.0.10:80/tcp" in passed
    assert "node port 30080/tcp" not in passed
    chains = [step.split()[0] for step in texts(shop, "#result details[open] li button")]
    assert chains[:3] == ["PREROUTING", "KUBE-SERVICES", "KUBE-SVC-XUASX56CAPHY7UFH"]
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.40:80")
    assert texts(shop, "#result tr") == ["1 rejected: icmp-port-unreachable"]
    assert find(shop, ".box.refusal.passed")


def test_a_known_client_goes_where_it_went(shop: Chrome) -> None:
    shop.find_element(By.CSS_SELECTOR, "form summary").click()
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.20:80")
    assert len(texts(shop, "#result tr")) == 3
    enter(shop, "known", "10.244.1.12:8081@60")
    assert texts(shop, "#result tr") == ["1 → 10.244.1.12:8081 masqueraded"]
    enter(shop, "known", "10.244.1.12:8081@4000")
    assert len(texts(shop, "#result tr")) == 3
    enter(shop, "known", "10.244.1.12:1")
    assert texts(shop, "#result .error") == ["no way of this packet leads to 10.244.1.12:1"]
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
    enter(shop, "known", "10.244.1.12:8080")
    assert "no session affinity" in texts(shop, "#result .error")[0]


def test_conntrack_and_mark_are_asked(shop: Chrome) -> None:
    shop.find_element(By.CSS_SELECTOR, "form summary").click()
    Select(shop.find_element(By.ID, "state")).select_by_visible_text("INVALID")
    enter(shop, "packet", "tcp 198.51.100.7 -> 192.0.2.1:80")
    assert texts(shop, "#result tr") == ["1 dropped"]
    Select(shop.find_element(By.ID, "state")).select_by_visible_text("NEW")
    enter(shop, "mark", "0x4000")
    assert texts(shop, "#result tr") == ["1 passes, not translated masqueraded"]
    enter(shop, "mark", "-1")
    assert texts(shop, "#result .error") == ["not a mark: -1"]


def test_every_service_has_an_address_and_the_way_back_leads_there(shop: Chrome) -> None:
    def shown() -> str:
        return shop.find_element(By.ID, "name").text

    next(one for one in find(shop, "#services a") if one.text == "shop/cart").click()
    assert (shown(), shop.current_url.partition("#")[2]) == ("shop/cart", "shop/cart")
    enter(shop, "search", "front-end")
    assert (shown(), shop.current_url.partition("#")[2]) == ("shop/front-end:http", "shop/front-end:http")
    shop.back()
    WebDriverWait(shop, PATIENCE).until(lambda _: shown() == "shop/cart")
    shop.get(f"{shop.current_url.partition('#')[0]}#shop/checkout")
    WebDriverWait(shop, PATIENCE).until(lambda _: shown() == "shop/checkout:https")
    shop.refresh()
    WebDriverWait(shop, PATIENCE).until(lambda _: shown() == "shop/checkout:https")


def test_a_keyboard_is_enough(shop: Chrome) -> None:
    def press(*keys: str) -> WebElement:
        shop.switch_to.active_element.send_keys(*keys)
        return shop.switch_to.active_element

    assert press("shop/", Keys.ARROW_DOWN, "").text == "shop/cart"
    assert press(Keys.ARROW_DOWN, "").text == "shop/checkout:https"
    press(Keys.ENTER)
    WebDriverWait(shop, PATIENCE).until(lambda one: one.find_element(By.ID, "name").text == "shop/checkout:https")
    assert press(Keys.ESCAPE).get_attribute("id") == "search"
    assert len(texts(shop, "#services li")) == 7
    box = next(one for one in find(shop, ".box.chain") if "KUBE-FW" in one.text)
    shop.execute_script("arguments[0].focus()", box)
    press(Keys.ENTER)
    assert texts(shop, "section.chain h3") == ["KUBE-FW-S6GYCJULEJ2HSKT7"]


def test_everything_that_can_be_used_says_what_it_is(shop: Chrome) -> None:
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
    shop.find_element(By.CSS_SELECTOR, "form summary").click()
    usable = [one for one in find(shop, "input, select, button, a, summary, .box") if one.is_displayed()]
    assert len(usable) > 20
    assert [one.get_attribute("outerHTML") for one in usable if not one.accessible_name] == []


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_nothing_is_wider_than_the_window(shop: Chrome, width: int) -> None:
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
    shop.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        root = "document.documentElement"
        wide, window = shop.execute_script(f"return [{root}.scrollWidth, {root}.clientWidth]")
    finally:
        shop.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= window <= width


@pytest.mark.parametrize(
    "words", ["nonsense", "tcp 1.2.3.4 -> 10.0.0.1", "tcp ::1 -> fd00::1:80", "tcp 1.2.3.4 -> 10.0.0.1:99999", ""]
)
def test_what_is_no_packet_is_told(shop: Chrome, words: str) -> None:
    enter(shop, "packet", words or Keys.DELETE)
    assert len(texts(shop, "#result .error")) == 1
    assert not find(shop, "#result tr")


def test_the_page_needs_nobody_and_complains_of_nothing(shop: Chrome) -> None:
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
    loaded = shop.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert loaded == []
    log: list[dict[str, str]] = shop.get_log("browser")  # type: ignore[no-untyped-call]
    assert [one for one in log if one["level"] == "SEVERE"] == []


def test_what_rules_say_is_never_run(chrome: Chrome, tmp_path: Path) -> None:
    evil = "<img/src=x> </script><script>document.title='run'</script><img src=x onerror=\\\"document.title='run'\\\">"
    dump = tmp_path / "evil.save"
    dump.write_text(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n"
        f'-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment --comment "a/b:http {evil}" -m tcp --dport 80 '
        f'-j KUBE-SVC-A\n-A KUBE-SVC-A -m comment --comment "{evil}" -j RETURN\nCOMMIT\n'
    )
    page_file = tmp_path / "evil.html"
    assert dry_kpx("graph", "--html", "--rules", dump, "-o", page_file).returncode == 0
    load(chrome, page_file)
    find(chrome, ".box")[-1].click()
    assert chrome.title == f"kpx: {dump}"
    assert not find(chrome, "img")


@pytest.mark.parametrize("layout", [kpx.Layout.TREE, kpx.Layout.COMPACT])
def test_of_many_endpoints_each_is_found_and_marked(layout: kpx.Layout, chrome: Chrome, tmp_path: Path) -> None:
    pods = [f"10.244.{at // 200}.{at % 200 + 1}" for at in range(600)]
    objects = [kpx.parse_object(one["kind"], one) for one in (service("big", VIP), endpoint_slice("big", pods))]
    tables = tables_of(kpx.compile(objects, node_name="node-0", layout=layout))
    simulator = Simulator(tables, Family.IPV4, Host(NODE_ADDRESSES))
    path = tmp_path / "page.html"
    path.write_text(page(simulator, picture(simulator.tables), "a test"))
    load(chrome, path)
    for pod in pods[::99]:
        enter(chrome, "search", f"{pod}:8080")
        assert texts(chrome, "#services li") == ["shop/big:http"]
    assert len(find(chrome, ".box")) < 30
    enter(chrome, "packet", f"tcp 198.51.100.7 -> {VIP}:80")
    assert len(find(chrome, ".box.endpoint.passed")) == 9
    (stack,) = (one for one in find(chrome, ".box.endpoint.passed") if "592 more endpoints" in one.text)
    assert texts(chrome, "#result tr")[-1] == "… 500 more outcomes"
    stack.click()
    assert "-SVC-" in texts(chrome, "section.chain h3")[0]


# ---- one Service after the other ----


def pick(chrome: Chrome, name: str) -> None:
    next(one for one in find(chrome, "#services a") if one.text.split("\n")[0] == name).click()
    WebDriverWait(chrome, PATIENCE).until(lambda one: one.find_element(By.ID, "name").text == name)


def answered(chrome: Chrome) -> bool:
    return bool(find(chrome, "#result tr, #result details, #asked, #result .error, .passed"))


def test_an_answer_says_for_which_packet_it_is(shop: Chrome) -> None:
    assert texts(shop, "#result .none") == [shop.find_element(By.ID, "result").text] != [""]
    shop.find_element(By.CSS_SELECTOR, "form summary").click()
    Select(shop.find_element(By.ID, "state")).select_by_visible_text("ESTABLISHED")
    Select(shop.find_element(By.ID, "origin")).select_by_visible_text("a pod")
    enter(shop, "mark", "0x4000")
    enter(shop, "packet", "tcp  10.244.1.5->10.96.0.10:80")
    assert texts(shop, "#asked, #about") == [
        "tcp 10.244.1.5 → 10.96.0.10:80",
        "from a pod, conntrack says ESTABLISHED, mark 0x4000",
    ]
    shop.find_element(By.ID, "packet").send_keys("80")
    assert texts(shop, "#asked") == ["tcp 10.244.1.5 → 10.96.0.10:80"]  # what was asked, not what stands in the form


def test_the_answer_goes_when_another_service_is_picked(shop: Chrome) -> None:
    def ask() -> None:
        enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
        assert answered(shop)
        assert shop.find_element(By.ID, "name").text == "shop/front-end:http"

    ask()
    pick(shop, "shop/cart")
    assert not answered(shop)
    assert len(texts(shop, "#result .none")) == 1
    assert shop.find_element(By.ID, "packet").get_property("value") == "tcp 198.51.100.7 -> 10.96.0.20:80"
    ask()
    enter(shop, "search", "checkout")
    assert not answered(shop)
    ask()
    shop.back()
    WebDriverWait(shop, PATIENCE).until(lambda one: one.find_element(By.ID, "name").text == "shop/checkout:https")
    assert not answered(shop)
    enter(shop, "packet", "nonsense")
    assert texts(shop, "#result .error")
    enter(shop, "search", "cart")
    assert not answered(shop)
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.40:80")
    assert find(shop, ".box.refusal.passed")
    enter(shop, "packet", "tcp 198.51.100.7 -> nowhere")
    assert not find(shop, ".passed, #result tr")
    shop.find_element(By.ID, "search").send_keys(Keys.ESCAPE)
    pick(shop, "(all Services)")
    assert shop.find_element(By.ID, "packet").get_property("value") == ""


SEEN = """
const field = arguments[0], style = getComputedStyle(field), drawn = document.createElement("canvas").getContext("2d");
drawn.font = style.font;
const room = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
return [field.placeholder, drawn.measureText(field.placeholder).width <= room];
"""


@pytest.mark.parametrize("width", [400, 700, 1010, 1500])
def test_fields_show_what_may_be_written_there(shop: Chrome, width: int) -> None:
    shop.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        pick(shop, "(all Services)")
        shop.execute_script("document.getElementById('services').style.height = '3000px'")  # where there are many
        for name, words in (("search", "Service, address, chain"), ("packet", "tcp 10.244.1.5 -> 10.96.1.10:80")):
            field = shop.find_element(By.ID, name)
            assert field.get_property("value") == ""
            assert shop.execute_script(SEEN, field) == [words, True]
    finally:
        shop.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# ---- what is wrong ----


def test_broken_services_are_marked_in_the_list(shop: Chrome) -> None:
    marked = {one.text for one in find(shop, "#services a") if "\n" in one.text}
    assert marked == {"shop/search\n✖ rejected"}
    pick(shop, "shop/search")
    assert texts(shop, "#trouble li") == [
        "from pods, the node itself, outside to 10.96.0.40:80: rejected (icmp-port-unreachable)"
    ]
    pick(shop, "shop/cart")
    assert texts(shop, "#trouble li") == []
    shop.find_element(By.ID, "only").click()
    assert [one.split("\n")[0] for one in texts(shop, "#services li")] == ["shop/search"]
    shop.find_element(By.ID, "only").click()
    assert len(texts(shop, "#services li")) == 7


def test_the_list_says_of_a_service_what_its_packets_meet(chrome: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "town.html"
    objects = write(tmp_path / "town.json", town(40, seed=5))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options = ("-f", objects, "--config", tmp_path / "config.json", "--node", "node-0")
    assert dry_kpx("graph", "--html", "-o", path, *options).returncode == 0
    load(chrome, path)
    levels = {one.text.split("\n")[0]: one.get_attribute("class") for one in find(chrome, "#services a")}
    assert set(levels.values()) == {"", "broken", "partly"}
    for name, level in levels.items():
        if name == "(all Services)":
            continue
        pick(chrome, name)
        chrome.find_element(By.ID, "send").click()
        assert texts(chrome, "#name") == [name]
        ends = {one.get_attribute("class") for one in find(chrome, "#result tr") if "more outcomes" not in one.text}
        if not level:
            assert ends == {"translated"}
        elif level == "broken":
            assert "translated" not in ends


def test_rules_for_no_service_say_so_and_take_packets(chrome: Chrome, tmp_path: Path) -> None:
    (tmp_path / "a.save").write_text("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")
    path = tmp_path / "page.html"
    options = ("--rules", tmp_path / "a.save", "--node-address", "10.200.0.2")
    assert dry_kpx("graph", "--html", *options, "-o", path).returncode == 0
    load(chrome, path)
    assert texts(chrome, "#nothing, #trouble li") == [
        "These rules are for no Service.",
        "There are no chains of a Service proxy here.",
    ]
    enter(chrome, "packet", "tcp 198.51.100.7 -> 192.0.2.1:80")
    assert texts(chrome, "#asked, #result tr") == ["tcp 198.51.100.7 → 192.0.2.1:80", "1 dropped"]


# ---- how large, and which family ----


def size(chrome: Chrome) -> tuple[float, float]:
    box = find(chrome, "#picture svg")[0].rect
    return float(box["width"]), float(box["height"])


BEYOND = "const one = arguments[0]; return [one.scrollWidth - one.clientWidth, one.scrollHeight - one.clientHeight]"


def test_the_picture_is_fitted_and_zoomed(shop: Chrome) -> None:
    pick(shop, "shop/checkout:https")
    frame = shop.find_element(By.ID, "picture")
    shop.find_element(By.ID, "scale").click()
    natural = size(shop)
    shop.find_element(By.ID, "larger").click()
    assert size(shop) == pytest.approx((natural[0] * 1.25, natural[1] * 1.25), abs=1)
    assert texts(shop, "#scale") == ["125 %"]
    for _ in range(2):
        shop.find_element(By.ID, "smaller").click()
    assert size(shop) == pytest.approx((natural[0] * 0.8, natural[1] * 0.8), abs=1)
    find(shop, ".box")[0].send_keys("+")
    assert texts(shop, "#scale") == ["100 %"]
    pick(shop, "(all Services)")
    for _ in range(7):
        shop.find_element(By.ID, "larger").click()
    assert min(shop.execute_script(BEYOND, frame)) > 0
    shop.find_element(By.ID, "fit").click()
    assert shop.execute_script(BEYOND, frame) == [0, 0]
    assert shop.find_element(By.ID, "fit").get_attribute("aria-pressed") == "true"
    pick(shop, "shop/checkout:https")
    assert shop.execute_script(BEYOND, frame) == [0, 0]


def test_the_page_turns_to_the_other_family_and_back(shop: Chrome) -> None:
    def turn(name: str) -> None:
        next(one for one in find(shop, "#families button") if one.text == name).click()
        WebDriverWait(shop, PATIENCE).until(lambda one: texts(one, "#families [aria-pressed=true]") == [name])

    pick(shop, "shop/front-end:http")
    enter(shop, "packet", "tcp 198.51.100.7 -> 10.96.0.10:80")
    turn("IPv6")
    assert not answered(shop)
    assert shop.find_element(By.ID, "name").text == "shop/front-end:http"
    assert "[fd00:96::10]:80/tcp" in texts(shop, "#picture .box .title")
    assert shop.current_url.partition("#")[2] == "shop/front-end:http,ipv6"
    shop.find_element(By.ID, "send").click()
    assert {one.split(" ")[2] for one in texts(shop, "#result tr")} == {
        f"[fd00:244:{pod}]:8080" for pod in (":11", "0:1::12", "0:2::13")
    }
    enter(shop, "packet", "tcp ::1 -> fe80")
    assert "not an address" in texts(shop, "#result .error")[0]
    shop.refresh()
    WebDriverWait(shop, PATIENCE).until(lambda one: texts(one, "#families [aria-pressed=true]") == ["IPv6"])
    turn("IPv4")
    assert "10.96.0.10:80/tcp" in texts(shop, "#picture .box .title")
    pick(shop, "shop/cart")
    turn("IPv6")
    assert shop.find_element(By.ID, "name").text == "shop/cart"
    assert texts(shop, "#trouble li") == ["There are no rules for it in IPv6."]
    assert not find(shop, "#picture svg")
    assert shop.find_element(By.ID, "packet").get_property("placeholder") == "tcp fd00:244::5 -> [fd00:96::10]:80"
    turn("IPv4")
    assert "10.96.0.20:80/tcp" in texts(shop, "#picture .box .title")


def test_of_a_dump_the_other_family_cannot_be_picked(chrome: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    dump = case_path(CASES[0]) / "ipv6.save"
    assert dry_kpx("graph", "--html", "--family", "ipv6", "--rules", dump, "-o", path).returncode == 0
    load(chrome, path)
    usable = {one.text: one.is_enabled() for one in find(chrome, "#families button")}
    assert usable == {"IPv4": False, "IPv6": True}


# ---- the same answers as kpx ----

SEND = """
const answers = [];
for (const packet of arguments[0]) answers.push(Walk.trace(DATA, packet).outcomes);
return JSON.stringify(answers);
"""


Question = tuple[Packet, dict[str, float]]
"""A packet, and the lists of xt_recent that its sender is on."""


def answers(
    chrome: Chrome, simulator: Simulator, questions: Sequence[Question], folder: Path
) -> list[dict[Outcome, Fraction]]:
    path = folder / "page.html"
    path.write_text(page(simulator, picture(simulator.tables), "a test"))
    load(chrome, path)
    asked = [
        {
            "protocol": one.protocol, "source": one.source, "sourcePort": one.source_port,
            "destination": one.destination, "port": one.destination_port, "origin": one.origin.value,
            "in": one.in_interface, "out": one.out_interface, "mark": one.mark, "state": one.state,
            "bridged": one.bridged, "known": known,
        }
        for one, known in questions
    ]  # fmt: skip
    found: list[list[dict[str, Any]]] = json.loads(chrome.execute_script(SEND, asked))
    return [{_outcome(one): Fraction(one["exact"]) for one in of_packet} for of_packet in found]


def _outcome(one: dict[str, Any]) -> Outcome:
    return Outcome(one["fate"], one["destination"], one["masqueraded"], one["detail"])


def assert_same(chrome: Chrome, simulator: Simulator, packets: Sequence[Packet], folder: Path) -> None:
    """Every packet as it is, and in one of many circumstances, ends in the browser as it ends here."""
    assert packets
    questions: list[Question] = [(one, {}) for one in packets]
    for one, (changes, known) in zip(packets, cycle(list(circumstances(simulator)))):
        questions.append((replace(one, **changes), known))
    for (packet, known), found in zip(questions, answers(chrome, simulator, questions, folder), strict=True):
        assert found == dict(simulator.outcomes(packet, known)), (packet, known)


def circumstances(simulator: Simulator) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """What else than addresses a packet may come with, one thing at a time: fields of it, or lists that it is on."""
    yield from (({"state": one}, {}) for one in STATES)
    yield from (({"mark": one}, {}) for one in MARKS)
    yield from (({"bridged": one}, {}) for one in (True, False))
    yield {"in_interface": None, "source_port": None}, {}
    rules = (rule for chains in simulator.tables.values() for rules in chains.values() for rule in rules)
    lists = sorted({found[1] for found in map(re.compile(r"--name (\S+)").search, rules) if found})
    for name, age in product(lists, (0.0, 20_000.0)):
        yield {}, {name: age}


@pytest.mark.parametrize("case", CASES)
def test_packets_through_kube_proxys_rules_end_as_kpx_trace_says(case: str, chrome: Chrome, tmp_path: Path) -> None:
    for family in FAMILIES:
        tables, policies = tables_of_save(parse_save((case_path(case) / f"{family}.save").read_text()))
        places = {
            (match_of(rule), "udp" if "-p udp" in rule else "sctp" if "-p sctp" in rule else "tcp", port)
            for table in tables.values()
            for rules in table.values()
            for rule in rules
            for port in ports_of(rule)
        } | {("10.96.0.99" if family is Family.IPV4 else "fd00::99", "tcp", 80)}
        sound = sorted(place for place in places if place[0] and Family.of(place[0]) is family)
        packets = [one for place in sound for one in from_everywhere(place, family)]
        for host in (Host(NODE_ADDRESSES), Host(None, elsewhere=translated_to(tables))):
            assert_same(chrome, Simulator(tables, family, host, policies), packets, tmp_path)


def match_of(rule: str) -> str:
    """The address that a rule is for; for a node port, the node's."""
    if rule.startswith("-d "):
        return rule.split()[1].split("/")[0]
    return NODE_ADDRESSES[0] if "--dport" in rule else ""


def ports_of(rule: str) -> list[int]:
    words = rule.split()
    return [int(words[words.index("--dport") + 1])] if "--dport" in words else []


@pytest.mark.parametrize("family", FAMILIES)
def test_packets_through_trees_end_as_kpx_trace_says(family: Family, chrome: Chrome, tmp_path: Path) -> None:
    inputs = Input.of(town(24, seed=7), CONFIG, family)
    classic, tree = inputs.classic(), inputs.tree()
    places = destinations(classic, tree)
    packets = [one for place in places[:: max(1, len(places) // 250)] for one in from_everywhere(place, family)]
    assert_same(chrome, Simulator(tables_of(tree), family, Host(NODE_ADDRESSES)), packets, tmp_path)
    compact = Simulator(tables_of(inputs.compact()), family, Host(NODE_ADDRESSES))
    own = [replace(one, source=pod) for one in packets[::9] for pod in sorted(translated_to(compact.tables))[::40]]
    assert_same(chrome, compact, [*packets[::3], *own[:400]], tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_balanced_packets_end_as_kpx_trace_says(family: Family, chrome: Chrome, tmp_path: Path) -> None:
    """Source hash (`-m bpf`), round robin (`nth`), weights, and affinity for a whole Service, in both layouts."""
    vips, pods = ("10.96.9.{}", "10.244.1.{}") if family is Family.IPV4 else ("fd00:96::{}", "fd00:244::{}")
    annotations: dict[str, dict[str, str]] = {
        "hash": {"kpx.dev/balance": "source-hash"},
        "robin": {"kpx.dev/balance": "round-robin"},
        "weights": {},
        "all-ports": {"kpx.dev/affinity-scope": "service"},
    }
    objects: list[kpx.Object] = []
    for number, (name, words) in enumerate(annotations.items(), 1):
        one = service(name, vips.format(number), ipFamilies=[family.value.replace("ip", "IP")])
        one["spec"]["sessionAffinity"] = "ClientIP" if name == "all-ports" else "None"
        one["metadata"]["annotations"] = words
        few, many = (
            endpoint_slice(name, [pods.format(1), pods.format(2)]),
            endpoint_slice(name, [pods.format(at) for at in range(3, 33)]),
        )
        many["metadata"] |= {"name": f"{name}-b", "annotations": {"kpx.dev/weight": "7"}}
        objects += [kpx.parse_object(each["kind"], each) for each in (one, few, many)]
    clients = [pods.format(at) for at in (1, 9, 77)] + [vips.format(at) for at in range(100, 112)]
    packets = [
        Packet(source, vips.format(number), "tcp", 80, 40_000, in_interface="eth0")
        for number in range(1, len(annotations) + 1)
        for source in clients
    ]
    for layout in kpx.Layout:
        tables = tables_of(kpx.compile(objects, family=family, layout=layout, node_name="node-0"))
        for module in ("bpf", "nth", "random", "recent"):
            assert any(module in rule for rules in tables["nat"].values() for rule in rules)
        assert_same(chrome, Simulator(tables, family, Host(NODE_ADDRESSES)), packets, tmp_path)


STRANGE = """
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 10.0.0.1/32 -j MARK --set-xmark 0x1/0xffffffff
-A PREROUTING -p udp -m connmark --mark 0x5/0xf -j MARK --set-xmark 0x6/0xffffffff
-A PREROUTING -p udp -j CONNMARK --set-xmark 0x5/0xf
-A PREROUTING -p udp -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A PREROUTING -p udp -m mark --mark 0x8000/0x8000 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 10.0.0.2/32 -j CT --notrack
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:A - [0:0]
:B - [0:0]
:C - [0:0]
:D - [0:0]
-A PREROUTING -m mark --mark 0x1 -j DNAT --to-destination 192.0.2.1
-A PREROUTING -p tcp -m multiport --dports 80,443:445 -j A
-A PREROUTING -m iprange --dst-range 10.9.0.5-10.9.0.9 -j B
-A PREROUTING -m time --timestart 10:00 -p tcp -m tcp --dport 22 -j B
-A PREROUTING -p tcp -m tcp --dport 9 -j C
-A PREROUTING -p tcp -m tcp --dport 7 -j D
-A A -m statistic --mode random --probability 0.25000000000 -j RETURN
-A A -m statistic --mode random --probability 0.33333333349 -g B
-A A -m statistic --mode nth --every 3 --packet 0 -j DNAT --to-destination 192.0.2.2:8080
-A B -m recent --rcheck --seconds 10 --name x --mask 255.255.255.255 --rsource -j DNAT --to-destination 192.0.2.9:1
-A B -m recent --set --name x --mask 255.255.255.255 --rsource
-A B -m recent --update --seconds 10 --name x --mask 255.255.255.255 --rsource -j DNAT --to-destination 192.0.2.3:81
-A D -m recent --remove --name x --mask 255.255.255.255 --rsource -j LOG
-A D -m recent --rcheck --name x --mask 255.255.255.255 --rsource -j DNAT --to-destination 192.0.2.4:1
-A C -j C
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -m mark --mark 0x4/0x4 -j ACCEPT
-A FORWARD -m addrtype --dst-type LOCAL -j DROP
-A FORWARD -i eth+ -p tcp -m tcp --dport 7 -j REJECT --reject-with tcp-reset
-A FORWARD ! -s 10.0.0.0/8 -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 444 --tcp-flags FIN,SYN,RST,ACK SYN -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -m physdev --physdev-is-in -j DROP
-A FORWARD -m physdev --physdev-out veth0 -j DROP
-A FORWARD -m state --state RELATED -j ACCEPT
-A FORWARD -m statistic --mode random --probability 2 -j DROP
-A FORWARD -m string --string "x -j y" --algo bm --to 65535 -j ACCEPT
COMMIT
"""


def test_packets_through_other_programs_rules_end_as_kpx_trace_says(chrome: Chrome, tmp_path: Path) -> None:
    tables, policies = tables_of_save(parse_save(STRANGE))
    simulator = Simulator(tables, Family.IPV4, Host(("10.9.0.8",)), policies)
    packets = [
        Packet(source, destination, protocol, port, None, origin, in_interface=interface)
        for source in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.77")
        for destination in ("10.9.0.5", "10.9.0.8", "10.9.0.10", "127.0.0.1", "224.0.0.1")
        for protocol in ("tcp", "udp")
        for port in (7, 9, 22, 80, 444)
        for origin, interface in ((Origin.OUTSIDE, None), (Origin.OUTSIDE, "eth0"), (Origin.POD, "cni0"))
    ]
    assert_same(chrome, simulator, packets, tmp_path)


def test_packets_of_which_not_all_is_known_end_as_kpx_trace_says(chrome: Chrome, tmp_path: Path) -> None:
    """Where it makes no difference what isn't known, where it does, and by which share."""
    dumps = [doubtful.DOCKER, doubtful.EKS, doubtful.OPENSHIFT]
    dumps += [doubtful.rules(random.Random(seed)) for seed in range(20)]
    packets = [
        Packet(source, destination, protocol, port, None, origin, in_interface=interface)
        for source, origin in (("198.51.100.7", Origin.OUTSIDE), ("10.244.0.9", Origin.POD), ("10.9.0.8", Origin.NODE))
        for destination in ("10.96.0.50", "10.9.0.8")
        for protocol, port in (("tcp", 80), ("tcp", 8080), ("udp", 53))
        for interface in (None, "eth0")
    ]
    unknown = 0
    for number, text in enumerate(dumps):
        tables, policies = tables_of_save(parse_save(text))
        for host in (Host(("10.9.0.8",)), Host(None, elsewhere=translated_to(tables)))[: 2 - number % 2]:
            simulator = Simulator(tables, Family.IPV4, host, policies)
            assert_same(chrome, simulator, packets, tmp_path)
            unknown += sum(any(one.fate == "unknown" for one in simulator.outcomes(packet)) for packet in packets)
    assert unknown > 50


def test_packets_through_chains_that_branch_and_join_end_as_kpx_trace_says(chrome: Chrome, tmp_path: Path) -> None:
    """Ladders with more ways than anybody can list, webs, loops, and tables that nobody could read."""
    packets = [
        Packet(source, "10.96.0.50", "tcp", 80, origin=origin)
        for origin, source in (
            (Origin.POD, "10.244.0.9"),
            (Origin.OUTSIDE, "198.51.100.7"),
            (Origin.NODE, "192.0.2.10"),
        )
    ]
    host = Host(["192.0.2.10"])
    for rungs in (
        (HALF, HALF, ""),
        ("-m mark --mark 0x1/0x1", "-s 10.244.0.0/16", ""),
        ("-m set --match-set a src", ""),
    ):
        made = tables(ladder(60, rungs), ladder(60, rungs, "F-"))
        assert_same(chrome, Simulator(made, Family.IPV4, host), packets, tmp_path)
        assert_same(chrome, Simulator(made, Family.IPV4, host, {}, {"filter": "not there"}), packets, tmp_path)
    for seed in range(12):
        made = tables(web(seed, 12), web(seed + 1, 8, "F-"))
        assert_same(chrome, Simulator(made, Family.IPV4, host), packets, tmp_path)
    assert_same(chrome, Simulator(tables(ladder(300, ("",))), Family.IPV4, host), packets, tmp_path)
    asks = tables({"F": tuple(f"-i {name} -j DROP" for name in ("eth+", "cali12ab", "cali+"))})
    of_pods = [replace(one, in_interface="cali+") for one in packets]
    assert_same(chrome, Simulator(asks, Family.IPV4, host), of_pods, tmp_path)
    unread = {"nat": "nobody could read nat", "mangle": "nor mangle"}
    assert_same(chrome, Simulator(tables(ladder(3, ("",))), Family.IPV4, host, {}, unread), packets, tmp_path)
