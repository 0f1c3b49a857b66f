"""Tests the page of a comparison and the list of all runs in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.compare.changes import compare
from bench.compare.render import show
from bench.compare.sides import read_sides
from bench.report.index import write_index
from bench.store.runs import RunFolder
from tests.runs import RANDOM, record, write_run

pytest.importorskip("selenium", reason="selenium isn't installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.test_browser import (
    CONTRAST,
    DESKTOP,
    PHONE,
    browser,
    opened,
    printed_sheets,
    pytestmark,
    schemes,
    serious,
    texts,
)

__all__ = ["browser", "pytestmark"]
LONG = "timm:a_network_whose_name_has_no_room_on_a_phone_patch16_224.augreg_in21k_ft_in1k"
SCATTER = {"finetune": (1.0, 1.001, 0.999, 1.0005), "frozen": (1.0, 1.3, 0.8, 1.1)}
"""Regime → factors of its seeds: steady ones show a change, the others hide it."""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with each kind of verdict, long names and a cell that newly fails."""
    folder = tmp_path_factory.mktemp("compared")
    for name, factors in (("earlier", (1.0, 1.0, 1.0)), ("later-with-a-long-name", (1.4, 0.6, 1.0))):
        records = [
            record(backbone, regime, seed=seed, seconds=10 * factor * scatter, right=95)
            for backbone, factor in zip((LONG, "timm:b", "timm:c"), factors, strict=True)
            for regime, scattered in SCATTER.items()
            for seed, scatter in enumerate(scattered if name == "earlier" else scattered[::-1])
        ]
        failing = record("timm:d", "frozen", status="done" if name == "earlier" else "oom")
        write_run(folder / name, [*records, failing])
    found = compare(read_sides([str(folder / name) for name in ("earlier", "later-with-a-long-name")]))
    path = folder / "compared.html"
    path.write_text(show(found, "html", title="later-with-a-long-name against earlier"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of a run, one of synthetic images, one without an accuracy and one that can't be read."""
    folder = tmp_path_factory.mktemp("listed")
    cells = [(LONG, "finetune", 20.0, 93), (LONG, "frozen", 8.0, 90), ("timm:b", "frozen", 4.0, 85)]
    trained = [record(name, regime, seconds=seconds, right=right) for name, regime, seconds, right in cells]
    runs = [
        write_run(folder / "real", trained),
        write_run(folder / "pretend", trained[1:], fallback="synthetic: accuracy says nothing about real images"),
        write_run(folder / "random", [record("timm:a", "frozen", weights=RANDOM)]),
    ]
    (folder / "broken").mkdir()
    (folder / "broken" / "manifest.json").write_text("{")
    return write_index([*runs, RunFolder(folder / "broken")], folder / "reports")


PAGES = pytest.mark.parametrize("name", ["compared", "listed"])
SIZES = pytest.mark.parametrize("size", [DESKTOP, (1440, 900), PHONE], ids=["1280", "1440", "phone"])

OUTSIDE = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const holder = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !holder.checkVisibility() || holder.closest("script")) continue;
  const range = document.createRange();
  range.selectNodeContents(walker.currentNode);
  for (const box of range.getClientRects())
    if (box.left < 0 || box.right > document.documentElement.clientWidth) found.push(walker.currentNode.textContent);
}
for (const part of document.querySelectorAll("*"))
  if (part.scrollWidth > part.clientWidth + 1 && !["visible", "clip"].includes(getComputedStyle(part).overflowX))
    found.push(part.outerHTML.slice(0, 80));
return found;
"""


@SIZES
@PAGES
def test_no_text_is_cut_and_no_column_hidden(
    name: str, size: tuple[int, int], browser: Any, request: pytest.FixtureRequest
) -> None:
    """All text is within the window, also of what was folded, and nothing has to be scrolled sideways."""
    opened(browser, request.getfixturevalue(name), size=size)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.execute_script(OUTSIDE) == []


@PAGES
def test_these_pages_are_accessible(name: str, browser: Any, request: pytest.FixtureRequest) -> None:
    """Contrast and Deque's checks, in light and dark; the console is empty."""
    browser.get_log("browser")
    for scheme in schemes(browser, request.getfixturevalue(name)):
        browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        found = browser.execute_script(CONTRAST)
        assert len(found) > 30 and found[0][0] >= 4.5, (scheme, found[:5])
        assert serious(browser, {"label", "document-title"}) == [], scheme
    assert browser.get_log("browser") == []


def test_the_verdict_comes_first(browser: Any, compared: Path) -> None:
    """Then what newly fails, what is worse, what is better; what is undecided is folded."""
    opened(browser, compared)
    first = texts(browser, "main > *")[0]
    assert first.startswith("later-with-a-long-name against earlier: 1 cell newly fails and 2 of 35 comparisons ")
    assert "error rate 5%" in first and f"most of all peak memory 1.400× with {LONG} finetune" in first
    heads = texts(browser, "h2")
    assert heads[:4] == ["! Newly failing", "✗ Worse", "✓ Better", "? Undecided"]
    assert len(texts(browser, "#changes-worse tbody tr")) == 2 and texts(browser, "#changes-open tbody tr") == []
    browser.find_element(By.CSS_SELECTOR, "section:has(#changes-open) summary").click()
    assert len(texts(browser, "#changes-open tbody tr")) > 2


