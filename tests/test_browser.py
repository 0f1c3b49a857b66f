"""Tests reports in a real browser: no errors, no requests, and controls that work."""

from __future__ import annotations

import base64
import re
import shutil
import time
import zlib
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.report import write
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.store.runs import RunFolder
from tests.runs import RANDOM, pair_record, record, write_run
from tests.test_executors import wait_until
from tl.cache import write_atomic

selenium = pytest.importorskip("selenium", reason="selenium isn't installed")
from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its driver here")
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three backbones, two regimes and three seeds, with a failed cell and one that hasn't run yet."""
    folder = tmp_path_factory.mktemp("report")
    records = [
        record(backbone, regime, seed=seed, seconds=seconds * (1 + seed / 50), right=right + seed)
        for backbone, slow, right in (("timm:a", 10.0, 90), ("timm:<script>alert(1)</script>", 20.0, 94))
        for regime, seconds in (("finetune", slow), ("frozen", slow / 2.5))
        for seed in range(3)
    ]
    records += [record("timm:c", "frozen", weights=RANDOM), record("timm:c", "finetune", status="oom")]
    run = write_run(folder / "run", records, missing=[record("timm:c", "cached").cell])
    return write_report(summarise([run], "run"), folder / "reports")[1]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three backbones with long names, fine-tuned and frozen, with three seeds and timed in pairs, so that
    all its tables have all their columns."""
    folder = tmp_path_factory.mktemp("complete")
    names = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "vit_base_patch16_clip_224.openai_ft_in12k_in1k")
    records = [
        record(f"timm:{name}", regime, seed=seed, seconds=seconds * (1 + seed / 50), right=right + seed)
        for name, right in zip(names, (94, 90, 88), strict=True)
        for regime, seconds in (("finetune", 10.0), ("frozen", 4.5))
        for seed in range(3)
    ]
    cells = {
        (one.cell.config.backbone, one.cell.config.regime): one.cell for one in records if one.cell.config.seed == 0
    }
    pairs = [
        pair_record(
            [cells[f"timm:{name}", regime] for regime in ("finetune", "frozen")],
            (10.0, 4.5 + at),
            number=number,
            turns=8 + at,
            noise=0.02 * (1 + at),
            memory=((400 + at) << 20, (100 + at) << 20),
        )
        for at, name in enumerate(names)
        for number in range(5 + at)
    ]
    run = write_run(folder / "run", records, pairs=pairs)
    return write_report(summarise([run], "run"), folder / "reports")[1]


def opened(browser: Any, page: Path, hash_: str = "", size: tuple[int, int] = DESKTOP) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get("about:blank")
    browser.get(page.as_uri() + hash_)


def schemes(browser: Any, page: Path) -> Iterator[str]:
    """Open the page in the light and then in the dark colour scheme."""
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        opened(browser, page)
        yield scheme
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


APPLY = {"label", "link-name", "document-title"}
"""Rules of axe that have something to say of a report's page."""


