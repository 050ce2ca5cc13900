"""What a capture holds, and its views as tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from entropy_probe.attention.grid import TokenGrid
from entropy_probe.attention.interception import Forward, Place
from entropy_probe.attention.roles import VISUAL, Axes, Kind
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.statistics import PartMeans, RowMeans
from entropy_probe.views import Viewed


@dataclass(frozen=True)
class Measured:
    """What was measured: the same in every step, unless the number of rows changes.

    Attributes:
        batch: items of the call.
        heads: of the layer.
    """

    place: Place
    layer: str
    kind: Kind
    axes: Axes
    tokens: int
    query_tokens: int
    key_tokens: int
    training_tokens: int | None
    scale: float
    scale_factor: float
    rows: int
    grid: TokenGrid | None
    batch: int
    heads: int


@dataclass(frozen=True)
class Found:
    """What was found of one call, still on the model's device: reading it now would make the host wait.

    Attributes:
        measured: what it was found of.
        means: over the rows.
        entropy_se: standard error of the mean entropy.
        split: of a joint attention.
        counted: whether an item has a row that may attend to anything; None where all have.
        entropy_rows: row by row, where they are kept.
    """

    measured: Measured
    means: RowMeans
    entropy_se: Float[Tensor, "batch heads"]
    split: PartMeans | None
    counted: Bool[Tensor, "batch heads"] | None
    entropy_rows: Float[Tensor, "batch heads tokens"] | None

    def numbers(self) -> tuple[Float[Tensor, "batch heads"] | None, ...]:
        """As `NUMBERS`."""
        means, split = self.means, self.split
        parts = (None,) * len(PARTS) if split is None else tuple(getattr(split, name) for name in PARTS)
        own = (means.entropy, means.entropy_std, self.entropy_se, means.logit_variance, means.attention_distance)
        return own + parts


PARTS = tuple(part.name for part in fields(PartMeans))
NUMBERS = ("entropy", "entropy_std", "entropy_se", "logit_variance", "attention_distance", *PARTS)
"""What is kept of a call, of every batch item and head."""


@dataclass(frozen=True)
class Record(Measured):
    """One attention call of a forward, by its number, reduced to a value per batch item and head."""

    forward: int
    means: RowMeans
    entropy_se: Float[Tensor, "batch heads"]
    split: PartMeans | None
    entropy_rows: Float[Tensor, "batch heads tokens"] | None


@dataclass(frozen=True)
class Sheet:
    """The calls of one forward, on the host.

    Attributes:
        forward: number of the run of the denoiser.
        calls: what was measured, in order.
        numbers: a row for each of `NUMBERS`; the calls side by side, each item by item, head by head.
        kept: the rows of the calls, by their number, of which these are kept.
    """

    forward: int
    calls: tuple[Measured, ...]
    numbers: Float[Tensor, "numbers cells"]
    kept: dict[int, Float[Tensor, "batch heads tokens"]]

    def records(self) -> Iterator[Record]:
        """Call by call."""
        start = 0
        for number, call in enumerate(self.calls):
            own = self.numbers[:, start : start + call.batch * call.heads].reshape(-1, call.batch, call.heads)
            start += call.batch * call.heads
            entropy, deviation, error, variance, distance, *parts = own
            reach = None if distance.isnan().all() else distance
            yield Record(
                **vars(call),
                forward=self.forward,
                means=RowMeans(entropy, deviation, variance, reach),
                entropy_se=error,
                split=None if torch.stack(parts).isnan().all() else PartMeans(*parts),
                entropy_rows=self.kept.get(number),
            )


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
    images: int | None


Branch = Literal["cond", "uncond", "perturbed"]
"""What is computed for the prompt, for its absence, and for the prompt with some attention disturbed (PAG)."""

_Parts = tuple[Branch, ...]
"""What a forward computes, in the order of its batch."""


COLUMNS = (
    "sampling", "sample", "step", "timestep", "branch", "layer", "kind", "axes", "head", "tokens", "query_tokens",
    "key_tokens", "training_tokens", "scale", "scale_factor", "rows", "entropy", "entropy_std", "entropy_se",
    "logit_variance", "attention_distance", *PARTS,
)  # fmt: skip
"""Of a frame, also of one without rows."""

_TOLD = ("layer", "kind", "axes", "tokens", "query_tokens", "key_tokens", "scale", "scale_factor", "rows")
"""Columns that are the same for all items and heads of a call."""


@dataclass
class Captured(Viewed):
    """The measurements of one `capture`, in the order in which the model made the calls."""

    _sheets: list[Sheet] = field(default_factory=list)
    _open: list[Found] = field(default_factory=list)
    _known: dict[Measured, Measured] = field(default_factory=dict)
    _moments: dict[int, _Moment] = field(default_factory=dict)
    _last: _Moment | None = None
    _forward: Forward | None = None
    _schedule: object = None
    _first: float = 0.0

    def __repr__(self) -> str:
        # Not settled: that may say that the model has diverged, where somebody looks for another cause.
        calls = [call for sheet in self._sheets for call in sheet.calls] + [found.measured for found in self._open]
        return f"Captured({len(calls)} measurements of {len({call.layer for call in calls})} layers)"

    @property
    def records(self) -> list[Record]:
        """Every measured call."""
        return [record for sheet in self._settled() for record in sheet.records()]

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
        self.settle()
        timestep = _to_float(forward.timestep)
        last = self._last
        again = last is not None and timestep > last.timestep and (schedule is None or timestep == self._first)
        if last is None or schedule is not self._schedule or again:
            sampling, step, turn, self._first = last.sampling + 1 if last else 0, 0, 0, timestep
        elif timestep == last.timestep:
            sampling, step, turn = last.sampling, last.step, last.turn + (forward.timestep is not None)
        else:
            sampling, step, turn = last.sampling, last.step + 1, 0
        self._forward = forward
        copies = forward.copies if guidance.batched is None else {}
        moment = _Moment(sampling, step, turn, timestep, guidance, copies, forward.text, forward.batch)
        self._moments[forward.number] = self._last = moment
        self._schedule = schedule

    def add(self, found: Found) -> None:
        """Note a measured call of the running forward."""
        self._open.append(found)

    def settle(self) -> None:
        """Bring what was found of the running forward to the host: one copy from each device, and one for kept rows.

        Raises:
            CaptureError: where the entropy of a row that counts is NaN.
        """
        found, self._open = self._open, []
        if not found or self._forward is None:
            return
        *numbers, counted = on_host(found)
        calls = tuple(self._known.setdefault(own.measured, own.measured) for own in found)
        kept = {i: own.entropy_rows.cpu() for i, own in enumerate(found) if own.entropy_rows is not None}
        self._sheets.append(Sheet(self._forward.number, calls, torch.stack(numbers), kept))
        lost = numbers[0].isnan() & (counted != 0)
        if lost.any():
            ends = np.cumsum([call.batch * call.heads for call in calls])
            layer = calls[int(np.searchsorted(ends, int(lost.nonzero()[0]), side="right"))].layer
            raise CaptureError(
                f"the queries or keys of layer {layer!r} hold infinities or NaN at step {self.step}: the model has "
                "diverged, or its dtype overflows (try float32 or bfloat16)"
            )

    def _settled(self) -> list[Sheet]:
        self.settle()
        return self._sheets

    def frame(self) -> pd.DataFrame:
        """A row per call x batch item x head; entropies in nats, distances in image diagonals.

        `branch` is `uncond` or `cond`, told apart by their place in one batched call or, where a step takes two, by
        their order: the pipelines of diffusers run the prompt first; `perturbed` is what perturbed-attention guidance
        adds to the batch. `sample` counts the images, or videos, of a batch:
        the frames, or places, of a video that are attended to apart share it. `sampling` counts the runs of the
        pipeline. `scale_factor` is the g under which the call was measured. `entropy_se` is the standard
        error of `entropy` that comes from the choice of rows, 0 where all were measured. The rows of a joint attention
        are those of its image tokens, where the model has told which these are; `image_mass`, `mass_entropy`,
        `image_entropy` and `text_entropy` then take it apart (see `statistics.PartMeans`), and are NaN elsewhere.
        """
        sheets, branches = self._settled(), self._branches()
        columns = [self._columns(sheet, branches[sheet.forward]) for sheet in sheets]
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

    def _columns(self, sheet: Sheet, parts: _Parts) -> dict[str, Any]:
        calls, moment = sheet.calls, self._moments[sheet.forward]
        cells = [call.batch * call.heads for call in calls]

        def each(values: Iterable[Any]) -> Any:
            return np.repeat(np.array(list(values)), cells)

        own = [_parts(moment.images, call.place, call.batch, len(parts)) for call in calls]
        heads = [call.heads for call in calls]
        told = {name: each(getattr(call, name) for call in calls) for name in _TOLD}
        training = each(np.nan if call.training_tokens is None else call.training_tokens for call in calls)
        columns = {
            "sampling": np.full(sum(cells), moment.sampling),
            "sample": np.concatenate([np.repeat(sample, n) for (_, sample), n in zip(own, heads, strict=True)]),
            "step": np.full(sum(cells), moment.step),
            "timestep": np.full(sum(cells), moment.timestep),
            "branch": np.array(parts)[np.concatenate([np.repeat(p, n) for (p, _), n in zip(own, heads, strict=True)])],
            "head": np.concatenate([np.tile(np.arange(call.heads), call.batch) for call in calls]),
            "training_tokens": training,
            **told,
            **dict(zip(NUMBERS, sheet.numbers.numpy(), strict=True)),
        }
        return {name: columns[name] for name in COLUMNS}

    def summary(self) -> pd.DataFrame:
        """Mean entropy of every layer, nats, with the standard error over the images (NaN for a single image)."""
        if not self._settled():
            return pd.DataFrame(columns=["layer", "kind", "entropy", "entropy_se", "images"])
        frame = self.frame()
        frame = frame[frame["scale_factor"] == 1.0]  # not the curves H(g)
        per_image = frame.groupby(["layer", "kind", "sampling", "sample"], sort=False)["entropy"].mean()
        by_layer = per_image.groupby(["layer", "kind"], sort=False)
        return pd.DataFrame(
            {"entropy": by_layer.mean(), "entropy_se": by_layer.sem(), "images": by_layer.size()}
        ).reset_index()

    def items(self, forward: int, place: Place, batch: int, branch: Branch) -> slice:
        """Which items of a call are of a branch of the guidance; none, where it does not compute that.

        Args:
            forward: number of the forward.
            place: where the items of the call stand in its batch.
            batch: items of the call.
            branch: `cond`, `uncond` or `perturbed`.
        """
        parts = self._branches()[forward]
        part, _ = _parts(self._moments[forward].images, place, batch, len(parts))
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
        there = [
            (sheet.forward, call, sheet.kept.get(number))
            for sheet in self._settled()
            for number, call in enumerate(sheet.calls)
            if call.layer == layer and call.scale_factor == 1.0
        ]
        for forward, calls in itertools.groupby(there, key=lambda one: one[0]):
            moment = self._moments[forward]
            found: dict[int, Tensor] = {}  # the first call for every item: a layer may attend for a few at a time
            for _, call, rows in calls if (moment.step, moment.sampling) == (step, sampling) else ():
                if rows is not None and call.grid is not None:
                    own = rows if branch is None else rows[self.items(forward, call.place, len(rows), branch)]
                    laid_out = own.reshape(*own.shape[:-1], call.grid.height, call.grid.width)
                    found.setdefault(call.place.first, laid_out)
            together = torch.cat(list(found.values())) if found else torch.empty(0)
            if len(together):
                return together
        if there and all(rows is None for _, _, rows in there):
            why = (
                f"capture with keep=[{layer!r}]; only self-attention over an image has a map, and joint attention of "
                "which the model tells where the image stands"
            )
        else:
            steps = sorted({self._moments[forward].step for forward, _, rows in there if rows is not None})
            why = f"kept are its steps {', '.join(map(str, steps))}" if steps else "no such layer was measured"
        raise InputError(f"no rows of layer {layer!r} at step {step} were kept: {why}")


def on_host(found: Sequence[Found]) -> Float[Tensor, "numbers cells"]:
    """What `_side_by_side` makes of calls on any devices, by one copy for each run of calls on the same."""
    by_device = itertools.groupby(found, key=lambda own: own.entropy_se.device)
    return torch.cat([_side_by_side(list(own)).cpu() for _, own in by_device], dim=1)


def _side_by_side(found: Sequence[Found]) -> Float[Tensor, "numbers cells"]:
    """`NUMBERS` of calls on one device, NaN where there are none, and last whether they count."""
    missing = [torch.full_like(own.entropy_se, torch.nan) for own in found]
    columns = [*zip(*(own.numbers() for own in found), strict=True), [own.counted for own in found]]
    return torch.stack([_in_a_row(column, missing) for column in columns])


def _in_a_row(
    column: Sequence[Shaped[Tensor, "_ _"] | None], missing: Sequence[Float[Tensor, "_ _"]]
) -> Float[Tensor, " cells"]:
    """A column of several calls, one after the other, in float32."""
    both = zip(column, missing, strict=True)
    return torch.cat([(other if own is None else own).flatten().float() for own, other in both])


def visual(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame whose attention grows with the image."""
    return frame[frame["kind"].isin(VISUAL) & (frame["axes"] != "temporal")]


def _parts(
    images: int | None, place: Place, batch: int, parts: int
) -> tuple[Int[np.ndarray, " batch"], Int[np.ndarray, " batch"]]:
    """For each item of a call, its part of the guidance and its number among the images or videos of that part."""
    item = (place.first + np.arange(batch)) // place.share
    size = max(1, (images or batch) // parts)
    return np.minimum(item // size, parts - 1), item % size


def _to_float(timestep: Tensor | float | None) -> float:
    if timestep is None:
        return 0.0
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)  # a given frame's token has 0
