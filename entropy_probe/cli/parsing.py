"""Parse the text of command-line options."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from entropy_probe.errors import InputError
from entropy_probe.paths import is_file
from entropy_probe.strict_json import read_bounded

if TYPE_CHECKING:
    from entropy_probe.models import Size

MAX_PROMPTS_BYTES = 8 * 2**20
"""Maximum size of a file of prompts: about 100,000 prompts."""


def parse_names(text: str) -> list[str]:
    """Split a list at its commas and drop empty items.

    >>> parse_names("original, paper,")
    ['original', 'paper']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_sizes(text: str | None) -> list[Size] | None:
    """Parse image sizes as (height, width) in pixels.

    >>> parse_sizes("64,32x48")
    [(64, 64), (32, 48)]

    Raises:
        InputError: if a part is neither a number nor HEIGHTxWIDTH.
    """
    from entropy_probe.models import parse_size

    return None if text is None else [parse_size(part) for part in text.split(",")]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds.

    >>> parse_seeds("0,1")
    (0, 1)

    Raises:
        InputError: if a seed is negative, too large for torch, or not an integer.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"seeds must be integers separated by commas, such as 0,1, got {text[:100]!r}") from None
    if min(seeds) < 0:
        raise InputError(f"seeds must be 0 or larger, got {min(seeds)!s:.50}")
    if max(seeds) >= 2**63:
        raise InputError(f"seeds must be less than 2^63, got {max(seeds)!s:.50}")
    return seeds


def parse_shard(text: str) -> tuple[int, int]:
    """Parse `i/n`, part i of n, counted from 1.

    >>> parse_shard("2/4")
    (2, 4)

    Raises:
        InputError: if i is not between 1 and n.
    """
    part, _, count = text.partition("/")
    if not 1 <= (_parse_count(part) or 0) <= (_parse_count(count) or 0):
        raise InputError(f"shard must be i/n with i from 1 to n, such as 1/4, got {text[:100]!r}")
    return int(part), int(count)


def parse_rows(text: str) -> int | Literal["all", "auto"]:
    """Parse the number of query rows to measure per attention call.

    >>> parse_rows("auto"), parse_rows("64")
    ('auto', 64)

    Raises:
        InputError: for anything but `all`, `auto` and a positive integer.
    """
    if text == "all":
        return "all"
    if text == "auto":
        return "auto"
    if not (rows := _parse_count(text)):
        raise InputError(f"rows must be 'all', 'auto' or a positive integer, got {text[:100]!r}")
    return rows


def parse_scale_factors(text: str) -> list[float]:
    """Parse values of the scale factor g.

    >>> parse_scale_factors("0.7,1.5")
    [0.7, 1.5]

    Raises:
        InputError: if a value is negative or not a finite number, or if all values are 1.
    """
    try:
        values = [float(part) for part in parse_names(text)]
    except ValueError:
        values = []
    if not {*values} - {1.0} or not all(0 <= value < math.inf for value in values):
        raise InputError(
            f"scale-factors must be numbers of 0 or more, and one of them not 1, such as 0.7,1.5, got {text!r:.100}"
        )
    return values


def parse_prompts(text: str | None, count: int) -> list[str]:
    r"""Parse prompts: a text with line breaks, a number of bundled prompts, or a file with one prompt per line.

    >>> parse_prompts("noto red apple\nflat pizza\n", 8)
    ['noto red apple', 'flat pizza']

    Args:
        text: the value of --prompts, or None.
        count: number of bundled prompts to use if `text` is None.

    Raises:
        InputError: if the text contains no prompt, `count` exceeds the bundled prompts, or the file cannot be read.
    """
    if text is not None and "\n" in text:
        return _prompts_in(text, "the list of prompts")
    if text is None or re.fullmatch("-?[0-9]{1,9}", text):
        return _bundled_prompts(count if text is None else int(text))
    try:
        if not is_file(text):
            raise InputError("No such file, or not a regular file")
        content = read_bounded(Path(text), MAX_PROMPTS_BYTES).removeprefix("\ufeff")
    except InputError as error:
        raise InputError(
            f"cannot read the prompts file {text[:200]!r}: {error}; pass a text file with one prompt per line, or the "
            "number of bundled prompts to use"
        ) from error
    return _prompts_in(content, f"the prompts file {text!r}")


def check_positive(name: str, value: int) -> None:
    """Raise InputError if a value is below 1."""
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")


def check_laws(text: str) -> None:
    """Check a list of scaling laws before anything is sampled.

    Raises:
        InputError: if the list is empty, repeats a law or contains an unknown law.
    """
    from entropy_probe.laws import DERIVED, resolve

    names = parse_names(text)
    if not names:
        raise InputError("laws must name at least one law, such as original,paper, got an empty list")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"laws must not repeat a law, got {repeated!r:.100} twice")
    for name in names:
        if name not in DERIVED:
            resolve(name, also=DERIVED)


def _bundled_prompts(count: int) -> list[str]:
    from entropy_probe.reference import prompts

    check_positive("prompts", count)
    bundled = prompts()
    if count > len(bundled):
        raise InputError(
            f"prompts must be at most {len(bundled)}, the number of bundled prompts, got {count}: pass a file instead"
        )
    return bundled[:count]


def _prompts_in(text: str, source: str) -> list[str]:
    lines = (line.strip() for line in text.split("\n"))
    prompts = list(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise InputError(f"{source} is empty: write one prompt per line")
    return prompts


def _parse_count(text: str) -> int | None:
    """Return a non-negative integer in ASCII digits, or None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None
