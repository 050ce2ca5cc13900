"""Which attention calls a model makes: hooks say where, an interception of the attention function sees them."""

from entropy_probe.attention.denoiser import find_denoiser
from entropy_probe.attention.grid import TokenGrid, token_grid
from entropy_probe.attention.interception import AttentionCall, AttentionHooks, attention_calls, attention_layers
from entropy_probe.attention.latents import Latents, configured_size, default_size
from entropy_probe.attention.measuring import capture, select_layers
from entropy_probe.attention.rows import Rows
from entropy_probe.attention.table import Captured, visual

__all__ = [
    "AttentionCall",
    "AttentionHooks",
    "Captured",
    "Latents",
    "Rows",
    "TokenGrid",
    "attention_calls",
    "attention_layers",
    "capture",
    "configured_size",
    "default_size",
    "find_denoiser",
    "select_layers",
    "token_grid",
    "visual",
]
