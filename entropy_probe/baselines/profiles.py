"""The entropy profile of a model, layer x head x size, image by image, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entropy_probe.errors import InputError
from entropy_probe.laws import Original
from entropy_probe.models import Size, training_size
from entropy_probe.reference import prompts as bundled_prompts
from entropy_probe.runs import Grid, Sweep, as_sizes, as_texts, sweep, write_atomically
from entropy_probe.strict_json import to_strict_json

FORMAT = 1
"""Version of the layout of a baseline file."""

PROMPTS = 4
SEEDS = (0, 1, 2, 3, 4)
"""Five: the fewest with which a comparison with as many new seeds can reach the level of 1 %."""

STEPS = 8

LEAST_IMAGES = 8
"""The fewest with which a comparison of the same seeds can reach the level of 1 %: 2^-7 is below it."""

DIGITS = 7
"""Decimals of an entropy, in nats, that are kept: two more than its measurement is good for."""

HEAD = ["layer", "kind", "head", "height", "width"]
"""What tells the rows of a profile apart."""

_TOLD = ("model", "fingerprint", "pipeline", "dtype", "hardware", "versions")


@dataclass(frozen=True)
class Settings:
    """How a profile was sampled: one image for every prompt and seed, at every size (height, width) in pixels.

    Raises:
        InputError: if a list is empty or repeats itself, a seed is negative, or there are fewer images than
            `LEAST_IMAGES` at a size.
    """

    prompts: tuple[str, ...]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        Grid(self.prompts, self.sizes, self.seeds, (Original(),))  # refuses what no sweep can hold
        images = len(self.prompts) * len(self.seeds)
        if images < LEAST_IMAGES:
            raise InputError(
                f"{images} images at a size are too few to tell change from chance: "
                f"take prompts x seeds of at least {LEAST_IMAGES}"
            )


@dataclass(frozen=True, eq=False)
class Profile:
    """The entropy of every attention head of a model, visual and cross-attention alike.

    Attributes:
        model: name that the model was loaded by.
        fingerprint: short hash of its configuration and weights.
        pipeline: class of the pipeline.
        dtype: of the denoiser.
        hardware: the device that sampled.
        versions: of the libraries that the figures depend on.
        settings: how it was sampled.
        entropy: mean over rows and steps of the conditional branch, nats; rows are `HEAD`, columns the images as
            (prompt, seed).
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
    def of(cls, made: Sweep) -> Profile:
        """The profile of a sweep's original model.

        Raises:
            InputError: if the sweep does not hold the original model.
        """
        frame = made.frame()
        own = frame[(frame["law"] == "original") & (frame["branch"] == "cond")]
        if own.empty:
            raise InputError("a profile is of the original model, which the sweep does not hold: sample it too")
        means = own.groupby([*HEAD, "prompt", "seed"], sort=False)["entropy"].mean().astype(float)
        settings = Settings(
            made.grid.prompts, made.grid.sizes, made.grid.seeds, made.manifest.steps, made.manifest.guidance_scale
        )
        table = means.unstack(["prompt", "seed"], sort=False).reindex(columns=_images(settings)).round(DIGITS)
        told = {name: getattr(made.manifest, name) for name in _TOLD}
        return cls(**told, settings=settings, entropy=table)

    def table(self) -> pd.DataFrame:
        """`HEAD`, the mean `entropy` over the images, its standard error `se` (nats), and the number `n` of images."""
        images = self.entropy.T
        means = pd.DataFrame({"entropy": images.mean(), "se": images.sem(), "n": len(images)})
        return means.reset_index()

    def to_json(self) -> str:
        """The profile, a line for every head, so that a version control shows which of them moved."""
        told = {"format": FORMAT, **{name: getattr(self, name) for name in _TOLD}, "settings": asdict(self.settings)}
        rows = [
            json.dumps({"layer": layer, "kind": kind, "head": head, "size": [height, width], "images": list(values)})
            for (layer, kind, head, height, width), values in zip(
                self.entropy.index, self.entropy.to_numpy().tolist(), strict=True
            )
        ]
        opening = to_strict_json(told).removesuffix("\n}\n")
        return opening + ',\n  "entropy": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """The profile that `to_json` wrote.

        Raises:
            InputError: for text that is no profile, is incomplete, or has another layout.
        """
        try:
            fields = json.loads(text)
            if lacking := [name for name in ("format", "settings", "entropy", *_TOLD) if name not in fields]:
                raise InputError(f"it is no baseline as entropy-probe writes them: it lacks {lacking[0]!r}")
            layout = fields.pop("format")
            if layout != FORMAT:
                raise InputError(f"it has layout {layout!r}, and this version of entropy-probe reads layout {FORMAT}")
            settings = _settings(**fields.pop("settings"))
            entropy = _entropy(fields.pop("entropy"), settings)
            return cls(**fields, settings=settings, entropy=entropy)
        except InputError:
            raise
        except json.JSONDecodeError as error:
            reason = f"it is no JSON, line {error.lineno}: {error.msg}"
            raise InputError(f"it is no baseline as entropy-probe writes them: {reason}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"it is no baseline as entropy-probe writes them: {error!r}") from error

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON, into a folder that is made where it is missing.

        Raises:
            InputError: if the file cannot be written.
        """
        return write_text(Path(path), self.to_json())

    @classmethod
    def open(cls, path: str | Path) -> Profile:
        """The profile in a file.

        Raises:
            InputError: naming the file, if it cannot be read or is no profile.
        """
        try:
            return cls.from_json(Path(path).read_text())
        except OSError as error:
            remedy = "; entropy-probe baseline save makes one" if isinstance(error, FileNotFoundError) else ""
            raise InputError(f"cannot read the baseline {str(path)!r}: {error.strerror or error}{remedy}") from error
        except ValueError as error:
            raise InputError(f"cannot read the baseline {str(path)!r}: {error}") from error


