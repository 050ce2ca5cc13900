"""Entropy maps: the attention entropy of every token, to be drawn over the sampled image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image

from entropy_probe.attention import capture
from entropy_probe.laws import Original, ScalingLaw, scaled
from entropy_probe.models import Size, format_size, layers, sample_images
from entropy_probe.runs.sweeping import Sweep


@dataclass(frozen=True)
class EntropyMap:
    """An image and the attention entropy of its tokens in one layer at one step.

    Attributes:
        image: the sampled image.
        values: entropy in nats, shape (grid height, grid width), averaged over the heads.
        size: (height, width) of the image in pixels.
        layer: name of the attention layer.
        step: sampling step, from 0.
        law: name of the scaling law.
    """

    image: Image.Image
    values: Float[np.ndarray, "grid_height grid_width"]
    size: Size
    layer: str
    step: int
    law: str


def entropy_maps(sweep: Sweep, law: ScalingLaw | None = None) -> tuple[EntropyMap, ...]:
    """Sample entropy maps of the first prompt and seed, at the training size and at the largest size.

    The maps show the last self-attention layer with the finest token grid, at half of the sampling steps.

    Args:
        sweep: a sweep with its pipeline.
        law: also sample the largest size under this law.

    Returns:
        The maps. Empty if the sweep has no pipeline, or the tokens of no layer form a grid.

    >>> import entropy_probe as ep
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=[(64, 64)], steps=1, progress=False)
    >>> entropy_maps(swept)[0].values.shape  # rows and columns of tokens
    (16, 16)
    """
    if sweep.pipeline is None:
        return ()
    with_grid = [layer for layer in layers(sweep.pipeline) if layer.grid is not None and layer.axes == "spatial"]
    if not with_grid:
        return ()
    finest = max(layer.grid.tokens for layer in with_grid if layer.grid is not None)
    name = [layer.name for layer in with_grid if layer.grid is not None and layer.grid.tokens == finest][-1]
    sampled = sorted(set(sweep.run.read([next(sweep.grid.cells())], ["step"])["step"]))
    step = sampled[len(sampled) // 2]  # image-to-image runs only the last steps
    trained = sweep.manifest.training_size
    largest = max(sweep.grid.sizes, key=lambda s: s[0] * s[1])
    wanted: list[tuple[Size, ScalingLaw]] = [(trained, Original())]
    if largest != trained:
        wanted += [(largest, Original())] + ([(largest, law)] if law is not None else [])
    return tuple(_sample_map(sweep, size, one, name, step) for size, one in wanted)


def map_table(maps: Sequence[EntropyMap]) -> pd.DataFrame:
    """Return entropy maps as one table, in nats.

    Each row is one row of tokens. The columns are `layer`, `step`, `law`, `size` and `row`, then one per token.
    """
    parts = []
    for one in maps:
        values = pd.DataFrame(np.round(np.asarray(one.values, float), 3))
        labels = {"layer": one.layer, "step": one.step, "law": one.law, "size": format_size(one.size)}
        parts.append(pd.concat([pd.DataFrame([labels] * len(values)).assign(row=values.index), values], axis=1))
    return pd.concat(parts, ignore_index=True)


def _sample_map(sweep: Sweep, size: Size, law: ScalingLaw, layer: str, step: int) -> EntropyMap:
    with scaled(sweep.pipeline, law), capture(sweep.pipeline, layers=layer, keep=layer, keep_steps=[step]) as captured:
        image = sample_images(
            sweep.pipeline,
            sweep.grid.prompts[:1],
            size,
            sweep.grid.seeds[:1],
            steps=sweep.manifest.steps,
            guidance_scale=sweep.manifest.guidance_scale,
            pipeline_kwargs=sweep.pipeline_kwargs,
        )[0]
    values = captured.entropy_map(layer, step, branch="cond")[0].mean(0).numpy()
    return EntropyMap(image, values, size, layer, step, law.name)
