"""Labels are derived from what each forward pass received: sampling run, step, evaluation, branch and image."""

import contextlib
import itertools
import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from families.pipelines import PIPELINES, by_family, seeded
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe import capture
from entropy_probe.attention.fingerprints import CAST, SAME, agree, fingerprint
from entropy_probe.attention.steps import TurnCounter, steps_of

ASKED = {"height": 64, "width": 64, "output_type": "latent"}
PROMPT, NEGATIVE = "noto red apple", "flat pizza"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(model, run, **options):
    """Return the table of a capture, without the rows of several layers and heads."""
    with capture(model, **options) as captured:
        run()
    frame = captured.frame()
    first = (frame["layer"] == frame["layer"].iloc[0]) & (frame["head"] == 0) & (frame["kind"] != "cross")
    return frame[first]


def branches(frame):
    """Return the branches of each step, in the order of the batch."""
    return [own["branch"].tolist() for _, own in frame.groupby("step")]


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# The branch


def test_guidance_that_ends_leaves_the_prompt(tiny_pipeline):
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    asked = {"callback_on_step_end": cutoff, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}

    def run():
        tiny_pipeline(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=4, generator=generator(), **asked, **ASKED)

    assert branches(table(tiny_pipeline, run)) == [["uncond", "cond"]] * 2 + [["cond"]] * 2


class CastLoop:
    """Guidance by two passes, which receive the texts cast: at a new address each time."""

    def __init__(self, unet, dtype):
        self.unet, self.scheduler = unet, DDIMScheduler()
        self.cond, self.uncond = (torch.randn(1, 16, 32, generator=generator(n)).to(dtype) for n in (1, 2))

    @torch.no_grad()
    def __call__(self, steps=10):
        self.scheduler.set_timesteps(steps)
        latents = torch.randn(1, 4, 16, 16, generator=generator())
        for timestep in self.scheduler.timesteps:
            a, b = (self.unet(latents, timestep, x.to(latents.dtype)).sample for x in (self.cond, self.uncond))
            latents = self.scheduler.step(b + 4 * (a - b), timestep, latents).prev_sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_content_of_texts_distinguishes_two_passes(tiny_pipeline, dtype):
    for _ in range(3):
        loop = CastLoop(tiny_pipeline.unet, dtype)
        assert branches(table(loop, loop)) == [["cond", "uncond"]] * 10


def test_a_module_is_labelled_by_the_pipeline_that_runs_it(tiny_pipeline, sample):
    assert table(tiny_pipeline.unet, sample).equals(table(tiny_pipeline, sample))


def test_skip_layer_guidance_is_perturbed(tiny_pipeline):
    pipeline = quiet(seeded(PIPELINES["Stable Diffusion 3"]))
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}

    def run():
        asked = {"guidance_scale": 4.0, "num_inference_steps": 4, **ASKED}
        pipeline(PROMPT, negative_prompt=NEGATIVE, generator=generator(), **skip, **asked)

    frame = table(pipeline, run)
    assert branches(frame) == [["uncond", "cond"]] + [["uncond", "cond", "perturbed"]] * 3
    assert set(frame["sample"]) == {0}


def test_self_attention_guidance_is_perturbed(tiny_pipeline):
    parts = {**tiny_pipeline.components, "requires_safety_checker": False}
    pipeline = quiet(diffusers.StableDiffusionSAGPipeline(**parts))

    def run(scale):
        asked = {"guidance_scale": scale, "num_inference_steps": 2, "sag_scale": 0.75, **ASKED}
        pipeline(PROMPT, negative_prompt=NEGATIVE, generator=generator(), **asked)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own processor hides one layer
        assert branches(table(pipeline, lambda: run(4.0), missing="warn")) == [["uncond", "cond", "perturbed"]] * 2
        assert branches(table(pipeline, lambda: run(1.0), missing="warn")) == [["cond", "perturbed"]] * 2


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_the_views_of_a_panorama_are_not_perturbed(tiny_pipeline, views, guidance_scale):
    parts = {**tiny_pipeline.components, "requires_safety_checker": False}
    pipeline = quiet(diffusers.StableDiffusionPanoramaPipeline(**parts))

    def run():
        asked = {"height": 512, "width": 576, "num_inference_steps": 2, "output_type": "latent"}
        pipeline(PROMPT, guidance_scale=guidance_scale, view_batch_size=views, generator=generator(), **asked)

    frame = table(pipeline, run, rows=16, distance=False)
    own = ["uncond", "cond"] if guidance_scale > 1 else ["cond"]
    assert branches(frame) == [own * 2] * 2  # two views
    assert set(frame["sample"]) == {0}


