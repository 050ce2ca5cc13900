"""The statistics of one call on the device, compared with the float64 definition on the same inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.setting import Setting, measure_cases
from entropy_probe.statistics import dense, flash

CHECKED_ROWS = 128
"""Rows of each head that are compared: float64 maps of all rows would not fit into memory."""

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Call:
    """An attention call. Its queries are multiplied by `sharpness`, and so are its logits."""

    tokens: int
    width: int = 64
    dtype: str = "bfloat16"
    mask: str = ""
    heads: int = 4
    kv_heads: int = 4
    sharpness: float = 1.0

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return query, key and mask."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        query = self.sharpness * torch.randn(2, self.heads, self.tokens, self.width, device=device)
        key = torch.randn(2, self.kv_heads, self.tokens, self.width, device=device)
        allowed = torch.rand(2, 1, 1, self.tokens, device=device) > 0.3
        mask = None
        if self.mask == "boolean":
            mask = allowed
        elif self.mask == "additive":
            mask = torch.randn(allowed.shape, device=device).masked_fill(~allowed, -torch.inf)
        return query.to(dtype), key.to(dtype), mask


def calls(quick: bool) -> list[Call]:
    """Return the most important calls first: the time may end before all are compared."""
    if quick:
        return [Call(64), Call(64, dtype="float32", mask="boolean"), Call(64, mask="causal", kv_heads=2)]
    return [
        *(Call(4_096, dtype=dtype) for dtype in DTYPES),
        *(Call(tokens) for tokens in (64, 256, 1_024, 16_384, 65_536)),
        *(Call(1_024, width, dtype) for width in (32, 40, 80, 128, 160, 256) for dtype in DTYPES),
        *(Call(1_024, dtype=dtype, mask=mask) for mask in ("boolean", "additive", "causal") for dtype in DTYPES),
        *(Call(1_024, dtype=dtype, kv_heads=1) for dtype in DTYPES),
        *(Call(1_024, dtype=dtype, sharpness=5.0) for dtype in DTYPES),
        Call(4_096, dtype="float32", mask="additive", kv_heads=2),
    ]


def compare(call: Call, device: str) -> dict[str, Any]:
    """Return the maximum difference of the entropy, nats, and the relative difference of the logit variance."""
    query, key, mask = call.tensors(device)
    causal, grouped = call.mask == "causal", call.heads != call.kv_heads
    found = flash(query, key, mask, is_causal=causal, enable_gqa=grouped)
    rows = torch.linspace(0, call.tokens - 1, min(CHECKED_ROWS, call.tokens), device=device).long()
    if causal:
        mask = torch.arange(call.tokens, device=device) <= rows[:, None]
    entropy, variance = [], []
    for item in range(query.shape[0]):  # one by one, to need less memory
        own = mask[item : item + 1] if mask is not None and mask.ndim == 4 else mask
        exact = dense(query[item : item + 1, :, rows], key[item : item + 1], own, enable_gqa=grouped)
        entropy.append((found.entropy[item, :, rows].double() - exact.entropy[0]).abs().max())
        difference = (found.logit_variance[item, :, rows].double() - exact.logit_variance[0]).abs()
        variance.append((difference / exact.logit_variance[0].clamp_min(1e-3)).max())
    return {"entropy": float(max(entropy)), "variance": float(max(variance))}


def run(setting: Setting) -> dict[str, Any]:
    """Compare all calls, with one configuration of the Triton kernel: compiling every one would take all the time."""
    with one_configuration() if setting.device == "cuda" else nullcontext():
        return measure_cases(calls(setting.quick), lambda call: compare(call, setting.device), setting)


def one_configuration() -> AbstractContextManager[object]:
    """Use only the configuration of the Triton kernel that fits every head width and dtype."""
    from entropy_probe.statistics import triton

    smallest = min(triton.CONFIGS, key=lambda config: config.kwargs["KEYS"])
    return patch.object(triton.rows_kernel, "configs", [smallest])
