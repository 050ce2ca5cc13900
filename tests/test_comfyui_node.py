"""The exported ComfyUI node scales every attention of a UNet and of Flux, on a stub of ComfyUI's interface."""

import importlib.util
import json
import math
from dataclasses import replace

import pytest
import torch
from comfyui import Flux, ModelPatcher, UNet, attend
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from families.pipelines import PIPELINES, seeded

from entropy_probe import export
from entropy_probe.errors import InputError
from entropy_probe.laws import (
    Calibrated,
    Constant,
    Gaussian,
    Kappa,
    Log,
    LogPower,
    Measured,
    Origin,
    Original,
    Paper,
    Pippo,
    Yarn,
    comfyui_node,
    parameters,
)

ORIGIN = Origin("owner/sd", "2:0", "StableDiffusionPipeline", (512, 512), {})
SD15 = {"attention": (1, 1, 1, 0), "blocks": 2}
SDXL = {"attention": (0, 2, 10), "blocks": 2}
POINTS = ((-1.2, 0.6), (0.7, 1.2), (1.4, 1.5))


def unet_layers(attention, blocks):
    """Return the layers of a UNet of diffusers: (name of its blocks, block, attention, transformer block)."""
    names = []
    for level, depth in enumerate(attention):
        names += [
            f"down_blocks.{level}.attentions.{n}.transformer_blocks.{k}" for n in range(blocks) for k in range(depth)
        ]
    names += [f"mid_block.attentions.0.transformer_blocks.{k}" for k in range(max(attention))]
    for level, depth in enumerate(reversed(attention)):
        names += [
            f"up_blocks.{level}.attentions.{n}.transformer_blocks.{k}" for n in range(blocks + 1) for k in range(depth)
        ]
    return [f"{name}.attn1" for name in names]


def node_of(law, origin, folder):
    """Export a law, and import its node as ComfyUI does."""
    export(replace(law, origin=origin), "comfyui", folder)
    spec = importlib.util.spec_from_file_location("custom_node", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [SD15, SDXL], ids=["SD 1.5", "SDXL"])
def test_places_equal_those_of_the_conversion_of_diffusers(shape):
    """diffusers converts checkpoints in the layout that ComfyUI uses: its table is independent of ours."""
    unet = UNet(**shape)
    ours = comfyui_node.sites(unet_layers(**shape))
    places = unet(torch.zeros(1, 4, 8), {}).keys()
    assert set(ours) == set(places)
    parts = {"input": "input_blocks.{}", "middle": "middle_block", "output": "output_blocks.{}"}
    ending = "transformer_blocks.{}.attn1.to_q.weight"
    old = {place: f"{parts[place[0]].format(place[1])}.1.{ending.format(place[2])}" for place in places}
    checkpoint = {f"model.diffusion_model.{name}": torch.tensor(float(n)) for n, name in enumerate(old.values())}
    for name, count in (("input_blocks", len(unet.input_blocks)), ("output_blocks", len(unet.output_blocks))):
        norms = (f"model.diffusion_model.{name}.{n}.0.in_layers.0.weight" for n in range(count))
        checkpoint |= dict.fromkeys(norms, torch.tensor(-1.0))  # the conversion counts the blocks
    middle = (f"model.diffusion_model.middle_block.{n}.in_layers.0.weight" for n in (0, 2))
    checkpoint |= dict.fromkeys(middle, torch.tensor(-1.0))
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    config |= {"down_block_types": shape["attention"], "up_block_types": shape["attention"]}
    converted = {int(value): name for name, value in convert_ldm_unet_checkpoint(checkpoint, config).items()}
    assert {place: converted[n] for n, place in enumerate(old)} == {
        place: f"{layer}.to_q.weight" for place, layer in ours.items()
    }


def test_unet_is_scaled_in_every_block(tmp_path):
    torch.manual_seed(0)
    layers = unet_layers(**SD15)
    trained = dict.fromkeys(layers, 16)
    points = {layer: ((math.log(4), 1.1 + 0.1 * n),) for n, layer in enumerate(layers)}
    node = node_of(Measured(points), replace(ORIGIN, training_tokens=trained), tmp_path)
    model, x = ModelPatcher(UNet(**SD15)), torch.randn(2, 64, 8)
    before = model.run(x)
    (patched,) = node.ApplyLaw().apply(model, 1.0)
    found = patched.run(x)
    unet, by_site = model.model.diffusion_model, node.sites(layers)
    for (kind, index, number), output in found.items():
        block = {"input": unet.input_blocks, "middle": unet.middle_block, "output": unet.output_blocks}[kind][index][
            number
        ]
        g = points[by_site[kind, index, number]][0][1]
        expected = attend(g * block.to_q(x), block.to_k(x), block.to_v(x), block.heads)
        torch.testing.assert_close(output, expected)
    assert all(torch.equal(output, before[place]) for place, output in model.run(x).items())  # only the copy is patched
    (unchanged,) = node.ApplyLaw().apply(model, 0.0)
    assert all(torch.equal(output, before[place]) for place, output in unchanged.run(x).items())


