"""Capture: its numbers equal an eager attention, its labels are correct, and the model stays unchanged."""

import gc
import math
from contextlib import ExitStack
from inspect import unwrap

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from entropy_probe.attention import attention_calls, attention_layers, capture
from entropy_probe.attention.measuring import STATISTICS, CallStatistics
from entropy_probe.attention.table import on_host
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.statistics import flash

SIZES = [(64, 64), (32, 32), (96, 64), (40, 72)]


def hooks(module):
    """Return the attributes and the hooks of every module."""
    return [
        (sorted(vars(m)), {name: dict(value) for name, value in vars(m).items() if "hook" in name and value})
        for m in module.modules()
    ]


class Eager:
    """A diffusers processor that computes attention in float64 and notes the entropy of every call."""

    def __init__(self, notes):
        self.notes = notes

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = [
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        ]
        query, key, value = heads
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        self.notes.append(torch.special.entr(weights).sum(-1).mean(-1))
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2).to(hidden_states.dtype))


@pytest.mark.parametrize("size", SIZES)
def test_capture_leaves_image_bit_identical_and_model_unchanged(tiny_pipeline, sample, size):
    before = hooks(tiny_pipeline.unet)
    plain = sample(size)
    with capture(tiny_pipeline):
        assert hooks(tiny_pipeline.unet) != before
        captured = sample(size)
    assert all(np.array_equal(a, b) for a, b in zip(plain, captured, strict=True))
    assert hooks(tiny_pipeline.unet) == before


def test_no_option_changes_the_image_or_the_global_random_state(tiny_pipeline, sample):
    plain, state = sample(), torch.get_rng_state()
    with capture(tiny_pipeline, rows=16, keep="*attn1", keep_steps=[0], scale_factors=(0.5, 2.0)):
        captured = sample()
    assert all(np.array_equal(a, b) for a, b in zip(plain, captured, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_failed_sampling_leaves_model_unchanged(tiny_pipeline, sample):
    before = hooks(tiny_pipeline.unet)

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = tiny_pipeline.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), capture(tiny_pipeline):
        sample()
    handle.remove()
    assert hooks(tiny_pipeline.unet) == before
    assert not torch.overrides._get_current_function_mode_stack()
    sample()


def test_interrupted_sampling_leaves_model_unchanged(tiny_pipeline, sample):
    before, left = hooks(tiny_pipeline.unet), []

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = tiny_pipeline.unet.mid_block.register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), capture(tiny_pipeline):
            sample()
    finally:
        handle.remove()
        while torch.overrides._get_current_function_mode_stack():  # a failure here must not reach the other tests
            left.append(torch.overrides._pop_mode())
    assert not left
    assert hooks(tiny_pipeline.unet) == before


@pytest.mark.parametrize("size", SIZES)
def test_entropy_equals_an_eager_attention(tiny_pipeline, sample, size):
    with capture(tiny_pipeline) as captured:
        sample(size)
    originals, notes = tiny_pipeline.unet.attn_processors, []
    tiny_pipeline.unet.set_attn_processor(Eager(notes))
    sample(size)
    tiny_pipeline.unet.set_attn_processor(dict(originals))
    assert len(notes) == len(captured.calls)
    for note, record in zip(notes, captured.calls, strict=True):
        assert (note - record.entropy).abs().max() < 1e-3, record.layer  # rounding differs in the eager image


