"""Every attention call of every model family is found, classified and measured exactly."""

import fnmatch
import math
from pathlib import Path

import pytest
import torch
from families import FAMILIES, page
from families.truth import eager, entropy

from entropy_probe import capture, scaled
from entropy_probe.attention import attention_calls
from entropy_probe.errors import CaptureError

CASES = [
    pytest.param(family, size, id=f"{family.name}-{size[0]}x{size[1]}") for family in FAMILIES for size in family.sizes
]
TRAINED = 8
"""Height and width of the training latents, in the configuration of the families that contain it."""
NO_TRAINING_SIZE = {
    "Stable Cascade prior", "Stable Cascade decoder", "Flux", "Flux.2", "Chroma", "Z-Image", "Qwen-Image", "PRX",
    "OmniGen", "HiDream", "Wan", "LTX-Video", "HunyuanVideo", "HunyuanVideo 1.5", "Mochi",
}  # fmt: skip
"""Families whose denoiser has no training size; the pipeline does, see test_real_pipelines.py."""
TIMESTEPS = ("timestep", "timesteps", "timestep_ratio", "t")
ONCE = [pytest.param(family, id=family.name) for family in FAMILIES]


def forward(family, denoiser, size):
    """Return the output of one forward pass."""
    with torch.no_grad():
        output = denoiser(**family.inputs(denoiser, *size))
    while not isinstance(output, torch.Tensor):
        output = output[0] if isinstance(output, tuple | list) else output.sample
    return output


def check_entropy(record, weights, image):
    """Compare the statistics of a call with its attention map; for joint attention, the image rows and both parts."""
    weights = weights.view(*record.entropy.shape, *weights.shape[-2:])
    joint = record.kind == "joint" and image != "unknown"
    assert record.image_mass.isnan().all() != joint
    if not joint:
        expected = {"entropy": entropy(weights).nanmean(-1)}  # a fully masked row has no weights
    else:
        tokens = record.tokens
        keys = slice(0, tokens) if image == "first" else slice(record.key_tokens - tokens, record.key_tokens)
        rows = weights if record.query_tokens == tokens else weights[..., keys, :]
        is_image = torch.zeros(record.key_tokens, dtype=torch.bool)
        is_image[keys] = True
        own, other = rows[..., is_image], rows[..., ~is_image]
        mass, rest = own.sum(-1), other.sum(-1)
        expected = {
            "entropy": entropy(rows).nanmean(-1),
            "image_mass": mass.nanmean(-1),
            "mass_entropy": (torch.special.entr(mass) + torch.special.entr(rest)).nanmean(-1),
            "image_entropy": (entropy(own) + mass * mass.log()).nansum(-1) / mass.nansum(-1),
            "text_entropy": (entropy(other) + rest * rest.log()).nansum(-1) / rest.nansum(-1),
        }
    for name, values in expected.items():
        assert (getattr(record, name).double() - values).abs().max() <= 1e-5, (record.layer, name)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_every_attention_call_is_found_classified_and_measured(family, size):
    denoiser = family.build()
    plain = forward(family, denoiser, size)
    layers = tuple(family.attention)
    with capture(denoiser, layers=matching_layers(denoiser, layers) if family.linear else None) as captured:
        output = forward(family, denoiser, size)
    assert torch.equal(plain, output)
    maps = []
    with eager(denoiser, family.hidden, maps):
        forward(family, denoiser, size)
    assert len(captured.calls) == len(maps)
    for record, attention_map in zip(captured.calls, maps, strict=True):
        check_entropy(record, attention_map, family.image)

    unmatched = set(layers)
    for record in captured.calls:
        matching = [glob for glob in layers if fnmatch.fnmatch(record.layer, glob)]
        assert len(matching) == 1, record.layer
        unmatched -= set(matching)
        attention = family.attention[matching[0]]
        assert (record.kind, record.axes) == (attention.kind, attention.axes), record.layer
        if attention.kind != "text" and attention.axes != "temporal":
            frames = family.frames if attention.axes == "spatio-temporal" else 1
            sides = [-(-side // attention.stride) for side in size]
            assert [record.grid.height, record.grid.width] == sides, record.layer
            image = frames * sides[0] * sides[1]
            assert record.tokens == image
            if attention.kind != "cross":
                assert record.key_tokens >= image
                assert (record.key_tokens == image) == (attention.kind == "self")
        trained = None
        if attention.kind in ("self", "joint") and attention.axes != "temporal" and family.name not in NO_TRAINING_SIZE:
            trained = frames * math.ceil(TRAINED / attention.stride) ** 2
        assert record.training_tokens == trained, record.layer
    assert not unmatched
    given = [value for name, value in family.inputs(denoiser, *size).items() if name in TIMESTEPS]
    assert captured.frame()["timestep"].unique().tolist() == [pytest.approx(float(torch.as_tensor(given[0]).max()))]


def matching_layers(denoiser, globs):
    return [name for name, _ in denoiser.named_modules() if any(fnmatch.fnmatch(name, glob) for glob in globs)]


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in FAMILIES if f.linear])
def test_linear_attention_raises_an_error_with_its_name(family):
    denoiser = family.build()
    with pytest.raises(CaptureError, match=r"(?s)Linear attention has no softmax"), capture(denoiser):
        forward(family, denoiser, family.sizes[0])


@pytest.mark.parametrize("family", ONCE)
def test_law_scales_only_image_attention(family):
    denoiser, size = family.build(), family.sizes[0]
    trained = {}
    with attention_calls(denoiser, lambda call: trained.update({call.layer: call.tokens // 2})):
        plain = forward(family, denoiser, size)
    scales = {}
    with (
        scaled(denoiser, "log", training_tokens=trained),
        attention_calls(
            denoiser,
            lambda call: scales.setdefault(call.layer, []).append((call.visual, call.scale)),
            after_scaling=True,
        ),
    ):
        changed = forward(family, denoiser, size)
    unscaled = {}
    with attention_calls(denoiser, lambda call: unscaled.setdefault(call.layer, []).append(call.scale)):
        assert torch.equal(forward(family, denoiser, size), plain)
    for layer, calls in scales.items():
        for (visual, scale), before in zip(calls, unscaled[layer], strict=True):
            assert (scale > before) == visual, layer
    visible = any(visual for calls in scales.values() for visual, _ in calls)
    assert visible != torch.equal(changed, plain)


def test_page_of_models_is_generated_from_the_table():
    assert Path("docs/models.md").read_text() == page(), "run python -m tests.families"
