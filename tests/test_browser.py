"""The report in a real browser: it shows, answers clicks and keys, asks the network for nothing, and runs no one's script."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from topicscale.report import Aspect, DocumentMap, Lineage, QuarantinedRow, ReportData, Timing, Topic, build
from topicscale.sites import Leaf, Site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt-get install chromium chromium-driver)"
)

ATTACK = '</script><img src=x onerror="window.pwned=1"><svg onload="window.pwned=1"><a href="javascript:window.pwned=1">x</a>'
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,800",
]
WORDS = ["oil", "prices", "crude", "barrel", "court", "judge", "trial", "verdict", "moon", "orbit"]
WORDS += ["launch", "probe", "goal", "match", "league", "striker", "chip", "code", "server", "kernel"]


def report() -> ReportData:
    """Thirty round topics on a grid and a few outliers; one topic is an attack."""
    rng = np.random.default_rng(7)
    centres = np.array([(i % 6, i // 6) for i in range(30)]) * 4.0
    topic_of = np.concatenate([np.repeat(np.arange(30), np.arange(60, 30, -1)), np.full(40, -1)])
    xy = np.concatenate([centres[topic_of[topic_of >= 0]] + rng.normal(size=((topic_of >= 0).sum(), 2)) * 0.4, rng.uniform(0, 20, (40, 2))])
    topics = []
    for i in range(30):
        words = tuple(f"{WORDS[(i * 3 + j) % 20]}{i}" for j in range(8))
        topics.append(Topic(i, 60 - i, "", words, (f"An example of topic {i}.",), local_topics=4))
    topics[5] = Topic(5, 55, ATTACK, (ATTACK, "hostile"), (ATTACK,), {ATTACK: Aspect((ATTACK,), ATTACK)})
    topics.append(Topic(-1, 40))
    return ReportData(
        "Thirty topics " + ATTACK,
        datetime(2026, 11, 21, tzinfo=UTC),
        topics,
        DocumentMap(xy[:, 0], xy[:, 1], topic_of, [f"Document {i} {ATTACK if topic_of[i] == 5 else ''}" for i in range(len(xy))]),
        lineage=[Lineage(t.topic_id, f"site {p} {ATTACK}", t.size // 4 + p) for t in topics for p in range(4)],
        quarantine={"empty": 2},
        quarantine_examples=[QuarantinedRow("empty", ATTACK, ATTACK)],
        configuration=ATTACK,
        timings=[Timing("embed", 3.0, 100, 4)],
        evaluation={"nmi": 0.5},
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(build(report()), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    """The report, freshly opened at 1280 x 800."""
    return show(browser, file)


def show(browser, file, *, width=1280, height=800, mobile=False):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    )
    browser.get(file.as_uri())
    until(browser, "document.documentElement.dataset.map === 'ready'")
    browser.execute_script("document.querySelector('.explorer').scrollIntoView()")
    return browser


def until(browser, condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return !!({condition})"):
        assert time.monotonic() < end, f"never true: {condition}"
        time.sleep(0.05)


def boxes(browser):
    """Return the labels on screen: text, left, top, right, bottom."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#labels button')].filter(b => !b.hidden).map(b => {"
        "const r = b.getBoundingClientRect(); return [b.textContent, r.left, r.top, r.right, r.bottom]})"
    )


def overlaps(found):
    return [
        (one[0], other[0])
        for i, one in enumerate(found)
        for other in found[:i]
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]
    ]


def point(browser, topic):
    """Return the place on screen of a point of a topic that no label or button covers."""
    return browser.execute_script(
        """const plot = document.getElementById('plot'), box = plot.getBoundingClientRect(), full = plot._fullLayout;
        const d = JSON.parse(document.getElementById('data').textContent);
        for (let i = 0; i < d.x.length; i++) {
          if (d.t[i] !== arguments[0]) continue;
          const x = box.left + (d.x[i] - full.xaxis.range[0]) / (full.xaxis.range[1] - full.xaxis.range[0]) * box.width;
          const y = box.top + (full.yaxis.range[1] - d.y[i]) / (full.yaxis.range[1] - full.yaxis.range[0]) * box.height;
          const top = document.elementFromPoint(x, y);
          if (top && plot.contains(top)) return [Math.round(x), Math.round(y)];
        }""",
        topic,
    )