@pytest.mark.parametrize("size", SIZES)
def test_layers_kinds_and_tokens_are_correct(tiny_pipeline, sample, size):
    with capture(tiny_pipeline) as captured:
        sample(size)
    frame = captured.frame()
    assert list(dict.fromkeys(frame["layer"])) == [r.layer for r in captured.calls[: frame["layer"].nunique()]]
    assert set(frame["layer"]) == set(attention_layers(tiny_pipeline.unet))
    assert (frame["kind"] == np.where(frame["layer"].str.endswith("attn1"), "self", "cross")).all()
    fine = size[0] // 4 * (size[1] // 4)
    coarse = -(-size[0] // 8) * -(-size[1] // 8)
    own = frame[frame["kind"] == "self"]
    assert (own["query_tokens"] == np.where(own["training_tokens"] == 256, fine, coarse)).all()
    assert set(own["training_tokens"]) == {256, 64}
    assert set(frame[frame["kind"] == "cross"]["key_tokens"]) == {16}
    assert own["attention_distance"].between(0, 1).all()


def test_steps_and_timesteps_equal_the_schedule(tiny_pipeline, sample):
    with capture(tiny_pipeline) as captured:
        sample()
        sample(prompts=("flat pizza",), steps=2)
    frame = captured.frame()
    pairs = frame[frame["sampling"] == 1][["step", "timestep"]].drop_duplicates()
    assert pairs["timestep"].tolist() == tiny_pipeline.scheduler.timesteps.tolist()
    assert pairs["step"].tolist() == [0, 1]
    assert frame.groupby("sampling")["sample"].nunique().tolist() == [2, 1]


def test_samplings_of_one_step_are_numbered(tiny_pipeline, sample):
    with capture(tiny_pipeline) as captured:
        sample(steps=1)
        sample(steps=1)
    assert captured.frame()["sampling"].nunique() == 2


def test_manual_loops_over_one_schedule_are_numbered(tiny_pipeline):
    tiny_pipeline.scheduler.set_timesteps(3)
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 16, 32)
    with torch.no_grad(), capture(tiny_pipeline, distance=False) as captured:
        for timestep in list(tiny_pipeline.scheduler.timesteps) * 2:
            tiny_pipeline.unet(latents, timestep, text)
    assert set(captured.frame()[["sampling", "step"]].itertuples(index=False, name=None)) == {
        (sampling, step) for sampling in range(2) for step in range(3)
    }


def test_guidance_branches_are_labelled(tiny_pipeline, sample):
    def entropies(branch, **options):
        with capture(tiny_pipeline, layers="*attn2") as captured:
            sample(steps=1, **options)
        frame = captured.frame()
        return frame[frame["branch"] == branch]["entropy"].to_numpy()

    guided = dict(prompts=("noto red apple",), guidance_scale=4.0)
    empty = dict(prompts=("",), guidance_scale=1.0)
    assert entropies("uncond", **guided) == pytest.approx(entropies("cond", **empty), abs=1e-4)
    plain = dict(prompts=("noto red apple",), guidance_scale=1.0)
    assert entropies("cond", **guided) == pytest.approx(entropies("cond", **plain), abs=1e-4)
    assert len(entropies("uncond", **plain)) == 0


def test_uncond_branch_equals_sampling_the_negative_prompt(tiny_pipeline):
    def first_step(**options):
        with capture(tiny_pipeline, layers="*attn2") as captured:
            generator = torch.Generator().manual_seed(0)
            tiny_pipeline(height=64, width=64, num_inference_steps=1, generator=generator, **options)
        return captured.frame()

    guided = first_step(prompt="noto red apple", negative_prompt="flat pizza", guidance_scale=4.0)
    alone = first_step(prompt="flat pizza", guidance_scale=1.0)
    uncond, cond = (guided[guided["branch"] == b]["entropy"].to_numpy() for b in ("uncond", "cond"))
    assert uncond == pytest.approx(alone["entropy"].to_numpy(), abs=1e-4)
    assert np.abs(cond - uncond).max() > 1e-4


def test_sampled_rows_estimate_all_rows(tiny_pipeline, sample):
    with capture(tiny_pipeline, layers="*attn1") as full:
        sample(steps=1)
    with capture(tiny_pipeline, layers="*attn1", rows=64) as part:
        sample(steps=1)
    full, part = full.frame(), part.frame()
    assert (part["rows"] == np.minimum(64, part["query_tokens"])).all()
    error = (part["entropy"] - full["entropy"]) / (full["entropy_std"] / np.sqrt(part["rows"]) + 1e-6)
    assert error.abs().max() < 4
    assert (part[part["query_tokens"] == 64]["entropy"] == full[full["query_tokens"] == 64]["entropy"]).all()


class Patterned(nn.Module):
    """One self-attention over an image, peaked on one side: entropy depends strongly on the position of a token."""

    def forward(self, sample):
        tokens = sample.flatten(2).mT
        strength = torch.linspace(0, 0.9, tokens.shape[1])[:, None]
        query, key = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (strength * tokens, tokens))
        return nn.functional.scaled_dot_product_attention(query, key, key)


def measured(module, sample, **options):
    with capture(module, **options) as captured:
        module(sample)
        module(sample)
    return captured.frame()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 16, 48, 48, generator=torch.Generator().manual_seed(0))


