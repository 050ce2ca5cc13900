"""Joint attention over image and text keys, split into its parts: the mass on each part, and the entropy within it.

For one row, with mass m on the image keys and h(m) = -m ln m - (1 - m) ln(1 - m),

    H = h(m) + m H_image + (1 - m) H_text

The masses follow from the log-sum-exp of each part. So each part is one call of `flash`, and the statistics over all
keys are combined from both: no more work than one call over all keys, and no attention map. "Text" means every key that
is not an image token: words, their padding unless it is masked, registers, and the tokens of reference images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from entropy_probe.statistics.dispatch import flash
from entropy_probe.statistics.masks import MASKED_BIAS
from entropy_probe.statistics.rows import RowStatistics, default_scale


@dataclass(frozen=True)
class PartMeans:
    """Means over the counted rows of one joint attention call; NaN if no row is counted.

    Attributes:
        image_mass: fraction of the attention on image keys.
        mass_entropy: entropy of the choice between image and text, nats.
        image_entropy: entropy among the image keys, nats; rows weighted by their image mass.
        text_entropy: entropy among all other keys, nats; rows weighted by their text mass.

    With these weights the chain rule also holds for the means: the mean of H is
    mass_entropy + image_mass * image_entropy + (1 - image_mass) * text_entropy.
    """

    image_mass: Float[Tensor, "batch heads"]
    mass_entropy: Float[Tensor, "batch heads"]
    image_entropy: Float[Tensor, "batch heads"]
    text_entropy: Float[Tensor, "batch heads"]


@dataclass(frozen=True)
class Parts:
    """The parts of every row of one joint attention call.

    Attributes:
        whole: statistics over all keys; the attention distance is over the image keys only.
        image: statistics over the image keys.
        text: statistics over all other keys.
        image_mass: fraction of each row on image keys; 0 for rows that are not counted.
        text_mass: fraction on all other keys, precise even if it is tiny; 0 for rows that are not counted.
    """

    whole: RowStatistics
    image: RowStatistics
    text: RowStatistics
    image_mass: Float[Tensor, "batch heads queries"]
    text_mass: Float[Tensor, "batch heads queries"]

    def means(self) -> PartMeans:
        """Return the means over the counted rows."""
        count, image, text = self.whole.counted.sum(-1), self.image_mass, self.text_mass
        return PartMeans(
            image_mass=image.sum(-1) / count,
            mass_entropy=(torch.special.entr(image) + torch.special.entr(text)).sum(-1) / count,
            image_entropy=(image * self.image.entropy).sum(-1) / image.sum(-1),
            text_entropy=(text * self.text.entropy).sum(-1) / text.sum(-1),
        )


def parts(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    image: slice,
    mask: Shaped[Tensor, "*#mask"] | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "image_keys 2"]] | None = None,
) -> Parts:
    """Split attention rows into image keys and other keys, exactly, in memory linear in the number of tokens.

    Args:
        query: as for `flash`.
        key: as for `flash`.
        image: the keys that are image tokens; must leave at least one other key.
        mask: as for `flash`.
        scale: as for `flash`.
        enable_gqa: as for `flash`.
        positions: token centres of the queries and of the image keys, for the attention distance among these.

    Raises:
        ValueError: if all keys are image tokens, or none.

    >>> split = parts(torch.randn(1, 1, 6, 8), torch.zeros(1, 1, 40, 8), image=slice(10, 40))
    >>> split.means().image_mass  # equal logits: 30 of 40 keys
    tensor([[0.7500]])
    """
    if not 0 < image.stop - image.start < key.shape[2]:
        raise ValueError(
            f"image must contain some of the {key.shape[2]} keys but not all, got {image}: use flash for one part"
        )
    common = None
    if key.device.type != "cuda" or key.dtype not in (torch.float16, torch.bfloat16):  # tensor cores need the dtype
        key = key.to(torch.promote_types(key.dtype, torch.float32))
        mean_key = key.mean(2, keepdim=True)
        key, common = key - mean_key, _logits(query, mean_key, scale, enable_gqa)
    index = torch.arange(key.shape[2], device=key.device)
    columns = index[image], torch.cat([index[: image.start], index[image.stop :]])
    if mask is not None:
        mask = mask.expand(*mask.shape[:-1], len(index))
    masks = [None if mask is None else mask.index_select(-1, chosen) for chosen in columns]
    own = flash(query, key[:, :, image], masks[0], False, scale, enable_gqa, positions)
    text = flash(query, key.index_select(2, columns[1]), masks[1], False, scale, enable_gqa)
    numbers = [_allowed_keys(part_mask, chosen) for part_mask, chosen in zip(masks, columns, strict=True)]
    whole, mass, text_mass = _combined(own, text, numbers[0] / (numbers[0] + numbers[1]).clamp_min(1))
    whole, own, text = (_shifted(part, common) for part in (whole, own, text))
    return Parts(whole, own, text, mass, text_mass)


def _combined(
    image: RowStatistics, text: RowStatistics, image_fraction: Shaped[Tensor, "*#rows"]
) -> tuple[RowStatistics, Float[Tensor, "batch heads queries"], Float[Tensor, "batch heads queries"]]:
    """Combine both parts. Return the statistics over all keys, the image mass and the text mass.

    Args:
        image: statistics over the image keys.
        text: statistics over the other keys.
        image_fraction: number of allowed image keys, divided by the number of all allowed keys.
    """
    counted = image.counted | text.counted
    log_sum = torch.logaddexp(image.log_sum, text.log_sum)
    mass, text_mass = ((part.log_sum - log_sum).exp().masked_fill(~counted, 0.0) for part in (image, text))
    mass_entropy = torch.special.entr(mass) + torch.special.entr(text_mass)
    between = image_fraction * (1 - image_fraction) * (image.logit_mean - text.logit_mean).square()
    whole = RowStatistics(
        entropy=mass_entropy + mass * image.entropy + text_mass * text.entropy,
        logit_variance=image_fraction * image.logit_variance + (1 - image_fraction) * text.logit_variance + between,
        log_sum=log_sum,
        logit_mean=image_fraction * image.logit_mean + (1 - image_fraction) * text.logit_mean,
        attention_distance=image.attention_distance,
        counted=counted,
    )
    # A row whose image keys are all masked is counted, but has no attention distance.
    reduced = replace(whole.means(), attention_distance=image.means().attention_distance)
    return replace(whole, reduced=reduced), mass, text_mass


def _logits(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads 1 width"],
    scale: float | None,
    enable_gqa: bool,
) -> Float[Tensor, "batch heads queries"]:
    """Return the logit of one key for every query."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits: Tensor = torch.linalg.vecdot(query.to(key.dtype), key)
    return logits * (default_scale(query) if scale is None else scale)


def _shifted(statistics: RowStatistics, by: Float[Tensor, "batch heads queries"] | None) -> RowStatistics:
    """Add a number to all logits of a row."""
    if by is None:
        return statistics
    return replace(
        statistics,
        log_sum=statistics.log_sum + by,
        logit_mean=statistics.logit_mean + by.masked_fill(~statistics.counted, 0.0),
    )


def _allowed_keys(mask: Shaped[Tensor, "*#mask"] | None, columns: Int[Tensor, " keys"]) -> Shaped[Tensor, "*#rows"]:
    """Return the number of keys that each row may attend to."""
    if mask is None:
        return torch.tensor(float(len(columns)), device=columns.device)
    allowed = mask if mask.dtype == torch.bool else mask > MASKED_BIAS
    return allowed.sum(-1).float()