def test_flux_is_scaled_in_every_block_and_counts_only_the_sampled_image(tmp_path):
    torch.manual_seed(0)
    layers = [f"transformer_blocks.{n}.attn" for n in range(2)] + [
        f"single_transformer_blocks.{n}.attn" for n in range(3)
    ]
    points = {layer: ((math.log(4), 1.1 + 0.2 * n),) for n, layer in enumerate(layers)}
    node = node_of(Measured(points), replace(ORIGIN, training_tokens=dict.fromkeys(layers, 16)), tmp_path)
    model = ModelPatcher(Flux(2, 3))
    img, txt, ids = torch.randn(1, 80, 8), torch.randn(1, 5, 8), torch.zeros(1, 80, 3)
    ids[:, 64:, 0] = 1  # the last 16 tokens belong to a reference image
    seen = []

    def other_override(function, q, *args, **kwargs):
        seen.append(q)
        return function(q, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = other_override
    before = model.run(img, txt, ids)
    queries = [q.clone() for q in seen]
    seen.clear()
    (patched,) = node.ApplyLaw().apply(model, 1.0)
    found = patched.run(img, txt, ids)
    by_site = node.sites(layers)
    for query, scaled_query, place in zip(queries, seen, found, strict=True):  # the other override still runs
        torch.testing.assert_close(scaled_query, query * points[by_site[place]][0][1])
        assert not torch.allclose(found[place], before[place])


LAWS = [
    Original(), Paper(), Log(), Kappa({"*": 0.4}), Kappa({"a": -2.0}), Gaussian({"a": 3.0}), Measured({"a": POINTS}),
    LogPower(1.5), Pippo(1.4), Yarn(), Yarn("side"), Constant(1.5, ("b*", "a")), Constant(1.5, ("b*",)),
    Measured({"a": ()}), Calibrated({"*": POINTS[1:]}),
]  # fmt: skip


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 100, 4096])
def test_node_has_the_factors_of_the_package(law, tokens):
    fields = json.loads(json.dumps(parameters(law))) | {"origin": {"training_tokens": {"a": 64}}}
    assert comfyui_node.scale_factor(fields, "a", tokens) == pytest.approx(law.scale_factor("a", tokens, 64))


def test_node_declares_itself_to_comfyui():
    (node,) = comfyui_node.NODE_CLASS_MAPPINGS.values()
    assert comfyui_node.NODE_DISPLAY_NAME_MAPPINGS.keys() == comfyui_node.NODE_CLASS_MAPPINGS.keys()
    assert node.INPUT_TYPES()["required"]["model"] == ("MODEL",)
    assert node.RETURN_TYPES == ("MODEL",)
    assert hasattr(node, node.FUNCTION)


def test_refuses_other_architectures(tmp_path):
    layers = {"transformer_blocks.0.attn": 16}
    node = node_of(Measured({"*": POINTS}), replace(ORIGIN, training_tokens=layers), tmp_path)
    with pytest.raises(ValueError, match="belongs to owner/sd, and this is a model of another architecture"):
        node.ApplyLaw().apply(ModelPatcher(UNet(**SD15)), 1.0)
    with pytest.raises(ValueError, match="does not know the new law"):
        node.scale_factor({"law": "new", "origin": {"training_tokens": {"a": 4}}}, "a", 16)
    (tmp_path / "law.json").write_text('{"law": "paper"}')
    with pytest.raises(ValueError, match="must have format 2 and an origin"):
        node.read_law(tmp_path / "law.json")
    with pytest.raises(InputError, match=r"cannot export to ComfyUI: layer 'blocks\.0' is not of a UNet"):
        export(Measured({}, origin=replace(ORIGIN, training_tokens={"blocks.0": 4})), "comfyui", tmp_path / "other")


@pytest.mark.parametrize("name", ["Stable Diffusion XL", "Flux"])
def test_formula_is_exported_with_the_model_it_is_for(name, tmp_path):
    export("paper", "comfyui", tmp_path, model=seeded(PIPELINES[name]))
    law = comfyui_node.read_law(tmp_path / "law.json")
    assert comfyui_node.sites(list(law["origin"]["training_tokens"]))