def test_auto_measures_all_rows_of_a_small_image(image):
    frame = measured(Patterned(), image[..., :32, :32])
    assert (frame["rows"] == 1024).all()
    assert (frame["entropy_se"] == 0).all()


def test_auto_samples_the_rows_of_a_large_image_that_the_tolerance_requires(image):
    every = measured(Patterned(), image, rows="all")
    sampled = measured(Patterned(), image)
    assert (every["entropy_se"] == 0).all()
    first, second = sampled.iloc[:4], sampled.iloc[4:]
    by_hand = first["rows"].iloc[0] * first.groupby("sample")["entropy_se"].mean().max() ** 2 / 0.005**2
    assert set(second["rows"]) == {2 * math.ceil(math.ceil(by_hand) / 2)}
    assert 256 < by_hand < 48 * 48 / 2  # neither the first rows, nor the fewest, nor all
    assert 0.5 < second["rows"].iloc[0] / first["rows"].iloc[0] < 2  # the first rows gave a similar estimate
    assert sampled.groupby(["sampling", "sample"])["entropy_se"].mean().max() <= 0.0075
    off = (sampled["entropy"] - every["entropy"]) / sampled["entropy_se"]
    assert 0.1 < off.abs().max() < 4


def test_auto_measures_all_rows_if_they_vary_much_and_few_if_they_are_equal(image):
    wild = measured(Patterned(), 2 * image)
    assert set(wild["rows"]) == {48 * 48}
    assert set(measured(Patterned(), 0 * image)["rows"]) == {128}


def test_every_call_and_image_has_its_own_rows_and_the_seed_determines_them(image):
    twice = image[:1].repeat(2, 1, 1, 1)
    frame = measured(Patterned(), twice, rows=64)
    assert frame.loc[frame["head"] == 0, "entropy"].nunique() == 4
    assert measured(Patterned(), twice, rows=64).equals(frame)
    assert not measured(Patterned(), twice, rows=64, seed=1).equals(frame)


@pytest.mark.parametrize("rows", [0, -3, True])
def test_rejects_rows_below_one(rows):
    for name in ("rows", "curve_rows"):
        with pytest.raises(InputError, match=f"{name} must be"), capture(Patterned(), **{name: rows}):
            pass


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0, -2.0, "2", None])
def test_rejects_scale_factor_that_is_not_positive_and_finite(factor):
    message = f"^scale_factors must be positive finite numbers, got {factor!r}$"
    with pytest.raises(InputError, match=message):
        unwrap(capture)(Patterned(), scale_factors=[2.0, factor])  # without the type check of the tests


def test_accepts_scale_factors_of_numpy(image):
    factors = list(np.array([0.5, 1.0, 2.0]))
    frame = measured(Patterned(), image[..., :8, :8], scale_factors=factors)
    assert set(frame["scale_factor"]) == {0.5, 1.0, 2.0}


def test_rejects_unknown_value_of_missing():
    with pytest.raises(InputError, match=r"^missing must be 'error' or 'warn', got 'foo'$"):
        unwrap(capture)(Patterned(), missing="foo")


class Guided(nn.Module):
    """The attention of `Patterned`, twice per step: sharp for a long text, flat for a short one."""

    def __init__(self):
        super().__init__()
        self.attention = Patterned()

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.attention(encoder_hidden_states.shape[1] * sample)


def test_forwards_of_a_guided_step_have_separate_row_budgets(image):
    module = Guided()
    with capture(module) as captured:
        for timestep in (9.0, 5.0, 1.0):
            for words in (1, 0):
                module(image, timestep, torch.ones(2, words, 4))
    rows = [record.rows for record in captured.calls]
    assert set(rows[1::2]) == {128}
    assert min(rows[::2]) > 256


class Deep(nn.Module):
    """Several attentions of `Patterned` in sequence."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(Patterned() for _ in range(layers))

    def forward(self, sample):
        for layer in self.layers:
            layer(sample)


class Waits(TorchDispatchMode):
    """Count the numbers that the host reads from a tensor. On a GPU, each read synchronises.

    This counts the path of the compiled kernel. On CUDA, each call reads one more number, a flag.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def waits(layers, image, **options):
    module = Deep(layers)
    with Waits() as seen, capture(module, **options):
        for _ in range(3):
            module(image)
    return seen.count


