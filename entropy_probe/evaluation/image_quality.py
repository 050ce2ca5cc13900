"""Are the images better? Quality, alignment and the two defects under every law, compared in pairs.

A pair is the same prompt, seed and size under a law and under `original`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from scipy import stats
from torch import Tensor

from entropy_probe.errors import InputError
from entropy_probe.evaluation.defect_scores import defects
from entropy_probe.evaluation.drift import resamples
from entropy_probe.evaluation.image_metrics import (
    Reader,
    features,
    frechet_distance,
    kernel_distance,
    rank_of_caption,
    text_score,
)
from entropy_probe.evaluation.networks import Judge
from entropy_probe.models import Size, format_size, to_tensor
from entropy_probe.progress import progress as show_progress
from entropy_probe.runs import Sweep
from entropy_probe.strict_json import nan_for_null

HIGHER_IS_BETTER = {
    "text_score": True,
    "caption_found": True,
    "incompleteness": False,
    "repetition": False,
    "kernel_distance": False,
    "frechet_distance": False,
}
"""The metrics, and which way is better."""


def metric_and_network(metric: str) -> tuple[str, str]:
    """A metric of a table apart from the network that measured it, which is named only where there are several."""
    base, _, network = metric.partition(":")
    return base, network


DISTANCE_RESAMPLES = 200
"""Bootstrap resamples of a distance, each of which is a distance of its own."""

LEVEL, POWER = 0.05, 0.8
"""Of the tests after Holm's correction, and of the sample size that the table asks for."""


@dataclass(frozen=True)
class Comparison:
    """A law against `original` at one size by one metric.

    Attributes:
        value: mean of the metric, or the distance, under the law.
        difference: from `original`; `low` and `high` are its 95 % bootstrap interval over prompts and seeds.
        p: two-sided, of Student's t with the standard error of the resamples and one degree of freedom fewer than there
            are prompts (of the signs of the prompts' differences, if these are all the same), after Holm's correction
            over all comparisons of the run.
        verdict: `better`, `worse` or `no difference shown`.
        images: under the law at this size.
        needed: images that would show a difference of this size with a power of 80 %; None if it does not vary.
    """

    law: str
    size: Size
    metric: str
    value: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str
    images: int
    needed: float | None


@dataclass(frozen=True)
class Quality:
    """What the laws did to the images.

    Attributes:
        images: a row per image: `law height width prompt seed`, and the metrics that an image has by itself.
        original: a row per size and metric: what the original model has.
        comparisons: every law, size and metric against it.
    """

    images: pd.DataFrame
    original: pd.DataFrame
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "images": self.images.to_dict("records"),
            "original": self.original.to_dict("records"),
            "comparisons": [asdict(c) for c in self.comparisons],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Quality:
        """What `to_json` gave."""
        original = pd.DataFrame(fields["original"])
        original["size"] = original["size"].map(tuple)
        kept = ("size", "needed")  # `needed` may be None; elsewhere null stands for NaN
        compared = tuple(
            Comparison(size=tuple(c["size"]), needed=c["needed"], **nan_for_null({k: c[k] for k in c if k not in kept}))
            for c in fields["comparisons"]
        )
        return cls(pd.DataFrame(fields["images"]), original, compared)

    def table(self) -> pd.DataFrame:
        """The comparisons, a row each."""
        return pd.DataFrame([{**asdict(c), "size": format_size(c.size)} for c in self.comparisons])

    def verdict(self) -> list[str]:
        """A sentence for each law: where it is better, where worse."""
        sentences = []
        for law in dict.fromkeys(c.law for c in self.comparisons):
            own = [c for c in self.comparisons if c.law == law]
            parts = []
            for word in ("better", "worse"):
                shown = [f"{c.metric} at {format_size(c.size)}" for c in own if c.verdict == word]
                parts.append(f"{word} in {', '.join(shown)}" if shown else f"{word} in nothing")
            rest = sum(c.verdict not in ("better", "worse") for c in own)
            sentences.append(
                f"Images under the {law} law against the original, {own[0].images} pairs a size, Holm-corrected: "
                f"{'; '.join(parts)}; no difference shown in {rest} of {len(own)} comparisons."
            )
        return sentences


