"""Attention over keys of two sorts, image and text, taken apart: how much goes to each, and how it is spread there.

Of one row, with m the mass on the image keys and h(m) = -m ln m - (1 - m) ln(1 - m),

    H = h(m) + m H_image + (1 - m) H_text

The masses follow from the log-sum-exps of the two parts, so that each part is one call of `flash`, and the whole is
put together from them: no more work than measuring it at once, and no map. "Text" is whatever is no image token: with
the words their padding, unless a mask bars it, registers, and the tokens of reference images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from entropy_probe.statistics.flash import flash
from entropy_probe.statistics.rows import BARRED, RowStatistics, default_scale


@dataclass(frozen=True)
class PartMeans:
    """Means over the counted rows of one call; NaN where none is counted.

    Attributes:
        image_mass: share of the attention that goes to image keys.
        mass_entropy: entropy of the choice between image and text, nats.
        image_entropy: entropy among the image keys, nats, rows weighed by their image mass.
        text_entropy: entropy among all other keys, nats, rows weighed by the mass there.

    So weighed, the chain rule holds for the means too: the mean of H is
    mass_entropy + image_mass * image_entropy + (1 - image_mass) * text_entropy.
    """

    image_mass: Float[Tensor, "batch heads"]
    mass_entropy: Float[Tensor, "batch heads"]
    image_entropy: Float[Tensor, "batch heads"]
    text_entropy: Float[Tensor, "batch heads"]


@dataclass(frozen=True)
class Parts:
    """The attention of every row of one call, taken apart.

    Attributes:
        whole: over all keys; its attention distance is that among the image keys.
        image: over the image keys.
        text: over all others.
        image_mass: share of each row that goes to image keys; 0 for rows that are not counted.
        text_mass: share that goes to all others, to its own last digit where it is small; 0 likewise.
    """

    whole: RowStatistics
    image: RowStatistics
    text: RowStatistics
    image_mass: Float[Tensor, "batch heads queries"]
    text_mass: Float[Tensor, "batch heads queries"]

    def means(self) -> PartMeans:
        """Means over the counted rows."""
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
    """Attention rows taken apart by the sort of their keys, exactly, in memory linear in the number of tokens.

    Args:
        query: as `flash` takes them.
        key: as `flash` takes them.
        image: which keys are image tokens; there are others.
        mask: as `flash` takes it.
        scale: as `flash` takes it.
        enable_gqa: as `flash` takes it.
        positions: places of the queries and of the image keys, for the attention distance among these.

    Raises:
        ValueError: where all keys are image tokens, or none.
    """
    if not 0 < image.stop - image.start < key.shape[2]:
        raise ValueError(f"{image} of {key.shape[2]} keys leaves nothing to take apart")
    common = None
    if key.device.type != "cuda" or key.dtype not in (torch.float16, torch.bfloat16):  # those go to tensor cores
        key = key.to(torch.promote_types(key.dtype, torch.float32))
        middle = key.mean(2, keepdim=True)
        key, common = key - middle, _logits(query, middle, scale, enable_gqa)
    index = torch.arange(key.shape[2], device=key.device)
    which = index[image], torch.cat([index[: image.start], index[image.stop :]])
    if mask is not None:
        mask = mask.expand(*mask.shape[:-1], len(index))
    masks = [None if mask is None else mask.index_select(-1, columns) for columns in which]
    own = flash(query, key[:, :, image], masks[0], False, scale, enable_gqa, positions)
    text = flash(query, key.index_select(2, which[1]), masks[1], False, scale, enable_gqa)

    counted = own.counted | text.counted
    log_sum = torch.logaddexp(own.log_sum, text.log_sum)
    mass, other = ((part.log_sum - log_sum).exp().masked_fill(~counted, 0.0) for part in (own, text))
    chosen = torch.special.entr(mass) + torch.special.entr(other)
    numbers = [_allowed(barring, columns) for barring, columns in zip(masks, which, strict=True)]
    share = numbers[0] / (numbers[0] + numbers[1]).clamp_min(1)  # of the keys, all weighted alike
    between = share * (1 - share) * (own.logit_mean - text.logit_mean).square()
    whole = RowStatistics(
        entropy=chosen + mass * own.entropy + other * text.entropy,
        logit_variance=share * own.logit_variance + (1 - share) * text.logit_variance + between,
        log_sum=log_sum,
        logit_mean=share * own.logit_mean + (1 - share) * text.logit_mean,
        attention_distance=own.attention_distance,
        counted=counted,
    )
    # A row whose image keys are all barred counts, but spans no distance.
    reduced = replace(whole.means(), attention_distance=own.means().attention_distance)
    whole = replace(whole, reduced=reduced)
    whole, own, text = (_shifted(part, common) for part in (whole, own, text))
    return Parts(whole, own, text, mass, other)


def _logits(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads 1 width"],
    scale: float | None,
    enable_gqa: bool,
) -> Float[Tensor, "batch heads queries"]:
    """Of one key, for every query."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits: Tensor = torch.linalg.vecdot(query.to(key.dtype), key)
    return logits * (default_scale(query) if scale is None else scale)


def _shifted(statistics: RowStatistics, by: Float[Tensor, "batch heads queries"] | None) -> RowStatistics:
    """What they are when every logit of a row is larger by so much."""
    if by is None:
        return statistics
    return replace(
        statistics,
        log_sum=statistics.log_sum + by,
        logit_mean=statistics.logit_mean + by.masked_fill(~statistics.counted, 0.0),
    )


def _allowed(mask: Shaped[Tensor, "*#mask"] | None, columns: Int[Tensor, " keys"]) -> Shaped[Tensor, "*#rows"]:
    """How many of the keys a row may attend to."""
    if mask is None:
        return torch.tensor(float(len(columns)), device=columns.device)
    allowed = mask if mask.dtype == torch.bool else mask > BARRED
    return allowed.sum(-1).float()