def serious(browser: Any, rules: Collection[str] = APPLY) -> list[tuple[str, str]]:
    """Rule and element of each serious finding of axe on the open page, of which `rules` have something to say."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python isn't installed")
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    violations, passed = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then((r) => done([r.violations, r.passes.map((one) => one.id)]))"
    )
    assert {*rules} <= {*passed, *(one["id"] for one in violations)}
    scrolls = browser.execute_script(WIDER) != []
    assert ("scrollable-region-focusable" in {*passed, *(one["id"] for one in violations)}) is scrolls
    return [(one["id"], one["nodes"][0]["html"]) for one in violations if one["impact"] in ("serious", "critical")]


def texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def test_nothing_fails_and_nothing_is_fetched(browser: Any, page: Path) -> None:
    """The console is empty, only the page itself is requested, and names are text."""
    browser.get_log("browser"), browser.get_log("performance")
    opened(browser, page)
    assert browser.get_log("browser") == []
    asked = [
        line["message"] for line in browser.get_log("performance") if "Network.requestWillBeSent" in line["message"]
    ]
    assert all(page.name in message or "about:blank" in message or "data:" in message for message in asked)
    assert "<script>alert(1)</script>" in browser.find_element(By.ID, "cells").text


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_never_scrolls_sideways(size: tuple[int, int], browser: Any, page: Path) -> None:
    """Wide content scrolls within its own element."""
    opened(browser, page, size=size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]


def test_sorting_filtering_hiding_and_the_link(browser: Any, page: Path) -> None:
    """Each changes the table and the address. Opening the address restores the view."""
    opened(browser, page)
    head = next(th for th in browser.find_elements(By.CSS_SELECTOR, "#cells th") if th.text.startswith("epoch"))
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    first = texts(browser, "#cells tbody tr")[0]
    assert "timm:a" in first and "frozen" in first
    browser.find_element(By.CSS_SELECTOR, "#table-tools input[type=search]").send_keys("frozen -timm:c")
    assert len(texts(browser, "#cells tbody tr")) == 2 and texts(browser, "#table-tools output") == ["2 of 5 rows"]
    browser.find_element(By.CSS_SELECTOR, "#table-tools summary").click()
    boxes = {label.text.strip(): label for label in browser.find_elements(By.CSS_SELECTOR, ".columns label")}
    boxes["verdict"].click()
    boxes["best epoch"].click()
    heads = texts(browser, "#cells thead th")
    assert "verdict" not in heads and "best epoch" in heads
    shown = texts(browser, "#cells tr")
    link = browser.execute_script("return location.hash")
    opened(browser, page, link)
    assert texts(browser, "#cells tr") == shown


@pytest.mark.parametrize("link", ['nav a[href="#trust"]', '.verdicts a[href^="#claim-"]', 'a[href^="#note-"]'])
def test_a_link_within_the_page_keeps_the_table_s_state(browser: Any, page: Path, link: str) -> None:
    opened(browser, page, "#q=frozen")
    found = browser.find_element(By.CSS_SELECTOR, link)
    browser.execute_script("arguments[0].scrollIntoView()", found)
    browser.execute_script("arguments[0].click()", found)
    assert browser.execute_script("return location.hash") == "#q=frozen"
    target = browser.find_element(By.CSS_SELECTOR, found.get_attribute("hash"))
    top, height = browser.execute_script("return [arguments[0].getBoundingClientRect().top, innerHeight]", target)
    assert -1 < top < height
    assert target.is_displayed()


def test_the_page_of_an_unfinished_run(
    browser: Any, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reloads with the view that the reader chose, until the reader stops it."""
    monkeypatch.setattr(write, "REFRESH_SECONDS", 1)
    run = RunFolder(page.parents[1] / "run")
    path = write.write_live(run, tmp_path)
    opened(browser, path, "#still=1")  # axe may take longer than the time between reloads
    assert serious(browser) == []
    opened(browser, path, "#q=frozen")
    write_atomic(path, re.sub("<h1>.*?</h1>", "<h1>later</h1>", path.read_text()))
    assert wait_until(lambda: _heading(browser) == "later", 10)
    assert browser.execute_script("return location.hash") == "#q=frozen"
    assert wait_until(lambda: _in_page(browser, "document.querySelector('#live input').click(); return true"), 10)
    assert "still=1" in browser.execute_script("return location.hash")
    write_atomic(path, path.read_text().replace("<h1>later</h1>", "<h1>too late</h1>"))
    time.sleep(2.5)
    assert _heading(browser) == "later"


def _heading(browser: Any) -> str:
    return str(_in_page(browser, "return document.querySelector('h1').textContent"))


def _in_page(browser: Any, script: str) -> Any:
    """The result of a script; None while the page reloads."""
    try:
        return browser.execute_script(script)
    except WebDriverException:
        return None


def test_a_link_into_the_page_stays(browser: Any, page: Path) -> None:
    """The anchor in the address is kept, and isn't taken for the state of the table."""
    opened(browser, page, "#trust")
    assert browser.execute_script("return location.hash") == "#trust"
    assert browser.execute_script("return scrollY") > 1000


def test_copies(browser: Any, page: Path) -> None:
    """The visible rows are copied in each format."""
    opened(browser, page, "#q=timm:a")
    browser.execute_script(
        "window.copied = []; Object.defineProperty(navigator, 'clipboard',"
        " {value: {writeText: async (text) => { window.copied.push(text); }}});"
    )
    for button in browser.find_elements(By.CSS_SELECTOR, "#table-tools > button"):
        button.click()
    comma, markdown, latex = browser.execute_script("return window.copied")
    assert len(comma.splitlines()) == 3 and comma.startswith("backbone,verdict,regime")
    assert markdown.splitlines()[1].startswith("| --- |") and len(markdown.splitlines()) == 4
    assert latex.startswith("\\begin{tabular}") and "\\%" not in latex.splitlines()[2] and "$\\pm$" in latex


