"""Measure the gates of research/plan.md on an exported model: `python -m recipes.gates --model FOLDER`.

Writes FOLDER/gates.json and FOLDER/samples.png. The scenes for the losses and the prompts come from blocks that no
training run and no study uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float, UInt8
from PIL import Image
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

from entropy_probe.estimation.calibration import EVALUATION_BATCH
from entropy_probe.evaluation import count_objects, loss
from entropy_probe.models import load, objective, sample_images
from entropy_probe.reference import scenes
from recipes.loop import EVALUATION_SEED, SCENES_PER_SEED, fresh_scenes, pixels_of

SIZE = (scenes.SIZE, scenes.SIZE)
SCALE_FACTORS = (0.7, 0.85, 1.0, 1.2, 1.5)
SHIFT = 6
"""Horizontal shift of the shifted scenes, in pixels. Objects that leave the frame enter at the other side."""

STEPS, GUIDANCE = 20, 4.0
COLUMNS = 10


@dataclass(frozen=True)
class Drawn:
    """Captioned scenes of the training size, in the form that `loss` takes."""

    captions: list[str]
    pixels: UInt8[Tensor, "count 3 height width"]

    @classmethod
    def of(cls, drawn: list[scenes.Scene], shift: int = 0) -> Drawn:
        """Stack scenes, shifted horizontally."""
        return cls([scene.caption for scene in drawn], pixels_of(drawn).roll(shift, -1))

    def at(self, size: tuple[int, int]) -> UInt8[Tensor, "count 3 height width"]:
        """Return the images, which exist at one size only."""
        assert size == SIZE
        return self.pixels


@torch.no_grad()
def losses(pipeline: Any, images: Drawn) -> Float[np.ndarray, " images"]:
    """Return a loss for each image, with noise and timesteps that are the same for every set of images."""
    target, generator = objective(pipeline, images.pixels, images.captions), torch.Generator().manual_seed(0)
    index = torch.arange(len(images.captions))
    parts = [target.training_losses(part, generator) for part in index.split(EVALUATION_BATCH)]
    return torch.cat(parts).double().numpy()


def ratio(above: Float[np.ndarray, " images"], below: Float[np.ndarray, " images"]) -> dict[str, float]:
    """Return the ratio of two mean losses with a 95 % interval; the sets are independent."""
    value = above.mean() / below.mean()
    errors = [part.std(ddof=1) / np.sqrt(len(part)) / part.mean() for part in (above, below)]
    half = 1.96 * value * float(np.hypot(*errors))
    return {"value": round(float(value), 4), "low": round(value - half, 4), "high": round(value + half, 4)}


def loss_gates(pipeline: Any, facts: dict[str, Any], count: int) -> dict[str, Any]:
    """Compare the loss on fresh scenes, the last training scenes and held-out combinations."""
    settings = facts["settings"]
    last = facts["steps"] * settings["batch"] - count
    fresh = losses(pipeline, Drawn.of(fresh_scenes(EVALUATION_SEED, 0, count)))
    trained = losses(pipeline, Drawn.of(fresh_scenes(settings["seed"], last, count)))
    unseen = losses(pipeline, Drawn.of(fresh_scenes(EVALUATION_SEED, 0, count, "held-out")))
    return {
        "scenes": count,
        "loss_fresh": round(float(fresh.mean()), 4),
        "fresh_over_training": ratio(fresh, trained),
        "held_out_over_fresh": ratio(unseen, fresh),
    }


def scale_gate(pipeline: Any, count: int) -> dict[str, Any]:
    """Return the g of minimum loss at N = T, and the change of the loss at each g in percent."""
    found: dict[str, Any] = {"scenes": count}
    for name, shift in (("fresh", 0), ("shifted", SHIFT)):
        drawn = Drawn.of(fresh_scenes(EVALUATION_SEED, 1_000_000, count), shift)
        curve = loss(pipeline, drawn, [SIZE], SCALE_FACTORS, progress=False)
        change = curve.table().set_index("g")["change"]
        found[name] = {
            "g_of_minimum": float(change.idxmin()),
            "change_percent": {str(g): round(100 * float(value), 2) for g, value in change.items()},
        }
    return found


def sampling_gate(pipeline: Any, count: int, size: int, sheet: Path) -> dict[str, Any]:
    """Sample images, save them as one sheet, and count their objects."""
    rng = np.random.default_rng(EVALUATION_SEED * SCENES_PER_SEED)
    prompts = [scenes.sample_prompt(rng) for _ in range(count)]
    images = []
    for first in range(0, count, COLUMNS):
        part = prompts[first : first + COLUMNS]
        seeds = range(first, first + len(part))
        captions = [prompt.caption for prompt in part]
        images += sample_images(pipeline, captions, (size, size), seeds, steps=STEPS, guidance_scale=GUIDANCE)
    arrays = np.stack([np.asarray(image) for image in images])
    counts = count_objects(torch.from_numpy(arrays).permute(0, 3, 1, 2), [prompt.background for prompt in prompts])
    right = int((counts.objects == [prompt.count for prompt in prompts]).sum())
    low, high = proportion_confint(right, count, method="wilson")
    rows = [np.concatenate(arrays[i : i + COLUMNS], 1) for i in range(0, count - count % COLUMNS, COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(sheet, optimize=True)
    return {
        "images": count,
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "count_right": round(right / count, 3),
        "count_right_interval": [round(float(low), 3), round(float(high), 3)],
        "requested_mean": round(float(np.mean([prompt.count for prompt in prompts])), 3),
        "drawn_mean": round(float(counts.objects.mean()), 3),
        "empty": round(float(counts.empty.mean()), 3),
        "complete": round(float(counts.complete.mean()), 3),
    }


def main(
    model: Annotated[Path, typer.Option(help="Folder of the exported pipeline.")],
    scenes_per_loss: Annotated[int, typer.Option(help="Scenes for each loss.")] = 2048,
    scenes_per_factor: Annotated[int, typer.Option(help="Scenes for the loss at each g.")] = 128,
    images: Annotated[int, typer.Option(help="Sampled images; a multiple of ten.")] = 200,
    size: Annotated[int, typer.Option(help="Height and width of the sampled images, in pixels.")] = scenes.SIZE,
) -> None:
    """Measure the gates and print them."""
    torch.set_num_threads(1)
    facts = json.loads((model / "training.json").read_text())
    pipeline = load(str(model), device="cpu", dtype="float32")
    pipeline.set_progress_bar_config(disable=True)
    found: dict[str, Any] = {}
    for name, measure in (
        (f"sampling_{size}px", lambda: sampling_gate(pipeline, images, size, model / "samples.png")),
        ("losses", lambda: loss_gates(pipeline, facts, scenes_per_loss)),
        ("scale_factor", lambda: scale_gate(pipeline, scenes_per_factor)),
    ):
        found[name] = measure()
        (model / "gates.json").write_text(json.dumps(found, indent=2) + "\n")
        typer.echo(f"{name}: {json.dumps(found[name])}")


if __name__ == "__main__":
    typer.run(main)