@pytest.mark.parametrize("options", [{"rows": "all"}, {"rows": 64}, {"rows": 64, "scale_factors": (0.5, 2.0)}])
def test_host_synchronises_once_per_forward(image, options):
    few = waits(1, image[..., :16, :16], **options)
    assert 0 < few <= 2 * 3
    assert waits(6, image[..., :16, :16], **options) == few


def test_auto_synchronises_once_per_layer_to_learn_its_rows(image):
    with Waits() as one:
        torch.ones(1).tolist()
    assert waits(3, image) - waits(1, image) == 2 * one.count


def test_forward_is_copied_to_the_host_once(image, monkeypatch):
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self.shape) or original(self))
    module = Deep(6)
    with capture(module, rows="all"):
        for _ in range(3):
            module(image[..., :16, :16])
    assert len(copies) == 3


def test_calls_on_several_devices_are_copied_to_the_host():
    with FakeTensorMode():  # shapes and devices without values
        calls = [
            CallStatistics(
                forward=0, layer="attn", kind="self", axes="spatial", grid=None, tokens=4, training_tokens=None,
                query_tokens=4, key_tokens=4, scale=1.0, scale_factor=1.0, rows=4, first_item=0, items_per_sample=1,
                batch=1, heads=2, storage=torch.zeros(len(STATISTICS) + 1, 2, device=device), start=0,
                entropy_rows=None,
            )
            for device in ("cuda:0", "cuda:0", "cuda:1", "cpu")
        ]  # fmt: skip
        values = on_host(calls)
    assert (values.shape, values.device.type) == ((len(STATISTICS) + 1, 8), "cpu")


def test_capture_keeps_one_tensor_per_forward_for_any_number_of_calls(image):
    def held(layers):
        module = Deep(layers)
        with capture(module) as captured:
            for _ in range(4):
                module(image[..., :8, :8])
        captured.frame()
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    held(1)
    assert held(1) == held(6)


def test_fully_masked_item_is_not_reported_as_divergence():
    class Masked(nn.Module):
        def forward(self, query, mask):
            return nn.functional.scaled_dot_product_attention(query, query, query, mask)

    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1] = False
    module = Masked()
    with capture(module) as captured:
        module(torch.randn(2, 2, 9, 4), mask)
    entropy = captured.frame()["entropy"]
    assert entropy[:2].notna().all()
    assert entropy[2:].isna().all()


def test_odd_number_of_rows_is_rounded_up(image):
    assert set(measured(Patterned(), image, rows=63)["rows"]) == {64}


def test_kept_rows_form_the_entropy_map(tiny_pipeline, sample):
    layer = attention_layers(tiny_pipeline.unet)[0]
    with capture(tiny_pipeline, keep=layer, keep_steps=[1]) as captured:
        sample((64, 96))
    values = captured.entropy_map(layer, 1)
    assert values.shape == (4, 2, 16, 24)
    frame = captured.frame().query("layer == @layer and step == 1")
    assert values.mean((-1, -2)).flatten().tolist() == pytest.approx(frame["entropy"].tolist(), abs=1e-5)
    with pytest.raises(InputError, match="no rows"):
        captured.entropy_map(layer, 0)


def test_layers_are_selected_by_glob(tiny_pipeline, sample):
    with capture(tiny_pipeline, layers=["mid*attn1", "down_blocks.0*"]) as captured:
        sample(steps=1)
    assert all(n.startswith(("mid", "down_blocks.0")) for n in captured.frame()["layer"])
    with (
        pytest.raises(InputError, match=r"'nothing\*'; the layers are: down_blocks"),
        capture(tiny_pipeline, layers="nothing*"),
    ):
        pass


def test_layer_without_visible_call_is_named(tiny_pipeline, sample):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    attention = tiny_pipeline.unet.get_submodule(layer)
    original = attention.processor
    attention.processor = Eager([])
    try:
        with pytest.raises(CaptureError, match=layer), capture(tiny_pipeline):
            sample(steps=1)
        with pytest.warns(UserWarning, match="AttnProcessor2_0"), capture(tiny_pipeline, missing="warn") as captured:
            sample(steps=1)
    finally:
        attention.processor = original
    assert layer not in set(captured.frame()["layer"])


