"""`capture`: measure every attention call that a model makes while it samples."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import nn

from entropy_probe.attention.backends import native_attention
from entropy_probe.attention.call import AttentionCall, Forward
from entropy_probe.attention.calling_pipeline import calling_pipeline
from entropy_probe.attention.clip_length import check_frames
from entropy_probe.attention.denoiser import denoiser_name, find_denoiser, takes_timestep
from entropy_probe.attention.measuring import (
    CallStatistics,
    as_computed,
    measure,
    measure_curve,
    undisturbed,
    unmeasurable,
)
from entropy_probe.attention.observer import Observer
from entropy_probe.attention.observing import attention_calls, companions
from entropy_probe.attention.rows import RowBudget, Rows, choose_rows, row_count
from entropy_probe.attention.steps import step_count
from entropy_probe.attention.table import Captured
from entropy_probe.attention.unseen import Unseen, find_unseen, listed
from entropy_probe.deprecation import renamed_arguments
from entropy_probe.errors import CaptureError, InputError


def select_layers(names: Sequence[str], layers: str | Iterable[str] | None) -> set[str] | None:
    """Return the names that match the given names or globs; None, which means all, if none are given.

    Raises:
        InputError: for a glob that matches nothing; the message lists the names.

    >>> sorted(select_layers(["down.attn1", "down.attn2", "mid.attn1"], "*.attn1"))
    ['down.attn1', 'mid.attn1']
    """
    if layers is None:
        return None
    chosen: set[str] = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise InputError(f"no attention layer matches {pattern!r}; the layers are: {', '.join(names)}")
        chosen.update(matching)
    return chosen


@renamed_arguments(multipliers="scale_factors", multiplier_rows="curve_rows")
def capture(
    model: Any, *, layers: str | Iterable[str] | None = None, rows: Rows = "auto", distance: bool = True,
    keep: str | Iterable[str] = (), keep_steps: Iterable[int] | None = None, scale_factors: Sequence[float] = (),
    curve_rows: int = 256, missing: Literal["error", "warn"] = "error", seed: int = 0,
    training_frames: int | None = None, attention_backend: Literal["native"] | None = None,
) -> AbstractContextManager[Captured]:  # fmt: skip
    """Measure every attention call of a pipeline's denoiser, or of any torch module, until the context closes.

    The output stays bit-identical. The model is left as it was, also after an error or Ctrl-C. Capture a ControlNet
    separately, and other modules that run attention in the sampling steps; a warning names them.

    Args:
        model: a diffusers pipeline or a `torch.nn.Module`.
        layers: names or globs of the attention layers to measure; all by default.
        rows: attention rows to measure per call: "all", "auto", or a number. "auto" measures all rows up to 1,024
            tokens. Beyond that it samples enough rows for a standard error of a layer's mean entropy below 0.01 nats.
            Every call and image gets its own sample, in pairs that are stratified over the image.
        distance: also measure the attention distance, if the tokens have positions on an image.
        keep: names or globs of visual attention layers whose rows are kept, for `Captured.entropy_map`.
        keep_steps: sampling steps at which `keep` applies; all by default.
        scale_factors: values of g at which visual attention is also measured, from the same queries and keys: the
            curve H(g). The column `scale_factor` is g; it is 1 for the call as the model makes it.
        curve_rows: rows sampled for each of those values.
        missing: for attention layers that ran without a visible call: "error" or "warn".
        seed: seed of the sampled rows.
        training_frames: number of frames of the videos that the model was trained on, for T. By default, the number
            that the pipeline samples by default. Without a pipeline, T counts the frames of each call.
        attention_backend: "native" selects torch's attention in diffusers until the context closes, instead of flash,
            sage, xformers, flex, attention slicing and the eager processor. These layers are rounded differently then.

    Raises:
        InputError: for a model without a denoiser, a glob that matches no layer, or an argument out of its range.
        CaptureError: for layers whose calls are not visible (see `missing`), queries or keys with NaN or infinities, a
            compiled model, and two threads that run the model at the same time.

    >>> class Attention(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> model, x = Attention(), torch.zeros(1, 2, 9, 4)  # equal keys: uniform attention
    >>> with capture(model) as captured:
    ...     output = model(x)
    >>> [round(entropy, 4) for entropy in captured["entropy"]]  # ln 9
    [2.1972, 2.1972]
    """
    _check_rows(rows=rows, curve_rows=curve_rows)
    _check_missing(missing)
    if attention_backend not in ("native", None):
        raise InputError(f"attention_backend must be 'native' or None, got {attention_backend!r:.100}")
    check_frames(training_frames)
    recorder = _Recorder(
        model=model,
        budget=RowBudget(rows),
        generator=torch.Generator().manual_seed(seed),
        distance=distance,
        keep_steps=None if keep_steps is None else set(keep_steps),
        scale_factors=tuple(g for g in _checked_factors(scale_factors) if g != 1.0),
        curve_rows=curve_rows,
        training_frames=training_frames,
    )
    return _recording(recorder, layers, keep, missing, native=attention_backend == "native")


def _check_rows(**given: object) -> None:
    for name, value in given.items():
        is_number = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
        if not is_number and not (isinstance(value, str) and value in ("all", "auto")):
            raise InputError(f"{name} must be 'all', 'auto' or a positive integer, got {value!r}")


def _check_missing(missing: object) -> None:
    if missing not in ("error", "warn"):
        raise InputError(f"missing must be 'error' or 'warn', got {missing!r}")


def _checked_factors(scale_factors: Sequence[Any]) -> tuple[float, ...]:
    """Return scale factors as floats, or raise InputError for one that is not a positive finite number."""
    for factor in scale_factors:
        if not (isinstance(factor, Real) and 0 < float(factor) < math.inf):
            raise InputError(f"scale_factors must be positive finite numbers, got {factor!r}")
    return tuple(map(float, scale_factors))


@contextmanager
def _recording(
    recorder: _Recorder,
    layers: str | Iterable[str] | None,
    keep: str | Iterable[str],
    missing: Literal["error", "warn"],
    native: bool,
) -> Iterator[Captured]:
    """Record the attention calls until the context closes, then report calls that were not measured."""
    notice = partial(_warn_of_companions, recorder.model, layers)
    backends = native_attention(find_denoiser(recorder.model)) if native else nullcontext()
    with (
        backends,
        attention_calls(
            recorder.model,
            recorder.record,
            after_scaling=True,
            one_thread=True,
            on_forward=recorder.enter,
            after_discovery=notice,
            training_frames=recorder.training_frames,
        ) as observer,
    ):
        recorder.measured = select_layers(observer.layers, layers)
        recorder.kept = (select_layers(observer.layers, keep) or set()) if keep else set()
        yield recorder.captured
    recorder.captured.settle()
    recorder.captured.unmeasured.update(observer.unread)
    _report(recorder, observer, missing)
    _warn_of_unknown(recorder, observer)


@dataclass
class _Recorder:
    """Measures the calls of one capture."""

    model: Any
    budget: RowBudget
    generator: torch.Generator
    distance: bool
    keep_steps: set[int] | None
    scale_factors: tuple[float, ...]
    curve_rows: int
    training_frames: int | None = None
    captured: Captured = field(default_factory=Captured)
    steps: int = 1
    measured: set[str] | None = None
    kept: set[str] | frozenset[str] = frozenset()

    def enter(self, forward: Forward) -> None:
        """Label a forward pass that begins."""
        self.budget.learn()
        caller = calling_pipeline(find_denoiser(self.model), self.model)
        self.steps = step_count(getattr(caller.pipeline, "scheduler", None))
        self.captured.enter(forward, caller)

    def record(self, call: AttentionCall) -> None:
        """Measure a call and add it to the table."""
        captured = self.captured
        if not captured.entered(call.forward):  # the capture was opened during this pass
            self.enter(call.forward)
        if self.measured is not None and call.layer not in self.measured:
            return
        if reason := unmeasurable(call):
            captured.unmeasured[call.layer, reason] += 1
            return
        own = as_computed(call)
        undisturbed(call.query.device.type, lambda: self._measure(own))

    def _measure(self, call: AttentionCall) -> None:
        captured, budget = self.captured, self.budget
        in_time = self.keep_steps is None or captured.step in self.keep_steps
        keep_rows = call.layer in self.kept and call.positions is not None and in_time
        tokens = call.image_queries.stop - call.image_queries.start
        layer = (call.layer, tokens, *captured.turn)
        count = tokens if keep_rows else budget.count(layer, tokens)
        if count < tokens and budget.rows == "auto" and not budget.knows(layer):
            first = measure(call, choose_rows(call, count, self.generator), distance=False)
            self._note(layer, first, tokens)
            budget.learn()
            count = budget.count(layer, tokens)
        rows = choose_rows(call, count, self.generator)
        statistics = measure(call, rows, distance=self.distance, keep_rows=keep_rows)
        captured.add(statistics)
        self._note(layer, statistics, tokens)
        if call.visual and self.scale_factors:
            of_curve = row_count(self.curve_rows, count, count)
            own = rows if of_curve == count else choose_rows(call, of_curve, self.generator)
            for one in measure_curve(call, self.scale_factors, own):
                captured.add(one)

    def _note(self, layer: tuple[object, ...], statistics: CallStatistics, tokens: int) -> None:
        self.budget.note(layer, statistics.entropy_se, statistics.rows, tokens, self.steps)


def _warn_of_companions(model: Any, layers: str | Iterable[str] | None, observer: Observer) -> None:
    """Warn of modules that run attention next to the denoiser, unless the user has chosen layers of the denoiser."""
    for part, module in companions(model, measured=True).items() if layers is None else ():
        if f"pipe.{part}" not in observer.warned:
            observer.warned.add(f"pipe.{part}")
            warnings.warn(
                f"the attention of pipe.{part} ({type(module).__name__}), which also runs in the sampling steps, is "
                f"not measured: capture pipe.{part} too",
                stacklevel=2,
            )


def _report(recorder: _Recorder, observer: Observer, missing: Literal["error", "warn"]) -> None:
    """Warn of, or raise for, calls that were not measured although they were requested."""
    model = recorder.model

    def requested(layer: str) -> bool:
        return recorder.measured is None or layer in recorder.measured

    unlocated = [name for name in observer.layers if name in observer.unlocated and requested(name)]
    if unlocated:
        warnings.warn(
            f"could not locate the image tokens in the joint attention of {listed(unlocated)} at every size: there, "
            "all tokens are measured, and image_mass is empty. One cause is a prompt with the same number of tokens as "
            "the image: choose another max_sequence_length or another size",
            stacklevel=4,
        )
    _warn_of_unmeasured(recorder.captured.unmeasured)
    if observer.seen and recorder.captured.untimed and _has_timesteps(model):
        name = denoiser_name(find_denoiser(model))
        warnings.warn(
            f"no timestep among the arguments of {name}.forward: every forward pass counts as step 0. If a wrapper "
            "hides the arguments, pass the module inside it",
            stacklevel=4,
        )
    unseen = find_unseen(find_denoiser(model), observer, requested)
    if unseen.layers:
        _report_unseen(unseen, missing)
    elif not observer.seen:
        warnings.warn(_nothing_seen(find_denoiser(model), ran=bool(observer.ran)), stacklevel=4)


def _warn_of_unknown(recorder: _Recorder, observer: Observer) -> None:
    """Warn of labels that could not be derived."""
    layers = [name for name in sorted(observer.unknown) if recorder.measured is None or name in recorder.measured]
    if layers:
        warnings.warn(
            f"the kind of {listed(layers)} is unknown: the number of tokens there has no relation to the image that "
            "could be found, as with sound, windows or merged tokens. Laws do not scale these layers",
            stacklevel=4,
        )
    for reason, count in recorder.captured.unknown_branches().items():
        warnings.warn(f"the guidance branch of {count} is unknown: {reason}", stacklevel=4)


def _has_timesteps(model: Any) -> bool:
    """Return whether a model is a pipeline, or contains a module that receives timesteps."""
    return not isinstance(model, nn.Module) or any(map(takes_timestep, model.modules()))


def _warn_of_unmeasured(unmeasured: Counter[tuple[str, str]]) -> None:
    reasons = dict.fromkeys(reason for _, reason in unmeasured)
    for reason in reasons:
        layers = [layer for layer, own in unmeasured if own == reason]
        count = sum(number for (_, own), number in unmeasured.items() if own == reason)
        warnings.warn(f"{count} attention calls of {listed(layers)} were not measured: {reason}", stacklevel=5)


def _nothing_seen(denoiser: nn.Module, ran: bool) -> str:
    name = denoiser_name(denoiser)
    if not ran:
        return f"no attention call was seen: {name} did not run before the context closed; run it inside the context"
    return (
        f"no attention call was seen: {name} ran, but did not call torch's scaled_dot_product_attention; compute its "
        "attention with torch.nn.functional.scaled_dot_product_attention(query, key, value)"
    )


def _report_unseen(unseen: Unseen, missing: Literal["error", "warn"]) -> None:
    message = (
        f"these attention layers ran, but did not call torch's scaled_dot_product_attention: {unseen.names}. "
        f"{unseen.remedy}. To measure only the other layers, name them with layers=[...], or pass missing='warn'."
    )
    if missing == "error":
        raise CaptureError(message)
    warnings.warn(message, stacklevel=5)