def test_the_heatmap_switches_metrics(browser: Any, page: Path) -> None:
    """It switches between accuracy, time and memory, and includes failed cells and those that haven't run."""
    opened(browser, page)
    before = texts(browser, "#matrix-table td")
    assert "oom" in before and "not run" in before
    reasons = [td.get_attribute("title") for td in browser.find_elements(By.CSS_SELECTOR, "#matrix-table td")]
    assert "took | too <b>long</b>" in reasons
    browser.find_element(By.CSS_SELECTOR, 'input[value="epoch_seconds"]').click()
    after = texts(browser, "#matrix-table td")
    assert before != after and any(text.endswith(" s") for text in after)
    assert "matrix=epoch_seconds" in browser.execute_script("return location.hash")


def test_the_explorer(browser: Any, page: Path) -> None:
    """It has one point per group with both metrics. A point can be reached by keyboard and leads to its row."""
    opened(browser, page)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#explore .point")) == 4
    select = browser.find_element(By.CSS_SELECTOR, '#explore select[aria-label="Up"]')
    select.find_element(By.CSS_SELECTOR, 'option[value="peak_memory_bytes"]').click()
    points = browser.find_elements(By.CSS_SELECTOR, "#explore .point")
    assert len(points) == 5 and "peak memory" in points[0].get_attribute("aria-label")
    browser.execute_script("arguments[0].focus()", points[1])
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "tr.found").get_attribute("id") == "cell-1"


def chosen(browser: Any, axis: str) -> str:
    return str(axis_of(browser, axis).get_property("value"))


def axis_of(browser: Any, axis: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, f'#explore select[aria-label="{axis}"]')


def choose(browser: Any, axis: str, metric: str) -> None:
    axis_of(browser, axis).find_element(By.CSS_SELECTOR, f'option[value="{metric}"]').click()


def logarithmic(browser: Any) -> list[bool]:
    """Whether the axes are logarithmic, the upright one first."""
    boxes = browser.find_elements(By.CSS_SELECTOR, "#explore input[type=checkbox]")
    return [box.is_selected() for box in boxes]