def quality(sampled: Sweep, judge: Judge, *, progress: bool = True) -> Quality:
    """Measure the images of a sweep over several laws, `original` among them.

    Where several networks judge, their metrics are named after them: `kernel_distance:critic`.

    Args:
        sampled: the sweep.
        judge: the networks and the real images.
        progress: show a progress bar.

    Raises:
        InputError: if `original` was not sampled.
    """
    laws = list(dict.fromkeys(law.name for law in sampled.grid.laws))
    if "original" not in laws:
        raise InputError("quality is compared with the original model: sample it too")
    pairs = pd.MultiIndex.from_product([sampled.grid.prompts, sampled.grid.seeds], names=["prompt", "seed"])
    captions = _Captions.of(judge, list(pairs.get_level_values("prompt")))
    weights = resamples(pairs)
    frames, before, compared = [], [], []
    with show_progress(len(sampled.grid.sizes) * len(laws), "judging images", shown=progress) as advance:
        for size in sampled.grid.sizes:
            real = judge.real.at(size)
            true = {name: features(network, real) for name, network in judge.networks.items()}
            measured: dict[str, _Metrics] = {}
            for law in laws:
                drawn = torch.stack([to_tensor(sampled.image(p, size, s, law)) for p, s in pairs])
                measured[law] = _measure(drawn, judge, true, captions, weights)
                frame = pd.DataFrame(measured[law].alone, index=pairs).reset_index()
                frames.append(frame.assign(law=law, height=size[0], width=size[1]))
                advance(1, f"{law} {format_size(size)}")
            values = measured["original"].values
            before += [{"size": size, "metric": metric, "value": value} for metric, value in values.items()]
            if size != sampled.manifest.training_size:  # laws are for other sizes than that
                compared += _compared(size, measured, len(pairs), len(sampled.grid.prompts))
    return Quality(pd.concat(frames, ignore_index=True), pd.DataFrame(before), _corrected(compared))


@dataclass(frozen=True)
class _Captions:
    """What the networks that read make of all captions, and which is each image's own."""

    embedded: dict[str, Float[Tensor, "captions features"]]
    own: Int[Tensor, " images"]

    @classmethod
    def of(cls, judge: Judge, asked: Sequence[str]) -> _Captions:
        """Those of the images, and those of the real images for them to be told apart from."""
        number = {caption: i for i, caption in enumerate(dict.fromkeys([*asked, *judge.real.captions]))}
        readers = {name: network for name, network in judge.networks.items() if isinstance(network, Reader)}
        with torch.no_grad():
            embedded = {name: network.embed_captions(list(number)) for name, network in readers.items()}
        return cls(embedded, torch.tensor([number[caption] for caption in asked]))


@dataclass(frozen=True)
class _Metrics:
    """What was measured of the images of one law and size.

    Attributes:
        alone: the metrics that an image has by itself.
        values: every metric of all images.
        resampled: every metric of the images drawn again: RESAMPLES times, a distance DISTANCE_RESAMPLES times.
    """

    alone: dict[str, Float[np.ndarray, " images"]]
    values: dict[str, float]
    resampled: dict[str, Float[np.ndarray, " resamples"]]


