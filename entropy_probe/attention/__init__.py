"""See and scale attention calls, and measure them: `capture`."""

from entropy_probe.attention.call import AttentionCall, Forward
from entropy_probe.attention.capturing import capture, select_layers
from entropy_probe.attention.clip_length import check_frames, default_frames
from entropy_probe.attention.denoiser import (
    DENOISERS,
    Denoisers,
    attention_layers,
    denoiser_name,
    find_denoiser,
    parts_of_denoiser,
)
from entropy_probe.attention.forwards import one_timestep
from entropy_probe.attention.grid import TokenGrid, token_grid
from entropy_probe.attention.latents import Latents, configured_size, default_size, patch_sizes
from entropy_probe.attention.measuring import CallStatistics
from entropy_probe.attention.observer import Observer, ScaleFactor
from entropy_probe.attention.observing import attention_calls, companions, interception_of, observe, stop_observing
from entropy_probe.attention.rows import Rows
from entropy_probe.attention.table import Captured, visual
from entropy_probe.attention.unseen import find_unseen

__all__ = [
    "DENOISERS",
    "AttentionCall",
    "CallStatistics",
    "Captured",
    "Denoisers",
    "Forward",
    "Latents",
    "Observer",
    "Rows",
    "ScaleFactor",
    "TokenGrid",
    "attention_calls",
    "attention_layers",
    "capture",
    "check_frames",
    "companions",
    "configured_size",
    "default_frames",
    "default_size",
    "denoiser_name",
    "find_denoiser",
    "find_unseen",
    "interception_of",
    "observe",
    "one_timestep",
    "parts_of_denoiser",
    "patch_sizes",
    "select_layers",
    "stop_observing",
    "token_grid",
    "visual",
]