def mouse(browser, place, *, click=False):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    action = ActionBuilder(browser, duration=30)
    action.pointer_action.move_to_location(place[0] - 3, place[1]).move_to_location(*place)
    if click:
        action.pointer_action.click()
    action.perform()


def hover(browser, place):
    """Hold the mouse over a place until the page shows a tip; plotly may miss a single move on a busy machine."""
    end = time.monotonic() + 20
    while browser.execute_script("return document.getElementById('tip').hidden"):
        assert time.monotonic() < end, f"no tip at {place}"
        mouse(browser, place)
        time.sleep(0.2)


def rows(browser):
    """Return the ids of the topics on screen, in order."""
    return browser.execute_script("return [...document.querySelectorAll('tr.topic')].filter(r => !r.hidden).map(r => Number(r.dataset.id))")


def opened(browser):
    return browser.execute_script("return [...document.querySelectorAll('tr.topic.open')].map(r => Number(r.dataset.id))")


def highlighted(browser):
    """Return the topics of the points that stand out of the dimmed map."""
    return browser.execute_script(
        "const d = JSON.parse(document.getElementById('data').textContent), rows = document.getElementById('plot').data[0].customdata;"
        "const lit = [...document.querySelectorAll('#plot path.lit')].map(node => d.topics[d.t[rows[node.__data__.i]]].id);"
        "return [...new Set(lit)].sort((a, b) => a - b)"
    )


def test_opens_quietly(page):
    """No error on the console, no request but the file itself, every point drawn, nothing run."""
    page.get_log("performance")
    page.get_log("browser")
    page.refresh()
    until(page, "document.documentElement.dataset.map === 'ready'")
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.current_url]
    assert page.get_log("browser") == []
    assert page.execute_script("return document.querySelectorAll('#plot .scatterlayer .trace:first-of-type path.point').length") == len(
        report().map
    )
    assert page.execute_script("return window.pwned === undefined && document.querySelectorAll('img, a[href^=javascript]').length === 0")
    assert page.title.startswith("Thirty topics </script><img")


@pytest.mark.parametrize(("width", "height", "mobile"), [(1280, 800, False), (1920, 1080, False), (820, 1180, True), (390, 844, True)])
def test_labels_do_not_overlap_at_any_size(browser, file, width, height, mobile):
    page = show(browser, file, width=width, height=height, mobile=mobile)
    found = boxes(page)
    assert len(found) >= 8
    assert overlaps(found) == []
    frame = page.execute_script(
        "const r = document.getElementById('canvas').getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]"
    )
    assert all(box[1] >= frame[0] and box[2] >= frame[1] and box[3] <= frame[2] and box[4] <= frame[3] for box in found)
    # nothing sticks out sideways
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_zoom_places_labels_anew(page):
    before = boxes(page)
    page.find_element("css selector", "[aria-label='Zoom in']").click()
    until(page, "document.getElementById('plot')._fullLayout.xaxis.range[0] > 0")
    after = boxes(page)
    assert overlaps(after) == []
    assert {box[0] for box in after} != {box[0] for box in before}
    page.find_element("css selector", "[aria-label='Show the whole map']").click()
    until(page, "document.getElementById('plot')._fullLayout.xaxis.range[0] < 0")
    assert [box[0] for box in boxes(page)] == [box[0] for box in before]


def test_labels_do_not_overlap_after_a_resize(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1000, "height": 700, "deviceScaleFactor": 1, "mobile": False})
    until(page, "document.querySelector('#plot .main-svg').clientWidth === document.getElementById('plot').clientWidth")
    time.sleep(0.3)
    assert overlaps(boxes(page)) == []
    assert len(boxes(page)) >= 8


def test_hover_shows_the_document_and_its_topic(page):
    hover(page, point(page, 2))
    tip = page.find_element("id", "tip").text
    assert "Document" in tip
    assert "trial2, verdict2, moon2" in tip
    mouse(page, [1270, 790])
    until(page, "document.getElementById('tip').hidden")


def test_hover_over_hostile_text_shows_it_as_text(page):
    hover(page, point(page, 5))
    assert "<img src=x onerror=" in page.find_element("css selector", "#tip p").text
    assert page.execute_script("return window.pwned") is None


