"""Compare the images under every law with the images of the original model, by every metric, in pairs.

A pair is the same prompt, seed and size, under a law and under `original`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from entropy_probe.deprecation import renamed_arguments, renamed_names
from entropy_probe.errors import InputError
from entropy_probe.evaluation.defect_scores import defects
from entropy_probe.evaluation.differences import MetricDifference, corrected, metric_difference
from entropy_probe.evaluation.image_metrics import (
    TextImageEncoder,
    features,
    frechet_contributions,
    frechet_distance,
    kernel_contributions,
    kernel_distance,
    rank_of_caption,
    text_score,
)
from entropy_probe.evaluation.networks import Scorer
from entropy_probe.evaluation.quality_summary import Quality
from entropy_probe.models import Size, format_size, to_tensor
from entropy_probe.progress import progress as show_progress
from entropy_probe.runs import Sweep


@renamed_arguments(judge="scorer")
def quality(sampled: Sweep, scorer: Scorer, *, progress: bool | str = True) -> Quality:
    """Compute every metric of the images of a sweep, and compare each law with the original model.

    With several networks, the names of their metrics include the network, such as `kernel_distance:critic`.

    Args:
        sampled: a sweep under several laws, one of them `original`.
        scorer: the networks and the real images; see `load_scorer`.
        progress: show a progress bar; see `sweep`.

    Raises:
        InputError: if the sweep lacks `original`.
    """
    laws = list(dict.fromkeys(law.name for law in sampled.grid.laws))
    if "original" not in laws:
        raise InputError(
            f"quality is relative to the original model, got only {', '.join(laws)}: add 'original' to laws"
        )
    pairs = pd.MultiIndex.from_product([sampled.grid.prompts, sampled.grid.seeds], names=["prompt", "seed"])
    captions = _Captions.of(scorer, list(pairs.get_level_values("prompt")))
    shape = (len(sampled.grid.prompts), len(sampled.grid.seeds))
    frames, original, differences = [], [], []
    with show_progress(len(sampled.grid.sizes) * len(laws), "scoring images", shown=progress) as advance:
        for size in sampled.grid.sizes:
            images = scorer.real.at(size)
            real = {name: features(network, images) for name, network in scorer.networks.items()}
            scores: dict[str, _Scores] = {}
            for law in laws:
                samples = torch.stack([to_tensor(sampled.image(p, size, s, law)) for p, s in pairs])
                scores[law] = _score(samples, scorer, real, captions)
                frame = pd.DataFrame(scores[law].per_image, index=pairs).reset_index()
                frames.append(frame.assign(law=law, height=size[0], width=size[1]))
                advance(1, f"{law} {format_size(size)}")
            values = scores["original"].values
            original += [{"size": size, "metric": metric, "value": value} for metric, value in values.items()]
            if size != sampled.manifest.training_size:  # every law has g = 1 at the training size
                differences += _differences(size, scores, shape)
    return Quality(pd.concat(frames, ignore_index=True), pd.DataFrame(original), corrected(differences))


@dataclass(frozen=True)
class _Captions:
    """The embeddings of all captions by each network that reads, and the index of each image's caption."""

    embedded: dict[str, Float[Tensor, "captions features"]]
    own: Int[Tensor, " images"]

    @classmethod
    def of(cls, scorer: Scorer, prompts: Sequence[str]) -> _Captions:
        """Embed the prompts of the images and, as distractors, the captions of the real images."""
        number = {caption: i for i, caption in enumerate(dict.fromkeys([*prompts, *scorer.real.captions]))}
        networks = {name: network for name, network in scorer.networks.items() if isinstance(network, TextImageEncoder)}
        with torch.no_grad():
            embedded = {name: network.embed_captions(list(number)) for name, network in networks.items()}
        return cls(embedded, torch.tensor([number[caption] for caption in prompts]))


@dataclass(frozen=True)
class _Scores:
    """The metrics of the images of one law and size.

    Attributes:
        per_image: the metrics that are defined for a single image.
        values: every metric over all images.
        contributions: contribution of each image to every metric. Its mean has the standard error of the metric.
    """

    per_image: dict[str, Float[np.ndarray, " images"]]
    values: dict[str, float]
    contributions: dict[str, Float[np.ndarray, " images"]]


def _score(
    samples: UInt8[Tensor, "images 3 height width"],
    scorer: Scorer,
    real: dict[str, Float[Tensor, "count features"]],
    captions: _Captions,
) -> _Scores:
    """Compute every metric of the images."""

    def column(metric: str, network: str) -> str:
        return f"{metric}:{network}" if len(scorer.networks) > 1 else metric

    embedded = {name: features(network, samples) for name, network in scorer.networks.items()}
    per_image: dict[str, Float[np.ndarray, " images"]] = {}
    for name, candidates in captions.embedded.items():
        retrieved = rank_of_caption(embedded[name], candidates, captions.own) == 0
        per_image[column("text_score", name)] = text_score(embedded[name], candidates[captions.own]).double().numpy()
        per_image[column("caption_found", name)] = retrieved.double().numpy()
    scores = defects(samples, scorer.background)
    per_image |= {"incompleteness": scores.incompleteness, "repetition": scores.repetition}
    values = {metric: float(each.mean()) for metric, each in per_image.items()}
    contributions = dict(per_image)
    for name, points in embedded.items():
        if len(points) > 1:
            values[column("kernel_distance", name)] = kernel_distance(real[name], points)
            contributions[column("kernel_distance", name)] = kernel_contributions(real[name], points).numpy()
        if min(len(points), len(real[name])) > points.shape[1]:
            values[column("frechet_distance", name)] = frechet_distance(real[name], points)
            contributions[column("frechet_distance", name)] = frechet_contributions(real[name], points).numpy()
    return _Scores(per_image, values, contributions)


def planned_comparisons(laws: int, sizes: int, scorer: Scorer) -> int:
    """Return the number of comparisons that `quality` corrects for. The Fréchet distance is not counted.

    Args:
        laws: number of laws other than `original`.
        sizes: number of sizes other than the training size.
        scorer: the networks.
    """
    readers = sum(isinstance(network, TextImageEncoder) for network in scorer.networks.values())
    return laws * sizes * (2 + 2 * readers + len(scorer.networks))  # defects, text metrics, kernel distances


def _differences(size: Size, scores: dict[str, _Scores], shape: tuple[int, int]) -> list[MetricDifference]:
    """Compare every law with `original` by every metric, before the correction for multiple comparisons."""
    before = scores["original"]
    return [
        metric_difference(
            law,
            size,
            metric,
            value,
            after.values[metric],
            (after.contributions[metric] - before.contributions[metric]).reshape(shape),
        )
        for metric, value in before.values.items()
        for law, after in scores.items()
        if law != "original"
    ]


__getattr__ = renamed_names(__name__, Comparison=MetricDifference)
