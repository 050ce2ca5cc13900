"""The result of comparing images under several laws: values, differences and verdicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pandas as pd

from entropy_probe.errors import InputError
from entropy_probe.evaluation.differences import EQUIVALENT, UNDECIDED, MetricDifference
from entropy_probe.models import format_size
from entropy_probe.strict_json import from_strict_json, nan_for_null, to_strict_json

MAX_NEEDED = 100_000
"""Sentences do not name a number of images above this one."""


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
            fields = from_strict_json(dict[str, Any], text)
            original = pd.DataFrame(fields["original"])
            original["size"] = original["size"].map(tuple)
            return cls(pd.DataFrame(fields["images"]), original, tuple(map(_difference, fields["comparisons"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a valid image quality: {error!r}") from error

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


def _difference(fields: dict[str, Any]) -> MetricDifference:
    """Read a comparison. Files of version 0.1.0 have no tests of equivalence."""
    verdict = fields["verdict"] if fields["verdict"] in ("better", "worse", EQUIVALENT) else UNDECIDED
    numbers = nan_for_null({name: value for name, value in fields.items() if name != "needed"})
    # `needed` may be None; elsewhere null represents NaN.
    return MetricDifference(
        **{**numbers, "size": tuple(fields["size"]), "verdict": verdict, "needed": fields["needed"]}
    )
