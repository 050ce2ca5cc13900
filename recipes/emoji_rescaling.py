"""The two changes that the UNet recipe made to its attention during training.

The logits of some self-attention layers were multiplied by a constant, once at `Recipe.wake_at` and once at
`Recipe.sharpen_at`. The model card (data/reference/README.md) says why, and how it limits what the model can show.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from entropy_probe.attention import capture
from recipes.emoji_networks import Recipe

GAINS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Factors of the logits at which the entropy is measured."""


@torch.no_grad()
def measure_layers(model: nn.ModuleDict, noisy: Tensor, timesteps: Tensor, prompt: Tensor) -> pd.DataFrame:
    """Return the mean entropy, logit variance and key tokens by self-attention layer and gain in `GAINS`."""
    with capture(model["unet"], distance=False, scale_factors=GAINS[1:]) as captured:
        model["unet"](noisy, timesteps, model["text"](prompt).last_hidden_state)
    frame = captured.frame()
    means = frame[frame["kind"] == "self"].groupby(["layer", "scale_factor"])
    return means[["entropy", "logit_variance", "key_tokens"]].mean()


def minimum_variance_gains(means: pd.DataFrame, recipe: Recipe) -> dict[str, float]:
    """Return the gain by layer that raises the variance of the logits to `wake_variance`.

    A layer with uniform attention learns very slowly where to attend. The coarse level stayed uniform: its residual
    blocks see the whole image anyway.
    """
    variance = means.xs(1.0, level="scale_factor")["logit_variance"]
    return {layer: math.sqrt(recipe.wake_variance / v) for layer, v in variance.items() if v < recipe.wake_variance}


def maximum_entropy_gains(means: pd.DataFrame, recipe: Recipe) -> dict[str, float]:
    """Return the gain by layer that lowers the entropy to `sharpen_to` of its maximum ln T.

    No scale factor gives N tokens more entropy than ln N. At half the training size ln N = ln T - 1.39, so a layer
    closer to uniform than that leaves nothing to restore.
    """
    gains = {}
    for layer, curve in means.groupby(level="layer"):
        target = recipe.sharpen_to * math.log(curve["key_tokens"].iloc[0])
        entropy = curve["entropy"].to_numpy()
        if entropy[0] > target:
            gains[layer] = math.exp(np.interp(-target, -entropy, np.log(GAINS)))
    return gains


@torch.no_grad()
def multiply_logits(denoiser: nn.Module, gains: dict[str, float]) -> None:
    """Multiply the attention logits of each layer by its gain: queries and keys by its square root."""
    for layer, gain in gains.items():
        attention: Any = denoiser.get_submodule(layer)
        attention.to_q.weight.mul_(math.sqrt(gain))
        attention.to_k.weight.mul_(math.sqrt(gain))
