"""Assign each forward pass a step and a guidance branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from entropy_probe.attention.call import Forward

Branch = Literal["cond", "uncond", "perturbed"]
"""The prompt, the empty or negative prompt, and the prompt with some attention perturbed (PAG)."""

GuidanceParts = tuple[Branch, ...]
"""What a forward pass computes, in the order of its batch."""

PROMPT_FIRST = frozenset(
    f"{name}Pipeline"
    for name in ("DiT", "Lumina", "LuminaText2Img", "OmniGen", "StableCascadeDecoder", "StableCascadePrior", "ZImage")
)
"""Pipelines of diffusers whose guided batch has the prompts first. In all others the empty prompts come first."""


@dataclass(frozen=True)
class Guidance:
    """The guidance that a pipeline applies.

    Attributes:
        batched: whether the prompt and the empty prompt share a batch; None if only the batch itself can show it.
        prompt_first: the prompt comes first in that batch.
        perturbed: the batch ends with a second copy of the prompt, for perturbed-attention guidance.
        driven: a pipeline calls the denoiser. Branches are not distinguished otherwise.
    """

    batched: bool | None
    prompt_first: bool
    perturbed: bool
    driven: bool


@dataclass(frozen=True)
class ForwardLabel:
    """The sampling run and step of a forward pass, and the data that its branch is determined from.

    Attributes:
        sampling: number of the sampling run.
        step: number of the sampling step.
        turn: number of the forward pass within its step; guidance may take two.
        timestep: as the denoiser received it; 0 if it received none.
        guidance: of the pipeline.
        copies: for 2 and 3, whether the latents are that number of identical copies, as in batched guidance.
        text: identifies the text of this forward pass; None if it has no text.
        batch: items of the forward pass; None if unknown.
        timed: the denoiser received a timestep.
    """

    sampling: int
    step: int
    turn: int
    timestep: float
    guidance: Guidance
    copies: Mapping[int, Tensor]
    text: int | None
    batch: int | None
    timed: bool


def guidance_of(model: Any) -> Guidance:
    """Return the guidance that a running pipeline reports. Many pipelines do not, and only the batch shows it."""
    if isinstance(model, nn.Module):
        return Guidance(batched=False, prompt_first=False, perturbed=False, driven=False)
    reported = getattr(model, "do_classifier_free_guidance", None)
    return Guidance(
        batched=None if reported is None else bool(reported),
        prompt_first=type(model).__name__ in PROMPT_FIRST,
        perturbed=bool(getattr(model, "do_perturbed_attention_guidance", False)),
        driven=True,
    )


def schedule_of(model: Any) -> object:
    """Return the timesteps of a running pipeline. Every sampling run sets them again."""
    return getattr(getattr(model, "scheduler", None), "timesteps", None)


def step_count(model: Any) -> int:
    """Return the number of steps of a running pipeline; 1 for a denoiser without a pipeline."""
    schedule, scheduler = schedule_of(model), getattr(model, "scheduler", None)
    if not isinstance(schedule, Tensor) or getattr(scheduler, "num_inference_steps", None) is None:
        return 1
    return max(1, len(schedule) - int(getattr(scheduler, "begin_index", None) or 0))


class ForwardLabels:
    """The labels of all forward passes seen so far, by the number of the pass.

    Attributes:
        last: the label of the latest forward pass; None before the first.
    """

    def __init__(self) -> None:
        self.last: ForwardLabel | None = None
        self._by_forward: dict[int, ForwardLabel] = {}
        self._schedule: object = None
        self._first: float = 0.0

    def __contains__(self, forward: int) -> bool:
        return forward in self._by_forward

    def __getitem__(self, forward: int) -> ForwardLabel:
        return self._by_forward[forward]

    def add(self, forward: Forward, guidance: Guidance, schedule: object) -> None:
        """Add a forward pass of the denoiser.

        A new sampling run starts with a new schedule, or with a return to the first timestep of the same schedule.
        Without a schedule, it starts with a timestep that rises.
        """
        timestep = _to_float(forward.timestep)
        last = self.last
        again = last is not None and timestep > last.timestep and (schedule is None or timestep == self._first)
        if last is None or schedule is not self._schedule or again:
            sampling, step, turn, self._first = last.sampling + 1 if last else 0, 0, 0, timestep
        elif timestep == last.timestep:
            sampling, step, turn = last.sampling, last.step, last.turn + (forward.timestep is not None)
        else:
            sampling, step, turn = last.sampling, last.step + 1, 0
        copies = _copies(forward.arguments) if guidance.batched is None else {}
        text = forward.arguments.get("encoder_hidden_states")
        identity = text.data_ptr() if isinstance(text, Tensor) else None
        timed = forward.timestep is not None
        self.last = ForwardLabel(sampling, step, turn, timestep, guidance, copies, identity, forward.batch, timed)
        self._by_forward[forward.number] = self.last
        self._schedule = schedule

    def parts(self) -> dict[int, GuidanceParts]:
        """Return which parts of the guidance each forward pass computes."""
        texts: dict[tuple[int, int], list[int | None]] = {}
        for label in self._by_forward.values():
            if label.guidance.driven:
                seen = texts.setdefault((label.sampling, label.step), [])
                seen += [label.text] if label.text not in seen else []
        found: dict[int, GuidanceParts] = {}
        batched: dict[int, bool] = {}
        for number, label in self._by_forward.items():
            in_step = texts.get((label.sampling, label.step), [])
            if len(in_step) == 2:
                found[number] = ("cond",) if label.text == in_step[0] else ("uncond",)
                continue
            if label.sampling not in batched:
                batched[label.sampling] = self._batched(label)
            order: GuidanceParts = ("cond", "uncond") if label.guidance.prompt_first else ("uncond", "cond")
            own: GuidanceParts = order if batched[label.sampling] else ("cond",)
            found[number] = (*own, "perturbed") if label.guidance.perturbed else own
        return found

    def _batched(self, label: ForwardLabel) -> bool:
        """Whether guidance shares a batch: its latents are identical copies in every pass of the sampling run."""
        if label.guidance.batched is not None:
            return label.guidance.batched
        count = 3 if label.guidance.perturbed else 2
        own = [p.copies.get(count) for p in self._by_forward.values() if p.sampling == label.sampling]
        return label.guidance.driven and all(copied is not None and bool(copied) for copied in own)


def item_labels(
    images: int | None, first_item: int, items_per_sample: int, batch: int, parts: int
) -> tuple[Int[np.ndarray, " batch"], Int[np.ndarray, " batch"]]:
    """Return the part of the guidance of each item of a call, and its number among the samples of that part.

    Args:
        images: items of the forward pass; None if unknown.
        first_item: see `AttentionCall`.
        items_per_sample: see `AttentionCall`.
        batch: items of the call.
        parts: number of parts of the guidance in the forward pass.

    >>> item_labels(images=4, first_item=0, items_per_sample=1, batch=4, parts=2)
    (array([0, 0, 1, 1]), array([0, 1, 0, 1]))
    """
    item = (first_item + np.arange(batch)) // items_per_sample
    size = max(1, (images or batch) // parts)
    return np.minimum(item // size, parts - 1), item % size


def _copies(arguments: Mapping[str, Any]) -> dict[int, Tensor]:
    """Return for 2 and 3 whether the latents are that number of identical copies; no entry if not divisible by it."""
    latents = next((value for value in arguments.values() if isinstance(value, Tensor) and value.ndim > 2), None)
    if latents is None:
        return {}
    chunks = {count: latents.detach().chunk(count) for count in (2, 3) if len(latents) % count == 0}
    return {count: torch.stack([(own[0] == other).all() for other in own[1:]]).all() for count, own in chunks.items()}


def _to_float(timestep: Tensor | float | None) -> float:
    if timestep is None:
        return 0.0
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)  # a given frame's token has 0
