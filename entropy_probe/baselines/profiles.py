"""Measure the entropy profile of a model, and save it as a baseline file.

A profile holds the mean attention entropy of every head at every size, separately for each image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import ConfigDict

from entropy_probe.errors import InputError
from entropy_probe.laws import Original
from entropy_probe.models import (
    Size,
    describe,
    sampling_settings,
    size_multiple,
    takes_prompt,
    takes_size,
    training_size,
)
from entropy_probe.paths import exists
from entropy_probe.reference import prompts as bundled_prompts
from entropy_probe.runs import NO_PROMPT, Grid, Sweep, as_seeds, as_sizes, as_texts, sweep, write_atomically
from entropy_probe.strict_json import (
    FORBID_UNKNOWN_FIELDS,
    Count,
    Finite,
    Side,
    from_strict_json,
    read_bounded,
    to_strict_json,
)

FORMAT = 1
"""Version of the file format of a baseline."""

PROMPTS = 4
"""Default number of bundled prompts."""

SEEDS = (0, 1, 2, 3, 4)
"""Default seeds. A comparison with new seeds needs five on each side to reach the level of 1 %."""

MIN_IMAGES = 8
"""Minimum number of images per size. A comparison with the same seeds can then reach the level of 1 %: 2^-7 < 1 %."""

DIGITS = 7
"""Saved decimals of an entropy in nats: two more than the accuracy of its measurement."""

HEAD = ["layer", "kind", "head", "height", "width"]
"""Index levels that identify a row of a profile."""

_MODEL_FIELDS = ("model", "fingerprint", "pipeline", "dtype", "hardware", "versions")
"""Fields of a profile that describe the model and its environment."""


@dataclass(frozen=True)
class Settings:
    """How a profile was sampled: one image per prompt, seed and size.

    >>> Settings(("a red apple", "flat pizza"), ((64, 64),), (0, 1, 2, 3), steps=8, guidance_scale=4.0).steps
    8

    Attributes:
        prompts: texts.
        sizes: (height, width) in pixels.
        seeds: integers of 0 or more.
        steps: sampling steps.
        guidance_scale: scale of classifier-free guidance.
        pipeline_kwargs: description, with a hash, of each further argument of the pipeline's call.

    Raises:
        InputError: if a list is empty or has repeated items, a seed is negative, or there are fewer than `MIN_IMAGES`
            images per size.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    prompts: tuple[str, ...]
    sizes: tuple[tuple[Side, Side], ...]
    seeds: tuple[int, ...]
    steps: Count
    guidance_scale: Finite
    pipeline_kwargs: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `profile`, without those of the pipeline's call."""
        return {name: value for name, value in asdict(self).items() if name != "pipeline_kwargs"}

    def check_same(self, given: Mapping[str, Any]) -> None:
        """Check that these are the arguments of the pipeline's call with which the profile was sampled.

        Raises:
            InputError: if they are others.
        """
        if describe(given) != self.pipeline_kwargs:
            values = ", ".join(f"{name} ({what})" for name, what in self.pipeline_kwargs.items())
            raise InputError(f"the baseline was sampled with pipeline_kwargs {values or 'empty'}: pass the same")

    def __post_init__(self) -> None:
        Grid(self.prompts, self.sizes, self.seeds, (Original(),))  # raises InputError for an invalid grid
        images = len(self.prompts) * len(self.seeds)
        if images < MIN_IMAGES:
            raise InputError(
                f"prompts x seeds must be at least {MIN_IMAGES} images per size to detect a change, got {images}: "
                "add prompts or seeds"
            )


@dataclass(frozen=True)
class _HeadEntropy:
    """The row of a baseline file for one head at one size."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    kind: str
    head: Count
    size: tuple[Side, Side]
    images: list[Finite]


@dataclass(frozen=True)
class _ProfileFile:
    """The fields of a baseline file; see `Profile`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    format: Literal[1]
    model: str
    fingerprint: str
    pipeline: str
    dtype: str
    hardware: str
    versions: dict[str, str]
    settings: Settings
    entropy: list[_HeadEntropy]