def _measure(
    drawn: UInt8[Tensor, "images 3 height width"],
    judge: Judge,
    true: dict[str, Float[Tensor, "count features"]],
    captions: _Captions,
    weights: Float[np.ndarray, "1+resamples images"],
) -> _Metrics:
    """Every metric of the images; the networks' are named after them where there are several."""

    def by(metric: str, network: str) -> str:
        return f"{metric}:{network}" if len(judge.networks) > 1 else metric

    seen = {name: features(network, drawn) for name, network in judge.networks.items()}
    alone: dict[str, Float[np.ndarray, " images"]] = {}
    for name, embedded in captions.embedded.items():
        first = rank_of_caption(seen[name], embedded, captions.own) == 0
        alone[by("text_score", name)] = text_score(seen[name], embedded[captions.own]).double().numpy()
        alone[by("caption_found", name)] = first.double().numpy()
    spoilt = defects(drawn, judge.background)
    alone |= {"incompleteness": spoilt.incompleteness, "repetition": spoilt.repetition}
    values = {metric: float(own.mean()) for metric, own in alone.items()}
    resampled = {metric: weights[1:] @ own for metric, own in alone.items()}
    again = [drawn_again(w) for w in weights[1 : DISTANCE_RESAMPLES + 1]]
    for name, looked_at in seen.items():
        for metric, distance in _distances(true[name], len(drawn)).items():
            values[by(metric, name)] = distance(true[name], looked_at)
            resampled[by(metric, name)] = np.array([distance(true[name], looked_at[index]) for index in again])
    return _Metrics(alone, values, resampled)


def drawn_again(weights: Float[np.ndarray, " images"]) -> Int[Tensor, " images"]:
    """The images of a resample, each as often as its weight says: of a product of prompts and seeds, a whole number.

    They are not drawn by the weights: that would be a second draw on top of the first, and its intervals too wide.
    """
    return torch.from_numpy(np.repeat(np.arange(len(weights)), np.rint(weights * len(weights)).astype(int)))


Distance = Callable[[Tensor, Tensor], float]


def _distances(true: Float[Tensor, "count features"], drawn: int) -> dict[str, Distance]:
    """The distances for which there are images enough."""
    known: dict[str, Distance] = {"kernel_distance": kernel_distance} if drawn > 1 else {}
    if min(drawn, len(true)) > true.shape[1]:
        known["frechet_distance"] = frechet_distance
    return known


def _compared(size: Size, measured: dict[str, _Metrics], images: int, prompts: int) -> list[Comparison]:
    """Every law against `original` by every metric, before the correction."""
    before = measured["original"]
    return [
        _compare(
            law,
            size,
            metric,
            own.values[metric],
            own.values[metric] - value,
            own.resampled[metric] - before.resampled[metric],
            images=images,
            prompts=prompts,
        )
        for metric, value in before.values.items()
        for law, own in measured.items()
        if law != "original"
    ]


def _compare(
    law: str,
    size: Size,
    metric: str,
    value: float,
    difference: float,
    resampled: Float[np.ndarray, " resamples"],
    *,
    images: int,
    prompts: int,
) -> Comparison:
    low, high = np.percentile(resampled, [2.5, 97.5])
    error = resampled.std(ddof=1)
    needed = None
    if not difference or images < 2:  # one pair shows nothing, however far it is apart
        p = 1.0
    elif error:
        p = 2 * stats.t.sf(abs(difference) / error, df=max(1, prompts - 1))
        wanted = stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)
        needed = float(np.ceil(images * (wanted * error / difference) ** 2))
    else:  # every prompt by the same amount: the test of their signs is left
        p = min(1.0, 2.0 ** (1 - prompts))
    return Comparison(law, size, metric, value, difference, float(low), float(high), float(p), "", images, needed)


def _corrected(compared: list[Comparison]) -> tuple[Comparison, ...]:
    """With p after Holm's correction, and the verdict."""
    from statsmodels.stats.multitest import multipletests

    if not compared:
        return ()
    _, corrected, _, _ = multipletests([c.p for c in compared], alpha=LEVEL, method="holm")
    return tuple(_judged(c, float(p)) for c, p in zip(compared, corrected, strict=True))


def _judged(comparison: Comparison, p: float) -> Comparison:
    fields: dict[str, Any] = {**asdict(comparison), "p": p, "verdict": "no difference shown"}
    if p < LEVEL and comparison.difference:
        metric, _ = metric_and_network(comparison.metric)
        improved = (comparison.difference > 0) == HIGHER_IS_BETTER[metric]
        fields["verdict"] = "better" if improved else "worse"
    return Comparison(**fields)
