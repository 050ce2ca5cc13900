"""The result of comparing images under several laws: values, differences and verdicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Annotated, Any, ClassVar

import pandas as pd
from pydantic import BeforeValidator, ConfigDict

from entropy_probe.errors import InputError
from entropy_probe.evaluation.differences import EQUIVALENT, UNDECIDED, MetricDifference
from entropy_probe.evaluation.metrics import MetricName
from entropy_probe.models import format_size
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Number, Side, from_strict_json, to_strict_json

MAX_NEEDED = 100_000
"""Sentences do not name a number of images above this one."""


_IMAGE = ("law", "height", "width", "prompt", "seed")
"""Fields of a row of `Quality.images` that identify the image. The other fields are metrics."""


def _metrics_apart(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    metrics = {name: value for name, value in row.items() if name not in _IMAGE}
    return {**{name: row[name] for name in _IMAGE if name in row}, "metrics": metrics}


@dataclass(frozen=True)
class _Image:
    """A row of `Quality.images`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    law: str
    height: Side
    width: Side
    prompt: str
    seed: int
    metrics: dict[MetricName, Number]

    def fields(self) -> dict[str, Any]:
        """Return the row as `Quality.to_json` writes it."""
        first, last = ("prompt", "seed"), ("law", "height", "width")
        own = {name: getattr(self, name) for name in _IMAGE}
        return {**{n: own[n] for n in first}, **self.metrics, **{n: own[n] for n in last}}


@dataclass(frozen=True)
class _OriginalValue:
    """A row of `Quality.original`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    size: tuple[Side, Side]
    metric: MetricName
    value: Number


@dataclass(frozen=True)
class _QualityFile:
    """The tables that `Quality.to_json` writes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    images: list[Annotated[_Image, BeforeValidator(_metrics_apart)]]
    original: list[_OriginalValue]
    comparisons: list[MetricDifference]


@dataclass(frozen=True)
class Quality:
    """The metrics of the images under every law, compared with the original model.

    Attributes:
        images: a row per image: `law`, `height`, `width`, `prompt`, `seed`, and the metrics defined for a single image.
        original: columns `size`, `metric`, `value` of the original model.
        comparisons: every law compared with the original model at every size, by every metric.
    """

    images: pd.DataFrame
    original: pd.DataFrame
    comparisons: tuple[MetricDifference, ...]

    def to_json(self) -> str:
        """Return the three tables as JSON text."""
        return to_strict_json(
            {
                "images": self.images.to_dict("records"),
                "original": self.original.to_dict("records"),
                "comparisons": [asdict(c) for c in self.comparisons],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Quality:
        """Parse the text of `to_json`.

        Raises:
            InputError: if the text is not a quality.
        """
        try:
            file = from_strict_json(_QualityFile, text)
        except InputError as error:
            raise InputError(f"not a valid image quality: {error}") from error
        images = pd.DataFrame([row.fields() for row in file.images])
        original = pd.DataFrame([vars(row) for row in file.original], columns=["size", "metric", "value"])
        return cls(images, original, tuple(map(_with_known_verdict, file.comparisons)))

    def table(self) -> pd.DataFrame:
        """Return the comparisons as a table, one row each."""
        return pd.DataFrame([{**asdict(c), "size": format_size(c.size)} for c in self.comparisons])

    def verdict(self) -> list[str]:
        """Return a sentence for each law: the metrics in which its images are better or worse."""
        laws = dict.fromkeys(c.law for c in self.comparisons)
        return [_sentence(law, [c for c in self.comparisons if c.law == law]) for law in laws]


def _sentence(law: str, comparisons: list[MetricDifference]) -> str:
    """Summarise the comparisons of one law."""
    pairs, count = comparisons[0].images, len(comparisons)
    parts = []
    for verdict in ("better", "worse"):
        columns = [f"{c.metric} at {format_size(c.size)}" for c in comparisons if c.verdict == verdict]
        if columns:
            parts.append(f"{verdict} in {', '.join(columns)}")
    equivalent = [c for c in comparisons if c.verdict == EQUIVALENT]
    if equivalent:
        parts.append(f"equivalent in {len(equivalent)} of {count} comparisons")
    undecided = [c for c in comparisons if c.verdict not in ("better", "worse", EQUIVALENT)]
    if undecided:
        needed = [c.needed for c in undecided if c.needed is not None]
        about = f" of about {_rounded(median(needed))}" if needed and median(needed) <= MAX_NEEDED else ""
        parts.append(f"not enough images ({pairs}{about}) to decide {len(undecided)} of {count} comparisons")
    return f"Images under the {law} law compared with the original, Holm-corrected: {'; '.join(parts)}."


def _rounded(count: float) -> str:
    """Round a number of images to two digits."""
    return f"{int(float(f'{count:.2g}')):,}"


def _with_known_verdict(comparison: MetricDifference) -> MetricDifference:
    """Replace the verdict "no difference shown" of version 0.1.0, which had no tests of equivalence."""
    known = comparison.verdict in ("better", "worse", EQUIVALENT)
    return comparison if known else replace(comparison, verdict=UNDECIDED)