def profile(
    pipeline: Any,
    *,
    prompts: Sequence[str] | None = None,
    sizes: Sequence[Size] | None = None,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    guidance_scale: float = 7.5,
    model: str | None = None,
    progress: bool = False,
) -> Profile:
    """Sample a pipeline and take its entropy profile.

    Args:
        pipeline: a diffusers text-to-image pipeline.
        prompts: texts; the first of the bundled ones, if none are given.
        sizes: (height, width) in pixels; the training size and half of it, if none are given.
        seeds: one image each, for every prompt and size.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        model: the name that the profile gives the model.
        progress: show a progress bar.

    Raises:
        InputError: for settings that the pipeline cannot sample.
        CaptureError: if the model cannot be measured, as where half precision overflows.
    """
    if sizes is None:
        height, width = training_size(pipeline)
        sizes = [(height // 16 * 8, width // 16 * 8), (height, width)]
    texts = bundled_prompts()[:PROMPTS] if prompts is None else prompts
    settings = Settings(as_texts(texts), as_sizes(sizes), tuple(seeds), steps, float(guidance_scale))
    return Profile.of(sweep(pipeline, **asdict(settings), model=model, scale_factors=(), progress=progress))


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all, into a folder that is made where it is missing.

    Raises:
        InputError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    write_atomically(path, text.encode())
    return path


def _images(settings: Settings) -> pd.MultiIndex:
    """All seeds of the first prompt, then those of the second, and so on."""
    return pd.MultiIndex.from_product([settings.prompts, settings.seeds], names=["prompt", "seed"])


def _settings(
    prompts: list[str], sizes: list[list[int]], seeds: list[int], steps: int, guidance_scale: float
) -> Settings:
    whole = tuple((int(height), int(width)) for height, width in sizes)
    return Settings(tuple(prompts), whole, tuple(map(int, seeds)), int(steps), float(guidance_scale))


def _entropy(rows: list[dict[str, Any]], settings: Settings) -> pd.DataFrame:
    """The table of a file's rows.

    Raises:
        InputError: if a row is there twice, has not a finite number for every image, or is of a size never sampled.
    """
    images = _images(settings)
    heads = [(str(r["layer"]), str(r["kind"]), int(r["head"]), int(r["size"][0]), int(r["size"][1])) for r in rows]
    if not heads or len(set(heads)) < len(heads) or any((h, w) not in settings.sizes for *_, h, w in heads):
        raise InputError("its rows are not one for every head and size")
    values = [row["images"] for row in rows]
    if any(len(value) != len(images) for value in values) or not np.isfinite(np.array(values, dtype=float)).all():
        raise InputError(f"its rows do not hold {len(images)} finite entropies each, one for every prompt and seed")
    return pd.DataFrame(values, index=pd.MultiIndex.from_tuples(heads, names=HEAD), columns=images, dtype=float)
