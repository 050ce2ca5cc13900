"""Estimate the time and disk space of a sweep: measured at small sizes, and extrapolated to large ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch.overrides import TorchFunctionMode

from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.models import Size, size_multiple, takes_size, training_size
from entropy_probe.runs.grid import Grid, batches, select_shard
from entropy_probe.runs.sweeping import Sweep, extend, grid_prompts, sweep

LARGE = 4.0
"""Sizes of more pixels, relative to the training size, are not sampled."""

PROBES = (0.5, 1.0, 1.5, 2.0)
"""Sides, relative to the training size, that are sampled to forecast larger sizes."""

SAMPLED_ROWS = 256
"""Query rows that `auto` measures in a large image, about."""

REPEATS = 2
"""Cells that are timed at each size."""


@dataclass(frozen=True)
class Cost:
    """Measured cost of one cell.

    Attributes:
        pixels: pixels of the image.
        seconds: time.
        bytes: disk space for the table and the image.
        attention: the part of the time in which torch computed self-attention. 0 if it could not be seen.
    """

    pixels: int
    seconds: float
    bytes: int
    attention: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """Estimated time and disk space of the cells of one size.

    Attributes:
        size: (height, width) in pixels.
        cells: number of cells of this size.
        batches: number of batches.
        seconds: time for one cell, sampled alone. In a batch, it is at most this.
        bytes: disk space for the table and the image of one cell.
        error: relative error of the extrapolated time. It is measured by fitting all measured sizes but the largest
            one, which is then predicted. NaN if the size was measured.
    """

    size: Size
    cells: int
    batches: int
    seconds: float
    bytes: int
    error: float = math.nan


def forecast(
    pipeline: Any, *, prompts: Sequence[str] | None = None, sizes: Sequence[Size], seeds: Sequence[int] = (0,),
    batch: int = 8, shard: tuple[int, int] = (1, 1), **settings: Any,
) -> list[Forecast]:  # fmt: skip
    """Estimate time and disk space of a `sweep` with the same arguments, small sizes first. Nothing is kept.

    Sizes of more than `LARGE` times the pixels of the training size are not sampled. Their cost is extrapolated from
    smaller sizes; see `extrapolate`.

    Args:
        pipeline: a diffusers pipeline.
        prompts: texts; None for a pipeline without prompts.
        sizes: (height, width) in pixels.
        seeds: seeds of the initial noise.
        batch: see `sweep`.
        shard: see `sweep`.
        settings: further arguments of `sweep` (steps, guidance_scale, rows, ...).

    Raises:
        InputError: see `sweep`. Also if the memory is too small for a cell.

    >>> import entropy_probe as ep
    >>> estimates = forecast(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(9), steps=1)
    >>> [(estimate.size, estimate.cells) for estimate in estimates]
    [((32, 32), 9)]
    """
    prompts = grid_prompts(pipeline, prompts)
    grid = Grid.build(prompts, sizes, seeds, ["original"])
    cells, trained = list(grid.cells()), training_size(pipeline)
    parts = select_shard(list(batches(cells, batch, trained)), *shard)
    sizes_in_order = list(dict.fromkeys(cell.size for cell in cells))
    fixed = not takes_size(pipeline, settings.get("pipeline_kwargs") or {})
    small = [size for size in sizes_in_order if fixed or math.prod(size) <= LARGE * math.prod(trained)]
    start = {"prompts": prompts[:1], "seeds": [0], "progress": False}
    costs = _costs(pipeline, small, {**start, **settings})
    probes: list[Cost] = []
    if len(small) < len(sizes_in_order):  # with the rows of a large image, of which `auto` measures only some
        rows = {"rows": SAMPLED_ROWS} if settings.get("rows", "auto") == "auto" else {}
        probes = [*_costs(pipeline, _probe_sizes(pipeline, trained), {**start, **settings, **rows}).values()]
    forecasts = []
    for size in sizes_in_order:
        cost, error = (costs[size], math.nan) if size in costs else extrapolate(probes, math.prod(size))
        own = [part for part in parts if part[0].size == size]
        forecasts.append(Forecast(size, sum(map(len, own)), len(own), cost.seconds, cost.bytes, error))
    return forecasts


def extrapolate(costs: Sequence[Cost], pixels: int) -> tuple[Cost, float]:
    """Return the forecast cost of a larger image, and its relative error.

    The time of self-attention grows with the square of the tokens, all other time with their number; both have a
    constant part. Each is fitted to its own measured times, with non-negative weights and equal relative errors. If
    the time of attention is unknown, a polynomial of degree 2 is fitted to all of the time.

    >>> measured = [Cost(n, 1 + n + 0.1 * n**2, 10 * n, attention=0.1 * n**2) for n in (1, 2, 3, 4)]
    >>> cost, error = extrapolate(measured, 10)
    >>> round(cost.seconds, 6), cost.bytes, round(error, 6)
    (21.0, 100, 0.0)
    """
    known = sorted(costs, key=lambda cost: cost.pixels)
    last = known[-1]
    space = _fit([(cost.pixels, cost.bytes) for cost in known], pixels, (0, 1))
    seconds, attention = _fit_time(known, pixels)
    held_out, _ = _fit_time(known[:-1], last.pixels) if len(known) > 2 else (math.nan, 0.0)
    return Cost(pixels, seconds, round(space), attention), abs(held_out / last.seconds - 1)


def _fit_time(costs: Sequence[Cost], pixels: int) -> tuple[float, float]:
    """Return the time at a number of pixels, and its part for attention."""
    if not all(0 < cost.attention < cost.seconds for cost in costs):
        return _fit([(cost.pixels, cost.seconds) for cost in costs], pixels, (0, 1, 2)), 0.0
    attention = _fit([(cost.pixels, cost.attention) for cost in costs], pixels, (0, 2))
    rest = _fit([(cost.pixels, cost.seconds - cost.attention) for cost in costs], pixels, (0, 1))
    return rest + attention, attention


def _fit(points: Sequence[tuple[int, float]], pixels: int, powers: Sequence[int]) -> float:
    """Return the value at a number of pixels of a polynomial with these powers and non-negative weights."""
    scale = max(n for n, _ in points)
    powers = powers[: len(points)]
    rows = np.array([[(n / scale) ** power / value for power in powers] for n, value in points])
    weights, _ = nnls(rows, np.ones(len(points)))
    return float(sum(weight * (pixels / scale) ** power for power, weight in zip(powers, weights, strict=True)))


class _AttentionTimer(TorchFunctionMode):
    """Adds up the time of torch's attention function with equal numbers of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)][:2]
        if query.shape[-2] != key.shape[-2]:
            return func(*args, **kwargs)
        _wait(query.device)
        start = time.perf_counter()
        out = func(*args, **kwargs)
        _wait(query.device)
        self.seconds += time.perf_counter() - start
        return out


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _probe_sizes(pipeline: Any, trained: Size) -> list[Size]:
    """Return the sizes from which larger ones are forecast."""
    step = size_multiple(pipeline)
    sizes = {(round(side * trained[0] / step) * step, round(side * trained[1] / step) * step) for side in PROBES}
    return sorted((size for size in sizes if min(size)), key=lambda size: (math.prod(size), size))


