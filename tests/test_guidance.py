"""Labels of guidance branches, and the paper's law compared with its implementation in diffusers."""

import pytest
import torch
from diffusers import (
    AnimateDiffPAGPipeline,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    PixArtSigmaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from families.pipelines import PIPELINES, by_family, seeded

from entropy_probe import capture, scaled
from entropy_probe.attention import Latents, attention_calls
from entropy_probe.attention.roles import role
from entropy_probe.models import load, sample_images


@pytest.fixture
def lumina2():
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1,
        multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64), cap_feat_dim=8, in_channels=4,
    ).eval()  # fmt: skip
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=1, shift_factor=0.0)
    parts = {"transformer": transformer, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler()}
    pipeline = Lumina2Pipeline(**parts, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, guidance_scale, positive, negative):
    mask = torch.ones(2, 7, dtype=torch.long)
    return pipeline(
        prompt_embeds=positive, prompt_attention_mask=mask, negative_prompt_embeds=negative,
        negative_prompt_attention_mask=mask, guidance_scale=guidance_scale, num_inference_steps=3, height=16, width=16,
        output_type="latent", generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def test_guidance_by_two_forwards_per_step_is_labelled(lumina2):
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 2, 7, 8, generator=generator)
    plain = draw(lumina2, 3.0, positive, negative)
    with capture(lumina2) as captured:
        assert torch.equal(draw(lumina2, 3.0, positive, negative), plain)
    frame = captured.frame()
    assert frame.groupby("branch").size().nunique() == 1
    assert sorted(frame["step"].unique()) == [0, 1, 2]
    assert set(frame["sample"]) == {0, 1}

    with capture(lumina2) as alone:  # without guidance, only the prompt is run
        draw(lumina2, 1.0, positive, negative)
    assert set(alone.frame()["branch"]) == {"cond"}
    keys = ["layer", "head", "sample"]
    first = frame[(frame["step"] == 0) & (frame["branch"] == "cond")].set_index(keys)["entropy"]
    expected = alone.frame().query("step == 0").set_index(keys)["entropy"]
    assert (first - expected).abs().max() < 1e-5
    other = frame[(frame["step"] == 0) & (frame["branch"] == "uncond")].set_index(keys)["entropy"]
    assert (other - expected).abs().max() > 1e-4


@pytest.mark.parametrize("trained", [16, 64])
def test_paper_law_equals_base_sequence_length_of_lumina(trained):
    torch.manual_seed(0)
    model = LuminaNextDiT2DModel(
        sample_size=16, patch_size=2, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=1,
        multiple_of=8, cross_attention_dim=12, in_channels=4,
    ).eval()  # fmt: skip
    for parameter in model.parameters():  # the gates are zero in a new model, which would hide the attention
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 12),
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "encoder_mask": torch.ones(2, 5),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 384, 384),
        "cross_attention_kwargs": {},
        "return_dict": False,
    }
    with torch.no_grad():
        plain = model(**inputs)[0]
        built_in = model(**inputs | {"cross_attention_kwargs": {"base_sequence_length": trained}})[0]
        own = {}
        with attention_calls(model, lambda call: own.update({call.layer: trained} if call.visual else {})):
            model(**inputs)
        with scaled(model, "paper", training_tokens=own):
            ours = model(**inputs)[0]
    assert set(own) == {"layers.0.attn1", "layers.1.attn1"}
    assert (ours - built_in).abs().max() <= 1e-5 * built_in.abs().max()
    assert (plain - built_in).abs().max() > 1e-4 * built_in.abs().max()


def test_unreported_guidance_is_detected_from_the_batch():
    pipeline = load("reference-dit", device="cpu")  # PixArt does not report its guidance
    assert not hasattr(pipeline, "do_classifier_free_guidance")
    frames = {}
    for scale in (4.0, 1.0):
        with capture(pipeline) as captured:
            sample_images(pipeline, ["noto red apple", "flat pizza"], (64, 64), [0, 1], steps=2, guidance_scale=scale)
        frames[scale] = captured.frame()
    assert set(frames[1.0]["branch"]) == {"cond"}
    assert set(frames[4.0]["branch"]) == {"cond", "uncond"}
    assert set(frames[4.0]["sample"]) == set(frames[1.0]["sample"]) == {0, 1}
    keys = ["layer", "kind", "head", "sample", "step"]
    guided, alone = (frames[s].query("branch == 'cond' and step == 0").set_index(keys)["entropy"] for s in (4.0, 1.0))
    assert (guided - alone).abs().max() < 1e-3
    without = frames[4.0].query("branch == 'uncond' and step == 0").set_index(keys)["entropy"]
    assert (without - alone).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", ["down_blocks.0.temp_attentions.0.attn1", "up.motion_modules.1.attn2", "transformer_in.attn1"]
)
def test_layer_name_decides_if_frames_and_tokens_are_equal_in_number(name):
    latents = Latents(32, 32, 1, 16)
    assert role(name, 16, 16, latents)[1] == "temporal"
    assert role("mid_block.attentions.0.attn1", 16, 16, latents)[1] == "spatial"
    assert role("mid_block.attentions.0.attn1", 16 * 1024, 16 * 1024, latents)[1] == "spatio-temporal"