def numbers(browser: Any) -> dict[str, list[str]]:
    """The numbers at the marks of each axis."""
    found = browser.execute_script(
        "return [...document.querySelectorAll('#explore svg > text')].map((one) => "
        "[one.getAttribute('text-anchor'), one.textContent])"
    )
    return {
        name: [text for at, text in found if at == anchor and re.fullmatch(r"[-\d.,]+", text)]
        for name, anchor in (("Up", "end"), ("Across", "middle"))
    }


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of groups whose times are far apart, of which the slowest has no accuracy, and one with a score of 0."""
    folder = tmp_path_factory.mktemp("unlike")
    records = [
        record("timm:a", "finetune", seconds=1.0, right=0),
        record("timm:a", "frozen", seconds=2.0, right=3),
        record("timm:b", "finetune", seconds=40.0, right=6),
        record("timm:b", "frozen", seconds=5000.0, weights=RANDOM),
    ]
    return write_report(summarise([write_run(folder / "run", records)], "run"), folder / "reports")[1]


def test_the_explorer_s_scales(browser: Any, unlike: Path) -> None:
    """They are of the points that are drawn, logarithmic where the range wants it or the reader does, without -0."""
    opened(browser, unlike)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#explore .point")) == 3
    assert logarithmic(browser) == [False, True]
    shown = numbers(browser)
    assert shown["Up"][0] == "0" and "-" not in "".join(shown["Up"])
    assert float(shown["Across"][-1]) < 100, "the cell of 5,000 s has no accuracy and isn't drawn"
    browser.find_elements(By.CSS_SELECTOR, "#explore input[type=checkbox]")[1].click()
    assert logarithmic(browser) == [False, False] and numbers(browser)["Across"][0] == "0"
    link = browser.execute_script("return location.hash")
    opened(browser, unlike, link)
    assert logarithmic(browser) == [False, False], "the address keeps what the reader chose"
    choose(browser, "Up", "total_params")
    choose(browser, "Across", "train_epoch_seconds")
    assert logarithmic(browser) == [False, True], "of all cells; another measure has the axis that suits it"
    assert numbers(browser)["Across"] == ["1", "10", "100", "1,000"], "a range this wide has fewer marks"


def test_no_axis_against_itself(browser: Any, page: Path) -> None:
    """The measure of the other axis changes places with it; an address with the same twice gives two."""
    opened(browser, page)
    before = chosen(browser, "Up"), chosen(browser, "Across")
    choose(browser, "Up", before[1])
    assert (chosen(browser, "Up"), chosen(browser, "Across")) == before[::-1]
    link = browser.execute_script("return location.hash")
    opened(browser, page, link)
    assert (chosen(browser, "Up"), chosen(browser, "Across")) == before[::-1]
    for same in ("peak_memory_bytes", before[1]):
        opened(browser, page, f"#x={same}&y={same}")
        assert chosen(browser, "Up") == same != chosen(browser, "Across")


def tip_of(browser: Any) -> str:
    """The text beside a point; empty if there is none."""
    return "".join(texts(browser, "#explore .tip"))


def place_of(browser: Any, number: int) -> tuple[float, float]:
    """The middle of a point of the explorer, in the window."""
    found = browser.execute_script(
        "document.querySelector('#explore svg:not(.shape)').scrollIntoView({block: 'center', behavior: 'instant'});"
        "const box = document.querySelectorAll('#explore .point path')[arguments[0]].getBoundingClientRect();"
        "return [(box.left + box.right) / 2, (box.top + box.bottom) / 2]",
        number,
    )
    return found[0], found[1]


def test_the_explorer_s_tooltip_by_mouse_and_keyboard(browser: Any, page: Path) -> None:
    """It stands beside the nearest point, within the explorer, and goes away with the pointer, focus and Escape."""
    opened(browser, page)
    points = browser.find_elements(By.CSS_SELECTOR, "#explore .point")
    for number in range(len(points)):
        x, y = place_of(browser, number)
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + 6, "y": y + 6})
        said = points[number].get_attribute("aria-label")
        assert tip_of(browser).splitlines()[0] == said.split(": ")[0] and "Click for its row" in tip_of(browser)
        assert browser.execute_script(
            "const a = document.querySelector('#explore .tip').getBoundingClientRect(),"
            " b = document.getElementById('explore').getBoundingClientRect();"
            "return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom"
        )
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
    assert tip_of(browser) == ""
    browser.execute_script("arguments[0].focus()", points[2])
    assert tip_of(browser).startswith(points[2].get_attribute("aria-label").split(": ")[0])
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert tip_of(browser) == ""
    browser.execute_script("arguments[0].focus()", points[3])
    assert tip_of(browser) != ""
    browser.execute_script("document.activeElement.blur()")
    assert tip_of(browser) == ""


def test_the_explorer_s_tooltip_by_touch(browser: Any, page: Path) -> None:
    """A touch near a point shows it, the second one goes to its row, and one elsewhere hides it."""
    opened(browser, page, size=PHONE)

    def touch(x: float, y: float) -> None:
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        name = browser.find_elements(By.CSS_SELECTOR, "#explore .point")[0].get_attribute("aria-label").split(": ")[0]
        x, y = place_of(browser, 0)
        touch(x + 8, y)
        assert wait_until(lambda: tip_of(browser).startswith(name), 10) and "Touch again" in tip_of(browser)
        assert browser.find_elements(By.CSS_SELECTOR, "tr.found") == []
        touch(200, 5)
        assert wait_until(lambda: tip_of(browser) == "", 10)
        touch(x, y)
        assert wait_until(lambda: tip_of(browser).startswith(name), 10)
        touch(x, y)
        assert wait_until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "tr.found")) == 1, 10)
        assert browser.find_element(By.CSS_SELECTOR, "tr.found").get_attribute("data-of") == "cell-0", "of its card"
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_light_and_dark(browser: Any, page: Path) -> None:
    """The background follows the colour scheme of the system."""
    for scheme in schemes(browser, page):
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in back[back.index("(") + 1 : -1].split(",")[:3]) / 3
        assert (brightness < 60) is (scheme == "dark")


CONTRAST = """
const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgb(colours) {
  pen.clearRect(0, 0, 1, 1);
  for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function luminance(parts) {
  const [r, g, b] = parts.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const holder = walker.currentNode.parentElement, look = getComputedStyle(holder);
  if (!walker.currentNode.textContent.trim() || !holder.checkVisibility() || holder.closest("svg, script")) continue;
  const behind = [];
  for (let at = holder; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
  const [a, b] = [luminance(rgb(behind)), luminance(rgb([...behind, look.color]))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio * look.opacity, walker.currentNode.textContent.trim().slice(0, 40)]);
}
return found.sort((one, other) => one[0] - other[0]);
"""


CUT = """
const cut = [];
for (const drawing of document.querySelectorAll("figure .drawing")) {
  const box = drawing.querySelector("svg").getBoundingClientRect();
  for (const text of drawing.querySelectorAll("text")) {
    const { left, right, top, bottom, width } = text.getBoundingClientRect();
    if (width && (left < box.left - 1 || right > box.right + 1 || top < box.top - 1 || bottom > box.bottom + 1))
      cut.push(text.textContent);
  }
}
return cut;
"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_letter_of_a_figure_is_cut_off_or_tiny(size: tuple[int, int], browser: Any, page: Path) -> None:
    """On a phone letters have 11 pixels at least."""
    opened(browser, page, size=size)
    assert browser.execute_script(CUT) == []
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure .drawing svg')].filter((one) => one.checkVisibility()).map("
        "(one) => one.getBoundingClientRect().width / one.viewBox.baseVal.width * Math.min(...[...one.querySelectorAll("
        "'text')].map((text) => parseFloat(getComputedStyle(text).fontSize))))"
    )
    assert len(heights) > 3 and min(heights) >= 10.9