@pytest.mark.parametrize("images", [1, 2])
def test_the_parts_of_an_edit_are_named_and_its_images_counted(tiny_pipeline, images):
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**tiny_pipeline.unet.config, "in_channels": 8}).eval()
    parts = {**tiny_pipeline.components, "unet": unet, "requires_safety_checker": False}
    pipeline = quiet(StableDiffusionInstructPix2PixPipeline(**parts))
    # Pipelines of InstructPix2Pix sample the distribution of the autoencoder, which the tiny one does not have.
    pipeline.vae.encode = lambda image: SimpleNamespace(latents=image[:, :1, ::4, ::4].repeat(1, 4, 1, 1))
    asked = {"image_guidance_scale": 1.5, "guidance_scale": 4.0, "num_inference_steps": 2, "output_type": "latent"}
    try:
        frame = table(
            pipeline,
            lambda: pipeline(
                PROMPT, image=torch.rand(1, 3, 64, 64, generator=generator()), negative_prompt=NEGATIVE,
                num_images_per_prompt=images, generator=generator(), **asked,
            ),
        )  # fmt: skip
    finally:
        del pipeline.vae.encode
    assert branches(frame) == [["cond"] * images + ["image"] * images + ["uncond"] * images] * 2
    assert frame["sample"].tolist() == [*range(images)] * 6


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_prompts_from_the_same_noise_are_two_images(seeds):
    pipeline = quiet(seeded(PIPELINES["Flux"]))

    def run():
        asked = {"num_inference_steps": 1, "guidance_scale": 0.0, **ASKED}
        pipeline([PROMPT, NEGATIVE], generator=[generator(seed) for seed in seeds], **asked)

    frame = table(pipeline, run)
    assert frame[["branch", "sample"]].values.tolist() == [["cond", 0], ["cond", 1]]


def test_a_prompt_equal_to_the_negative_prompt_keeps_its_branch(tiny_pipeline):
    def run(**asked):
        settings = {"num_inference_steps": 1, **ASKED, **asked}
        tiny_pipeline(generator=[generator(), generator()], **settings)

    frame = table(tiny_pipeline, lambda: run(prompt=["", PROMPT], guidance_scale=4.0))
    assert branches(frame) == [["uncond", "uncond", "cond", "cond"]]
    frame = table(tiny_pipeline, lambda: run(prompt=[PROMPT] * 2, negative_prompt=[PROMPT] * 2, guidance_scale=4.0))
    assert branches(frame) == [["uncond", "uncond", "cond", "cond"]]
    frame = table(tiny_pipeline, lambda: run(prompt=["", ""], guidance_scale=1.0))
    assert branches(frame) == [["cond", "cond"]]


def test_what_a_loop_without_a_pipeline_guides_is_unknown(tiny_pipeline):
    latents = torch.randn(1, 4, 16, 16, generator=generator()).repeat(2, 1, 1, 1)
    texts = torch.randn(2, 16, 32, generator=generator())
    with pytest.warns(UserWarning, match="branch of 1 of 1 forward passes is unknown.*without a pipeline"):
        frame = table(tiny_pipeline.unet, lambda: tiny_pipeline.unet(latents, 500, texts))
    assert branches(frame) == [["unknown", "unknown"]]
    other = torch.randn(2, 4, 16, 16, generator=generator())
    assert branches(table(tiny_pipeline.unet, lambda: tiny_pipeline.unet(other, 500, texts))) == [["cond", "cond"]]


class OwnLoop:
    """A pipeline with its own loop, whose texts have other names than in diffusers."""

    def __init__(self, pipeline, parts, together):
        self.unet, self.scheduler, self.parts, self.together = pipeline.unet, DDIMScheduler(), parts, together
        self.emb = torch.randn(2, 16, 32, generator=generator())

    @torch.no_grad()
    def __call__(self):
        self.scheduler.set_timesteps(2)
        x = torch.randn(1, 4, 16, 16, generator=generator())
        for timestep in self.scheduler.timesteps:
            texts = self.emb[self.parts]
            if self.together:
                out = self.unet(x.repeat(len(texts), 1, 1, 1), timestep, texts).sample.mean(0, keepdim=True)
            else:
                out = sum(self.unet(x, timestep, text[None]).sample for text in texts)
            x = self.scheduler.step(out, timestep, x).prev_sample


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("parts", [[0, 1], [1, 0]])
def test_order_of_parts_is_not_guessed_outside_diffusers(tiny_pipeline, parts, together):
    loop = OwnLoop(tiny_pipeline, parts, together)
    with pytest.warns(UserWarning, match="variables of OwnLoop"):
        assert branches(table(loop, loop)) == [["unknown", "unknown"]] * 2