PROMPTS = ["a red apple", "flat pizza"]
KEYS = ["layer", "kind", "key_tokens", "head", "branch", "sample"]


def first_step(pipeline, prompts, seeds, **asked):
    """Return the entropies of the first step, with all rows measured, and the table of all steps."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    settings = {"num_inference_steps": 4, "height": 32, "width": 64, "output_type": "latent"} | asked
    with capture(pipeline, rows="all") as captured:
        pipeline(prompts, generator=generators, **settings)
    frame = captured.frame()
    return frame[frame["step"] == 0].groupby(KEYS)["entropy"].mean(), frame


def test_prompts_attended_one_by_one_keep_branch_and_sample():
    mochi = seeded(lambda: by_family("Mochi"))
    asked = {"num_frames": 9, "negative_prompt": ["flat", "red pizza"], "height": 64, "width": 64}
    guided, frame = first_step(mochi, PROMPTS, (0, 1), guidance_scale=4.0, **asked)
    per_item = frame.groupby(["layer", "branch", "sample", "step"]).size()
    assert per_item.groupby("layer").nunique().eq(1).all()
    assert set(per_item.index.droplevel(["layer", "step"])) == {(b, n) for b in ("cond", "uncond") for n in (0, 1)}
    for branch, texts in {"cond": PROMPTS, "uncond": asked["negative_prompt"]}.items():
        for number, text in enumerate(texts):
            alone, _ = first_step(mochi, [text], [number], guidance_scale=1.0, num_frames=9, height=64, width=64)
            own = guided.xs((branch, number), level=("branch", "sample")).groupby(["layer", "kind", "head"]).mean()
            expected = alone.groupby(["layer", "kind", "head"]).mean()
            assert (own - expected).abs().max() <= 1e-5


def stable_diffusion(tiny_folder, layers):
    plain = load(tiny_folder, device="cpu")
    parts = {**plain.components, "requires_safety_checker": False}
    return plain, StableDiffusionPAGPipeline(**parts, pag_applied_layers=layers)


def stable_diffusion_3(tiny_folder, layers):
    plain = seeded(PIPELINES["Stable Diffusion 3"])
    without = ("image_encoder", "feature_extractor")
    parts = {name: part for name, part in plain.components.items() if name not in without}
    return plain, StableDiffusion3PAGPipeline(**parts, pag_applied_layers=layers)


def pixart_sigma(tiny_folder, layers):
    """Return pipelines that do not report their guidance: it is detected from the batch."""
    plain = seeded(lambda: by_family("PixArt-Sigma"))
    return plain, PixArtSigmaPAGPipeline(**plain.components, pag_applied_layers=layers)


def animatediff(tiny_folder, layers):
    """Return pipelines that attend to each frame of a video separately."""
    plain = seeded(lambda: by_family("AnimateDiff"))
    return plain, AnimateDiffPAGPipeline(**plain.components, pag_applied_layers=layers)


PAG = {
    stable_diffusion: "mid_block.*attn1",
    stable_diffusion_3: "blocks.0.attn",
    pixart_sigma: "blocks.0.attn1",
    animatediff: "mid_block.*attn1",
}
"""Perturbed layers of each pipeline. Other layers follow them."""


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
@pytest.mark.parametrize("make", PAG)
def test_perturbed_branch_is_labelled(tiny_folder, make, guidance_scale):
    plain, perturbed = make(tiny_folder, PAG[make])
    exact = {"use_resolution_binning": False} if make is pixart_sigma else {}
    asked = {"guidance_scale": guidance_scale, **exact, **({"num_frames": 3} if make is animatediff else {})}
    expected, _ = first_step(plain, PROMPTS, (0, 1), **asked)
    found, frame = first_step(perturbed, PROMPTS, (0, 1), pag_scale=3.0, **asked)
    guided = {"cond", "uncond"} if guidance_scale > 1 else {"cond"}
    assert set(frame["branch"]) == guided | {"perturbed"}
    assert set(frame["sample"]) == {0, 1}
    usual = found[found.index.get_level_values("branch") != "perturbed"]
    assert usual.index.equals(expected.index)
    assert (usual - expected).abs().max() <= 1e-5

    change = (found.xs("perturbed", level="branch") - found.xs("cond", level="branch")).abs().dropna()
    assert change[~change.index.get_level_values("layer").str.contains(PAG[make])].max() > 1e-4
    own = frame[frame["layer"].str.contains(PAG[make]) & (frame["kind"] != "cross")]
    image = own.groupby("branch")["image_entropy"].max()
    if make is stable_diffusion_3:  # each image token attends to itself and to the text, to no other image token
        assert image["perturbed"] <= 1e-5
        assert image["cond"] > 1
    else:  # attention is skipped there, and has no softmax
        assert set(own["branch"]) == guided
