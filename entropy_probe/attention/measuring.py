"""`capture`: the statistics of every attention call that a model makes while it samples."""

from __future__ import annotations

import fnmatch
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from entropy_probe.attention.denoiser import find_denoiser
from entropy_probe.attention.interception import AttentionCall, attention_calls
from entropy_probe.attention.rows import FIRST_ROWS, Rows, choose_rows, row_count, rows_needed, worst_error
from entropy_probe.attention.table import Captured, Found, Guidance, Measured
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.statistics import PartMeans, RowMeans, RowStatistics, curve, flash, parts, standard_error

_Means = TypeVar("_Means", RowMeans, PartMeans)


def select_layers(names: Sequence[str], layers: str | Iterable[str] | None) -> set[str] | None:
    """The names that match the given names or globs; None, for all, if none are given.

    Raises:
        InputError: for a glob that matches nothing; the message lists the names there are.
    """
    if layers is None:
        return None
    chosen: set[str] = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise InputError(f"no attention layer matches {pattern!r}; there are: {', '.join(names)}")
        chosen.update(matching)
    return chosen


@contextmanager
def capture(
    model: Any,
    *,
    layers: str | Iterable[str] | None = None,
    rows: Rows = "auto",
    distance: bool = True,
    keep: str | Iterable[str] = (),
    keep_steps: Iterable[int] | None = None,
    scale_factors: Sequence[float] = (),
    curve_rows: int = 256,
    missing: Literal["error", "warn"] = "error",
    seed: int = 0,
) -> Iterator[Captured]:
    """Measure every attention call of a pipeline's denoiser, or of any torch module, until the context closes.

    The model computes what it would have computed without it, to the bit, and is left as it was, also after an error.

    Args:
        model: a diffusers pipeline or a `torch.nn.Module`.
        layers: names or globs of the attention layers to measure; all if none.
        rows: attention rows per call. "all"; how many to draw, in pairs, stratified over the image and anew for every
            call and image; or "auto": all up to 1,024 tokens, beyond that as many as keep the standard error of a
            layer's mean over rows, heads and steps under 0.01 nats, by what the calls before have shown.
        distance: measure attention distance too, where the tokens lie on an image.
        keep: names or globs of visual attention layers whose rows are kept one by one, for `Captured.entropy_map`.
        keep_steps: sampling steps at which `keep` applies; all if none.
        scale_factors: values of g at which visual attention is measured besides, from the same queries and keys: the
            curve H(g). The `scale_factor` column tells them apart; it is 1 for the call as the model makes it.
        curve_rows: rows drawn for each of those.
        missing: what to do about attention layers that ran without a visible call: raise, or warn.
        seed: of the choice of rows.

    Raises:
        InputError: for a model without denoiser, a layer glob that matches nothing, or rows below 1.
        CaptureError: for layers whose attention could not be seen (see `missing`), or infinities or NaN in the queries
            or keys, once their forward is over.
    """
    steps = None if keep_steps is None else set(keep_steps)
    for name, value in {"rows": rows, "curve_rows": curve_rows}.items():
        if value not in ("all", "auto") and (type(value) is not int or value < 1):
            raise InputError(f"{name} must be 'all', 'auto' or a number from 1, not {value!r}")
    others = tuple(float(g) for g in scale_factors if g != 1.0)
    captured = Captured()
    generator = torch.Generator().manual_seed(seed)
    needed: dict[tuple[object, ...], int] = {}
    drawn: list[_Drawn] = []

    def learn() -> None:
        """How many rows the layers need, by all that were drawn since the last time: the host waits once."""
        by_device = itertools.groupby((worst_error(own.error) for own in drawn), key=lambda error: error.device)
        worst = [error for _, own in by_device for error in torch.stack(list(own)).tolist()]
        needed.update(
            {own.of: rows_needed(error, own.rows, own.steps) for own, error in zip(drawn, worst, strict=True)}
        )
        drawn.clear()

    def measure(call: AttentionCall) -> None:
        if not captured.entered(call.forward):
            learn()
            captured.enter(call.forward, _guidance(model), _schedule(model))
        if measured is not None and call.layer not in measured:
            return
        in_time = steps is None or captured.step in steps
        keeping = call.layer in kept and call.positions is not None and in_time
        tokens = call.image_queries.stop - call.image_queries.start
        own = (call.layer, tokens, *captured.part)

        def note(found: Found) -> None:
            if rows == "auto" and found.measured.rows < tokens:
                drawn.append(_Drawn(own, found.entropy_se, found.measured.rows, _steps(model)))

        with torch.no_grad(), _full_precision(call.query.device.type):
            base = tokens if keeping else row_count(rows, tokens, needed.get(own, FIRST_ROWS))
            if rows == "auto" and base < tokens and own not in needed:
                note(_found(call, choose_rows(call, base, generator), False, False))
                learn()
                base = row_count(rows, tokens, needed[own])
            chosen = choose_rows(call, base, generator)
            found = _found(call, chosen, distance, keeping)
            captured.add(found)
            note(found)
            if call.visual and others:
                count = row_count(curve_rows, base, base)
                for one in _curve(call, others, chosen if count == base else choose_rows(call, count, generator)):
                    captured.add(one)

    with attention_calls(model, measure, after_scaling=True) as hooks:
        names = hooks.layers
        measured = select_layers(names, layers)
        kept = (select_layers(names, keep) or set()) if keep else set()
        yield captured
    captured.settle()
    untold = [n for n in names if n in hooks.untold and (measured is None or n in measured)]
    if untold:
        warnings.warn(
            f"where the image stands in the joint attention of {_shown(untold)} could not be told at every size: its "
            "rows are those of all tokens there, and image_mass is empty. As many words as image tokens are one "
            "cause: another max_sequence_length, or size, keeps them apart",
            stacklevel=3,
        )
    unseen = [n for n in names if n in hooks.ran and n not in hooks.seen and (measured is None or n in measured)]
    if unseen:
        _report_unseen(find_denoiser(model), unseen, missing)
    elif not hooks.seen:
        warnings.warn(_nothing_seen(find_denoiser(model), ran=bool(hooks.ran)), stacklevel=3)