WIDER = """
return [...document.querySelectorAll(".scroll")]
  .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth)
  .map((one) => [one.getAttribute("aria-label"), one.scrollWidth, one.clientWidth]);
"""
"""The tables that a reader has to push sideways."""


@pytest.mark.parametrize("width", [390, 1280, 1440])
def test_no_column_is_hidden(width: int, browser: Any, complete: Path) -> None:
    """Of no table, however many columns it has."""
    opened(browser, complete, size=(width, 900))
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".scroll table")) > 6
    assert browser.execute_script(WIDER) == []


def test_a_phone_has_a_card_for_each_backbone(browser: Any, page: Path) -> None:
    """In place of the table and the matrix, the best first: every combination with its figures, or what it lacks."""
    opened(browser, page, size=PHONE)
    assert texts(browser, "#cells") == texts(browser, "#matrix-table") == []
    assert texts(browser, ".backbones h3") == [
        "<script>alert(1)</script>",
        "a",
        "c · random weights",
        "c · pretrained weights",
    ]
    rows = [" ".join(text.split()) for text in texts(browser, ".backbones tbody tr")]
    assert rows[0] == "frozen 95.0% 8.18 s 8 MiB" and any("random weights n/a" in row for row in rows)
    assert sum("oom" in row for row in rows) == sum("not run" in row for row in rows) == 1
    right = (
        "Math.max(...[...document.querySelectorAll('.backbones td')].map((one) => one.getBoundingClientRect().right))"
    )
    assert browser.execute_script(f"return {right}") <= PHONE[0]
    browser.find_element(By.CSS_SELECTOR, "#table-tools input[type=search]").send_keys("timm:a frozen")
    assert texts(browser, ".backbones h3") == ["a"] and len(texts(browser, ".backbones tbody tr")) == 1


def test_a_point_leads_to_its_line_on_a_phone(browser: Any, page: Path) -> None:
    opened(browser, page, size=PHONE)
    point = browser.find_element(By.CSS_SELECTOR, "#explore .point")
    browser.execute_script("arguments[0].focus()", point)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "tr.found").get_attribute("data-of") == "cell-0"


def test_a_filter_drives_all_views(browser: Any, page: Path) -> None:
    """Rows, the matrix, the points of the first figure and the explorer."""
    opened(browser, page, "#q=timm:a frozen")
    assert len(texts(browser, "#cells tbody tr")) == 1
    assert [text.split()[0] for text in texts(browser, "#matrix-table tbody tr")] == ["a"]
    points = browser.find_elements(By.CSS_SELECTOR, ".hero [id^=point-]")
    assert len(points) == 4 and sum("faded" in (one.get_attribute("class") or "") for one in points) == 3
    assert len(browser.find_elements(By.CSS_SELECTOR, "#explore .point")) == 1
    search = browser.find_element(By.CSS_SELECTOR, "#table-tools input[type=search]")
    search.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    assert wait_until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#explore .point")) == 4, 10)


def test_figures_can_be_copied(browser: Any, page: Path) -> None:
    """Each of the first figures has a button for its picture and one for its numbers."""
    opened(browser, page)
    browser.execute_script(
        "window.saved = []; URL.createObjectURL = (blob) => { window.saved.push(blob.type); return '#'; };"
    )
    for button in browser.find_elements(By.CSS_SELECTOR, "#figure-front .tools button"):
        button.click()
    assert wait_until(lambda: sorted(browser.execute_script("return window.saved")) == ["image/png", "text/csv"], 10)


