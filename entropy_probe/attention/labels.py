"""Label the forward passes of a denoiser: sampling run, step, and the guidance branch of each batch item.

A label is derived from what each pass received, compared with the other passes of the same evaluation and with the
texts of the pipeline that runs it. Nothing is decided once for a whole sampling run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from entropy_probe.attention.branches import Branch, Items, Part, is_negative, name_parts
from entropy_probe.attention.call import Forward
from entropy_probe.attention.calling_pipeline import NO_TEXT, CallingPipeline, flat
from entropy_probe.attention.fingerprints import SAME, FingerprintCache, Rows, agree, fingerprint, on_host
from entropy_probe.attention.forwards import TIMESTEPS, one_timestep
from entropy_probe.attention.steps import Turn, TurnCounter

PROMPT_FIRST = frozenset(
    f"{name}Pipeline"
    for name in ("DiT", "Lumina", "LuminaText2Img", "OmniGen", "StableCascadeDecoder", "StableCascadePrior", "ZImage")
)
"""Pipelines of diffusers whose guided batch has the prompts first. In all others the empty prompts come first.
This decides only if the texts cannot be compared with those of the pipeline."""


@dataclass(frozen=True)
class ForwardLabel:
    """The place of a forward pass, and the data that its branches are determined from.

    Attributes:
        turn: its place in the sampling.
        timestep: as the denoiser received it; 0 if it received none.
        timed: the denoiser received a timestep.
        batch: items of the forward pass; None if unknown.
        images: number of images that the pipeline samples; None if unknown.
        pipeline: class name of the pipeline; None without one.
        conventional: see `CallingPipeline`.
        prompt_first: see `PROMPT_FIRST`.
        guided: the pipeline, which runs this pass, reports classifier-free guidance.
        degrades: the pipeline has degraded latents.
        latents: fingerprints of the items of the latents; None if they cannot be read.
        texts: fingerprints of everything else that the pass received, by argument; one or several rows for each item.
        negative: fingerprints of the pipeline's negative prompt.
        positive: fingerprints of the pipeline's prompt, which may contain the negative prompt.
    """

    turn: Turn
    timestep: float
    timed: bool
    batch: int | None
    images: int | None
    pipeline: str | None
    conventional: bool
    prompt_first: bool
    guided: bool
    degrades: bool
    latents: Rows | None
    texts: Mapping[str, Rows]
    negative: Sequence[Rows]
    positive: Sequence[Rows]


@dataclass(frozen=True)
class ItemLabels:
    """The labels of the batch items of a forward pass.

    Attributes:
        branch: branch of each item; empty if the number of items is unknown. They are all `cond` then.
        sample: number of the image that each item belongs to.
    """

    branch: tuple[Branch, ...]
    sample: tuple[int, ...]

    def of_call(
        self, first_item: int | None, items_per_sample: int | Fraction, batch: int
    ) -> tuple[list[Branch], list[int]]:
        """Return the branch and the sample of each item of a call.

        Args:
            first_item: see `AttentionCall`.
            items_per_sample: see `AttentionCall`.
            batch: items of the call.

        >>> ItemLabels(("uncond", "cond"), (0, 0)).of_call(first_item=1, items_per_sample=1, batch=1)
        (['cond'], [0])
        """
        if first_item is None or not self.branch:
            return ["cond" if not self.branch else "unknown"] * batch, list(range(batch))
        items = [int((first_item + number) // items_per_sample) % len(self.branch) for number in range(batch)]
        return [self.branch[item] for item in items], [self.sample[item] for item in items]


class ForwardLabels:
    """The labels of all forward passes seen so far, by the number of the pass.

    Attributes:
        last: the label of the latest forward pass; None before the first.
    """

    def __init__(self) -> None:
        self.last: ForwardLabel | None = None
        self._by_forward: dict[int, ForwardLabel] = {}
        self._turns = TurnCounter()
        self._cache = FingerprintCache()
        self._items: dict[int, ItemLabels] | None = None

    def __contains__(self, forward: int) -> bool:
        return forward in self._by_forward

    def __getitem__(self, forward: int) -> ForwardLabel:
        return self._by_forward[forward]

    def add(self, forward: Forward, caller: CallingPipeline) -> None:
        """Add a forward pass of the denoiser, which has begun.

        Args:
            forward: the pass.
            caller: what the pipeline that runs it knows.
        """
        timestep = one_timestep(forward.timestep)
        turn = self._turns.add(timestep, getattr(caller.pipeline, "scheduler", None), caller.schedule)
        latents, others = _latents_and_others(forward.arguments)
        texts = {} if timestep is None else self._texts(others, forward.batch)
        self.last = ForwardLabel(
            turn=turn,
            timestep=timestep or 0.0,
            timed=timestep is not None,
            batch=forward.batch,
            images=caller.images,
            pipeline=None if caller.pipeline is None else type(caller.pipeline).__name__,
            conventional=caller.conventional,
            prompt_first=any(kind.__name__ in PROMPT_FIRST for kind in type(caller.pipeline).__mro__),
            guided=caller.conventional and bool(getattr(caller.pipeline, "do_classifier_free_guidance", False)),
            degrades=caller.degrades,
            latents=None if timestep is None else fingerprint(latents),
            texts=texts,
            negative=self._fingerprints(caller.negative) if texts else (),
            positive=self._fingerprints(caller.positive) if texts else (),
        )
        self._by_forward[forward.number] = self.last
        self._items = None

    def _texts(self, arguments: Mapping[str, Any], batch: int | None) -> dict[str, Rows]:
        found = {
            name: self._cache.fingerprint(value)
            for name, value in arguments.items()
            if isinstance(value, Tensor) or (isinstance(value, list) and len(value) == batch)
        }
        return {name: rows for name, rows in found.items() if rows is not None and batch and len(rows) % batch == 0}

    def _fingerprints(self, values: Sequence[Any]) -> list[Rows]:
        return [rows for rows in map(self._cache.fingerprint, values) if rows is not None]

    def items(self) -> dict[int, ItemLabels]:
        """Return the labels of the items of each forward pass."""
        if self._items is None:
            self._items = self._labelled()
        return self._items

    def _labelled(self) -> dict[int, ItemLabels]:
        host = _on_host(list(self._by_forward.values()))
        copies = self._copies(host)
        found: dict[int, ItemLabels] = {}

        def evaluation(pair: tuple[int, ForwardLabel]) -> tuple[int, int, int]:
            turn = pair[1].turn
            return turn.sampling, turn.step, turn.evaluation

        for _, group in itertools.groupby(self._by_forward.items(), key=evaluation):
            passes = [(number, label, self._count(label, copies)) for number, label in group]
            parts = [part for number, label, count in passes for part in _parts(number, label, count or 1, host)]
            known = all(count is not None for _, _, count in passes)
            names: Iterator[Branch]
            if not passes[0][1].timed:  # without a step, parts cannot be compared
                names = itertools.repeat("cond" if all(count == 1 for _, _, count in passes) else "unknown")
            else:
                names = iter(name_parts(parts)) if known else itertools.repeat("unknown")
            for number, label, count in passes:
                own: list[Branch] = [next(names) for _ in range(count or 1)]
                found[number] = _item_labels(own, label.batch)
        return found

    def unknown(self, forwards: Set[int]) -> dict[str, str]:
        """Return why the branch of some forward passes is unknown, and the number of passes."""
        found: Counter[str] = Counter()
        items = self.items()
        for number in forwards:
            if "unknown" in items[number].branch:
                label = self._by_forward[number]
                found[
                    "the model ran without a pipeline; pass the pipeline, or run the model from it"
                    if label.pipeline is None
                    else f"the texts of its parts could not be found among the variables of {label.pipeline}. Give the "
                    "negative prompt a name that contains `negative`, or capture diffusers' own pipeline"
                ] += 1
        return {reason: f"{count} of {len(forwards)} forward passes" for reason, count in found.items()}

    def _copies(self, host: Mapping[int, Items]) -> dict[int, int | None]:
        """Return by sampling run how many identical copies the latents of every pass are; None if unknown.

        In a run of one evaluation, copies may also be different prompts that start from the same noise.
        """
        found: dict[int, int | None] = {}
        by_run = itertools.groupby(self._by_forward.values(), key=lambda label: label.turn.sampling)
        for run, group in by_run:
            labels = list(group)
            latents = [None if label.latents is None else host[id(label.latents)] for label in labels]
            counts = (n for n in (3, 2) if all(own is not None and _are_copies(own, n) for own in latents))
            count = next(counts, 1)
            once = len({label.turn for label in labels}) == 1
            guess = count > 1 and (once or not labels[0].conventional)
            found[run] = None if guess and labels[0].texts else count
        return found

    def _count(self, label: ForwardLabel, copies: Mapping[int, int | None]) -> int | None:
        """Return the number of parts of a forward pass; None if it is unknown."""
        if label.batch is None:
            return 1
        if label.images is None:
            return copies[label.turn.sampling]
        return label.batch // label.images if label.batch % label.images == 0 else None


def _latents_and_others(arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the latents among the arguments of a forward pass, and the arguments that may be texts."""
    sample = next(
        (
            name
            for name, value in arguments.items()
            if (isinstance(value, Tensor) and value.ndim > 2) or (isinstance(value, list) and len(value) > 0)
        ),
        None,
    )
    others = [pair for name, value in arguments.items() if name != sample for pair in flat(name, value)]
    texts = {name: value for name, value in others if name not in TIMESTEPS and not NO_TEXT.search(name)}
    return arguments.get(sample or ""), texts


