"""The pages in a browser: Chromium, headless and offline."""

import csv
import io
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import sync_playwright
from test_report import HOSTILE, derived, synthetic, with_quality

from entropy_probe.evaluation import outcome_of
from entropy_probe.reports import compare, report
from entropy_probe.runs import EntropyMap

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium")

FROM_RIGHT = "\u202eסוס \U0001f40e on the =moon"
"""Hebrew, a character that reverses the writing direction, and an emoji."""

WINDOWS = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    prompts = (HOSTILE, FROM_RIGHT, '=cmd|" /C calc"!A0')
    base = synthetic(folder / "run", prompts=prompts)
    derivation = derived(base)
    outcome = outcome_of(synthetic(folder / "all", prompts=prompts, laws=("original", "paper", derivation.law)))
    maps = [EntropyMap(Image.new("RGB", (64, 64)), np.linspace(2, 5, 256).reshape(16, 16), (64, 64), "a.b", 1, "paper")]
    made = report(base, None, None, with_quality(outcome), derivation=derivation, entropy_maps=maps, command=HOSTILE)
    return made.save(folder / "report.html")


@pytest.fixture(scope="module")
def comparison_file(page_file):
    synthetic(page_file.parent / "other", prompts=("a cat", "a dog"), layers=4)
    return compare([page_file.parent / "all", page_file.parent / "other"]).save(page_file.with_name("compare.html"))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, page_file):
    """Return a function that opens a page offline. `page.noise` collects messages, errors, dialogs and requests."""
    contexts = []

    def opened(window="desktop", scheme="light", path=page_file):
        width, height = WINDOWS[window]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.noise = []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.noise.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_page_loads_offline_and_shows_every_figure(show, window, scheme):
    page = show(window, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    drawings = page.locator("figure svg").all()
    assert len(drawings) == page.locator("figure").count() > 8
    for drawing in drawings:
        box = drawing.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 80
        assert len(drawing.get_attribute("aria-label")) > 40
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window][0]  # no horizontal scrolling
    assert page.noise == []


def test_text_of_figures_has_contrast_in_light_and_dark_mode(show):
    def light(colour):
        return np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]])

    for scheme in ("light", "dark"):
        page = show(scheme=scheme)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        text = light(page.evaluate(style.format("figure svg text", "fill")))
        background = light(page.evaluate(style.format("body", "backgroundColor")))
        assert (text > 200 and background < 40) if scheme == "dark" else (text < 50 and background > 240)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_axe_finds_no_serious_violation(show, window, scheme):
    page = show(window, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = Axe().run(page).response["violations"]
    bad = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert bad == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_comparison_page_loads_offline_without_serious_violation(show, comparison_file, window, scheme):
    page = show(window, scheme, comparison_file)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.locator("figure svg").count() >= 3
    assert all(drawing.bounding_box()["width"] > 200 for drawing in page.locator("figure svg").all())
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window][0]
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert page.noise == []


def test_tables_sort_ascending_descending_and_in_network_order(show):
    page = show()
    column = page.locator("#table-1 tbody tr td:nth-child(2)")
    heading = page.locator("#table-1 thead th").nth(1)
    before = column.all_inner_texts()
    heading.get_by_role("button").press("Enter")  # with the keyboard
    assert heading.get_attribute("aria-sort") == "ascending"
    slopes = [float(text.split()[0]) for text in column.all_inner_texts()]
    assert slopes == sorted(slopes)
    assert len(set(slopes)) > 1
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column.all_inner_texts()] == slopes[::-1]
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None
    assert column.all_inner_texts() == before
    assert page.noise == []


def test_sizes_sort_by_area_and_unknown_values_come_last(show):
    page = show()
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    table = page.locator("table[aria-label^='Drift']")
    rows = "[...arguments[0].tBodies[0].rows].map(row => row.cells[{}].textContent)".replace("arguments[0]", "table")

    def cells(column):
        return table.evaluate(f"table => {rows.format(column)}")

    table.locator("thead th").nth(2).get_by_role("button").click()
    assert list(dict.fromkeys(cells(2))) == ["32x48", "128"]
    for _ in range(2):  # ascending, then descending
        table.locator("thead th").nth(5).get_by_role("button").click()
        removed = cells(5)
        assert removed[-1] == "–"
        assert removed[0] != "–"