def test_dots_are_on_the_side_of_their_verdict(browser: Any, compared: Path) -> None:
    """Of times, slower is on the right; no dot lies on the band that doesn't count."""
    opened(browser, compared)
    places: dict[str, list[tuple[float, ...]]] = {}
    for line in browser.find_elements(By.CSS_SELECTOR, ".plot li[data-row]"):
        dot, band = (line.find_element(By.CSS_SELECTOR, part).rect for part in (".dot", ".band"))
        verdict = line.find_element(By.CSS_SELECTOR, ".badge").text.split()[-1]
        places.setdefault(verdict, []).append((dot["x"], dot["x"] + dot["width"], band["x"], band["x"] + band["width"]))
    assert all(left > end for left, _, _, end in places["worse"])
    assert all(right < start for _, right, start, _ in places["better"])
    assert all(left < end and right > start for left, right, start, end in places["same"])


def test_the_filter_is_for_all_tables(browser: Any, compared: Path) -> None:
    """It hides rows and lines of the plot, unfolds what it finds, and is in the address."""
    opened(browser, compared)
    browser.find_element(By.CSS_SELECTOR, "#filter input").send_keys("timm:b epoch -finetune")
    (row,) = texts(browser, "tbody tr")
    assert "timm:b frozen" in row and len(texts(browser, ".plot li[data-row]")) == 1
    assert texts(browser, "h2")[0] in ("? Undecided", "= The same"), "sections without a row are hidden"
    assert texts(browser, "#filter output")[0].startswith("1 of ")
    link = browser.execute_script("return location.hash")
    opened(browser, compared, link)
    assert texts(browser, "tbody tr") == [row]


@pytest.mark.parametrize(
    ("name", "table", "heading"), [("compared", "changes-open", "change"), ("listed", "runs", "time")]
)
def test_tables_sort_by_keyboard(
    name: str, table: str, heading: str, browser: Any, request: pytest.FixtureRequest
) -> None:
    """Enter on a heading sorts up, then down; what is unknown stays last. The address keeps it."""
    page = request.getfixturevalue(name)
    opened(browser, page)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    head = next(th for th in browser.find_elements(By.CSS_SELECTOR, f"#{table} th") if th.text.startswith(heading))
    column = browser.execute_script("return arguments[0].cellIndex", head)

    def values() -> list[float]:
        found = browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((row) => row.cells[arguments[1]].dataset.value)",
            f"#{table} tbody tr",
            column,
        )
        return [float(value) if value else float("inf") for value in found]

    for descending in (False, True):
        browser.execute_script("arguments[0].querySelector('button').focus()", head)
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == ("descending" if descending else "ascending")
        known = [value for value in values() if value != float("inf")]
        assert len(known) > 1 and known == sorted(known, reverse=descending)
        assert values()[len(known) :] == [float("inf")] * (len(values()) - len(known))
    before = values()
    opened(browser, page, browser.execute_script("return location.hash"))
    assert values() == before


def test_the_list_greys_synthetic_images_and_says_so(browser: Any, listed: Path) -> None:
    """Each run is a row, and that of synthetic images has the page's soft colour and a chip."""
    opened(browser, listed)
    rows = {row.text.split()[0]: row for row in browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr")}
    assert set(rows) == {"real", "pretend", "random", "broken"}
    colour = {name: rows[name].find_element(By.CSS_SELECTOR, "td").value_of_css_property("color") for name in rows}
    assert colour["real"] == colour["random"] != colour["pretend"]
    assert "synthetic images" in rows["pretend"].text and "synthetic" not in rows["real"].text
    assert "93.0%" in rows["real"].text and "n/a" in rows["random"].text and "can't be read" in rows["broken"].text


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_list_without_scripts(size: tuple[int, int], browser: Any, listed: Path) -> None:
    """All rows are there with their values; no control is shown that does nothing."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, listed, size=size)
        assert (
            len(texts(browser, "#runs tbody tr")) == 4 and texts(browser, "button") == texts(browser, "#filter") == []
        )
        assert not texts(browser, "#runs thead") or size == DESKTOP
        assert "93.0%" in " ".join(texts(browser, "#runs tbody tr"))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_a_phone_a_row_is_a_card(browser: Any, listed: Path) -> None:
    """With the heading of each value beside it, and headings to sort by above all."""
    opened(browser, listed, size=PHONE)
    before = browser.execute_script(
        "return [...document.querySelectorAll('#runs tbody tr:first-child td')].map((cell) =>"
        " getComputedStyle(cell, '::before').content)"
    )
    assert before[:2] == ['"date (UTC)" ": "', '"device" ": "'] or before[:2] == ['"date (UTC): "', '"device: "']
    assert len(texts(browser, "#runs thead button")) == 8


def test_headings_stand_on_each_sheet_of_paper(browser: Any, tmp_path: Path) -> None:
    """Also where they are buttons: at least as much text is on each sheet as with headings of plain text."""
    cells = [record("timm:b", "frozen", right=85)]
    runs = [write_run(tmp_path / f"run-{number:02}", cells) for number in range(30)]
    opened(browser, write_index(runs, tmp_path / "reports"))
    buttons = [text.count(b"Tj") + text.count(b"TJ") for text in printed_sheets(browser)]
    browser.execute_script("for (const head of document.querySelectorAll('th')) head.textContent = head.textContent")
    plain = [text.count(b"Tj") + text.count(b"TJ") for text in printed_sheets(browser)]
    assert len(buttons) > 1
    assert all(one >= other for one, other in zip(buttons, plain, strict=True)), (buttons, plain)
