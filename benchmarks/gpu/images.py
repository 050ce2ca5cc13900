"""The bundled models on the device: images with and without capture, and entropies compared with the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.setting import Setting, measure_cases
from entropy_probe import capture, load, scaled
from entropy_probe.models import sample_images
from entropy_probe.reference import prompts

STEPS = 4


@dataclass(frozen=True)
class Image:
    """Two images of a bundled model."""

    model: str
    dtype: str
    size: int


def sample(pipeline: Any, image: Image) -> Any:
    return sample_images(pipeline, list(prompts()[:2]), (image.size,) * 2, [0, 1], steps=STEPS, guidance_scale=4.0)


def pixels(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def compare(image: Image, device: str) -> dict[str, Any]:
    """Return whether capturing leaves the images bit-identical, and how far the entropies are from the CPU's.

    `deterministic` is whether plain sampling repeats its own images.
    """
    pipeline = load(image.model, device=device, dtype=image.dtype)
    plain, again = pixels(sample(pipeline, image)), pixels(sample(pipeline, image))
    with capture(pipeline, rows="all") as captured:
        seen = pixels(sample(pipeline, image))
    with capture(pipeline) as automatic:
        seen_automatic = pixels(sample(pipeline, image))
    with scaled(pipeline, "paper"):
        changed = pixels(sample(pipeline, image))
    after = pixels(sample(pipeline, image))
    on_cpu = load(image.model, device="cpu", dtype="float32")
    with capture(on_cpu, rows="all") as expected:
        sample(on_cpu, image)
    differences = captured.frame()["entropy"].to_numpy() - expected.frame()["entropy"].to_numpy()
    first = (captured.frame()["step"] == 0).to_numpy()  # later steps start from different latents
    return {
        "deterministic": bool((plain == again).all()),
        "identical under capture": bool((plain == seen).all() and (plain == seen_automatic).all()),
        "identical after a law": bool((plain == after).all()),
        "changed by a law": bool((plain != changed).any()),
        "rows": len(captured.frame()),
        "rows, auto": len(automatic.frame()),
        "entropy difference to the CPU, first step": float(np.abs(differences[first]).max()),
        "entropy difference to the CPU, all steps": float(np.abs(differences).max()),
    }


def images(quick: bool) -> list[Image]:
    if quick:
        return [Image("reference", "float32", 32)]
    return [
        Image(model, dtype, size)
        for dtype, size in (("float32", 128), ("bfloat16", 128), ("float16", 128))
        for model in ("reference", "reference-dit")
    ]


def run(setting: Setting) -> dict[str, Any]:
    return measure_cases(images(setting.quick), lambda image: compare(image, setting.device), setting)
