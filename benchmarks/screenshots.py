"""Screenshots of a run's report, and of its comparison with another: `python -m benchmarks.screenshots RUN OTHER`.

At phone and desktop width, light and dark. Needs the extra `test`, and Chromium on the path.
"""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from entropy_probe.report import compare

IMAGES = Path(__file__).parents[1] / "docs" / "images"


@dataclass(frozen=True)
class Shot:
    """A part of a page, from an element downwards, in a window of some size (CSS pixels)."""

    name: str
    page: str
    anchor: str
    width: int
    height: int
    scale: float = 1
    scheme: str = "light"


SHOTS = (
    Shot("report-desktop", "report", "header", 1280, 1000),
    Shot("report-desktop-dark", "report", "#section-1", 1280, 1000, scheme="dark"),
    Shot("report-phone", "report", "header", 390, 844, scale=1.5),
    Shot("report-phone-dark", "report", "#section-1", 390, 844, scale=1.5, scheme="dark"),
    Shot("report-pictures", "report", "section:has(> h2:text('Where attention is wide'))", 1280, 900),
    Shot("compare-desktop", "comparison", "header", 1280, 1000),
)


def main(run: Path, other: Path) -> None:
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = {
            "report": run / "report.html",
            "comparison": compare([run, other]).save(Path(folder) / "compare.html"),
        }
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for shot in SHOTS:
            window = {"width": shot.width, "height": shot.height}
            page = browser.new_page(viewport=window, device_scale_factor=shot.scale, color_scheme=shot.scheme)
            page.goto(pages[shot.page].resolve().as_uri())
            page.locator(shot.anchor).first.evaluate("element => element.scrollIntoView()")
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            # The palette that covers most colours: no line of a figure changes its own, for a third of the bytes.
            palette = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            palette.save(IMAGES / f"{shot.name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
