"""The reference tables of docs/laws.md. `python -m tests.law_page` writes them into the page."""

import re
from pathlib import Path

from entropy_probe.laws import Site, TimeYarn, factor_at, resolve

PAGE = Path(__file__).parents[1] / "docs" / "laws.md"
SIDES = (0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Ratios of the image sides to those in training."""
NAMES = ("paper", "log", "log_power=2", "pippo=1.4", "pippo=1.6", "yarn", "yarn-side")
TEXT = 512
"""Text tokens of Flux."""


def factor_table(trained: int) -> str:
    """Return g by law and size, for a layer with T = `trained` tokens."""
    sites = [Site("", round(trained * side**2), trained) for side in SIDES]
    rows = [[f"`{name}`", *(f"{factor_at(resolve(name), site):.3f}" for site in sites)] for name in NAMES]
    for level in (0.75, 0.5, 0.25):
        noisy = [Site("", site.tokens, trained, noise_level=level) for site in sites]
        rows.append([f"`time_yarn`, noise level {level}", *(f"{factor_at(TimeYarn(), site):.3f}" for site in noisy)])
    return _table([f"T = {trained}", *(f"side × {side:g}" for side in SIDES)], rows)


def text_table() -> str:
    """Return g of `paper` for Flux, counting image tokens or all tokens."""
    rows = []
    for pixels in (512, 1024, 1536, 2048, 4096):
        counts = [((pixels // 16) ** 2 + extra, 64**2 + extra) for extra in (0, TEXT)]
        rows.append([str(pixels), *(f"{factor_at(resolve('paper'), Site('', *count)):.3f}" for count in counts)])
    return _table(["pixels", '`tokens="image"`', '`tokens="all"`'], rows)


def updated(text: str) -> str:
    """Return the page with the present tables."""
    for name, table in (
        ("fine", factor_table(4096)),
        ("coarse", factor_table(64)),
        ("text", text_table()),
    ):
        text, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>\n{table}\n\g<2>", text, flags=re.S)
        assert count == 1, name
    return text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