SHEET = (round(277 / 25.4 * 96), round(190 / 25.4 * 96))
"""CSS pixels of a landscape sheet within its margins."""


def test_the_first_sheet_of_paper_has_the_answer(browser: Any, complete: Path) -> None:
    """From the strip to the verdicts, and no sheet is empty."""
    opened(browser, complete)
    letters = [text.count(b"Tj") + text.count(b"TJ") for text in printed_sheets(browser)]
    assert 3 <= len(letters) <= 10 and min(letters) > 3
    on_paper(browser, complete)
    first = "document.querySelector('.first')"
    assert browser.execute_script(f"return {first}.getBoundingClientRect().bottom") <= SHEET[1]
    assert browser.execute_script(f"return getComputedStyle({first}).breakAfter") == "page"
    inside = browser.execute_script(
        f"return [...{first}.children].filter((one) => one.checkVisibility()).map((one) => one.className)"
    )
    assert inside == ["strip", "answers", "hero", "cards", "verdicts"]


def printed_sheets(browser: Any) -> list[bytes]:
    """The drawing instructions of each sheet of the page that is open, all of which are landscape."""
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    (box,) = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf))
    assert float(box[0]) > float(box[1]), "landscape"
    found = []
    for contents in re.findall(rb"/Type\s*/Page\b.*?/Contents (\d+) 0 R", pdf, re.DOTALL):
        stream = re.search(rb"\n%s 0 obj\b.*?stream\r?\n(.*?)\r?\nendstream" % contents, pdf, re.DOTALL)
        assert stream is not None
        found.append(zlib.decompress(stream[1]))
    return found


def on_paper(browser: Any, page: Path) -> None:
    """Open the page as it is printed, without its breaks."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    opened(browser, page, size=SHEET)


@pytest.fixture
def printed(browser: Any, complete: Path) -> Iterator[Any]:
    """The page as it is printed."""
    on_paper(browser, complete)
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_paper_cuts_nothing_off(printed: Any) -> None:
    """Nothing is wider than a sheet or scrolls, columns have their headings, and letters of tables have 8 points."""
    assert printed.execute_script(WIDER) == []
    right = "[...document.querySelectorAll('main *')].map((one) => one.getBoundingClientRect().right)"
    assert printed.execute_script(f"return Math.max(...{right}) - innerWidth") <= 1
    assert texts(printed, "#cells thead th")[:2] == ["backbone", "verdict"] and all(texts(printed, "#cells thead th"))
    shown = "[...document.querySelectorAll('table, table *')].filter((one) => one.checkVisibility())"
    sizes = f"{shown}.map((one) => parseFloat(getComputedStyle(one).fontSize))"
    assert printed.execute_script(f"return Math.min(...{sizes})") >= 8 / 72 * 96 - 0.01


def test_paper_keeps_the_marks_of_legends(printed: Any) -> None:
    """Colours are printed, those of backgrounds too, and folds that nobody opened are left out."""
    assert (
        printed.execute_script("return getComputedStyle(document.querySelector('.dots .band')).printColorAdjust")
        == "exact"
    )
    assert len(texts(printed, "#figure-accuracy-curve text")) > 4
    assert texts(printed, "details.fold summary") == []


def test_contrast_of_text(browser: Any, page: Path) -> None:
    """Contrast with the background is at least 4.5 to 1 (WCAG AA), in light and dark."""
    for scheme in schemes(browser, page):
        found = browser.execute_script(CONTRAST)
        assert len(found) > 100 and found[0][0] >= 4.5, (scheme, found[:5])


def test_the_keyboard_goes_through_the_page_in_order(browser: Any, page: Path) -> None:
    """Tab moves down the page, and never to a hidden element."""
    opened(browser, page)
    seen = []
    for _ in range(40):
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        place = browser.execute_script(
            "const e = document.activeElement, r = e.getBoundingClientRect();"
            "return [e.tagName, r.top + scrollY, r.width]"
        )
        seen.append(place)
    tops = [top for _, top, _ in seen]
    assert all(width > 0 for *_, width in seen)
    assert all(later >= earlier - 80 for earlier, later in pairwise(tops))


def test_no_serious_finding_of_axe(browser: Any, page: Path) -> None:
    """Deque's accessibility checks pass in light and dark."""
    for scheme in schemes(browser, page):
        assert serious(browser) == [], scheme
    opened(browser, page, size=(700, 900))
    assert browser.execute_script(WIDER) != [] and serious(browser) == [], "tables scroll on a tablet"