def test_guidance_of_an_earlier_run_is_not_used(tiny_pipeline, sample):
    sample(guidance_scale=4.0, steps=1)
    assert tiny_pipeline.do_classifier_free_guidance
    texts = torch.randn(1, 16, 32, generator=generator())
    tiny_pipeline.scheduler.set_timesteps(2)

    def tiles():
        with torch.no_grad():
            for timestep in tiny_pipeline.scheduler.timesteps:
                for number in range(2):
                    tiny_pipeline.unet(torch.randn(1, 4, 16, 16, generator=generator(number)), timestep, texts)

    assert branches(table(tiny_pipeline, tiles)) == [["cond", "cond"]] * 2


def test_subclass_of_a_pipeline_has_its_order():
    pipeline = seeded(lambda: by_family("DiT"))
    subclass = type("Mine", (type(pipeline),), {})
    own = quiet(subclass(**pipeline.components))
    for pipe in (quiet(pipeline), own):
        frame = table(
            pipe, lambda pipe=pipe: pipe([3], guidance_scale=4.0, num_inference_steps=3, generator=generator())
        )
        assert branches(frame) == [["cond", "uncond"]] * 3
        assert set(frame["sampling"]) == {0}  # this pipeline names its current timestep as others name the schedule


@pytest.mark.parametrize("timesteps", [[900.0, 600.0, 300.0], [0.0, 300.0, 600.0, 900.0]])
def test_direction_of_time_is_learned_without_a_scheduler(timesteps):
    counter = TurnCounter()
    turns = [counter.add(timestep, None) for _ in range(2) for timestep in timesteps]
    expected = [(sampling, step) for sampling in range(2) for step in range(len(timesteps))]
    assert [(turn.sampling, turn.step) for turn in turns] == expected


def test_capture_that_starts_in_a_run_counts_its_earlier_steps(tiny_pipeline):
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        pipeline = with_scheduler(tiny_pipeline, name)
        with contextlib.ExitStack() as stack:
            found = []

            def start(pipe, step, timestep, values, stack=stack, found=found):
                if step == 0:
                    found.append(stack.enter_context(capture(pipe)))
                return values

            pipeline(PROMPT, num_inference_steps=4, callback_on_step_end=start, generator=generator(), **ASKED)
        assert found[0].frame()["step"].unique().tolist() == [1, 2, 3]


def test_controlnet_is_labelled_by_its_pipeline(tiny_pipeline):
    controlnet = diffusers.ControlNetModel.from_unet(
        tiny_pipeline.unet, conditioning_embedding_out_channels=(8, 16, 16)
    )
    parts = {**tiny_pipeline.components, "controlnet": controlnet.eval(), "requires_safety_checker": False}
    pipeline = quiet(diffusers.StableDiffusionControlNetPipeline(**parts))
    pipeline.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    image = torch.rand(1, 3, 32, 32, generator=generator())
    asked = {"image": image, "num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    frame = table(controlnet, lambda: pipeline(PROMPT, num_images_per_prompt=2, generator=generator(), **asked))
    assert branches(frame) == [["uncond", "uncond", "cond", "cond"] * 2, ["uncond", "uncond", "cond", "cond"]]
    assert frame["sample"].tolist() == [0, 1] * 6


def cached_video(config):
    pipeline = quiet(seeded(lambda: by_family("CogVideoX")))
    pipeline.transformer.enable_cache(config(pipeline))
    asked = {"num_frames": 9, "num_inference_steps": 6, "guidance_scale": 4.0, "negative_prompt": NEGATIVE, **ASKED}
    with capture(pipeline, distance=False) as captured:
        pipeline(PROMPT, generator=generator(), **asked)
    frame = captured.frame()
    schedule = pipeline.scheduler.timesteps.tolist()
    assert all(
        schedule.index(timestep) == step for step, timestep in zip(frame["step"], frame["timestep"], strict=True)
    )
    return {step: set(own["branch"]) for step, own in frame.groupby("step")}


def test_steps_and_branches_that_caches_leave_out_are_labelled():
    def faster(pipeline):
        return FasterCacheConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 681),
            unconditional_batch_skip_range=5, unconditional_batch_timestep_skip_range=(-1, 2000),
            attention_weight_callback=lambda _: 0.5, tensor_format="BFCHW",
            current_timestep_callback=lambda: pipeline.current_timestep,
        )  # fmt: skip

    both, prompt = {"cond", "uncond"}, {"cond"}
    assert cached_video(faster) == {0: both, 2: prompt, 4: prompt, 5: both}

    def broadcast(pipeline):
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 2000),
            current_timestep_callback=lambda: pipeline.current_timestep,
        )  # fmt: skip

    assert cached_video(broadcast) == dict.fromkeys((0, 2, 4), both)
    assert cached_video(lambda _: FirstBlockCacheConfig(threshold=0.5)) == dict.fromkeys(range(6), both)


