"""Screenshots of a run's report at phone and desktop width: `python -m benchmarks.screenshots entropy-run`.

Needs the extra `docs`, and Chromium on the path.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"


@dataclass(frozen=True)
class Shot:
    """A part of the page, from an element downwards, in a window of some size (CSS pixels)."""

    name: str
    anchor: str
    width: int
    height: int
    scale: float = 1
    scheme: str = "light"


SHOTS = (
    Shot("report-desktop", "h1", 1280, 1000),
    Shot("report-desktop-dark", "#section-1", 1280, 800, scheme="dark"),
    Shot("report-phone", "h1", 390, 844, scale=2),
    Shot("report-phone-figure", "#section-1", 390, 844, scale=2),
)


def main(run: Path) -> None:
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for shot in SHOTS:
            window = {"width": shot.width, "height": shot.height}
            page = browser.new_page(viewport=window, device_scale_factor=shot.scale, color_scheme=shot.scheme)
            page.goto((run / "report.html").resolve().as_uri())
            page.locator(shot.anchor).first.evaluate("element => element.scrollIntoView()")
            page.screenshot(path=IMAGES / f"{shot.name}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