def test_click_in_the_table_lights_up_the_map(page):
    page.find_element("css selector", "tr[data-id='3'] button").click()
    assert opened(page) == [3]
    assert "An example of topic 3." in page.find_element("id", "d3").text
    until(page, "document.querySelectorAll('#plot path.lit').length === 57")
    assert highlighted(page) == [3]
    assert page.execute_script("return getComputedStyle(document.querySelector('#plot path.point:not(.lit)')).opacity") == "0.11"
    page.find_element("css selector", "[aria-label='Zoom in']").click()
    until(page, "document.getElementById('plot')._fullLayout.xaxis.range[0] > 0")
    assert highlighted(page) == [3]
    assert overlaps(boxes(page)) == []
    page.find_element("css selector", "tr[data-id='3'] button").click()
    assert opened(page) == []
    until(page, "document.querySelectorAll('#plot path.lit').length === 0")


def test_click_on_the_map_opens_the_row(page):
    mouse(page, point(page, 21), click=True)
    until(page, "document.querySelector('tr.topic.open')")
    assert opened(page) == [21]
    row = page.execute_script("const r = document.querySelector('tr.open').getBoundingClientRect(); return [r.top, r.bottom]")
    frame = page.execute_script("const r = document.getElementById('scroll').getBoundingClientRect(); return [r.top, r.bottom]")
    assert frame[0] <= row[0]
    assert row[1] <= frame[1]
    # a click beside all points lets go
    box = page.execute_script("const r = document.getElementById('plot').getBoundingClientRect(); return [r.left, r.bottom]")
    mouse(page, [round(box[0]) + 8, round(box[1]) - 8], click=True)
    until(page, "!document.querySelector('tr.topic.open')")


def test_click_on_a_label_opens_the_row(page):
    label = next(b for b in page.find_elements("css selector", "#labels button") if b.is_displayed())
    text = label.text.replace("\n", " ")
    label.click()
    until(page, "document.querySelector('tr.topic.open')")
    assert page.find_element("css selector", "tr.open button").text == text


def test_search_filters_table_and_map(page):
    box = page.find_element("id", "search")
    box.send_keys("oil0")
    assert rows(page) == [0]
    assert page.find_element("id", "found").text == "1 topic"
    until(page, "document.querySelectorAll('#plot path.lit').length === 60")
    assert [b[0] for b in boxes(page)] == ["oil0, prices0, crude0"]
    box.send_keys(" nonsense")
    assert rows(page) == []
    assert page.find_element("id", "none").is_displayed()
    box.clear()
    box.send_keys(" ")
    assert len(rows(page)) == 31
    until(page, "!document.getElementById('canvas').classList.contains('dimmed')")


def test_sort(page):
    size, name, number = (page.find_element("css selector", f"[data-sort={key}]") for key in ("size", "name", "id"))
    size.click()
    assert rows(page)[:2] == [29, 28]
    # outliers are no topic, wherever they would stand
    assert rows(page)[-1] == -1
    size.click()
    assert rows(page)[:2] == [0, 1]
    number.click()
    number.click()
    assert rows(page)[0] == 29
    name.click()
    names = page.execute_script("return [...document.querySelectorAll('tr.topic')].map(r => r.dataset.name)")[:-1]
    assert names == page.execute_script("return [...arguments[0]].sort((a, b) => a.localeCompare(b, undefined, {numeric: true}))", names)
    heads = page.execute_script("return [...document.querySelectorAll('.topics th[aria-sort]')].map(h => h.getAttribute('aria-sort'))")
    assert heads == ["none", "ascending", "none"]
    # details travel with their row
    assert page.execute_script(
        "return [...document.querySelectorAll('tr.topic')].every(r => r.nextElementSibling.id === 'd' + r.dataset.row)"
    )


def test_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("id", "search").send_keys(Keys.TAB * 4)
    assert page.execute_script("return document.activeElement.closest('tr').dataset.id") == "0"
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened(page) == [2]
    assert page.switch_to.active_element.get_attribute("aria-expanded") == "true"
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert opened(page) == []


