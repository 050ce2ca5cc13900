"""Name the parts of the guidance, from the texts and latents that the parts of one evaluation received."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from entropy_probe.attention.fingerprints import CAST, SAME, agree

Branch = Literal["cond", "uncond", "image", "perturbed", "unknown"]
"""`cond`: the prompt; `uncond`: the empty or negative prompt; `image`: the empty prompt with the image that is edited
(InstructPix2Pix); `perturbed`: one of these again with changed attention, layers or latents (PAG, SAG, skip-layer
guidance); `unknown`: what the forward pass received does not show it."""

Items = Float[np.ndarray, "_ values"]
"""Fingerprints of batch items."""


@dataclass(frozen=True)
class Part:
    """One part of the batch of a forward pass: one item for each image.

    Attributes:
        forward: number of the forward pass.
        conventional: diffusers' own code runs it, whose order of the parts is known.
        prompt_first: the prompts come first in its batch.
        latents: fingerprints of the latents; None if unknown.
        texts: fingerprints of everything else that the part received, by argument.
        negative: whether its text is the negative prompt of the pipeline; None if that cannot be compared.
        guided: the pipeline reports classifier-free guidance, or has a negative prompt.
        degrades: the pipeline has degraded latents, as self-attention guidance has.
    """

    forward: int
    conventional: bool
    prompt_first: bool
    latents: Items | None
    texts: Mapping[str, Items]
    negative: bool | None
    guided: bool
    degrades: bool

    def same_text(self, other: Part) -> bool:
        """Whether another part received the same text."""
        shared = self.texts.keys() & other.texts.keys()
        return all(_equal(self.texts[name], other.texts[name], CAST) for name in shared)

    def same_latents(self, other: Part) -> bool:
        """Whether another part received the same latents."""
        return self.latents is None or other.latents is None or _equal(self.latents, other.latents, SAME)


def is_negative(texts: Sequence[Items], negative: Sequence[Items], positive: Sequence[Items]) -> bool | None:
    """Return whether texts are the negative prompt of the pipeline; None if they cannot be compared, or are also the
    prompt.

    Args:
        texts: the texts of one part, one element for each argument.
        negative: the negative prompt of the pipeline, in all its forms.
        positive: its prompt, in all its forms; they may contain the negative prompt too.
    """
    compared = [(own, [other for other in negative if _comparable(own, other)]) for own in texts]
    compared = [(own, others) for own, others in compared if others]
    equal = [(own, others) for own, others in compared if any(_all_among(own, other) for other in others)]
    for own, others in equal:
        prompts = [one for one in positive if _comparable(own, one)]
        if not any(_all_among(one, other) for one in prompts for other in others):
            return True  # and the prompt is another text
    return False if len(compared) > len(equal) else None


def name_parts(parts: Sequence[Part]) -> list[Branch]:
    """Return the branch of each part of one evaluation of the model, in the order in which they ran.

    The text decides if it can be compared with the pipeline's. Otherwise the order decides if diffusers' own code runs
    the model: the empty prompt comes first in one batch (see `Part.prompt_first`), the prompt in separate passes. A
    text that comes again is `perturbed`.
    """
    if len(parts) == 1:
        return ["uncond" if parts[0].negative else "cond"]
    first = [next(n for n, other in enumerate(parts) if part.same_text(other)) for part in parts]
    names = _by_text(parts, first)
    if names is None and not parts[0].conventional:
        return ["unknown" if _may_be_guided(parts) else "cond"] * len(parts)
    names = names or _by_order(parts, first)
    if names is None:
        return ["unknown"] * len(parts)
    return [_repeated(parts, names, first, number) for number in range(len(parts))]


def _by_text(parts: Sequence[Part], first: Sequence[int]) -> list[Branch] | None:
    """Return the branches by the pipeline's texts; None if they do not distinguish the parts."""
    negative = [parts[number].negative for number in first]
    if None in negative or len(set(negative)) == 1:
        return None
    distinct = {(number, is_empty) for number, is_empty in zip(first, negative, strict=True)}
    if len(distinct) > 2:  # several prompts, or several negative prompts
        return None
    return ["uncond" if is_empty else "cond" for is_empty in negative]


def _by_order(parts: Sequence[Part], first: Sequence[int]) -> list[Branch] | None:
    """Return the branches by the order of the parts; None for an order that is not known."""
    distinct = sorted(set(first))
    together = [part for part in parts if part.forward == parts[0].forward]
    edits = len(together) == len(parts) == 3 and len(distinct) == 2
    if edits and first[2] == first[1] and not parts[1].same_latents(parts[2]):
        return ["cond", "uncond", "uncond"]  # InstructPix2Pix: the last part has no image
    if len(distinct) > 2 or len(together) > 3:
        return None
    order: tuple[Branch, Branch] = ("uncond", "cond")
    if len(together) == 1 or parts[0].prompt_first:
        order = ("cond", "uncond")
    if len(distinct) == 2:
        return [order[distinct.index(number)] for number in first]
    guided = parts[0].guided and not all(part.negative is False for part in parts)
    if guided or len(together) == 3:  # the negative prompt is equal to the prompt
        return [order[number] if number < 2 else "cond" for number in range(len(parts))]
    return ["cond" for _ in parts]


def _may_be_guided(parts: Sequence[Part]) -> bool:
    """Whether two parts received the same latents with different texts."""
    return any(
        one.latents is not None and one.same_latents(other) and not one.same_text(other)
        for one, other in itertools.combinations(parts, 2)
    )


def _repeated(parts: Sequence[Part], names: Sequence[Branch], first: Sequence[int], number: int) -> Branch:
    """Return the branch of a part, given whether its text came before or comes again."""
    part, name = parts[number], names[number]
    again = [n for n in range(len(parts)) if first[n] == first[number] and names[n] == name]
    together = [n for n in range(len(parts)) if parts[n].forward == part.forward]
    if len(together) == 3 and again == together[1:] and name == "uncond" and number == again[0]:
        return "uncond" if part.same_latents(parts[again[1]]) else "image"  # InstructPix2Pix: the last has no image
    earlier = [parts[n] for n in again if n < number]
    if any(part.same_latents(other) for other in earlier):
        return "perturbed"
    # Other latents are another tile of the image, or a degraded copy of it.
    degrades = part.degrades and any(other.forward != part.forward for other in earlier)
    return "perturbed" if degrades else name


def _equal(first: Items, second: Items, tolerance: float) -> bool:
    return first.shape == second.shape and bool(agree(first, second, tolerance).all())


def _comparable(first: Items, second: Items) -> bool:
    """Whether the items of both have the same number of elements."""
    return bool(np.isin(first[:, -1], second[:, -1]).all() and np.isin(second[:, -1], first[:, -1]).all())


def _all_among(items: Items, others: Items) -> bool:
    """Whether each item is equal to one of the others."""
    return bool(agree(items[:, None], others[None], CAST).any(1).all())