def test_selector_shows_the_images_of_a_prompt_and_a_click_enlarges_one(show):
    page = show("phone")
    assert page.locator(".set:visible").count() == 1
    page.locator("#prompt").select_option(index=1)
    shown = page.locator(".set:visible")
    assert shown.get_attribute("data-prompt") == page.locator("#prompt option").nth(1).inner_text()
    first = shown.locator(".zoom img").first
    assert first.bounding_box()["height"] > 80  # an image of 32 px
    first.click()
    enlarged = page.locator("dialog img")
    assert enlarged.get_attribute("src") == first.get_attribute("src")
    assert enlarged.bounding_box()["height"] > 400
    page.keyboard.press("ArrowRight")
    assert enlarged.get_attribute("alt") == shown.locator(".zoom img").nth(1).get_attribute("alt")
    page.get_by_role("button", name="Close").click()
    assert page.locator("dialog").is_hidden()
    assert page.noise == []


def test_phone_says_where_something_scrolls_and_keeps_the_contents_visible(show):
    page = show("phone")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_function("document.querySelector('#table-1 .scroll').classList.contains('overflows')")
    for box in page.locator(".scroll, .drawing").all():
        wide = box.evaluate("box => box.scrollWidth > box.clientWidth + 2")
        assert box.evaluate("box => box.classList.contains('overflows')") == wide
    for svg in page.locator("figure:not(.wide) svg").all():
        assert svg.bounding_box()["width"] <= WINDOWS["phone"][0]  # a figure with one panel needs no scrolling
    page.evaluate("scrollTo(0, 5000)")
    assert page.locator("nav").bounding_box()["y"] == 0


def test_every_link_of_the_contents_has_a_target(show):
    page = show()
    links = page.locator("nav a").all()
    assert len(links) > 6
    for link in links:
        link.click()
        target = page.locator(link.get_attribute("href"))
        assert 0 <= target.bounding_box()["y"] < WINDOWS["desktop"][1]
    page.keyboard.press("Home")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_saved_svg_is_a_complete_document(show, tmp_path):
    page = show(scheme="dark")
    with page.expect_download() as waiting:
        page.locator("figure button[data-save]").first.click()
    assert waiting.value.suggested_filename.endswith(".svg")
    saved = tmp_path / "figure.svg"
    waiting.value.save_as(saved)
    text = saved.read_text()
    assert "<text" in text
    assert 'class="marks"' not in text
    alone = show(path=saved)  # a browser shows the file alone
    assert alone.locator("svg").first.bounding_box()["width"] > 200
    assert alone.noise == []


def test_saved_csv_holds_the_data_of_the_figure_without_formulas(show, tmp_path):
    page = show()
    with page.expect_download() as waiting:
        page.locator("figure", has_text="coloured by depth").locator("a[download]").click()
    saved = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(saved)
    table = pd.read_csv(saved)
    assert {"layer", "form", "ln_tokens", "entropy"} <= set(table.columns)
    assert len(table) > 5
    for link in page.locator("a[download]").all():
        rows = list(csv.reader(io.StringIO(unquote(link.get_attribute("href").split(",", 1)[1]))))
        assert len({len(row) for row in rows}) == 1
        assert len(rows) > 1
        cells = [cell for row in rows[1:] for cell in row]
        assert not [c for c in cells if c.startswith(("=", "@", "\t")) or re.match(r"[+-](?![\d.])", c)]
    assert page.noise == []


def test_number_under_the_pointer_has_a_tooltip(show):
    page = show()
    figure = page.locator("figure", has_text="coloured by depth")
    tooltips = figure.locator(".marks title").all_text_contents()
    assert any("every layer" in text and "mean entropy, nats: " in text for text in tooltips)
    over = figure.locator(".marks rect").first
    over.scroll_into_view_if_needed()
    x, y, width, height = (over.bounding_box()[name] for name in ("x", "y", "width", "height"))
    hit = f"document.elementFromPoint({x + width / 2}, {y + height / 2}).querySelector('title').textContent"
    assert page.evaluate(hit) in tooltips


def test_untrusted_prompts_are_text(show):
    page = show()
    shown = page.inner_text("body")
    assert HOSTILE in shown
    assert "סוס \U0001f40e on the =moon" in shown
    assert "\u202e" not in shown
    assert "\\u202e" in shown
    assert page.locator("script").count() == 1
    assert page.noise == []


def test_print_shows_folded_parts_in_black_on_white(show):
    page = show(scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    assert len(page.pdf()) > 10_000
