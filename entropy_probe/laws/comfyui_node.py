"""A ComfyUI node that scales the attention logits of a model by the law in `law.json`.

Copy this folder to `custom_nodes`. The node serves UNets such as SD 1.5 and SDXL, and Flux. Its factors follow the size
of the image that is sampled. The format of `law.json` is documented in docs/law-file.md of entropy-probe.

In a UNet, the node multiplies the input of the query projection of self-attention, which has no bias. In Flux, it
multiplies the query, after its norm and rotary embedding.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Site = tuple[str, int, int]
"""Place of an attention in ComfyUI: ("input", block, transformer) in a UNet, ("double", block, 0) in Flux."""

LAWS = (
    "original", "paper", "log", "log_power", "pippo", "yarn", "constant", "gaussian", "kappa", "measured", "calibrated",
)  # fmt: skip
"""The laws that this node computes."""

TOKENS = "entropy_probe_tokens"
"""Key of `transformer_options` under which this node keeps the number of image tokens of Flux."""


def read_law(path: Path) -> dict[str, Any]:
    """Return the fields of a law file."""
    law: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if law.get("format") != 2 or "origin" not in law:
        raise ValueError(f"{path} must have format 2 and an origin: write it with entropy-probe export --to comfyui")
    return law


def scale_factor(law: dict[str, Any], layer: str, tokens: int) -> float:
    """Return g of a layer with this number of image tokens."""
    trained = law["origin"]["training_tokens"][layer]
    ratio, logs = tokens / trained, math.log(tokens) / math.log(trained) if min(tokens, trained) > 1 else 1.0
    match law["law"]:
        case "original":
            return 1.0
        case "paper":
            return math.sqrt(logs)
        case "log":
            return logs
        case "log_power":
            return float(logs ** law["power"])
        case "pippo":
            return math.sqrt(law["gamma"] * logs)
        case "yarn":
            power = 1.0 if law["ratio"] == "tokens" else 0.5
            return (0.1 * power * max(0.0, math.log(ratio)) + 1) ** 2
        case "constant":
            return law["value"] if any(fnmatch(layer, glob) for glob in law["layers"]) else 1.0
        case "gaussian":
            return _from_kappa(2 / _of(law["logit_variance"], layer), ratio, law["floor"])
        case "kappa":
            return _from_kappa(_of(law["kappa"], layer), ratio, law["floor"])
        case "measured" | "calibrated":
            return _interpolated(_of(law["points"], layer), math.log(ratio))
    raise ValueError(f"this node does not know the {law['law']} law: export it again with a newer entropy-probe")


def sites(layers: list[str]) -> dict[Site, str]:
    """Return the layers of diffusers by their place in ComfyUI.

    Raises:
        ValueError: if a layer is of another architecture.
    """
    unet = r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.attn1"
    flux = r"(single_)?transformer_blocks\.(\d+)\.attn"
    found: dict[Site, str] = {}
    up = [int(match[3]) for layer in layers if (match := re.fullmatch(unet, layer)) and match[1] == "up_blocks"]
    stride = max(up, default=0) + 1  # an up block of diffusers has as many layers as a level of ComfyUI has blocks
    for layer in layers:
        if match := re.fullmatch(unet, layer):
            level, place, transformer = int(match[2] or 0), int(match[3]), int(match[4])
            name, block = {
                "down_blocks": ("input", 1 + level * stride + place),
                "mid_block": ("middle", 0),
                "up_blocks": ("output", level * stride + place),
            }[match[1]]
            found[name, block, transformer] = layer
        elif match := re.fullmatch(flux, layer):
            found["single" if match[1] else "double", int(match[2]), 0] = layer
        else:
            raise ValueError(f"layer {layer!r} is not of a UNet such as SD 1.5 and SDXL, and not of Flux")
    return found


class ApplyLaw:
    """The node. Its output is a copy of the model with the law."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    CATEGORY = "model_patches/attention"
    DESCRIPTION = "Scale the attention logits by the law in law.json, for image sizes that differ from training."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs: a model, and how much of the law to apply."""
        strength = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05})
        return {"required": {"model": ("MODEL",), "strength": strength}}

    def apply(self, model: Any, strength: float) -> tuple[Any]:
        """Return a patched copy of a model. With a strength s, the factor is g^s."""
        law = read_law(Path(__file__).parent / "law.json")
        by_site = sites(list(law["origin"]["training_tokens"]))
        unet = all(kind in ("input", "middle", "output") for kind, _, _ in by_site)
        part = "input_blocks" if unet else "double_blocks"
        if not hasattr(model.model.diffusion_model, part):
            raise ValueError(
                f"law.json belongs to {law['origin']['model']}, and this is a model of another architecture"
            )

        def factor(kind: str, block: int, transformer: int, tokens: int) -> float:
            layer = by_site.get((kind, block, transformer))
            return 1.0 if layer is None else scale_factor(law, layer, tokens) ** strength

        patched = model.clone()
        (_patch_unet if unet else _patch_flux)(patched, factor)
        return (patched,)


def _patch_unet(model: Any, factor: Callable[[str, int, int, int], float]) -> None:
    def scale_query(query: Any, context: Any, value: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
        kind, block = options["block"]
        return query * factor(kind, block, options["block_index"], query.shape[1]), context, value

    model.set_model_attn1_patch(scale_query)


def _patch_flux(model: Any, factor: Callable[[str, int, int, int], float]) -> None:
    def note_tokens(args: dict[str, Any]) -> dict[str, Any]:
        # The first number of an id is 0 in the image that is sampled, and larger in reference images.
        own = args["img_ids"][0, :, 0] == 0
        args["transformer_options"][TOKENS] = int(own.sum())
        return args

    options = model.model_options["transformer_options"]
    before = options.get("optimized_attention_override")

    def attend(function: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        place = kwargs.get("transformer_options") or {}
        if TOKENS in place and place.get("block_type") in ("double", "single"):
            query = query * factor(place["block_type"], place["block_index"], 0, place[TOKENS])
        return function(query, *args, **kwargs) if before is None else before(function, query, *args, **kwargs)

    model.set_model_patch(note_tokens, "post_input")
    options["optimized_attention_override"] = attend


def _of(values: dict[str, Any], layer: str) -> Any:
    return values["*"] if "*" in values else values[layer]


def _from_kappa(kappa: float, ratio: float, floor: float) -> float:
    return max(floor, math.sqrt(max(0.0, 1 + kappa * math.log(ratio))))


def _interpolated(points: list[list[float]], x: float) -> float:
    """Return g at x = ln(N/T): ln g is linear between the points, and the outer segments are extended."""
    knots = sorted({(float(place), float(g)) for place, g in points} | {(0.0, 1.0)})
    if len(knots) == 1:
        return 1.0
    last = next((number for number in range(1, len(knots) - 1) if x <= knots[number][0]), len(knots) - 1)
    (x0, g0), (x1, g1) = knots[last - 1], knots[last]
    return math.exp(math.log(g0) + (x - x0) * math.log(g1 / g0) / (x1 - x0))


NODE_CLASS_MAPPINGS = {"EntropyProbeLaw": ApplyLaw}
NODE_DISPLAY_NAME_MAPPINGS = {"EntropyProbeLaw": "Scale attention by a law"}