def _costs(pipeline: Any, sizes: Sequence[Size], settings: dict[str, Any]) -> dict[Size, Cost]:
    """Return the measured cost of a cell of each size."""
    if not sizes:
        return {}
    # Not timed: the first sampling run of a process is slower, and the fingerprint is computed once per sweep.
    base = _require_memory(partial(sweep, pipeline, sizes=sizes[:1], **settings))
    return {size: _measure(base, size) for size in sizes}


def _measure(base: Sweep, size: Size) -> Cost:
    """Sample cells of one size, one after another, and return the cost of the fastest."""
    costs = []
    for seed in range(1, REPEATS + 1):
        start = time.perf_counter()
        with _AttentionTimer() as timer:
            sample = partial(extend, base, laws=["original"], sizes=[size], seeds=[seed], progress=False)
            one = _require_memory(sample)
        seconds = time.perf_counter() - start
        cell = next(one.grid.cells())
        space = sum(path.stat().st_size for path in (one.run.cell_path(cell), one.run.image_path(cell)))
        costs.append(Cost(math.prod(size), seconds, space, timer.seconds))
    return min(costs, key=lambda cost: cost.seconds)


def _require_memory(sample: Callable[[], Sweep]) -> Sweep:
    try:
        return sample()
    except IncompleteError as error:
        raise InputError(f"{error.reason}. Remove this size, or use a machine with more memory") from error
