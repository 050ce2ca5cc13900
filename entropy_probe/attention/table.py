"""The table that a capture returns: one row per attention call, batch item and head."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.attention.branches import Branch
from entropy_probe.attention.call import AttentionCall, Forward
from entropy_probe.attention.calling_pipeline import CallingPipeline
from entropy_probe.attention.labels import ForwardLabels
from entropy_probe.attention.measuring import PARTS, STATISTICS, CallStatistics
from entropy_probe.attention.roles import VISUAL
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.views import Viewed

COLUMNS = (
    "sampling", "sample", "step", "evaluation", "timestep", "branch", "layer", "kind", "axes", "head", "tokens",
    "query_tokens", "key_tokens", "training_tokens", "scale", "scale_factor", "rows", "entropy", "entropy_std",
    "entropy_se", "logit_variance", "attention_distance", *PARTS,
)  # fmt: skip
"""Columns of a table, also of one without rows."""

_PER_CALL = (
    "layer", "kind", "axes", "tokens", "query_tokens", "key_tokens", "scale", "scale_factor", "rows",
)  # fmt: skip
"""Columns that are the same for all items and heads of a call."""

_TEXTS = ("branch", "layer", "kind", "axes")

_EMPTY = pd.DataFrame(
    {
        name: pd.Series(dtype="float32" if name in STATISTICS else "object" if name in _TEXTS else "float64")
        for name in COLUMNS
    }
)
"""The table without rows."""


class Captured(Viewed):
    """The measurements of one `capture`, in the order of the model's calls; behaves like the table `frame()`.

    Attributes and methods of a data frame that this class does not define are those of `frame()`.

    Attributes:
        unmeasured: number of calls that could not be measured, by layer and reason.

    >>> captured = Captured()
    >>> "entropy" in captured, len(captured), captured.empty
    (True, 0, True)
    """

    def __init__(self) -> None:
        self.unmeasured: Counter[tuple[str, str]] = Counter()
        self._calls: list[CallStatistics] = []
        self._open: list[CallStatistics] = []
        self._labels = ForwardLabels()
        self._table: pd.DataFrame | None = None

    def __repr__(self) -> str:
        # Without `settle`, which may raise that the model has diverged while another error is being examined.
        calls = self._calls + self._open
        return f"Captured({len(calls)} measurements of {len({call.layer for call in calls})} layers)"

    def __len__(self) -> int:
        return len(self.frame())

    def __getitem__(self, key: Any) -> Any:
        """Return a column, columns, or the rows of a mask, as `frame()[key]` does."""
        return self.frame()[key]

    def __contains__(self, column: object) -> bool:
        """Return whether the table has a column."""
        return column in COLUMNS

    def __iter__(self) -> Iterator[str]:
        """Iterate over the columns, as over a data frame."""
        return iter(COLUMNS)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute or method of the table."""
        # Private names would make copy and pickle, which look for optional methods, measure the table.
        if name.startswith("_") or (not hasattr(pd.DataFrame, name) and name not in COLUMNS):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.frame(), name)

    @property
    def calls(self) -> list[CallStatistics]:
        """The statistics of every measured call."""
        return list(self._settled())

    @property
    def records(self) -> list[CallStatistics]:
        """Deprecated name of `calls`."""
        warnings.warn("Captured.records is deprecated: use Captured.calls", DeprecationWarning, stacklevel=2)
        return self.calls

    @property
    def untimed(self) -> bool:
        """Whether the last forward pass had no timestep."""
        return self._labels.last is not None and not self._labels.last.timed

    @property
    def step(self) -> int:
        """Number of the current sampling step."""
        return self._labels.last.turn.step if self._labels.last else 0

    @property
    def turn(self) -> tuple[int, int, int]:
        """Number of the current sampling run, of the evaluation in its step, and of the forward pass in that."""
        if self._labels.last is None:
            return 0, 0, 0
        turn = self._labels.last.turn
        return turn.sampling, turn.evaluation, turn.forward

    def entered(self, forward: Forward) -> bool:
        """Whether a forward pass has started."""
        return forward.number in self._labels

    def enter(self, forward: Forward, caller: CallingPipeline) -> None:
        """Start a forward pass and finish the previous one."""
        self.settle()
        self._labels.add(forward, caller)

    def add(self, call: CallStatistics) -> None:
        """Add a measured call of the current forward pass."""
        self._open.append(call)

    def settle(self) -> None:
        """Copy the statistics of the current forward pass to the host, in one copy per device.

        Raises:
            CaptureError: if the entropy of a row that counts is NaN.
        """
        calls, self._open = self._open, []
        if not calls:
            return
        self._table = None
        sizes = [call.batch * call.heads for call in calls]
        starts = [0, *itertools.accumulate(sizes)]
        values = on_host(calls)
        self._calls += [
            replace(
                call,
                storage=values,
                start=start,
                entropy_rows=None if call.entropy_rows is None else call.entropy_rows.cpu(),
            )
            for call, start in zip(calls, starts, strict=False)
        ]
        lost = values[0].isnan() & (values[-1] != 0)
        if lost.any():
            layer = calls[int(np.searchsorted(np.cumsum(sizes), int(lost.nonzero()[0]), side="right"))].layer
            raise CaptureError(
                f"the queries or keys of layer {layer!r} contain infinities or NaN at step {self.step}: the model has "
                "diverged, or its dtype overflows (try float32 or bfloat16)"
            )

    def _settled(self) -> list[CallStatistics]:
        self.settle()
        return self._calls

    def frame(self) -> pd.DataFrame:
        """Return the table: one row per call, batch item and head; entropies in nats, distances in image diagonals.

        Columns:
            sampling: number of the sampling run.
            sample: number of the image or video in the batch. If the frames or positions of a video attend
                separately, they have the same number.
            step: number of the scheduler's step in the sampling run.
            evaluation: number of the evaluation in its step; schedulers of second order, as Heun's, have two.
            branch: see `Branch`; `unknown` if what the forward pass received does not show it.
            scale_factor: g under which the call was measured.
            entropy_se: standard error of `entropy` due to the choice of rows; 0 if all rows were measured.
            image_mass, mass_entropy, image_entropy, text_entropy: parts of a joint attention whose image tokens are
                located, see `statistics.PartMeans`; NaN otherwise. All its statistics are over the rows of the image.
        """
        calls = self._settled()
        if self._table is None:
            self._table = self._tabulate(calls) if calls else _EMPTY
        return self._table.copy()

    def _tabulate(self, calls: Sequence[CallStatistics]) -> pd.DataFrame:
        items = self._labels.items()
        labels = [self._labels[call.forward] for call in calls]
        cells = [call.batch * call.heads for call in calls]
        sample, branch = [], []
        for call in calls:
            own, numbers = items[call.forward].of_call(call.first_item, call.items_per_sample, call.batch)
            branch.append(np.repeat(own, call.heads))
            sample.append(np.repeat(numbers, call.heads))

        def each(values: Sequence[Any]) -> Any:
            return np.repeat(np.array(values), cells)

        values = torch.cat(list({id(call.storage): call.storage for call in calls}.values()), dim=1).numpy()
        columns = {
            "sampling": each([label.turn.sampling for label in labels]),
            "sample": np.concatenate(sample),
            "step": each([label.turn.step for label in labels]),
            "evaluation": each([label.turn.evaluation for label in labels]),
            "timestep": each([label.timestep for label in labels]),
            "branch": np.concatenate(branch),
            "head": np.concatenate([np.tile(np.arange(call.heads), call.batch) for call in calls]),
            "training_tokens": each(
                [np.nan if call.training_tokens is None else call.training_tokens for call in calls]
            ),
            **{name: each([getattr(call, name) for call in calls]) for name in _PER_CALL},
            **dict(zip(STATISTICS, values, strict=False)),
        }
        return pd.DataFrame({name: columns[name] for name in COLUMNS})

    def unknown_branches(self) -> dict[str, str]:
        """Return why branches are unknown, with how many forward passes or layers this concerns."""
        reasons = self._labels.unknown({call.forward for call in self._settled()})
        if unplaced := {call.layer for call in self._settled() if call.first_item is None}:
            reasons["they receive a part of the batch only, and which part could not be found"] = (
                f"{len(unplaced)} layers"
            )
        return reasons

    def summary(self) -> pd.DataFrame:
        """Return the mean entropy of every layer, nats, with its standard error over the images (NaN for one image)."""
        if not self._settled():
            return pd.DataFrame(columns=["layer", "kind", "entropy", "entropy_se", "images"])
        frame = self.frame()
        frame = frame[frame["scale_factor"] == 1.0]  # without the curves H(g)
        per_image = frame.groupby(["layer", "kind", "sampling", "sample"], sort=False)["entropy"].mean()
        by_layer = per_image.groupby(["layer", "kind"], sort=False)
        return pd.DataFrame(
            {"entropy": by_layer.mean(), "entropy_se": by_layer.sem(), "images": by_layer.size()}
        ).reset_index()

    def branch_items(self, call: AttentionCall | CallStatistics, branch: Branch) -> slice:
        """Return the batch items of a call that belong to a branch of the guidance; empty if there are none."""
        forward = call.forward if isinstance(call, CallStatistics) else call.forward.number
        batch = call.batch if isinstance(call, CallStatistics) else len(call.query)
        branches, _ = self._labels.items()[forward].of_call(call.first_item, call.items_per_sample, batch)
        own = [item for item in range(batch) if branches[item] == branch]
        return slice(own[0], own[-1] + 1) if own else slice(batch, batch)

    def entropy_map(
        self, layer: str, step: int, sampling: int = 0, branch: Branch | None = None
    ) -> Float[Tensor, "batch heads grid_height grid_width"]:
        """Return the entropy of every token of a kept layer, laid out on the image, nats.

        Args:
            layer: name of the layer.
            step: number of the sampling step.
            sampling: number of the sampling run.
            branch: part of the guidance; by default the whole batch of the first forward pass of the step.

        Raises:
            InputError: if the rows of that layer and step were not kept (`capture(keep=..., keep_steps=...)`).
        """
        calls = [call for call in self._settled() if call.layer == layer and call.scale_factor == 1.0]
        for forward, group in itertools.groupby(calls, key=lambda call: call.forward):
            label = self._labels[forward]
            maps: dict[int | None, Tensor] = {}  # a layer may split its batch over several calls
            for call in group if (label.turn.step, label.turn.sampling) == (step, sampling) else ():
                if call.entropy_rows is not None and call.grid is not None:
                    rows = call.entropy_rows
                    own = rows if branch is None else rows[self.branch_items(call, branch)]
                    laid_out = own.reshape(*own.shape[:-1], call.grid.height, call.grid.width)
                    maps.setdefault(call.first_item, laid_out)
            together = torch.cat(list(maps.values())) if maps else torch.empty(0)
            if len(together):
                return together
        raise InputError(f"no rows of layer {layer!r} at step {step} were kept: {self._why_not_kept(layer, calls)}")

    def _why_not_kept(self, layer: str, calls: Sequence[CallStatistics]) -> str:
        if calls and all(call.entropy_rows is None for call in calls):
            return (
                f"capture with keep=[{layer!r}]. Only self-attention over an image has a map, and joint attention "
                "whose image tokens can be located"
            )
        kept = sorted({self._labels[call.forward].turn.step for call in calls if call.entropy_rows is not None})
        return f"kept steps are {', '.join(map(str, kept))}" if kept else "the layer was not measured"


def on_host(calls: Sequence[CallStatistics]) -> Float[Tensor, "statistics cells"]:
    """Return the values of calls on any devices next to each other, with one copy for each run on one device."""
    by_device = itertools.groupby((call.storage for call in calls), key=lambda storage: storage.device)
    return torch.cat([torch.cat(list(group), dim=1).cpu() for _, group in by_device], dim=1)


def visual(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table whose number of tokens grows with the image.

    >>> visual(pd.DataFrame({"kind": ["self", "cross"], "axes": "spatial"}))["kind"].tolist()
    ['self']
    """
    return frame[frame["kind"].isin(VISUAL) & (frame["axes"] != "temporal")]