def test_theme_recolours_the_map(page):
    colour = "document.querySelector('#plot .scatterlayer .trace:first-of-type path.point:last-child').style.fill"
    before = page.execute_script(f"return [{colour}, getComputedStyle(document.body).backgroundColor]")
    page.find_element("id", "theme").click()
    until(page, f"{colour} !== '{before[0]}'")
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") != before[1]
    assert page.get_log("browser") == []


def test_lineage_shows_the_rest_on_request(page):
    hidden = "[...document.querySelectorAll('#lineage tr.more')].filter(r => r.hidden).length"
    assert page.execute_script(f"return {hidden}") == 11
    page.find_element("css selector", "[data-more=lineage]").click()
    assert page.execute_script(f"return {hidden}") == 0


def test_prints(page):
    pdf = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(pdf["data"]) > 20_000


def test_policy_stops_what_escaping_would_have_missed(page):
    """Were an attack to get into the document after all, it would neither run nor call out."""
    page.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.pwned=1\">')")
    page.execute_script("const s = document.createElement('script'); s.textContent = 'window.pwned=1'; document.body.append(s)")
    refused = page.execute_async_script("fetch('http://127.0.0.1:9/').then(() => arguments[0]('sent'), () => arguments[0]('refused'))")
    assert refused == "refused"
    assert page.execute_script("return window.pwned") is None
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def merged_report() -> ReportData:
    """Five sites' topics, merged: no map, hostile names of sites and topics."""
    names = [f"site {i} {ATTACK}" if i % 2 else f"site {i}" for i in range(5)]

    def leaf(site: int, topic: int) -> Leaf:
        return Leaf(names[site], f"id{site}", f"key{site}-{topic}", ATTACK if topic == 0 else "", 40 - topic, topic, 0.9)

    sites = [
        Site(f"id{i}", names[i], 125 + i, i, tuple(leaf(i, topic) for topic in range(3)), (leaf(i, 3 + i),) if i < 2 else ())
        for i in range(5)
    ]
    topics = [Topic(i, 200 - 10 * i, ATTACK if i == 0 else f"Topic {i}", (f"word{i}",)) for i in range(5)]
    return ReportData(
        "Merged " + ATTACK,
        datetime(2026, 11, 21, tzinfo=UTC),
        topics,
        sites=sites,
        conflicts={0: [ATTACK, "Energy"]},
        configuration="merge: {}",
    )


@pytest.fixture
def merged(browser, tmp_path):
    """The report of merged topics, freshly opened."""
    path = tmp_path / "merged.html"
    path.write_text(build(merged_report()), encoding="utf-8")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    until(browser, "document.readyState === 'complete'")
    return browser


def test_merged_topics_open_quietly_and_hostile_sites_are_text(merged):
    events = [json.loads(entry["message"])["message"] for entry in merged.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [merged.current_url]
    assert merged.get_log("browser") == []
    assert merged.execute_script("return window.pwned === undefined && document.querySelectorAll('img, a[href^=javascript]').length === 0")
    shown = [node.text for node in merged.find_elements("css selector", ".site summary")]
    assert len(shown) == 5
    assert "<img src=x onerror=" in shown[1]
    assert "126 documents, 4 topics: 3 matched others', 1 found only here; 1 outlier" in shown[1]
    assert "<img src=x onerror=" in merged.find_element("id", "conflicts").text


def test_a_site_unfolds_to_its_topics(merged):
    site = merged.find_elements("css selector", ".site")[1]
    site.find_element("tag name", "summary").click()
    until(merged, "document.querySelectorAll('.site[open]').length === 1")
    rows = [row.text for row in site.find_elements("css selector", ".matched tbody tr")]
    assert len(rows) == 3
    assert "39 0.900 site 0, site 2, site 3" in rows[1]
    assert [row.text for row in site.find_elements("css selector", ".alone tbody tr")] == ["Topic 4 36 0.900"]
    # nothing sticks out sideways, on a phone neither
    for width in (1280, 390):
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        merged.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        assert merged.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_search_and_rows_work_without_a_map(merged):
    merged.find_element("id", "search").send_keys("word3")
    assert rows(merged) == [3]
    merged.find_element("css selector", "tr[data-id='3'] button").click()
    assert opened(merged) == [3]
    assert merged.get_log("browser") == []