# The step

SCHEDULERS = {
    "DDIMScheduler": [1, 1, 1, 1],
    "DDIMInverseScheduler": [1, 1, 1, 1],
    "DEISMultistepScheduler": [1, 1, 1, 1],
    "DPMSolverMultistepScheduler": [1, 1, 1, 1],
    "DPMSolverSinglestepScheduler": [1, 1, 1, 1],
    "EDMEulerScheduler": [1, 1, 1, 1],
    "EulerAncestralDiscreteScheduler": [1, 1, 1, 1],
    "EulerDiscreteScheduler": [1, 1, 1, 1],
    "HeunDiscreteScheduler": [2, 2, 2, 1],
    "KDPM2AncestralDiscreteScheduler": [2, 2, 2, 1],
    "KDPM2DiscreteScheduler": [2, 2, 2, 1],
    "LCMScheduler": [1, 1, 1, 1],
    "LMSDiscreteScheduler": [1, 1, 1, 1],
    "PNDMScheduler": [2, 1, 1, 1],
    "SASolverScheduler": [1, 1, 1, 1],
    "TCDScheduler": [1, 1, 1, 1],
    "UniPCMultistepScheduler": [1, 1, 1, 1],
}
"""Evaluations in each of four steps, from the algorithm of each scheduler."""


def with_scheduler(pipeline, name, **options):
    scheduler = getattr(diffusers, name).from_config(DDIMScheduler(clip_sample=False).config, **options)
    return quiet(
        StableDiffusionPipeline(**{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False)
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_evaluations_belong_to_the_step_of_their_scheduler(tiny_pipeline, name):
    pipeline = with_scheduler(tiny_pipeline, name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))

    def run():
        for _ in range(2):
            pipeline(PROMPT, num_inference_steps=4, guidance_scale=4.0, generator=generator(), **ASKED)

    frame = table(pipeline, run)
    for sampling in (0, 1):
        own = frame[(frame["sampling"] == sampling) & (frame["branch"] == "cond")]
        expected = [(step, n) for step, count in enumerate(SCHEDULERS[name]) for n in range(count)]
        assert list(zip(own["step"], own["evaluation"], strict=True)) == expected


def test_runge_kutta_steps_have_four_evaluations(tiny_pipeline):
    pipeline = with_scheduler(tiny_pipeline, "PNDMScheduler", skip_prk_steps=False)
    frame = table(
        pipeline, lambda: pipeline(PROMPT, num_inference_steps=6, guidance_scale=1.0, generator=generator(), **ASKED)
    )
    assert frame.groupby("step").size().tolist() == [4, 4, 4, 1, 1, 1]


def test_second_pass_at_another_size_is_another_sampling(tiny_pipeline):
    for own, guided in itertools.product((False, True), (1.0, 4.0)):
        parts = dict(tiny_pipeline.components)
        parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config) if own else parts["scheduler"]
        second = quiet(StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False))

        def run(second=second, guided=guided):
            asked = {"num_inference_steps": 4, "output_type": "pt"}
            image = tiny_pipeline(PROMPT, height=32, width=32, generator=generator(), **asked).images
            large = torch.nn.functional.interpolate(image, scale_factor=2)
            second(PROMPT, image=large, strength=0.5, guidance_scale=guided, generator=generator(), **asked)

        frame = table(tiny_pipeline, run)
        found = frame.groupby(["sampling", "step", "query_tokens"])["branch"].agg(set).to_dict()
        later = {"cond", "uncond"} if guided > 1 else {"cond"}
        assert found == {
            **{(0, step, 64): {"cond", "uncond"} for step in range(4)}, **{(1, step, 256): later for step in range(2)}
        }  # fmt: skip