class _Drawn(NamedTuple):
    """The standard errors of rows that were drawn, still on the model's device, of what, and in how many steps."""

    of: tuple[object, ...]
    error: Float[Tensor, "batch heads"]
    rows: int
    steps: int


def _full_precision(device: str) -> AbstractContextManager[None]:
    """Under the caller's autocast our own products would be rounded to half precision."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


Index = Int[Tensor, "batch rows"] | Int[Tensor, " rows"] | None
"""Rows of every batch item, the same rows of all, or all rows."""


def _found(call: AttentionCall, index: Index, distance: bool, keeping: bool) -> Found:
    """The statistics of a call as the model makes it."""
    if index is None or index.ndim == 1:
        return _reduced(call, 1.0, [_statistics(call, index, distance)], False, keeping)
    own = [_statistics(_item(call, n), rows, distance) for n, rows in enumerate(index)]
    return _reduced(call, 1.0, own, True, keeping)


def _curve(call: AttentionCall, scale_factors: tuple[float, ...], index: Index) -> Iterator[Found]:
    """The statistics of a call under each scale_factor."""
    if index is None or index.ndim == 1:
        for scale_factor, statistics in zip(scale_factors, _scaled(call, scale_factors, index), strict=True):
            yield _reduced(call, scale_factor, [(statistics, None)], False, False)
        return
    items = [_scaled(_item(call, n), scale_factors, rows) for n, rows in enumerate(index)]
    for scale_factor, *own in zip(scale_factors, *items, strict=True):
        yield _reduced(call, scale_factor, [(statistics, None) for statistics in own], True, False)


def _item(call: AttentionCall, number: int) -> AttentionCall:
    """The call of one batch item."""
    own, mask = slice(number, number + 1), call.mask
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[own]
    return replace(call, query=call.query[own], key=call.key[own], mask=mask)


def _statistics(
    call: AttentionCall, index: Int[Tensor, " rows"] | None, distance: bool
) -> tuple[RowStatistics, PartMeans | None]:
    places = None
    if distance and (everywhere := call.positions) is not None:
        places = (everywhere if index is None else everywhere[index - call.image_queries.start], everywhere)
    query, mask, is_causal = _of_rows(call, index)
    if call.image is None:
        return flash(query, call.key, mask, is_causal, call.scale, call.enable_gqa, places), None
    found = parts(query, call.key, call.image, mask, call.scale, call.enable_gqa, places)
    return found.whole, found.means()


def _scaled(
    call: AttentionCall, scale_factors: tuple[float, ...], index: Int[Tensor, " rows"] | None
) -> list[RowStatistics]:
    query, mask, is_causal = _of_rows(call, index)
    return curve(query, call.key, scale_factors, mask, is_causal, call.scale, call.enable_gqa)


def _of_rows(
    call: AttentionCall, index: Int[Tensor, " rows"] | None
) -> tuple[Float[Tensor, "batch heads rows width"], Shaped[Tensor, "*#mask"] | None, bool]:
    """The queries of some rows, with the mask that is theirs, and whether it is causal."""
    query, mask, is_causal = call.query, call.mask, call.is_causal
    if is_causal and (index is not None or call.image is not None):
        rows = torch.arange(query.shape[2], device=query.device) if index is None else index
        mask, is_causal = torch.arange(call.key.shape[2], device=query.device) <= rows[:, None], False
    elif index is not None and mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
        mask = mask.index_select(-2, index)
    return query if index is None else query.index_select(2, index), mask, is_causal


def _reduced(
    call: AttentionCall,
    scale_factor: float,
    items: Sequence[tuple[RowStatistics, PartMeans | None]],
    sampled: bool,
    keeping: bool,
) -> Found:
    """What is kept of the statistics of a call, which come at once or item by item."""
    means = _together([statistics.means() for statistics, _ in items])
    splits = [split for _, split in items if split is not None]
    own = [statistics for statistics, _ in items]
    batch, heads = means.entropy.shape
    return Found(
        measured=Measured(
            place=call.place,
            layer=call.layer,
            kind=call.kind,
            axes=call.axes,
            tokens=call.tokens,
            query_tokens=call.query.shape[2],
            key_tokens=call.key.shape[2],
            training_tokens=call.training_tokens,
            scale=call.scale,
            scale_factor=scale_factor,
            rows=own[0].entropy.shape[-1],
            grid=call.grid,
            batch=batch,
            heads=heads,
        ),
        means=means,
        entropy_se=_error(own) if sampled else torch.zeros_like(means.entropy),
        split=_together(splits) if splits else None,
        counted=None if call.mask is None else torch.cat([one.counted.any(-1) for one in own]),
        entropy_rows=own[0].entropy.to(torch.float32, copy=True) if keeping else None,  # not a view of all statistics
    )


def _error(items: Sequence[RowStatistics]) -> Float[Tensor, "batch heads"]:
    """Standard error of the mean entropy of every item, at once: its operations are small."""
    entropy, counted = (torch.cat(rows) for rows in zip(*((one.entropy, one.counted) for one in items), strict=True))
    return standard_error(RowStatistics(entropy, entropy, entropy, entropy, None, counted))


def _together(items: Sequence[_Means]) -> _Means:
    """The means of one batch item after the other."""
    if len(items) == 1:
        return items[0]
    columns = {f.name: [getattr(item, f.name) for item in items] for f in fields(items[0])}
    joined: dict[str, Any] = {name: None if own[0] is None else torch.cat(own) for name, own in columns.items()}
    return type(items[0])(**joined)


PROMPT_FIRST = frozenset(
    f"{name}Pipeline"
    for name in ("DiT", "Lumina", "LuminaText2Img", "OmniGen", "StableCascadeDecoder", "StableCascadePrior", "ZImage")
)
"""Pipelines of diffusers whose guided batch holds the prompts before their absence; the others do it the other way."""


def _guidance(model: Any) -> Guidance:
    """What the running pipeline says; many keep it in a variable, and the batch has to tell."""
    if isinstance(model, nn.Module):
        return Guidance(batched=False, prompt_first=False, perturbed=False, driven=False)
    said = getattr(model, "do_classifier_free_guidance", None)
    return Guidance(
        batched=None if said is None else bool(said),
        prompt_first=type(model).__name__ in PROMPT_FIRST,
        perturbed=bool(getattr(model, "do_perturbed_attention_guidance", False)),
        driven=True,
    )


def _steps(model: Any) -> int:
    """How many steps the running pipeline takes; 1 for a denoiser that is run by itself."""
    schedule, scheduler = _schedule(model), getattr(model, "scheduler", None)
    if not isinstance(schedule, Tensor) or getattr(scheduler, "num_inference_steps", None) is None:
        return 1
    return max(1, len(schedule) - int(getattr(scheduler, "begin_index", None) or 0))


def _schedule(model: Any) -> object:
    """The timesteps of the running pipeline: every sampling sets them anew."""
    return getattr(getattr(model, "scheduler", None), "timesteps", None)


def _shown(layers: Sequence[str]) -> str:
    return ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")


def _nothing_seen(denoiser: nn.Module, ran: bool) -> str:
    name = type(denoiser).__name__
    if not ran:
        return f"no attention call was seen: {name} did not run before the context closed; run it inside"
    return (
        f"no attention call was seen: {name} ran, but did not call torch's scaled_dot_product_attention; have its "
        "attention computed by torch.nn.functional.scaled_dot_product_attention(query, key, value)"
    )


def _report_unseen(denoiser: nn.Module, unseen: list[str], missing: Literal["error", "warn"]) -> None:
    named = [name or type(denoiser).__name__ for name in unseen]
    if all(isinstance(denoiser.get_submodule(name), nn.MultiheadAttention) for name in unseen):
        remedy = (
            "torch's own nn.MultiheadAttention shows its call to nobody, whatever need_weights says: project queries, "
            "keys and values in a module of yours and give them to torch.nn.functional.scaled_dot_product_attention. "
            "To leave the layer out"
        )
    else:
        remedy = (
            "Choose the native attention backend (`pipe.unet.set_attn_processor(AttnProcessor2_0())`, or "
            "`set_attention_backend('native')` on a transformer). A linear attention has no softmax and no entropy: to "
            "leave it out"
        )
    message = (
        f"these attention layers ran, but made no call of torch's scaled_dot_product_attention: {_shown(named)}. "
        f"{remedy}, name the others with layers=[...], or pass missing='warn'."
    )
    if missing == "error":
        raise CaptureError(message)
    warnings.warn(message, stacklevel=4)
