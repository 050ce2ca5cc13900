"""A minimal stub of the attention interface of ComfyUI, which is not on PyPI.

It assumes the following, as read in ComfyUI's source of 2026:

- `ModelPatcher.clone` copies `model_options`. `set_model_patch(patch, name)` appends to
  `model_options["transformer_options"]["patches"][name]`. `set_model_attn1_patch(patch)` does so under `attn1_patch`.
- A UNet has `input_blocks`. It sets `transformer_options["block"]` to ("input" | "middle" | "output", index) for each
  block, and each spatial transformer sets `block_index` to the index of its transformer block.
- A transformer block calls every `attn1_patch` with the normed tokens (batch, tokens, channels), the context, the value
  and the options without the patches. It uses the three results as inputs of the query, key and value projections. The
  query projection of self-attention has no bias.
- Flux has `double_blocks`. It copies `transformer_options`, then calls every `post_input` patch with `img`, `txt`,
  `img_ids`, `txt_ids` and the copy. `img_ids` is (batch, tokens, 3), and its first number is 0 in the sampled image. It
  sets `block_type` to "double" or "single" and `block_index` for each block.
- Every attention calls `optimized_attention_override(function, q, k, v, heads, ..., transformer_options=...)`, if
  `transformer_options` has it, in place of `function(q, k, v, heads, ...)`. Flux passes the query after its norm and
  rotary embedding, as (batch, heads, tokens, width).

Not covered: other model classes, other nodes that replace `attn1`, and versions before the override.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class ModelPatcher:
    """The part of ComfyUI's class that custom nodes use."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        self.model = SimpleNamespace(diffusion_model=diffusion_model)
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model.diffusion_model)
        options = self.model_options["transformer_options"]
        patches = {name: list(found) for name, found in options.get("patches", {}).items()}
        other.model_options = {"transformer_options": {**options, "patches": patches}}
        return other

    def set_model_patch(self, patch: Any, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_model_attn1_patch(self, patch: Any) -> None:
        self.set_model_patch(patch, "attn1_patch")

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Run the model as the sampler does, and return the output of each attention."""
        options = copy.copy(self.model_options["transformer_options"])
        return self.model.diffusion_model(*inputs, transformer_options=options)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, skip_reshape: bool = False, **_: Any) -> Tensor:
    """Stand for ComfyUI's optimized attention."""
    if not skip_reshape:
        q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def optimized_attention(*args: Any, transformer_options: dict[str, Any], **kwargs: Any) -> Tensor:
    override = transformer_options.get("optimized_attention_override")
    if override is None:
        return attend(*args, **kwargs)
    return override(attend, *args, **kwargs, transformer_options=transformer_options)


class TransformerBlock(nn.Module):
    """The self-attention of a UNet's transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, n: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        extra = {name: value for name, value in transformer_options.items() if name != "patches"}
        context = value = n
        for patch in transformer_options.get("patches", {}).get("attn1_patch", []):
            n, context, value = patch(n, context, value, extra)
        projected = self.to_q(n), self.to_k(context), self.to_v(value)
        return optimized_attention(*projected, self.heads, transformer_options=transformer_options)


class UNet(nn.Module):
    """The attention of a UNet. Each level has a number of blocks, and each block a number of transformer blocks.

    Args:
        attention: for each level, finest first, the number of transformer blocks; 0 for a level without attention.
        blocks: blocks of each level.
    """

    def __init__(self, attention: tuple[int, ...], blocks: int, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.levels: list[tuple[str, int, int]] = []
        self.input_blocks, self.middle_block, self.output_blocks = (nn.ModuleList() for _ in range(3))

        def new(depth: int) -> nn.ModuleList:
            return nn.ModuleList([TransformerBlock(width, heads) for _ in range(depth)])

        self.input_blocks.append(nn.ModuleList())  # the first convolution
        for level, depth in enumerate(attention):
            self.input_blocks.extend(new(depth) for _ in range(blocks))
            if level < len(attention) - 1:
                self.input_blocks.append(nn.ModuleList())  # a downsampler
        self.middle_block.append(new(max(attention)))
        for depth in reversed(attention):
            self.output_blocks.extend(new(depth) for _ in range(blocks + 1))

    def forward(self, x: Tensor, transformer_options: dict[str, Any]) -> dict[tuple[str, int, int], Tensor]:
        found = {}
        parts = {"input": self.input_blocks, "middle": self.middle_block, "output": self.output_blocks}
        for name, part in parts.items():
            for index, block in enumerate(part):
                transformer_options["block"] = (name, index)
                for number, transformer in enumerate(block):
                    transformer_options["block_index"] = number
                    found[name, index, number] = transformer(x, transformer_options)
        return found


class FluxBlock(nn.Module):
    """The attention of a block of Flux over text and image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = nn.functional.rms_norm(q, q.shape[-1:])
        return optimized_attention(q, k, v, self.heads, skip_reshape=True, transformer_options=transformer_options)


class Flux(nn.Module):
    """The attention of Flux."""

    def __init__(self, double: int, single: int, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.double_blocks, self.single_blocks = (
            nn.ModuleList([FluxBlock(width, heads) for _ in range(count)]) for count in (double, single)
        )

    def forward(
        self, img: Tensor, txt: Tensor, img_ids: Tensor, transformer_options: dict[str, Any]
    ) -> dict[tuple[str, int, int], Tensor]:
        transformer_options = transformer_options.copy()
        given = {"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": torch.zeros(1, txt.shape[1], 3)}
        for patch in transformer_options.get("patches", {}).get("post_input", []):
            given = patch({**given, "transformer_options": transformer_options})
        x, found = torch.cat((given["txt"], given["img"]), 1), {}
        for kind, blocks in (("double", self.double_blocks), ("single", self.single_blocks)):
            transformer_options["block_type"] = kind
            for index, block in enumerate(blocks):
                transformer_options["block_index"] = index
                found[kind, index, 0] = block(x, transformer_options)
        return found