def test_a_replaced_forward_keeps_its_labels(tiny_pipeline, sample):
    expected = table(tiny_pipeline, sample)
    unet = tiny_pipeline.unet
    plain = unet.forward

    def replaced(*args, **kwargs):  # as DeepCache does
        return plain(*args, **kwargs)

    unet.forward = replaced
    try:
        assert table(tiny_pipeline, sample).equals(expected)
    finally:
        del unet.forward


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20, unique=True), st.integers(1, 3))
def test_every_schedule_is_numbered_without_gaps(timesteps, order):
    """A schedule without repetitions has a step per timestep; Heun's repeats all but the first, and has half."""
    schedule = [float(t) for t in sorted(timesteps, reverse=True)]
    assert steps_of(schedule) == [(n, 0) for n in range(len(schedule))]
    heun = schedule[:1] + [t for t in schedule[1:] for _ in range(2)]
    assert steps_of(heun) == steps_of(heun, order=2) == [(n // 2, n % 2) for n in range(len(heun))]
    numbers = steps_of(schedule, order)
    assert [step for step, _ in numbers] == sorted(step for step, _ in numbers)
    assert {step for step, _ in numbers} == set(range(numbers[-1][0] + 1))


def test_steps_that_are_left_out_are_counted():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    counter = TurnCounter()
    steps = [counter.add(float(scheduler.timesteps[number]), scheduler).step for number in (0, 1, 4, 5, 9)]
    assert steps == [0, 1, 4, 5, 9]
    again = counter.add(float(scheduler.timesteps[0]), scheduler)
    assert (again.sampling, again.step) == (1, 0)


FORCING = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")


def diffusion_forcing():
    """Return a video pipeline whose frames have different timesteps."""
    denoiser = SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=256,
    )  # fmt: skip
    parts = by_family("Wan").components | {"transformer": denoiser, "scheduler": UniPCMultistepScheduler()}
    return SkyReelsV2DiffusionForcingPipeline(**{name: parts[name] for name in FORCING})


@pytest.mark.parametrize(("lag", "steps"), [(0, 4), (1, 7), (2, 10)])
def test_steps_of_frames_with_different_timesteps_are_counted(lag, steps):
    pipeline = quiet(seeded(diffusion_forcing))
    text = torch.randn(1, 8, 16, generator=generator())
    asked = {"num_frames": 13, "num_inference_steps": 4, "guidance_scale": 4.0, "prompt": None, **ASKED}
    asked |= {"prompt_embeds": text, "negative_prompt_embeds": -text, "ar_step": lag}
    frame = table(pipeline, lambda: pipeline(causal_block_size=1 if lag else None, generator=generator(), **asked))
    assert frame["branch"].tolist() == ["cond", "uncond"] * steps
    assert frame["step"].tolist() == [step for step in range(steps) for _ in range(2)]
    assert (frame["sampling"] == 0).all()
    assert frame["timestep"].nunique() == steps


def test_video_scheduler_is_counted_by_its_timesteps():
    scheduler = CogVideoXDDIMScheduler()
    scheduler.set_timesteps(3)
    counter = TurnCounter()
    turns = [counter.add(float(timestep), scheduler) for timestep in scheduler.timesteps for _ in range(2)]
    assert [(turn.step, turn.forward) for turn in turns] == [(step, n) for step in range(3) for n in range(2)]


# Content


@given(st.integers(0, 2**31), st.sampled_from([torch.float16, torch.bfloat16]), st.integers(1, 3))
def test_fingerprints_agree_for_casts_and_for_nothing_else(seed, dtype, items):
    texts = torch.randn(items, 16, 32, generator=generator(seed))
    first, cast = fingerprint(texts).numpy(), fingerprint(texts.to(dtype)).numpy()
    assert agree(first, cast, CAST).all()
    assert not agree(first, cast, SAME).any()
    other = texts.clone()
    other[:, 3] = torch.randn(items, 32, generator=generator(seed + 1))  # one word of 16
    assert not agree(first, fingerprint(other).numpy(), CAST).any()
    assert not agree(first, fingerprint(texts.flip(1)).numpy(), CAST).any()
    for large in (texts, other):
        large[:, 0] *= 1000  # as the first token of language models
    assert not agree(fingerprint(texts).numpy(), fingerprint(other).numpy(), CAST).any()


def test_fingerprints_distinguish_classes_and_lengths():
    classes = fingerprint(torch.arange(1001)).numpy()
    same = agree(classes[:, None], classes[None], CAST)
    assert np.array_equal(same, np.eye(1001, dtype=bool))
    zeros = fingerprint([torch.zeros(5, 8), torch.zeros(6, 8)]).numpy()
    assert not agree(zeros[0], zeros[1], CAST)
    assert fingerprint("text") is None
    assert fingerprint(torch.zeros(2, 3, device="meta")) is None
