"""`EntropyMonitor`: log the attention entropy of each layer while a model is trained, and warn of its collapse."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from entropy_probe.attention import denoiser_name, find_denoiser, find_unseen, select_layers
from entropy_probe.attention.compiling import uncompiled
from entropy_probe.attention.module_tree import ModuleTree
from entropy_probe.attention.observing import attention_calls
from entropy_probe.callbacks.destinations import Destination, log_function
from entropy_probe.callbacks.measured_step import COLUMNS, MeasuredStep
from entropy_probe.errors import InputError


class EntropyMonitor:
    """Log the mean attention entropy of each layer every `every` training steps, and warn if it collapses.

    Put each training step into `with monitor.step(number):`. Hooks are on the model only during measured steps. The
    gradients, the random numbers and the dropout of the training stay bit-identical. A model that was compiled by
    `torch.compile` runs uncompiled in measured steps (torch 2.6 or newer), so their gradients are rounded differently.

    The entropy of a layer is the mean over its calls, batch items, heads and sampled rows, in nats. Its maximum is
    ln K for K keys: uniform attention. A layer without masks has collapsed if its entropy is below `collapse` times
    ln K: nearly all attention is on one key. Training often becomes unstable then (Zhai et al. 2023, arXiv 2303.06296).

    The logged names are `entropy/LAYER`, `entropy/mean` (the mean of the layers) and `entropy/collapsed_layers`.

    Args:
        model: the denoiser, a pipeline, or any torch module, also inside DistributedDataParallel.
        log: where the numbers go: a `SummaryWriter`, the module `mlflow`, a W&B run, an `Accelerator`, or a function of
            (values, step). None keeps them in `frame()` only.
        csv: a CSV file for the rows of `frame()`. Rows are appended if the file exists. With several processes, only
            the first one (rank 0) writes.
        every: measure the steps that are multiples of this number.
        layers: names or globs of the attention layers to measure; all by default.
        rows: attention rows to sample per call and batch item.
        collapse: fraction of ln K below which a layer counts as collapsed; 0 turns the alarm off.

    Raises:
        InputError: for a model without a denoiser, a glob that matches no layer, an unknown kind of `log`, or a number
            out of range.
        CaptureError: in a measured step, for a model that cannot be measured.

    Warns:
        UserWarning: once for each layer that has collapsed or has NaN, and once for layers that cannot be measured.

    >>> import torch
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> model, x = Attention(), torch.zeros(1, 2, 9, 4, requires_grad=True)
    >>> monitor = EntropyMonitor(model, log=lambda values, step: print(step, values), every=100)
    >>> for number in range(101):
    ...     with monitor.step(number):
    ...         model(x).sum().backward()  # equal keys: ln 9
    0 {'entropy/Attention': 2.1972..., 'entropy/mean': 2.1972..., 'entropy/collapsed_layers': 0.0}
    100 {'entropy/Attention': 2.1972..., 'entropy/mean': 2.1972..., 'entropy/collapsed_layers': 0.0}
    >>> monitor.frame()["step"].tolist()
    [0, 100]
    """

    def __init__(
        self,
        model: Any,
        log: Destination = None,
        *,
        csv: str | Path | None = None,
        every: int = 100,
        layers: str | Iterable[str] | None = None,
        rows: int = 256,
        collapse: float = 0.05,
    ) -> None:
        _check_numbers(collapse, every=every, rows=rows)
        self._model = model
        self._layers = select_layers(_layer_names(model), layers)
        self._log = None if log is None else log_function(log)
        self._csv = None if csv is None or not _is_first_process() else _checked_csv(Path(csv))
        self._every, self._rows, self._collapse = int(every), int(rows), float(collapse)
        self._last: int | None = None
        self._tables = [pd.DataFrame(columns=list(COLUMNS))]
        self._warned: set[str] = set()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Run one training step in this context. It is measured if its number is a multiple of `every`.

        With gradient accumulation, the same number may come several times: the first batch is measured. A step that
        raises an error is not logged.

        Args:
            number: number of the training step.
        """
        if number % self._every or number == self._last:
            yield
            return
        measured = MeasuredStep(number, self._rows, self._layers)
        with uncompiled(find_denoiser(self._model)):
            with attention_calls(self._model, measured.record, after_scaling=True) as observer:
                yield
            denoiser = find_denoiser(self._model)
            unseen = find_unseen(denoiser, observer, measured.includes)
        self._last = number
        table = measured.table(denoiser_name(denoiser), self._collapse)
        if unseen.layers:
            self._warn(
                "unseen",
                f"{len(unseen.layers)} of {unseen.total} attention layers are not measured, because they do not call "
                f"torch's scaled_dot_product_attention: {unseen.names}. {unseen.remedy}",
            )
        elif table.empty:
            self._warn("none", f"no attention of {denoiser_name(denoiser)} ran in step {number}, so nothing is logged")
        self._keep(table)

    def frame(self) -> pd.DataFrame:
        """Return all measurements: one row per measured step and layer.

        Columns:
            step: number of the training step.
            layer: name of the attention layer.
            kind: which tokens attend to which, such as `self` or `cross`.
            entropy: mean entropy, nats.
            max_entropy: ln K for K keys, nats; the mean over the calls of the layer.
            collapsed: the entropy is below `collapse` times `max_entropy`.
        """
        self._tables = [pd.concat([one for one in self._tables if len(one)] or self._tables, ignore_index=True)]
        return self._tables[0].copy()

    def _keep(self, table: pd.DataFrame) -> None:
        """Log the rows of a step, and warn of collapsed layers."""
        if table.empty:
            return
        self._tables.append(table)
        for row in table.itertuples():
            if math.isnan(row.entropy):
                self._warn(
                    row.layer, f"the entropy of {row.layer} is NaN at step {row.step}: the training has diverged"
                )
            elif row.collapsed:
                self._warn(
                    row.layer,
                    f"the attention of {row.layer} has collapsed at step {row.step}: its entropy is {row.entropy:.3g} "
                    f"nats, below {100 * self._collapse:g} % of the maximum, {row.max_entropy:.3g} nats. Lower the "
                    "learning rate, or normalise queries and keys",
                )
        if self._csv is not None:
            _append(self._csv, table)
        if self._log is not None:
            values = {
                f"entropy/{layer}": entropy for layer, entropy in zip(table["layer"], table["entropy"], strict=True)
            }
            values["entropy/mean"] = float(table["entropy"].mean(skipna=False))
            values["entropy/collapsed_layers"] = float(table["collapsed"].sum())
            self._log(values, int(table["step"].iloc[0]))

    def _warn(self, key: str, message: str) -> None:
        """Warn once."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=5)


def _check_numbers(collapse: Any, **counts: Any) -> None:
    """Raise InputError for a count that is not a positive integer, or a fraction that is out of range."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a positive integer, got {value!r:.100}")
    if not isinstance(collapse, Real) or not 0 <= float(collapse) < 1:
        raise InputError(f"collapse must be a fraction of ln K from 0 to below 1, got {collapse!r:.100}")


def _is_first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def _layer_names(model: Any) -> list[str]:
    """Return the names of the attention layers, without the prefixes of compiled modules."""
    with uncompiled(find_denoiser(model)):
        return ModuleTree(find_denoiser(model)).layers


def _checked_csv(path: Path) -> Path:
    """Return the path of a CSV file that can be written, with its header.

    Raises:
        InputError: if the file has other columns, or cannot be written.
    """
    header = ",".join(COLUMNS)
    try:
        if path.exists() and path.stat().st_size:
            with path.open(encoding="utf-8") as file:
                first = file.readline().rstrip("\r\n")
            if first != header:
                raise InputError(f"csv must be a new file or a file with the columns {header}, got {path}")
        else:
            path.write_text(header + "\n", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    return path


def _append(path: Path, table: pd.DataFrame) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table.itertuples(index=False))
