"""Draw the sheet of scenes and measure the counter of objects: `python -m research.scenes_page`.

Writes docs/scenes.md and docs/scenes.png. Neither training nor the choice of thresholds used these scenes.
Both splits are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderTiny
from PIL import Image, ImageDraw
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

from entropy_probe.evaluation import count_objects
from entropy_probe.reference import scenes

FIRST = 901_000_000_000
"""First scene of the evaluation block."""

SIZES = (32, 48, 64, 96, 128, 192)
SHEET_SIZES = (32, 64, 128)
SHEET_SHAPE = (8, 5)
"""Rows and columns of the sheet."""

AUTOENCODER = Path(__file__).parents[1] / "data" / "scenes-unet" / "vae"
EXAMPLES = 40
DOCS = Path(__file__).parents[1] / "docs"

TEXT = """# Scenes

Written by `python -m research.scenes_page`. `entropy_probe.reference.scenes` generates the images that the models
[scenes-unet](../data/scenes-unet/README.md) and [scenes-dit](../data/scenes-dit/README.md) are trained on.

![{examples} scenes, each at 32, 64 and 128 pixels](scenes.png)

*{examples} scenes of consecutive seeds, each at 32, 64 and 128 px.*

A scene has one to three objects of one or two of {classes} classes (Noto emoji) on one of {backgrounds} backgrounds.
The caption follows a small grammar, such as `two lemons and one fox on white`. The same arguments
always return the same scene, at any height and width:

```python
from entropy_probe.reference import scenes

scene = scenes.sample(7, height=96, width=128)
scene.image  # bytes, (96, 128, 3)
scene.caption  # 'three monkey faces on dusk'
scene.boxes  # ground truth: class and place of each object, in pixels
```

- The supply of scenes is endless, so a model cannot memorise it. Training uses each scene once.
- The longer side of an object is {low} to {high} of the short side of the frame, log-uniform. Boxes do not overlap.
- One combination of class, count and background in {every} is held out: `split="training"` never draws it, and
  `split="held-out"` draws only prompts that contain one. Each class is trained with every count and every background.

## Two definitions of a larger image

| `larger` | a larger image has | used for |
|---|---|---|
| `zoom` (default) | the same scene with more pixels | sampled images: the content of the prompt is the same |
| `canvas` | objects of their size in training, in pixels | secondary analyses: local structure is familiar |

`canvas` needs a frame of at least {size} px. The plan of the study, `research/plan.md`, names the definition that
each result uses.

## How often the counter is right

`entropy_probe.evaluation.count_objects` counts the objects in an image whose background is known. It also counts the
objects that the frame cuts off and the objects that look merged. It uses connected components, not a network.

The table shows the fraction of images with the right count, with a 95 % Wilson interval. *Real* are scenes as drawn.
*Decoded* are the same scenes after the autoencoder of `scenes-unet`: sampled images are as blurred as these. The
target is 97 % of the real scenes at each size.

{curve}

On real `canvas` scenes the count is right in {canvas}.

False alarms and detection of known faults, {faults} images of each kind:

{alarms}

A *cut* image shows one object without its left third. A *merged* image shows two objects of different classes whose
boxes overlap by 15 %. The counter misses most merged objects: without a narrow place between them, two objects
look like one. A fraction of merged images is therefore a lower bound.
"""


def stack(images: list[np.ndarray]) -> Tensor:
    """Return images (height, width, 3) as one tensor (count, 3, height, width)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def draw_sheet(path: Path) -> None:
    """Draw the examples at three sizes, with captions, as one PNG."""
    rows, columns = SHEET_SHAPE
    pad, text = 6, 14
    width, height = sum(SHEET_SIZES) + pad * len(SHEET_SIZES), max(SHEET_SIZES) + text + pad
    sheet = Image.new("RGB", (columns * (width + pad), rows * height + pad), (246, 246, 246))
    pen = ImageDraw.Draw(sheet)
    for i in range(rows * columns):
        left, top = pad + i % columns * (width + pad), pad + i // columns * height
        for size in SHEET_SIZES[::-1]:
            scene = scenes.sample(FIRST + i, size, size, split="all")
            sheet.paste(Image.fromarray(scene.image), (left, top))
            left += size + pad
        pen.text((left - width, top + max(SHEET_SIZES)), scene.caption, fill=(40, 40, 40))
    sheet.save(path, optimize=True)


