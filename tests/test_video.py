"""Videos: Wan and LTX in sweeps and on the command line. A longer clip is a changed N."""

import numpy as np
import pytest
import torch
from families.pipelines import by_family, seeded
from PIL import Image

import entropy_probe as ep
from entropy_probe.attention.clip_length import training_token_frames
from entropy_probe.errors import InputError
from entropy_probe.models import layers, training_tokens

REDUCTION = {"Wan": 4, "LTX-Video": 8}
"""Frames per frame of tokens."""
GRID = {"prompts": ["a red apple", "flat pizza"], "sizes": [(64, 64), (64, 96)], "steps": 1, "progress": False}


def video(family):
    pipeline = seeded(lambda: by_family(family))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=REDUCTION)
def family(request):
    return request.param


def token_frames(family, frames):
    return (frames - 1) // REDUCTION[family] + 1


def test_training_tokens_count_space_and_frames(family):
    pipeline = video(family)
    default = {"Wan": 81, "LTX-Video": 161}[family]
    assert training_token_frames(pipeline.transformer, pipeline) == token_frames(family, default)
    visual = [layer for layer in layers(pipeline) if layer.grid is not None]
    assert {layer.axes for layer in visual} == {"spatio-temporal"}
    expected = {layer.name: layer.grid.tokens * token_frames(family, default) for layer in visual}
    assert training_tokens(pipeline) == expected


@pytest.mark.parametrize("frames", [9, 17])
def test_longer_clip_is_a_changed_n(family, frames):
    """The paper's law at the training size follows from the frames alone."""
    pipeline = video(family)
    size = {"Wan": (480, 832), "LTX-Video": (512, 704)}[family]
    layer = next(layer for layer in layers(pipeline, size) if layer.grid is not None)
    small = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
    with ep.scaled(pipeline, "log", training_frames=9) as scaling:
        pipeline("a", num_frames=frames, **small)
    frame = scaling.frame()
    spatial = frame["tokens"] / token_frames(family, frames)
    assert (frame["training_tokens"] == layer.grid.tokens * token_frames(family, 9)).all()
    assert spatial.nunique() == 1
    expected = np.log(frame["tokens"]) / np.log(frame["training_tokens"])
    assert np.allclose(frame["scale_factor"], expected)


def test_sweep_saves_the_videos_that_the_pipeline_samples(family, tmp_path):
    pipeline, given = video(family), {"num_frames": 9}
    swept = ep.sweep(pipeline, **GRID, store=tmp_path / "run", pipeline_kwargs=given, guidance_scale=1.0, batch=2)
    own = pipeline(
        ["a red apple", "flat pizza"], height=64, width=64, num_frames=9, num_inference_steps=1, guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(0) for _ in range(2)], output_type="pil",
    ).frames[1]  # fmt: skip
    frames = swept.frames("flat pizza", (64, 64), 0)
    assert len(frames) == len(own) == 9
    assert all(np.array_equal(a, b) for a, b in zip(frames, own, strict=True))
    assert np.array_equal(swept.image("flat pizza", (64, 64), 0), frames[4])
    with Image.open(swept.run.image_path(next(swept.grid.cells()))) as image:
        assert image.format == "PNG"
        assert image.is_animated
    assert swept.manifest.training_frames == 9
    assert ep.Sweep.open(tmp_path / "run").manifest == swept.manifest
    with pytest.raises(InputError, match="holds another run, with pipeline_kwargs"):
        ep.sweep(pipeline, **GRID, store=tmp_path / "run", pipeline_kwargs={"num_frames": 17}, guidance_scale=1.0)


def test_images_have_no_training_frames(tiny_pipeline):
    with pytest.raises(InputError, match="StableDiffusionPipeline samples no videos, got training_frames=9"):
        ep.sweep(tiny_pipeline, **GRID, training_frames=9)
    for frames in (0, -1):
        with pytest.raises(InputError, match="the number of frames must be a positive integer, got"):
            ep.capture(tiny_pipeline, training_frames=frames)