def _on_host(labels: Sequence[ForwardLabel]) -> dict[int, Items]:
    """Return all fingerprints as arrays, by the identity of their tensors."""
    tensors = [
        rows
        for label in labels
        for rows in (label.latents, *label.texts.values(), *label.negative, *label.positive)
        if rows is not None
    ]
    return {id(rows): array for rows, array in zip(tensors, on_host(tensors), strict=True)}


def _parts(number: int, label: ForwardLabel, count: int, host: Mapping[int, Items]) -> list[Part]:
    """Return the parts of a forward pass."""
    texts = {name: np.split(host[id(rows)], count) for name, rows in label.texts.items()}
    latents = [None] * count if label.latents is None else np.split(host[id(label.latents)], count)
    negative = [host[id(rows)] for rows in label.negative]
    positive = [host[id(rows)] for rows in label.positive]
    return [
        Part(
            forward=number,
            conventional=label.conventional,
            prompt_first=label.prompt_first,
            latents=latents[part],
            texts={name: own[part] for name, own in texts.items()},
            negative=is_negative([own[part] for own in texts.values()], negative, positive),
            guided=label.guided or (label.conventional and bool(negative)),
            degrades=label.degrades,
        )
        for part in range(count)
    ]


def _are_copies(latents: Items, count: int) -> bool:
    if len(latents) % count:
        return False
    first, *others = np.split(latents, count)
    return all(bool(agree(first, other, SAME).all()) for other in others)


def _item_labels(parts: Sequence[Branch], batch: int | None) -> ItemLabels:
    if batch is None:
        return ItemLabels((), ())
    size = batch // len(parts)
    branch = tuple(name for name in parts for _ in range(size))
    return ItemLabels(branch, tuple(number % size for number in range(batch)))