def test_eager_attention_of_diffusers_is_named(tiny_pipeline, sample):
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    attention = tiny_pipeline.unet.get_submodule(layer)
    original, attention.processor = attention.processor, AttnProcessor()
    try:
        with pytest.raises(CaptureError, match=layer), capture(tiny_pipeline):
            sample(steps=1)
        with capture(tiny_pipeline, layers="*attn1"):  # the layer is not requested
            sample(steps=1)
    finally:
        attention.processor = original


def test_nan_in_the_queries_names_the_layer(tiny_pipeline, sample):
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    before = hooks(tiny_pipeline.unet)
    weight = tiny_pipeline.unet.get_submodule(layer).to_q.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = torch.nan
    try:
        with pytest.raises(CaptureError, match=f"{layer}.*NaN at step 0"), capture(tiny_pipeline):
            sample()
    finally:
        weight.data.copy_(kept)
    assert hooks(tiny_pipeline.unet) == before


def test_infinities_in_the_keys_name_the_layer_and_keep_the_measurements(tiny_pipeline, sample):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    weight = tiny_pipeline.unet.get_submodule(layer).to_k.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = torch.inf
    try:
        with pytest.raises(CaptureError, match=f"{layer}.*infinities.*at step 0"), capture(tiny_pipeline) as captured:
            sample(steps=1)
    finally:
        weight.data.copy_(kept)
    assert set(captured.frame()["layer"]) == set(attention_layers(tiny_pipeline.unet))


