"""What a capture holds, and its views as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_probe.capture.calls import AttentionCall, Forward, Place
from entropy_probe.capture.grid import TokenGrid
from entropy_probe.capture.role import VISUAL, Axes, Kind
from entropy_probe.errors import InputError
from entropy_probe.statistics import PartMeans, RowMeans
from entropy_probe.views import Viewed


@dataclass(frozen=True)
class Record:
    """One attention call, reduced to a value per batch item and head; tensors stay on the model's device."""

    forward: Forward
    place: Place
    layer: str
    kind: Kind
    axes: Axes
    tokens: int
    query_tokens: int
    key_tokens: int
    training_tokens: int | None
    scale: float
    multiplier: float
    rows: int
    means: RowMeans
    entropy_se: Float[Tensor, "batch heads"]
    split: PartMeans | None
    grid: TokenGrid | None
    entropy_rows: Float[Tensor, "batch heads tokens"] | None


@dataclass(frozen=True)
class Guidance:
    """What a pipeline says of its guidance.

    Attributes:
        batched: whether the prompt and its absence share a batch; None where only the batch itself can tell.
        prompt_first: the prompt stands before its absence there.
        perturbed: behind them, the prompt stands once more, for perturbed-attention guidance.
        driven: a pipeline runs the denoiser; nothing is told apart without.
    """

    batched: bool | None
    prompt_first: bool
    perturbed: bool
    driven: bool


@dataclass(frozen=True)
class _Moment:
    """Where in the sampling a forward stands."""

    sampling: int
    step: int
    turn: int
    timestep: float
    guidance: Guidance
    copies: Mapping[int, Tensor]
    text: int | None


Branch = Literal["cond", "uncond", "perturbed"]
"""What is computed for the prompt, for its absence, and for the prompt with some attention disturbed (PAG)."""

_Parts = tuple[Branch, ...]
"""What a forward computes, in the order of its batch."""


COLUMNS = (
    "sampling", "sample", "step", "timestep", "branch", "layer", "kind", "axes", "head", "tokens", "query_tokens",
    "key_tokens", "training_tokens", "scale", "multiplier", "rows", "entropy", "entropy_std", "entropy_se",
    "logit_variance", "attention_distance", *(part.name for part in fields(PartMeans)),
)  # fmt: skip
"""Of a frame, also of one without rows."""


