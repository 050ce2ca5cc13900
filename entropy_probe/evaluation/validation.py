"""Sample under several laws, and measure how much of the entropy drift each law removes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import pandas as pd
from pydantic import ConfigDict

from entropy_probe.deprecation import renamed_arguments, warn_renamed
from entropy_probe.errors import InputError
from entropy_probe.estimation.derivation import derived_from
from entropy_probe.evaluation.drift import Drift, Level, entropy_drift, layer_drift
from entropy_probe.evaluation.image_quality import quality
from entropy_probe.evaluation.networks import Scorer
from entropy_probe.evaluation.quality_summary import Quality
from entropy_probe.laws import ScalingLaw, resolve
from entropy_probe.models import Size, format_size, training_size
from entropy_probe.runs import Grid, Sweep, as_sizes, extend, sweep
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, from_strict_json, to_strict_json
from entropy_probe.views import Viewed


@dataclass(frozen=True)
class _OutcomeFile:
    """The fields that `Outcome.to_json` writes. Version 0.1.0 wrote the first three."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    grid: dict[str, Any]
    drifts: tuple[Drift, ...]
    quality: dict[str, Any] | None = None
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    in_sample: bool = False


def _check_parts(file: _OutcomeFile, grid: Grid, scored: Quality | None) -> None:
    """Check that the results in a file are about its grid, each once.

    Raises:
        InputError: naming the first that is not.
    """
    laws, sizes = {law.name for law in grid.laws}, set(grid.sizes)
    compared = scored.comparisons if scored else ()
    keys = [(d.law, d.size, d.level) for d in file.drifts] + [(c.law, c.size, c.metric) for c in compared]
    for law, size, _ in keys:
        if law not in laws or size not in sizes:
            raise InputError(f"the grid has no law {law!r:.100} at size {format_size(size)}")
    if len(set(keys)) < len(keys):
        law, size, what = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{what} of the law {law} at size {format_size(size)} is given twice")
    if not (set(file.prompts) <= set(grid.prompts) and set(file.seeds) <= set(grid.seeds)):
        raise InputError("the drift was measured on prompts or seeds that the grid does not have")


