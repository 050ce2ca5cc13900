"""The attention calls of one training step, reduced to one row per layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import pandas as pd
import torch

from entropy_probe.attention.call import AttentionCall
from entropy_probe.attention.measuring import CallStatistics, as_computed, measure, undisturbed, unmeasurable
from entropy_probe.attention.rows import choose_rows, row_count
from entropy_probe.attention.table import on_host

COLUMNS = ("step", "layer", "kind", "entropy", "max_entropy", "collapsed")
"""Columns of a table; see `EntropyMonitor.frame`."""


class MeasuredStep:
    """Measures the attention calls of one training step. The statistics stay on their device until `table`.

    Args:
        number: number of the step. It is also the seed of the sampled rows.
        rows: attention rows to sample per call and batch item.
        layers: names of the layers to measure; None for all.
    """

    def __init__(self, number: int, rows: int, layers: Collection[str] | None) -> None:
        self._number, self._rows, self._layers = number, rows, layers
        self._generator = torch.Generator().manual_seed(number)
        self._calls: list[CallStatistics] = []
        self._masked: set[str] = set()  # a mask may allow a single key: an entropy of 0 is no collapse then

    def includes(self, layer: str) -> bool:
        """Return whether a layer is to be measured."""
        return self._layers is None or layer in self._layers

    def record(self, call: AttentionCall) -> None:
        """Measure a call, unless it cannot be measured."""
        if self.includes(call.layer) and unmeasurable(call) is None:
            own = as_computed(call)  # before autocast is off
            if call.mask is not None:
                self._masked.add(call.layer)
            undisturbed(call.query.device.type, lambda: self._measure(own))

    def _measure(self, call: AttentionCall) -> None:
        tokens = call.image_queries.stop - call.image_queries.start
        rows = choose_rows(call, row_count(self._rows, tokens, self._rows), self._generator)
        self._calls.append(measure(call, rows, distance=False))

    def table(self, model: str, collapse: float) -> pd.DataFrame:
        """Return one row per layer, in the order of the calls; see `COLUMNS`.

        Args:
            model: name for a layer that is the model itself.
            collapse: see `EntropyMonitor`.
        """
        rows = []
        for layer, calls in self._by_layer().items():
            entropy = math.fsum(value for value, _ in calls) / len(calls)
            highest = math.fsum(math.log(call.key_tokens) for _, call in calls) / len(calls)
            collapsed = layer not in self._masked and entropy < collapse * highest
            rows.append((self._number, layer or model, calls[0][1].kind, entropy, highest, collapsed))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _by_layer(self) -> dict[str, list[tuple[float, CallStatistics]]]:
        """Return the mean entropy of each call by layer. Items without allowed keys have no entropy."""
        found: dict[str, list[tuple[float, CallStatistics]]] = {}
        for entropy, call in self._entropies():
            found.setdefault(call.layer, []).append((entropy, call))
        return found

    def _entropies(self) -> Iterator[tuple[float, CallStatistics]]:
        if not self._calls:
            return
        values, start = on_host(self._calls).double(), 0
        for call in self._calls:
            own = values[:, start : start + call.batch * call.heads]
            start += call.batch * call.heads
            counted = own[0][own[-1] != 0]
            if len(counted):
                yield counted.mean().item(), call
