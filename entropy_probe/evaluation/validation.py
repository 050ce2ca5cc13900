"""`validate`: sample under several laws and say how much of the drift each removes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from entropy_probe.errors import InputError
from entropy_probe.evaluation.drift import LEVELS, Drift, entropy_drift
from entropy_probe.evaluation.image_quality import Quality, quality
from entropy_probe.evaluation.networks import Judge
from entropy_probe.laws import ScalingLaw, resolve
from entropy_probe.models import Size, format_size, training_size
from entropy_probe.runs import Grid, Sweep, as_sizes, extend, sweep
from entropy_probe.strict_json import from_strict_json, nan_for_null, to_strict_json
from entropy_probe.views import Viewed


@dataclass(frozen=True)
class Outcome(Viewed):
    """What the laws did: the drift of every law at every size, and the images they were measured on.

    Attributes:
        sweep: the sampled grid; its `image` gives the images.
        drifts: for every law, size and level (see `validation.drift.LEVELS`).
        quality: what the laws did to the images, if they were judged.
    """

    sweep: Sweep
    drifts: tuple[Drift, ...]
    quality: Quality | None = None

    def table(self, level: str = "layer") -> pd.DataFrame:
        """A row per law and size; nats, and the removed fraction of the drift of `original`."""
        return pd.DataFrame([{**asdict(d), "size": format_size(d.size)} for d in self.drifts if d.level == level])

    def to_json(self) -> str:
        """The drifts and the quality, and the grid that they were measured on."""
        fields = {
            "grid": json.loads(self.sweep.grid.to_json()),
            "drifts": [asdict(d) for d in self.drifts],
            "quality": self.quality.to_json() if self.quality else None,
        }
        return to_strict_json(fields)

    @classmethod
    def from_json(cls, base: Sweep, text: str) -> Outcome:
        """What `to_json` wrote, over the run directory of `base`.

        Raises:
            InputError: for text that is no outcome.
        """
        try:
            fields = from_strict_json(dict[str, Any], text)
            drifts = tuple(Drift(**{**nan_for_null(d), "size": tuple(d["size"])}) for d in fields["drifts"])
            judged = Quality.from_json(fields["quality"]) if fields.get("quality") else None
            grid = Grid.from_json(json.dumps(fields["grid"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"this is no outcome as entropy-probe writes them: {error!r}") from error
        missing = sum(base.run.state(cell).fault is not None for cell in grid.cells())
        if missing:
            raise InputError(
                f"{missing} of the {len(grid)} validated cells of {base.run.path} are missing: run validate again"
            )
        return cls(replace(base, grid=grid), drifts, judged)

    def verdict(self) -> list[str]:
        """A sentence for each law but the original, with its numbers."""
        sentences = []
        for law in dict.fromkeys(d.law for d in self.drifts):
            own = [d for d in self.drifts if d.law == law and d.level == "layer"]
            if law == "original":
                continue
            parts = ", ".join(
                f"{_percent(d.removed)} % [{_percent(d.removed_low)}, {_percent(d.removed_high)}] "
                f"at {format_size(d.size)}"
                for d in own
            )
            fails = [format_size(d.size) for d in own if d.removed_low <= 0]
            judged = f"not at {', '.join(fails)}" if fails else "at every size"
            sentences.append(f"Drift that the {law} law removes ({judged}): {parts}.")
        return sentences + (self.quality.verdict() if self.quality else [])


def _percent(fraction: float) -> int:
    return round(100 * fraction)


def validate(
    pipeline: Any,
    *,
    laws: Sequence[ScalingLaw | str | Path],
    prompts: Sequence[str],
    sizes: Sequence[Size],
    seeds: Sequence[int] = (0,),
    judge: Judge | None = None,
    **settings: Any,
) -> Outcome:
    """Sample a grid under several laws and measure the entropy drift that each leaves.

    The original model and the training size are added where they are not named: drift is measured against them.

    Args:
        pipeline: a diffusers pipeline.
        laws: scaling laws, by name, file or as they are.
        prompts: texts.
        sizes: (height, width) in pixels.
        seeds: one image each.
        judge: judges the images too; see `judge_for`.
        settings: as `sweep` takes them (steps, guidance_scale, store, ...).

    Raises:
        InputError: see `sweep`.
    """
    named = [resolve(law) for law in laws]
    if "original" not in [law.name for law in named]:
        named.insert(0, resolve("original"))
    trained, asked = training_size(pipeline), as_sizes(sizes)
    everywhere = asked if trained in asked else (trained, *asked)
    made = sweep(pipeline, prompts=prompts, sizes=everywhere, seeds=seeds, laws=named, scale_factors=(), **settings)
    return outcome_of(made, judge, progress=settings.get("progress", True))


def validate_sweep(
    base: Sweep, laws: Sequence[ScalingLaw | str | Path], *, judge: Judge | None = None, progress: bool = True
) -> Outcome:
    """As `validate`, on the prompts, sizes and seeds of a sweep of the original model, into its run directory."""
    named = [resolve(law) for law in laws]
    if "original" not in [law.name for law in named]:
        named.insert(0, resolve("original"))
    return outcome_of(extend(base, laws=named, progress=progress), judge, progress=progress)


def outcome_of(sampled: Sweep, judge: Judge | None = None, *, progress: bool = False) -> Outcome:
    """The drift in a sweep over several laws and, with a judge, the quality of its images."""
    frame = sampled.frame()
    size = sampled.manifest.training_size
    drifts = [drift for level in LEVELS for drift in entropy_drift(frame, size, level)]  # type: ignore[arg-type]
    judged = quality(sampled, judge, progress=progress) if judge else None
    return Outcome(sampled, tuple(drifts), judged)