@dataclass(frozen=True)
class Outcome(Viewed):
    """The effect of several laws on the entropy and on the images.

    Attributes:
        sweep: the sampled grid; its `image` method returns the images.
        drifts: the drift of every law at every size and level (see `drift.LEVELS`).
        quality: the effect on the images, if they were scored.
        prompts: the prompts that the drift was measured on: those that no law was derived from, if there are any.
        seeds: the same for the seeds.
        in_sample: whether a law was derived from all prompts, so that its drift was measured on the same ones.
    """

    sweep: Sweep
    drifts: tuple[Drift, ...]
    quality: Quality | None = None
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    in_sample: bool = False

    def layers(self, level: Level = "layer") -> pd.DataFrame:
        """Return the signed drift of every layer; see `drift.layer_drift`."""
        table = layer_drift(
            self.sweep.frame(),
            self.sweep.manifest.training_size,
            level,
            prompts=self.prompts or None,
            seeds=self.seeds or None,
        )
        return table.assign(size=table["size"].map(format_size))

    def table(self, level: str = "layer") -> pd.DataFrame:
        """Return the drift (nats) and the removed fraction as a table, one row per law and size."""
        return pd.DataFrame([{**asdict(d), "size": format_size(d.size)} for d in self.drifts if d.level == level])

    def to_json(self) -> str:
        """Return the grid, the drifts and the quality as JSON text."""
        return to_strict_json(
            {
                "grid": json.loads(self.sweep.grid.to_json()),
                "drifts": [asdict(d) for d in self.drifts],
                "quality": json.loads(self.quality.to_json()) if self.quality else None,
                "prompts": self.prompts,
                "seeds": self.seeds,
                "in_sample": self.in_sample,
            }
        )

    def _images_used(self) -> str:
        """Say which images the drift was measured on."""
        grid = self.sweep.grid
        prompts, seeds = len(self.prompts or grid.prompts), len(self.seeds or grid.seeds)
        used = f"The drift was measured on {_counted(prompts, 'prompt')} and {_counted(seeds, 'seed')}"
        if self.in_sample:
            return f"{used}, which a law was derived from; on other prompts it is larger."
        return f"{used}{', which no law was derived from' if prompts < len(grid.prompts) else ''}."

    @classmethod
    def from_json(cls, text: str | Sweep, sweep: Sweep | str) -> Outcome:
        """Parse the text of `to_json`.

        Args:
            text: the text.
            sweep: the sweep whose run directory has the images. The grid is read from the text.

        Raises:
            InputError: if the text is not an outcome, or images of its grid are missing.
        """
        if isinstance(text, Sweep):
            warn_renamed("Outcome.from_json(sweep, text)", "Outcome.from_json(text, sweep)")
            text, sweep = sweep, text
        assert isinstance(text, str)
        assert isinstance(sweep, Sweep)
        try:
            file = from_strict_json(_OutcomeFile, text)
            scored = None if file.quality is None else Quality.from_json(json.dumps(file.quality))
            grid = Grid.from_json(json.dumps(file.grid))
            _check_parts(file, grid, scored)
        except InputError as error:
            raise InputError(f"not a valid outcome: {error}") from error
        missing = sum(sweep.run.state(cell).fault is not None for cell in grid.cells())
        if missing:
            raise InputError(
                f"{missing} of the {len(grid)} validated cells of {sweep.run.path} are missing: run validate again"
            )
        return cls(replace(sweep, grid=grid), file.drifts, scored, file.prompts, file.seeds, file.in_sample)

    def verdict(self) -> list[str]:
        """Return a sentence for each law: the fraction of the drift it removes. Then the verdict on the images."""
        sentences = []
        for law in dict.fromkeys(d.law for d in self.drifts if d.law != "original"):
            drifts = [d for d in self.drifts if d.law == law and d.level == "layer"]
            numbers = ", ".join(f"{_removed(d)} at {format_size(d.size)}" for d in drifts)
            unclear = [format_size(d.size) for d in drifts if d.removed_low <= 0]
            note = f"; no reduction detected at {', '.join(unclear)}" if unclear else ""
            sentences.append(f"Entropy drift removed by the {law} law: {numbers}{note}.")
        if sentences:
            sentences.append(self._images_used())
        return sentences + (self.quality.verdict() if self.quality else [])


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _removed(drift: Drift) -> str:
    """Return the removed fraction with its interval, in percent."""
    if math.isnan(drift.removed):
        return "no drift to remove"
    if math.isnan(drift.removed_low):
        return f"{100 * drift.removed:.0f} % (too few prompts for an interval)"
    return "{:.0f} % [{:.0f}, {:.0f}]".format(
        *(100 * value for value in (drift.removed, drift.removed_low, drift.removed_high))
    )