@dataclass(frozen=True, eq=False)
class Profile:
    """The entropy of every attention head of a model, for self-, joint and cross-attention.

    Attributes:
        model: name that the model was loaded by.
        fingerprint: short hash of the configuration and the weights.
        pipeline: class name of the pipeline.
        dtype: precision of the denoiser.
        hardware: the device that sampled.
        versions: versions of the libraries that affect the numbers.
        settings: how the profile was sampled.
        entropy: mean entropy over query rows and steps of the conditional branch, in nats. Rows are `HEAD`, columns
            are the images as (prompt, seed).
    """

    model: str
    fingerprint: str
    pipeline: str
    dtype: str
    hardware: str
    versions: dict[str, str]
    settings: Settings
    entropy: pd.DataFrame

    @classmethod
    def of(cls, sampled: Sweep) -> Profile:
        """Compute the profile of a sweep that contains the original model.

        Raises:
            InputError: if the sweep does not contain the original model.
        """
        frame = sampled.frame()
        rows = frame[(frame["law"] == "original") & (frame["branch"] == "cond")]
        if rows.empty:
            raise InputError("a profile needs the original model, but the sweep has no cells of it: sample it too")
        manifest, grid = sampled.manifest, sampled.grid
        settings = Settings(
            grid.prompts, grid.sizes, grid.seeds, manifest.steps, manifest.guidance_scale, manifest.pipeline_kwargs
        )
        means = rows.groupby([*HEAD, "prompt", "seed"])["entropy"].mean().astype(float).unstack(["prompt", "seed"])
        heads = pd.MultiIndex.from_frame(rows[HEAD].drop_duplicates())
        table = means.reindex(index=heads, columns=_image_columns(settings)).round(DIGITS)
        return cls(**{name: getattr(manifest, name) for name in _MODEL_FIELDS}, settings=settings, entropy=table)

    def table(self) -> pd.DataFrame:
        """Return one row per head and size.

        Columns are `HEAD`, the mean `entropy` over the images in nats, its standard error `se` in nats, and the number
        `n` of images.
        """
        images = self.entropy.T
        means = pd.DataFrame({"entropy": images.mean(), "se": images.sem(), "n": len(images)})
        return means.reset_index()

    def to_json(self) -> str:
        """Return the profile as JSON with one line per head, so a version-control diff shows which heads changed."""
        fields = {name: getattr(self, name) for name in _MODEL_FIELDS}
        rows = [
            json.dumps({"layer": layer, "kind": kind, "head": head, "size": [height, width], "images": list(values)})
            for (layer, kind, head, height, width), values in zip(
                self.entropy.index, self.entropy.to_numpy().tolist(), strict=True
            )
        ]
        header = to_strict_json({"format": FORMAT, **fields, "settings": asdict(self.settings)})
        return header.removesuffix("\n}\n") + ',\n  "entropy": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Parse the text of `to_json`.

        Raises:
            InputError: if the text is not a profile, is incomplete, or has another format version.
        """
        try:
            file = from_strict_json(_ProfileFile, text)
            entropy = _entropy_table(file.entropy, file.settings)
        except InputError as error:
            raise InputError(f"not a baseline file of entropy-probe: {error}") from error
        return cls(**{name: getattr(file, name) for name in _MODEL_FIELDS}, settings=file.settings, entropy=entropy)

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON. Missing folders are created.

        Raises:
            InputError: if the file cannot be written.
        """
        return write_text(Path(path), self.to_json())

    @classmethod
    def open(cls, path: str | Path) -> Profile:
        """Read the profile in a file.

        Raises:
            InputError: with the name of the file, if it cannot be read or is not a profile.
        """
        file, named = Path(path), f"cannot read the baseline {str(path)!r:.200}"
        if not exists(file):
            raise InputError(f"{named}: No such file or directory; create one with entropy-probe baseline save")
        try:
            return cls.from_json(read_bounded(file))
        except InputError as error:
            raise InputError(f"{named}: {error}") from error


