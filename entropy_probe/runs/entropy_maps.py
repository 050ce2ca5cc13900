"""Entropy maps: the entropy of every token, laid over the image that was generated."""

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
    """An image and the entropy of its tokens in one layer at one step, nats, averaged over the heads."""

    image: Image.Image
    values: Float[np.ndarray, "grid_height grid_width"]
    size: Size
    layer: str
    step: int
    law: str


def entropy_maps(sweep: Sweep, law: ScalingLaw | None = None) -> tuple[EntropyMap, ...]:
    """Maps of the first prompt and seed at the training size and the largest one, original and under a law.

    Taken from the last self-attention layer of the finest grid, halfway through the sampling. Empty without a
    pipeline, and for a model whose layers do not lie on a grid.
    """
    if sweep.pipeline is None:
        return ()
    grids = [layer for layer in layers(sweep.pipeline) if layer.grid is not None]
    if not grids:
        return ()
    finest = max(grid.grid.tokens for grid in grids if grid.grid is not None)
    layer = [grid.name for grid in grids if grid.training_tokens == finest][-1]
    step = sweep.manifest.steps // 2
    trained = sweep.manifest.training_size
    largest = max(sweep.grid.sizes, key=lambda s: s[0] * s[1])
    wanted: list[tuple[Size, ScalingLaw]] = [(trained, Original())]
    if largest != trained:
        wanted += [(largest, Original())] + ([(largest, law)] if law is not None else [])
    return tuple(_map(sweep, size, one, layer, step) for size, one in wanted)


def map_table(maps: Sequence[EntropyMap]) -> pd.DataFrame:
    """Entropies in nats: a line per row of tokens, a column per token, after `layer`, `step`, `law`, `size`, `row`."""
    parts = []
    for one in maps:
        values = pd.DataFrame(np.round(np.asarray(one.values, float), 3))
        known = {"layer": one.layer, "step": one.step, "law": one.law, "size": format_size(one.size)}
        parts.append(pd.concat([pd.DataFrame([known] * len(values)).assign(row=values.index), values], axis=1))
    return pd.concat(parts, ignore_index=True)


def _map(sweep: Sweep, size: Size, law: ScalingLaw, layer: str, step: int) -> EntropyMap:
    with scaled(sweep.pipeline, law), capture(sweep.pipeline, layers=layer, keep=layer, keep_steps=[step]) as captured:
        image = sample_images(
            sweep.pipeline,
            sweep.grid.prompts[:1],
            size,
            sweep.grid.seeds[:1],
            steps=sweep.manifest.steps,
            guidance_scale=sweep.manifest.guidance_scale,
        )[0]
    values = captured.entropy_map(layer, step, branch="cond")[0].mean(0).numpy()
    return EntropyMap(image, values, size, layer, step, law.name)