@dataclass
class Captured(Viewed):
    """The measurements of one `capture`, in the order in which the model made the calls."""

    records: list[Record] = field(default_factory=list)
    _moments: dict[int, _Moment] = field(default_factory=dict)
    _last: _Moment | None = None
    _schedule: object = None
    _first: float = 0.0

    def __repr__(self) -> str:
        return f"Captured({len(self.records)} measurements of {len({r.layer for r in self.records})} layers)"

    @property
    def step(self) -> int:
        """Number of the sampling step that is running."""
        return self._last.step if self._last else 0

    @property
    def part(self) -> tuple[int, int]:
        """Which sampling is running, and which forward of its step: guidance may take two to a step."""
        return (self._last.sampling, self._last.turn) if self._last else (0, 0)

    def entered(self, forward: Forward) -> bool:
        """Whether that forward has been noted."""
        return forward.number in self._moments

    def enter(self, forward: Forward, guidance: Guidance, schedule: object = None) -> None:
        """Note a forward of the denoiser.

        A new schedule begins a new sampling, and so does a return to the first timestep of the same; without a
        schedule, a timestep that rises does.
        """
        timestep = _to_float(forward.timestep)
        last = self._last
        again = last is not None and timestep > last.timestep and (schedule is None or timestep == self._first)
        if last is None or schedule is not self._schedule or again:
            sampling, step, turn, self._first = last.sampling + 1 if last else 0, 0, 0, timestep
        elif timestep == last.timestep:
            sampling, step, turn = last.sampling, last.step, last.turn + (forward.timestep is not None)
        else:
            sampling, step, turn = last.sampling, last.step + 1, 0
        moment = _Moment(sampling, step, turn, timestep, guidance, forward.copies, forward.text)
        self._moments[forward.number] = self._last = moment
        self._schedule = schedule

    def add(self, record: Record) -> None:
        """Note a measured call."""
        self.records.append(record)

    def frame(self) -> pd.DataFrame:
        """A row per call x batch item x head; entropies in nats, distances in image diagonals.

        `branch` is `uncond` or `cond`, told apart by their place in one batched call or, where a step takes two, by
        their order: the pipelines of diffusers run the prompt first; `perturbed` is what perturbed-attention guidance
        adds to the batch. `sample` counts the images, or videos, of a batch:
        the frames, or places, of a video that are attended to apart share it. `sampling` counts the runs of the
        pipeline. `multiplier` is the g under which the call was measured. `entropy_se` is the standard
        error of `entropy` that comes from the choice of rows, 0 where all were measured. The rows of a joint attention
        are those of its image tokens, where the model has told which these are; `image_mass`, `mass_entropy`,
        `image_entropy` and `text_entropy` then take it apart (see `statistics.PartMeans`), and are NaN elsewhere.
        """
        branches = self._branches()
        columns = [self._columns(record, branches[record.forward.number]) for record in self.records]
        if not columns:
            return pd.DataFrame(columns=list(COLUMNS))
        return pd.DataFrame({name: np.concatenate([own[name] for own in columns]) for name in columns[0]})

    def _branches(self) -> dict[int, _Parts]:
        """Which part of the guidance every forward is."""
        texts: dict[tuple[int, int], list[int | None]] = {}
        for moment in self._moments.values():
            if moment.guidance.driven:
                seen = texts.setdefault((moment.sampling, moment.step), [])
                seen += [moment.text] if moment.text not in seen else []
        found: dict[int, _Parts] = {}
        batched: dict[int, bool] = {}
        for number, moment in self._moments.items():
            in_step = texts.get((moment.sampling, moment.step), [])
            if len(in_step) == 2:
                found[number] = ("cond",) if moment.text == in_step[0] else ("uncond",)
                continue
            if moment.sampling not in batched:
                batched[moment.sampling] = self._batched(moment)
            order: _Parts = ("cond", "uncond") if moment.guidance.prompt_first else ("uncond", "cond")
            parts: _Parts = order if batched[moment.sampling] else ("cond",)
            found[number] = (*parts, "perturbed") if moment.guidance.perturbed else parts
        return found

    def _batched(self, moment: _Moment) -> bool:
        """Guided latents are there twice, beside perturbed ones three times; other prompts' differ after a step."""
        if moment.guidance.batched is not None:
            return moment.guidance.batched
        count = 3 if moment.guidance.perturbed else 2
        own = [m.copies.get(count) for m in self._moments.values() if m.sampling == moment.sampling]
        return moment.guidance.driven and all(copied is not None and bool(copied) for copied in own)

    def _columns(self, record: Record, parts: _Parts) -> dict[str, Any]:
        means = record.means
        batch, heads = means.entropy.shape
        moment = self._moments[record.forward.number]
        part, sample = _parts(record.forward, record.place, batch, len(parts))
        missing = torch.full_like(means.entropy, torch.nan)
        distance = missing if means.attention_distance is None else means.attention_distance
        split = record.split or PartMeans(missing, missing, missing, missing)

        def same(value: Any) -> Any:
            return np.full(batch * heads, value)

        return {
            "sampling": same(moment.sampling),
            "sample": np.repeat(sample, heads),
            "step": same(moment.step),
            "timestep": same(moment.timestep),
            "branch": np.repeat(np.array(parts)[part], heads),
            "layer": same(record.layer),
            "kind": same(record.kind),
            "axes": same(record.axes),
            "head": np.tile(np.arange(heads), batch),
            "tokens": same(record.tokens),
            "query_tokens": same(record.query_tokens),
            "key_tokens": same(record.key_tokens),
            "training_tokens": same(float("nan") if record.training_tokens is None else record.training_tokens),
            "scale": same(record.scale),
            "multiplier": same(record.multiplier),
            "rows": same(record.rows),
            "entropy": _numbers(means.entropy),
            "entropy_std": _numbers(means.entropy_std),
            "entropy_se": _numbers(record.entropy_se),
            "logit_variance": _numbers(means.logit_variance),
            "attention_distance": _numbers(distance),
            **{name: _numbers(values) for name, values in vars(split).items()},
        }

    def summary(self) -> pd.DataFrame:
        """Mean entropy of every layer, nats, with the standard error over the images (NaN for a single image)."""
        if not self.records:
            return pd.DataFrame(columns=["layer", "kind", "entropy", "entropy_se", "images"])
        frame = self.frame()
        frame = frame[frame["multiplier"] == 1.0]  # not the curves H(g)
        per_image = frame.groupby(["layer", "kind", "sampling", "sample"], sort=False)["entropy"].mean()
        by_layer = per_image.groupby(["layer", "kind"], sort=False)
        return pd.DataFrame(
            {"entropy": by_layer.mean(), "entropy_se": by_layer.sem(), "images": by_layer.size()}
        ).reset_index()

    def items(self, call: AttentionCall | Record, batch: int, branch: Branch) -> slice:
        """Which items of a call are of a branch of the guidance; none, where it does not compute that.

        Args:
            call: seen while this was captured.
            batch: items in the batch of the call.
            branch: `cond`, `uncond` or `perturbed`.
        """
        parts = self._branches()[call.forward.number]
        part, _ = _parts(call.forward, call.place, batch, len(parts))
        own = [item for item in range(batch) if parts[part[item]] == branch]
        return slice(own[0], own[-1] + 1) if own else slice(batch, batch)

    def entropy_map(
        self, layer: str, step: int, sampling: int = 0, branch: Branch | None = None
    ) -> Float[Tensor, "batch heads grid_height grid_width"]:
        """Entropy of every token of a kept layer, laid out on the image, nats.

        Args:
            layer: its name.
            step: of the sampling.
            sampling: which run of the pipeline.
            branch: of the guidance; the whole batch of the step's first forward if none.

        Raises:
            InputError: if the rows of that layer and step were not kept (`capture(keep=..., keep_steps=...)`).
        """
        there = [r for r in self.records if r.layer == layer and r.multiplier == 1.0]
        for record in there:
            moment, grid, rows = self._moments[record.forward.number], record.grid, record.entropy_rows
            if rows is None or grid is None or (moment.step, moment.sampling) != (step, sampling):
                continue
            own = rows if branch is None else rows[self.items(record, len(rows), branch)]
            if len(own):
                return own.reshape(*own.shape[:-1], grid.height, grid.width)
        if there and all(record.entropy_rows is None for record in there):
            why = (
                f"capture with keep=[{layer!r}]; only self-attention over an image has a map, and joint attention of "
                "which the model tells where the image stands"
            )
        else:
            steps = sorted({self._moments[r.forward.number].step for r in there if r.entropy_rows is not None})
            why = f"kept are its steps {', '.join(map(str, steps))}" if steps else "no such layer was measured"
        raise InputError(f"no rows of layer {layer!r} at step {step} were kept: {why}")


def visual(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame whose attention grows with the image."""
    return frame[frame["kind"].isin(VISUAL) & (frame["axes"] != "temporal")]


def _parts(
    forward: Forward, place: Place, batch: int, parts: int
) -> tuple[Int[np.ndarray, " batch"], Int[np.ndarray, " batch"]]:
    """For each item of a call, its part of the guidance and its number among the images or videos of that part."""
    item = (place.first + np.arange(batch)) // place.share
    size = max(1, (forward.batch or batch) // parts)
    return np.minimum(item // size, parts - 1), item % size


def _to_float(timestep: Tensor | float | None) -> float:
    if timestep is None:
        return 0.0
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)  # a given frame's token has 0


def _numbers(values: Tensor) -> Any:
    return values.float().flatten().cpu().numpy()
