"""`capture`: the statistics of every attention call that a model makes while it samples."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from entropy_probe.capture.calls import AttentionCall, attention_calls, attention_layers
from entropy_probe.capture.choice import FIRST_ROWS, Rows, choose_rows, row_count, rows_needed
from entropy_probe.capture.denoiser import find_denoiser
from entropy_probe.capture.records import Captured, Guidance, Record
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.statistics import PartMeans, RowMeans, RowStatistics, flash, parts, standard_error

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
    multipliers: Sequence[float] = (),
    multiplier_rows: int = 256,
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
        multipliers: values of g at which visual attention is measured besides, from the same queries and keys: the
            curve H(g). The `multiplier` column tells them apart; it is 1 for the call as the model makes it.
        multiplier_rows: rows drawn for each of those.
        missing: what to do about attention layers that ran without a visible call: raise, or warn.
        seed: of the choice of rows.

    Raises:
        InputError: for a model without denoiser, a layer glob that matches nothing, or rows below 1.
        CaptureError: for layers whose attention could not be seen (see `missing`), or NaN in the queries or keys.
    """
    denoiser = find_denoiser(model)
    names = attention_layers(denoiser)
    measured = select_layers(names, layers)
    kept = (select_layers(names, keep) or set()) if keep else set()
    steps = None if keep_steps is None else set(keep_steps)
    for name, value in {"rows": rows, "multiplier_rows": multiplier_rows}.items():
        if value not in ("all", "auto") and (type(value) is not int or value < 1):
            raise InputError(f"{name} must be 'all', 'auto' or a number from 1, not {value!r}")
    captured = Captured()
    generator = torch.Generator().manual_seed(seed)
    needed: dict[tuple[object, ...], int] = {}

    def measure(call: AttentionCall) -> None:
        if not captured.entered(call.forward):
            captured.enter(call.forward, _guidance(model), _schedule(model))
        if measured is not None and call.layer not in measured:
            return
        in_time = steps is None or captured.step in steps
        keeping = call.layer in kept and call.positions is not None and in_time
        tokens = call.image_queries.stop - call.image_queries.start
        own = (call.layer, tokens, *captured.part)

        def learn(record: Record) -> None:
            if rows == "auto" and record.rows < tokens:
                needed[own] = rows_needed(record.entropy_se, record.rows, _steps(model))

        with torch.no_grad(), _full_precision(call.query.device.type):
            base = tokens if keeping else row_count(rows, tokens, needed.get(own, FIRST_ROWS))
            if rows == "auto" and base < tokens and own not in needed:
                learn(_measured(call, 1.0, choose_rows(call, base, generator), False, False))
                base = row_count(rows, tokens, needed[own])
            plan = [(1.0, base, keeping)]
            if call.visual:
                curve = row_count(multiplier_rows, base, base)
                plan += [(g, curve, False) for g in multipliers if g != 1.0]
            drawn = {n: choose_rows(call, n, generator) for n in dict.fromkeys(count for _, count, _ in plan)}
            for multiplier, count, whole in plan:
                record = _measured(call, multiplier, drawn[count], distance and multiplier == 1.0, whole)
                if math.isnan(record.means.entropy.sum().item()) and _hold_nan(call):
                    raise CaptureError(
                        f"the queries or keys of layer {call.layer!r} hold NaN at step {captured.step}: the model has "
                        "diverged, or its dtype overflows (try float32 or bfloat16)"
                    )
                captured.add(record)
                if multiplier == 1.0:
                    learn(record)

    with attention_calls(model, measure, after_scaling=True) as hooks:
        yield captured
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
        _report_unseen(denoiser, unseen, missing)
    elif not hooks.seen:
        warnings.warn(_nothing_seen(denoiser, ran=bool(hooks.ran)), stacklevel=3)


def _hold_nan(call: AttentionCall) -> bool:
    """Whether NaN in the statistics is the model's: an item that may attend to nothing at all has none either."""
    return bool(call.query.isnan().any() or call.key.isnan().any())


def _full_precision(device: str) -> AbstractContextManager[None]:
    """Under the caller's autocast our own products would be rounded to half precision."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _measured(
    call: AttentionCall,
    multiplier: float,
    index: list[Int[Tensor, " rows"]] | Int[Tensor, " rows"] | None,
    distance: bool,
    keeping: bool,
) -> Record:
    if not isinstance(index, list):
        statistics, split = _statistics(call, multiplier, index, distance)
        means = statistics.means()
        return _record(call, multiplier, statistics, means, torch.zeros_like(means.entropy), split, keeping)
    own = [_statistics(_item(call, n), multiplier, rows, distance) for n, rows in enumerate(index)]
    means = _together([statistics.means() for statistics, _ in own])
    split = _together([split for _, split in own if split is not None]) if own[0][1] else None
    error = torch.cat([standard_error(statistics) for statistics, _ in own])
    return _record(call, multiplier, own[0][0], means, error, split, keeping)


def _item(call: AttentionCall, number: int) -> AttentionCall:
    """The call of one batch item."""
    own, mask = slice(number, number + 1), call.mask
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[own]
    return replace(call, query=call.query[own], key=call.key[own], mask=mask)


def _together(items: Sequence[_Means]) -> _Means:
    """The means of one batch item after the other."""
    columns = {f.name: [getattr(item, f.name) for item in items] for f in fields(items[0])}
    joined: dict[str, Any] = {name: None if own[0] is None else torch.cat(own) for name, own in columns.items()}
    return type(items[0])(**joined)


def _statistics(
    call: AttentionCall, multiplier: float, index: Int[Tensor, " rows"] | None, distance: bool
) -> tuple[RowStatistics, PartMeans | None]:
    query, mask, is_causal, scale = call.query, call.mask, call.is_causal, call.scale * multiplier
    places = None
    if distance and call.positions is not None:
        everywhere = call.positions.to(query.device)
        places = (everywhere if index is None else everywhere[index - call.image_queries.start], everywhere)
    if is_causal and (index is not None or call.image is not None):
        rows = torch.arange(query.shape[2], device=query.device) if index is None else index
        mask, is_causal = torch.arange(call.key.shape[2], device=query.device) <= rows[:, None], False
    elif index is not None and mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
        mask = mask.index_select(-2, index)
    query = query if index is None else query.index_select(2, index)
    if call.image is None or multiplier != 1.0:
        return flash(query, call.key, mask, is_causal, scale, call.enable_gqa, places), None
    found = parts(query, call.key, call.image, mask, scale, call.enable_gqa, places)
    return found.whole, found.means()


def _record(
    call: AttentionCall,
    multiplier: float,
    statistics: RowStatistics,
    means: RowMeans,
    error: Float[Tensor, "batch heads"],
    split: PartMeans | None,
    keeping: bool,
) -> Record:
    return Record(
        forward=call.forward,
        place=call.place,
        layer=call.layer,
        kind=call.kind,
        axes=call.axes,
        tokens=call.tokens,
        query_tokens=call.query.shape[2],
        key_tokens=call.key.shape[2],
        training_tokens=call.training_tokens,
        scale=call.scale,
        multiplier=multiplier,
        rows=statistics.entropy.shape[-1],
        means=means,
        entropy_se=error,
        split=split,
        grid=call.grid,
        entropy_rows=statistics.entropy.float().cpu() if keeping else None,
    )


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