@torch.inference_mode()
def decoded(images: Tensor, autoencoder: AutoencoderTiny) -> Tensor:
    """Return images after encoding and decoding, as bytes."""
    parts = []
    for part in images.split(16):
        latents = autoencoder.encode(part.float() / 127.5 - 1).latents
        parts.append(((autoencoder.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts)


def interval(right: int, count: int) -> str:
    """Return a percentage with its Wilson interval."""
    low, high = proportion_confint(right, count, method="wilson")
    return f"{100 * right / count:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def accuracy(drawn: list[scenes.Scene], images: Tensor, larger: scenes.Larger = "zoom") -> str:
    """Return how often the count agrees with the prompts."""
    counts = count_objects(images, [scene.background.name for scene in drawn], larger)
    right = counts.objects == [scene.prompt.count for scene in drawn]
    return interval(int(right.sum()), len(drawn))


def curve(count: int, count_decoded: int) -> str:
    """Return the accuracy per size as a Markdown table."""
    autoencoder = AutoencoderTiny.from_pretrained(AUTOENCODER, use_safetensors=True).float().eval()
    rows = [f"| size | real, n = {count:,} | decoded, n = {count_decoded:,} |", "|---|---|---|"]
    for size in SIZES:
        drawn = [scenes.sample(FIRST + i, size, size, split="all") for i in range(count)]
        some = drawn[:count_decoded]
        blurred = decoded(stack([scene.image for scene in some]), autoencoder)
        real = accuracy(drawn, stack([scene.image for scene in drawn]))
        rows.append(f"| {size} px | {real} | {accuracy(some, blurred)} |")
    return "\n".join(rows)


def cut_image(scene: scenes.Scene, size: int) -> np.ndarray:
    """Draw the first object of a scene without its left third, which is outside the frame."""
    first = scene.layout.placements[0]
    centred = scenes.Placement(first.name, 0.5, 0.5, min(first.scale, 0.6))
    whole = scenes.draw(scenes.Layout(scene.prompt, (centred,)), size, size)
    lost = whole.boxes[0].left + (whole.boxes[0].right - whole.boxes[0].left) // 3
    image = scene.background.pixels(size, size)
    image[:, : size - lost] = whole.image[:, lost:]
    return image


def merged_image(scene: scenes.Scene, size: int) -> np.ndarray:
    """Draw two objects of different classes side by side; their boxes overlap by 15 % of the narrower one."""
    kinds = scenes.classes()
    first = scenes.by_name()[scene.prompt.names[0]]
    second = kinds[(kinds.index(first) + 17) % len(kinds)]
    scale = 0.4
    widths = [scale * min(1.0, kind.aspect) for kind in (first, second)]
    overlap = 0.15 * min(widths)
    left = 0.5 - (sum(widths) - overlap) / 2
    right = left + widths[0] - overlap
    pair = (
        scenes.Placement(first.name, left + widths[0] / 2, 0.5, scale),
        scenes.Placement(second.name, right + widths[1] / 2, 0.5, scale),
    )
    return scenes.draw(scenes.Layout(scene.prompt, pair), size, size).image


def alarms(count: int) -> str:
    """Return how often real and damaged images are reported as cut off or merged, as a Markdown table."""
    rows = ["| size | images | reported as cut off | reported as merged |", "|---|---|---|---|"]
    kinds: dict[str, Callable[[scenes.Scene, int], np.ndarray]] = {
        "real": lambda scene, size: scene.image,
        "cut": cut_image,
        "merged": merged_image,
    }
    for size in (32, 64):
        drawn = [scenes.sample(FIRST + i, size, size, split="all") for i in range(count)]
        names = [scene.background.name for scene in drawn]
        for kind, draw in kinds.items():
            counts = count_objects(stack([draw(scene, size) for scene in drawn]), names)
            cut, merged = (interval(int((n > 0).sum()), count) for n in (counts.cut_off, counts.merged))
            rows.append(f"| {size} px | {kind} | {cut} | {merged} |")
    return "\n".join(rows)


def canvas(count: int) -> str:
    """Return the accuracy on the larger canvases in one phrase."""
    found = []
    for size in (96, 128, 192):
        drawn = [scenes.sample(FIRST + i, size, size, split="all", larger="canvas") for i in range(count)]
        found.append(f"{accuracy(drawn, stack([scene.image for scene in drawn]), 'canvas')} at {size} px")
    return f"{', '.join(found)} (n = {count:,})"


def main(
    count: Annotated[int, typer.Option(help="Real scenes per size.")] = 400,
    count_decoded: Annotated[int, typer.Option(help="Scenes per size that go through the autoencoder.")] = 150,
    out: Annotated[Path, typer.Option(help="Folder of the page and the sheet.")] = DOCS,
) -> None:
    """Write scenes.md and scenes.png."""
    torch.set_num_threads(1)
    draw_sheet(out / "scenes.png")
    low, high = scenes.SCALES
    facts = {
        "examples": EXAMPLES, "classes": len(scenes.classes()), "backgrounds": len(scenes.BACKGROUNDS), "low": low,
        "high": high, "every": scenes.HELD_OUT_EVERY, "size": scenes.SIZE, "faults": count_decoded,
    }  # fmt: skip
    text = TEXT.format(
        **facts, curve=curve(count, count_decoded), alarms=alarms(count_decoded), canvas=canvas(count_decoded)
    )
    (out / "scenes.md").write_text(text)


if __name__ == "__main__":
    typer.run(main)