def profile(
    pipeline: Any,
    *,
    prompts: Sequence[str] | None = None,
    sizes: Sequence[Size] | None = None,
    seeds: Sequence[int] = SEEDS,
    steps: int | None = None,
    guidance_scale: float | None = None,
    model: str | None = None,
    progress: bool = False,
    pipeline_kwargs: Mapping[str, Any] | None = None,
) -> Profile:
    """Sample a pipeline and measure its entropy profile.

    Args:
        pipeline: a diffusers pipeline that samples images or videos.
        prompts: texts. Default: the first `PROMPTS` bundled prompts; none for a pipeline without prompts.
        sizes: (height, width) in pixels. Default: the training size and half of it, if the pipeline samples that.
        seeds: one image per seed, prompt and size.
        steps: sampling steps. Default: `models.sampling_defaults`.
        guidance_scale: scale of classifier-free guidance; 1 turns it off. Default: `models.sampling_defaults`.
        model: name of the model to record in the profile.
        progress: show a progress bar.
        pipeline_kwargs: further arguments of the pipeline's call; see `runs.sweep`.

    Raises:
        InputError: if the pipeline cannot sample these settings.
        CaptureError: if the attention cannot be measured, for example because half precision overflows.

    >>> import entropy_probe as ep
    >>> measured = profile(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(8), steps=1)
    >>> measured.table()["n"].unique().tolist()  # images per size
    [8]
    """
    given = dict(pipeline_kwargs or {})
    if sizes is None:
        height, width = training_size(pipeline)
        multiple = size_multiple(pipeline)
        half = (height // (2 * multiple) * multiple, width // (2 * multiple) * multiple)
        sizes = [half, (height, width)] if takes_size(pipeline, given) and min(half) else [(height, width)]
    if prompts is None:
        prompts = bundled_prompts()[:PROMPTS] if takes_prompt(pipeline) else (NO_PROMPT,)
        seeds = seeds if takes_prompt(pipeline) or tuple(seeds) != SEEDS else range(MIN_IMAGES)
    sampling = sampling_settings(pipeline, steps, guidance_scale)
    settings = Settings(
        as_texts(prompts),
        as_sizes(sizes),
        as_seeds(seeds),
        sampling.steps,
        sampling.guidance_scale,
    )
    recorded: dict[str, Any] = {"model": model, "pipeline_kwargs": given, "progress": progress}
    return Profile.of(sweep(pipeline, **settings.arguments(), **recorded, scale_factors=()))


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically. Missing folders are created.

    Raises:
        InputError: if the file cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "new" / "notes.txt", "no change").read_text()
    'no change'
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    write_atomically(path, text.encode())
    return path


def _image_columns(settings: Settings) -> pd.MultiIndex:
    """Return the columns of a profile: the seeds of the first prompt, then the seeds of the second, and so on."""
    return pd.MultiIndex.from_product([settings.prompts, settings.seeds], names=["prompt", "seed"])


def _entropy_table(heads: list[_HeadEntropy], settings: Settings) -> pd.DataFrame:
    """Return the heads of a file as a table.

    Raises:
        InputError: if a head is repeated, a row does not have one number per image, or a size is not in the settings.
    """
    images = _image_columns(settings)
    keys = [(head.layer, head.kind, head.head, *head.size) for head in heads]
    if not keys or len(set(keys)) < len(keys) or any(head.size not in settings.sizes for head in heads):
        raise InputError("the file must have exactly one row for every head and size")
    if any(len(head.images) != len(images) for head in heads):
        raise InputError(f"each row must have {len(images)} entropies, one for every prompt and seed")
    index = pd.MultiIndex.from_tuples(keys, names=HEAD)
    return pd.DataFrame([head.images for head in heads], index=index, columns=images, dtype=float)