@renamed_arguments(judge="scorer", pipeline="source")
def validate(
    source: Any,
    laws: Sequence[ScalingLaw | str | Path],
    *,
    prompts: Sequence[str] | None = None,
    sizes: Sequence[Size] | None = None,
    seeds: Sequence[int] | None = None,
    scorer: Scorer | None = None,
    progress: bool | str = True,
    **settings: Any,
) -> Outcome:
    """Sample a grid under several laws, and measure the entropy drift that remains under each.

    The original model and the training size are added if they are missing, because drift is relative to them.

    Args:
        source: a `Sweep` of the original model, or a diffusers pipeline. A sweep sets the prompts, sizes, seeds and
            settings, and images are added to its run directory.
        laws: scaling laws, given by name, by JSON file, as objects or as derivations.
        prompts: for a pipeline: texts.
        sizes: for a pipeline: (height, width) in pixels.
        seeds: for a pipeline: one image per seed; the default is (0,).
        scorer: also score the images; see `load_scorer`.
        progress: show progress bars; see `sweep`.
        settings: for a pipeline: other arguments of `sweep` (steps, guidance_scale, store, ...).

    Raises:
        InputError: if an argument of a pipeline is given with a sweep, or prompts or sizes are missing with a pipeline.
            See also `sweep`.

    Examples:
        >>> sweep = ep.sweep(pipeline, prompts=["cat"], sizes=[(64, 64), (128, 128)])  # doctest: +SKIP
        >>> print(validate(sweep, ["paper", ep.derive(sweep)]).verdict()[0])  # doctest: +SKIP
    """
    resolved = [resolve(law) for law in laws]
    if "original" not in [law.name for law in resolved]:
        resolved.insert(0, resolve("original"))
    if isinstance(source, Sweep):
        given = {name: v for name, v in (("prompts", prompts), ("sizes", sizes), ("seeds", seeds)) if v is not None}
        if extra := [*given, *settings]:
            raise InputError(f"{extra[0]} is set by the sweep: remove it, or validate a pipeline")
        extended = extend(source, laws=resolved, progress=progress)
        return outcome_of(extended, scorer, derived=laws, progress=progress)
    for name, value in (("prompts", prompts), ("sizes", sizes)):
        if value is None:
            raise InputError(f"{name} is missing: validating a pipeline needs prompts and sizes")
    assert prompts is not None
    assert sizes is not None
    trained, requested = training_size(source), as_sizes(sizes)
    sampled = sweep(
        source,
        prompts=prompts,
        sizes=requested if trained in requested else (trained, *requested),
        seeds=(0,) if seeds is None else seeds,
        laws=resolved,
        scale_factors=(),
        progress=progress,
        **settings,
    )
    return outcome_of(sampled, scorer, derived=laws, progress=progress)


@renamed_arguments(judge="scorer")
def validate_sweep(
    base: Sweep, laws: Sequence[ScalingLaw | str | Path], *, scorer: Scorer | None = None, progress: bool | str = True
) -> Outcome:
    """Validate laws on a sweep. Deprecated: use `validate(sweep, laws)`."""
    warn_renamed("validate_sweep(sweep, laws)", "validate(sweep, laws)")
    return validate(base, laws, scorer=scorer, progress=progress)


@renamed_arguments(judge="scorer")
def outcome_of(
    sampled: Sweep, scorer: Scorer | None = None, *, derived: Sequence[object] = (), progress: bool | str = False
) -> Outcome:
    """Compute the drift in a sweep over several laws and, with a scorer, the quality of its images.

    Args:
        sampled: a sweep that includes `original` and the training size.
        scorer: see `load_scorer`.
        derived: the derivations of the laws, or their JSON files. The drift is measured on prompts and seeds that none
            of them was derived from, as far as there are any.
        progress: show a progress bar; see `sweep`.

    Raises:
        InputError: if the original model was not sampled at the training size.

    >>> import entropy_probe as ep
    >>> swept = ep.sweep(
    ...     ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32), (64, 64)], laws=["original", "paper"],
    ...     steps=1, progress=False,
    ... )
    >>> outcome_of(swept).table()[["law", "size"]].to_numpy().tolist()
    [['original', '32'], ['paper', '32']]
    """
    frame = sampled.frame()
    size = sampled.manifest.training_size
    seen = [derived_from(law) for law in derived]
    used_prompts, used_seeds = (set().union(*(one[i] for one in seen)) for i in (0, 1))
    grid = sampled.grid
    prompts = tuple(p for p in grid.prompts if p not in used_prompts)
    seeds = tuple(s for s in grid.seeds if s not in used_seeds) or grid.seeds
    in_sample, prompts = not prompts, prompts or grid.prompts
    drifts = [
        drift for level in get_args(Level) for drift in entropy_drift(frame, size, level, prompts=prompts, seeds=seeds)
    ]
    scored = quality(sampled, scorer, progress=progress) if scorer else None
    return Outcome(sampled, tuple(drifts), scored, prompts, seeds, in_sample)