class Bare(nn.Module):
    """A plain torch module that runs attention."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x):
        query = self.inner(x)
        return nn.functional.scaled_dot_product_attention(query=query, key=x, value=x, scale=0.5)


def test_any_module_with_attention_is_measured():
    torch.manual_seed(0)
    module, x = Bare(), torch.randn(2, 3, 5, 8)
    with capture(module) as captured:
        module(x)
    expected = flash(module.inner(x), x, scale=0.5).entropy.mean(-1)
    assert captured.frame()["entropy"].tolist() == pytest.approx(expected.flatten().tolist())


class Mixed(nn.Module):
    """A plain torch module around an attention layer of diffusers: both run attention."""

    def __init__(self):
        super().__init__()
        self.attention, self.bare = Attention(8, heads=2, dim_head=4), Bare()

    def forward(self, x):
        return self.bare(self.attention(x)[:, None])


def test_calls_outside_attention_layers_are_measured_in_every_forward():
    torch.manual_seed(0)
    module, sizes = Mixed(), [5, 5, 5, 7, 5]
    with capture(module) as captured:
        for tokens in sizes:
            module(torch.randn(1, tokens, 8))
    frame = captured.frame()
    assert list(frame[frame["layer"] == "attention"]["query_tokens"]) == [n for n in sizes for _ in range(2)]
    assert list(frame[frame["layer"] == "bare"]["query_tokens"]) == sizes


class Shared(nn.Module):
    """The keys of one item are broadcast to all queries."""

    def forward(self, x):
        key = x[:1, None]
        return nn.functional.scaled_dot_product_attention(x[:, None], key, key)


def test_keys_of_one_item_are_broadcast():
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(3, 5, 8)
    with capture(module) as captured:
        module(x)
    expected = flash(x[:, None], x[:1, None].repeat(3, 1, 1, 1)).entropy.mean((1, 2))
    assert captured.frame()["entropy"].tolist() == pytest.approx(expected.tolist())


def test_calls_are_found_again_after_a_failed_forward():
    torch.manual_seed(0)
    module = Mixed()
    failure = module.bare.register_forward_pre_hook(lambda *_: 1 / 0)
    with capture(module) as captured:
        with pytest.raises(ZeroDivisionError):
            module(torch.randn(1, 5, 8))
        failure.remove()
        for _ in range(2):
            module(torch.randn(1, 5, 8))
    assert list(captured.frame()["layer"]).count("bare") == 2


class Nested(Attention):
    """An attention layer of diffusers that contains another."""

    def __init__(self):
        super().__init__(8, heads=2, dim_head=4)
        self.inner = Attention(8, heads=2, dim_head=4)

    def forward(self, x):
        return self.inner(x)


def test_nested_attention_layers_are_scaled_once():
    torch.manual_seed(0)
    module, scales = Nested(), []
    with attention_calls(module, lambda c: scales.append(c.scale) or 2.0):
        module(torch.randn(1, 5, 8))
    seeing = attention_calls(module, lambda c: scales.append(c.scale), after_scaling=True)
    with seeing, attention_calls(module, lambda c: 2.0):
        module(torch.randn(1, 5, 8))
    assert scales == pytest.approx([0.5, 1.0])


def test_layer_called_outside_a_forward_is_scaled_but_not_measured():
    module, measured, scaled = Mixed(), [], []
    with (
        attention_calls(module, lambda c: measured.append(c.layer), after_scaling=True),
        attention_calls(module, lambda c: scaled.append(c.layer)),
    ):
        module.attention(torch.randn(1, 5, 8))  # as gradient checkpointing does in the backward pass
        assert (measured, scaled) == ([], ["attention"])
        module(torch.randn(1, 5, 8))
    assert measured == ["attention", "bare"]


@pytest.mark.parametrize("capture_first", [True, False])
def test_scaling_is_measured_in_the_forwards_after_the_first(tiny_pipeline, sample, capture_first):
    with capture(tiny_pipeline, distance=False) as plain:
        sample(steps=1)
    with ExitStack() as stack:
        if capture_first:
            captured = stack.enter_context(capture(tiny_pipeline, distance=False))
            sample(steps=1)  # now the capture has found the calls, and the scaling has not
        stack.enter_context(attention_calls(tiny_pipeline.unet, lambda c: 0.0))
        if not capture_first:
            sample(steps=1)
            captured = stack.enter_context(capture(tiny_pipeline, distance=False))
        sample(steps=2)
    frame = captured.frame()
    scaled = frame[frame["sampling"] == frame["sampling"].max()]
    assert len(scaled) == 2 * len(plain.frame())
    assert scaled["entropy"].to_numpy() == pytest.approx(np.log(scaled["key_tokens"].to_numpy()), abs=1e-5)


def test_bare_denoiser_is_measured_at_an_odd_latent_size(tiny_pipeline):
    torch.manual_seed(0)
    latents, text = torch.randn(2, 4, 17, 13), torch.randn(2, 16, 32)
    with torch.no_grad(), capture(tiny_pipeline.unet) as captured:
        tiny_pipeline.unet(latents, torch.tensor(500), text)
    frame = captured.frame()
    assert set(frame["branch"]) == {"cond"}
    assert set(frame["timestep"]) == {500}
    own = frame[frame["kind"] == "self"]
    assert (own["query_tokens"] == own["training_tokens"].map({256: 17 * 13, 64: 9 * 7})).all()
    assert own["attention_distance"].between(0, 1).all()


def test_curves_are_measured_with_the_call(tiny_pipeline, sample):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    seen = []
    with attention_calls(tiny_pipeline.unet, lambda c: seen.append(c) if c.layer == layer else None):
        sample(steps=1)
    with capture(tiny_pipeline, scale_factors=(2.0,), curve_rows=256) as captured:
        sample(steps=1)
    frame = captured.frame()
    doubled = frame[(frame["layer"] == layer) & (frame["scale_factor"] == 2.0)]
    expected = flash(seen[0].query, seen[0].key, scale=2 * seen[0].scale).entropy.mean(-1)
    assert doubled["entropy"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert not (frame[frame["kind"] == "cross"]["scale_factor"] == 2.0).any()
    with capture(tiny_pipeline) as plain:
        sample(steps=1)
    assert captured.summary()["entropy"].tolist() == pytest.approx(plain.summary()["entropy"].tolist())


@pytest.mark.parametrize("scale_factor", [0.5, torch.tensor([0.5, 0.5])])
@pytest.mark.parametrize("capture_first", [True, False])
def test_scaling_is_measured_in_either_order_of_contexts(tiny_pipeline, sample, scale_factor, capture_first):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    scaling = attention_calls(tiny_pipeline.unet, lambda c: scale_factor if c.layer == layer else None)
    probe = capture(tiny_pipeline, layers=layer, scale_factors=(0.5,))
    with probe as captured:
        sample(steps=1)
    expected = captured.frame().query("scale_factor == 0.5")["entropy"]
    probe = capture(tiny_pipeline, layers=layer)
    if capture_first:
        with probe as captured, scaling:
            sample(steps=1)
    else:
        with scaling, probe as captured:
            sample(steps=1)
    assert captured.frame()["entropy"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_scale_factor_per_head_scales_its_head(tiny_pipeline, sample):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    with capture(tiny_pipeline, layers=layer, scale_factors=(0.5, 2.0)) as curve:
        sample(steps=1)
    each = torch.tensor([0.5, 2.0])
    scaling = attention_calls(tiny_pipeline.unet, lambda c: each if c.layer == layer else None)
    with scaling, capture(tiny_pipeline, layers=layer) as captured:
        sample(steps=1)
    frame, expected = captured.frame(), curve.frame()
    for head in range(2):
        own = expected[(expected["head"] == head) & (expected["scale_factor"] == each[head].item())]
        assert frame[frame["head"] == head]["entropy"].tolist() == pytest.approx(own["entropy"].tolist(), abs=1e-5)


def test_model_without_denoiser_is_refused():
    with pytest.raises(InputError, match="no unet or transformer"), capture(object()):
        pass


def test_capture_without_attention_calls_warns_with_the_reason(tiny_pipeline, sample):
    early = pytest.warns(UserWarning, match="UNet2DConditionModel did not run before the context closed")
    with early, capture(tiny_pipeline) as nothing:
        pass
    with capture(tiny_pipeline) as captured:
        sample()
    assert len(nothing.frame()) == 0
    assert list(nothing.frame().columns) == list(captured.frame().columns)
    linear = nn.Linear(2, 2)
    none = pytest.warns(UserWarning, match="Linear ran, but did not call torch's scaled_dot_product_attention")
    with none, capture(linear):
        linear(torch.ones(1, 2))


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_of_torch_is_named_with_a_remedy(need_weights):
    module, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 4, 8)
    message = r"MultiheadAttention\. torch's own nn\.MultiheadAttention hides its call"
    with pytest.raises(CaptureError, match=message), capture(module):
        module(x, x, x, need_weights=need_weights)


class LaidOut(nn.Module):
    """Self-attention over pixels, in layouts whose first axis is not always the batch."""

    def __init__(self, layout):
        super().__init__()
        self.inner, self.layout = nn.Identity(), layout

    def forward(self, tokens):
        if self.layout == "tokens first":
            query = tokens.permute(1, 0, 2).unflatten(-1, (2, -1)).transpose(1, 2)
        elif self.layout == "heads in the batch":
            query = tokens.unflatten(0, (-1, 2))
        else:
            query = tokens.unflatten(-1, (2, -1)).transpose(1, 2)
        parts = query.split(1) if self.layout == "one by one" else [query]
        return torch.cat([nn.functional.scaled_dot_product_attention(q, q, q) for q in parts])


@pytest.mark.parametrize("layout", ["batch first", "tokens first", "heads in the batch", "one by one"])
def test_every_image_of_a_batch_is_a_sample_in_every_layout(layout):
    images = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
    given = {
        "tokens first": images.transpose(0, 1),
        "heads in the batch": images.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1),
    }.get(layout, images)
    module = LaidOut(layout)
    with capture(module) as captured:
        module(given)
    query = images.double().unflatten(-1, (2, -1)).transpose(1, 2)
    truth = torch.special.entr((query @ query.mT / 2).softmax(-1)).sum(-1).mean(-1)
    frame = captured.frame()
    assert frame["sample"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.allclose(frame["entropy"], truth.flatten(), atol=1e-5)


def test_entropy_map_covers_the_batch_if_a_layer_attends_image_by_image():
    class SplitAttention(LaidOut):
        processor = None  # with this and its name, it counts as an attention layer

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = SplitAttention("one by one")

        def forward(self, sample):
            return self.attn(sample.flatten(2).transpose(1, 2).repeat(1, 1, 2))

    module, images = Net(), torch.randn(3, 4, 8, 8)
    with capture(module, keep=["attn"]) as captured:
        module(images)
    whole = captured.entropy_map("attn", 0)
    assert whole.shape == (3, 2, 8, 8)
    assert np.allclose(whole.mean((2, 3)).flatten(), captured.frame()["entropy"], atol=1e-5)


def test_capture_of_a_diverged_model_has_a_repr():
    module = LaidOut("batch first")
    with capture(module) as captured:
        module(torch.full((1, 4, 8), torch.nan))
        assert repr(captured) == "Captured(1 measurements of 1 layers)"
        with pytest.raises(CaptureError, match="diverged"):
            captured.frame()
