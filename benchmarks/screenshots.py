"""Take the screenshots in docs/images: `python -m benchmarks.screenshots RUN OTHER`.

They show the report of a run, its comparison with another run, a notebook and a terminal, at phone and desktop width,
light and dark. Needs the extras `test` and `notebook`, and Chromium on the path.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from entropy_probe.reports import compare

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
NOTEBOOK = ROOT / "notebooks" / "3_a_scaling_factor.ipynb"
COMMANDS = (("info", "--model", "reference-dit", "--sizes", "32,128x96"), ("sweep", "--help"))


@dataclass(frozen=True)
class Shot:
    """A screenshot of a page, starting at an element; width and height of the window are in CSS pixels."""

    name: str
    page: str
    anchor: str
    width: int
    height: int
    scale: float = 1
    scheme: str = "light"


SHOTS = (
    Shot("report-desktop", "report", "header", 1280, 1000),
    Shot("report-desktop-dark", "report", "#images", 1280, 1000, scheme="dark"),
    Shot("report-phone", "report", "header", 390, 844, scale=1.5),
    Shot("report-phone-dark", "report", "#images", 390, 844, scale=1.5, scheme="dark"),
    Shot("report-images", "report", "section:has(> h2:text('Entropy over the image'))", 1280, 900),
    Shot("compare-desktop", "comparison", "header", 1280, 1000),
    Shot("notebook", "notebook", "main", 1100, 1200),
    Shot("terminal", "terminal", "pre", 1080, 1000),
)


def terminal() -> str:
    """Return the output of `COMMANDS` in a terminal of 110 columns, as HTML."""
    console = Console(record=True, width=110, file=io.StringIO())
    for command in COMMANDS:
        environment = os.environ | {"COLUMNS": "110", "FORCE_COLOR": "1", "TERMINAL_WIDTH": "110"}
        shown = subprocess.run(["entropy-probe", *command], env=environment, capture_output=True, text=True, check=True)
        console.print(Text.assemble(("$ entropy-probe ", "bold"), (" ".join(command), "bold")))
        console.print(Text.from_ansi(shown.stdout))
    return console.export_html(theme=MONOKAI)


def notebook(folder: Path) -> Path:
    """Convert the notebook with its outputs to HTML and return the path."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(folder), str(NOTEBOOK)]
    subprocess.run(command, check=True)
    return folder / f"{NOTEBOOK.stem}.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a run with its report")
    parser.add_argument("other", type=Path, help="directory of another run")
    options = parser.parse_args()
    run, other = options.run, options.other
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = {
            "report": run / "report.html",
            "comparison": compare([run, other]).save(Path(folder) / "compare.html"),
            "notebook": notebook(Path(folder)),
            "terminal": Path(folder) / "terminal.html",
        }
        pages["terminal"].write_text(terminal(), "utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for shot in SHOTS:
            window = {"width": shot.width, "height": shot.height}
            page = browser.new_page(viewport=window, device_scale_factor=shot.scale, color_scheme=shot.scheme)
            page.goto(pages[shot.page].resolve().as_uri())
            page.locator(shot.anchor).first.evaluate("element => element.scrollIntoView()")
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            # MAXCOVERAGE keeps the colours of thin lines, at a third of the bytes.
            palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            palette.save(IMAGES / f"{shot.name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
