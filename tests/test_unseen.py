"""Attention without a visible call: a law and a capture both name its layers, its cause, and the fix."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as held  # some libraries keep a reference
from transformers import AutoModel, BertConfig, CLIPTextConfig, GPT2Config, LlamaConfig, T5Config, ViTConfig

import entropy_probe as ep
from entropy_probe.attention import attention_layers
from entropy_probe.errors import CaptureError

TORCH = F.scaled_dot_product_attention
CONSTANT = ep.laws.Constant(0.5)
PATTERN = re.compile(r"did not call torch's scaled_dot_product_attention: (.*)", re.DOTALL)


def told(model, run, law=CONSTANT):
    """Return what a law and a capture say about the same model, without their own words."""
    with pytest.warns(UserWarning, match="no law was applied in") as warned, ep.scaled(model, law) as scaling:
        run()
    (of_law,) = [str(one.message) for one in warned if "no law was applied" in str(one.message)]
    with pytest.raises(CaptureError) as refused, ep.capture(model):
        run()
    with pytest.warns(UserWarning, match="these attention layers ran") as warned, ep.capture(model, missing="warn"):
        run()
    assert str(refused.value) in [str(one.message) for one in warned]
    own = PATTERN.search(of_law)[1]
    assert own in str(refused.value)
    return of_law, scaling


@pytest.fixture
def silent():
    """Turn every warning into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def pipeline(tiny_pipeline):
    other = copy.deepcopy(tiny_pipeline)
    other.set_progress_bar_config(disable=True)
    return other


def images(pipeline, size=32, steps=1, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        "a", height=size, width=size, num_inference_steps=steps, output_type="np", generator=generator, **kwargs
    ).images


def one_layer(pipeline):
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = AttnProcessor()


PREPARATIONS = {
    "attention slicing": (lambda pipeline: pipeline.enable_attention_slicing(), 14),
    "eager processors": (lambda pipeline: pipeline.unet.set_attn_processor(AttnProcessor()), 14),
    "one layer": (one_layer, 1),
}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_layers_of_diffusers_without_a_call_are_named(pipeline, name):
    prepare, count = PREPARATIONS[name]
    prepare(pipeline)
    message, scaling = told(pipeline, lambda: images(pipeline))
    assert f"no law was applied in {count} of 14 attention layers" in message
    assert "set_attn_processor(AttnProcessor2_0())" in message
    assert len(scaling.unscaled) == count
    layers = set(attention_layers(pipeline.unet))
    assert set(scaling.unscaled) <= layers
    assert set(scaling.frame()["layer"]) == {name for name in layers - set(scaling.unscaled) if "attn1" in name}


def test_law_warns_before_the_first_step_ends(pipeline):
    pipeline.enable_attention_slicing()
    seen = []

    def after_step(pipe, step, timestep, inputs):
        seen.append(len(caught))
        return inputs

    with warnings.catch_warnings(record=True) as caught, ep.scaled(pipeline, "paper"):
        warnings.simplefilter("always")
        images(pipeline, steps=2, callback_on_step_end=after_step)
    assert seen == [1, 1]  # once, in the first forward pass


def test_law_that_is_applied_after_other_forward_passes_warns_too(pipeline):
    pipeline.enable_attention_slicing()
    with warnings.catch_warnings(action="ignore"), ep.capture(pipeline, missing="warn"):
        images(pipeline)
        with pytest.warns(UserWarning, match="no law was applied in 14 of 14"), ep.scaled(pipeline, "paper"):
            images(pipeline)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TOKENS = torch.arange(2, 11)[None]
TRANSFORMERS = {
    "Bert": (BertConfig(vocab_size=50, **SMALL), {"input_ids": TOKENS}, "encoder.layer.0.attention.self"),
    "CLIP": (CLIPTextConfig(vocab_size=50, **SMALL), {"input_ids": TOKENS}, "encoder.layers.0.self_attn"),
    "Llama": (LlamaConfig(vocab_size=50, **SMALL), {"input_ids": TOKENS}, "layers.0.self_attn"),
    "ViT": (ViTConfig(image_size=32, patch_size=8, **SMALL), {"pixel_values": torch.ones(1, 3, 32, 32)}, "0.attention"),
    "GPT-2": (GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4), {"input_ids": TOKENS}, "h.0.attn"),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_eager_attention_of_transformers_is_named(name):
    config, inputs, layer = TRANSFORMERS[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    with torch.no_grad():
        message, scaling = told(model, lambda: model(**inputs))
    assert "no law was applied in 2 of 2 attention layers" in message
    assert "Load the model with attn_implementation=\"sdpa\" instead of 'eager'" in message
    assert any(layer in one for one in scaling.unscaled)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_sdpa_attention_of_transformers_raises_no_alarm(name, silent):
    config, inputs, _ = TRANSFORMERS[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(config), attn_implementation="sdpa").eval()
    with torch.no_grad(), ep.scaled(model, CONSTANT) as scaling, ep.capture(model) as captured:
        model(**inputs)
    assert set(captured["layer"]) == set(attention_layers(model))
    assert len(scaling.frame()) == 2


def test_eager_encoder_and_decoder_of_t5_are_named():
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        message, _ = told(model, lambda: model(input_ids=TOKENS, decoder_input_ids=TOKENS[:, :4]))
    assert "in 3 of 3 attention layers" in message


def scores(query, key):
    return query @ key.mT / query.shape[-1] ** 0.5


def by_method(q, k, v):
    return scores(q, k).softmax(-1) @ v


def by_function(q, k, v):
    return torch.matmul(F.dropout(F.softmax(torch.matmul(q, k.mT), dim=-1, dtype=torch.float64).to(v.dtype), 0.0), v)


def by_exponentials(q, k, v):
    weights = torch.exp(scores(q, k) - scores(q, k).amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


def by_einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k)
    weights += torch.zeros(q.shape[-2], k.shape[-2])
    return torch.einsum("bhqk,bhkd->bhqd", nn.Softmax(dim=-1)(weights), v)


def by_baddbmm(q, k, v):
    shape, (q, k, v) = q.shape, (tensor.flatten(0, 1) for tensor in (q, k, v))
    start = torch.empty(len(q), q.shape[1], k.shape[1])
    weights = torch.baddbmm(start, q, k.mT, beta=0, alpha=0.5).view(*shape[:2], q.shape[1], -1)
    weights.masked_fill_(torch.zeros_like(weights, dtype=torch.bool), -torch.inf)
    return torch.bmm(weights.softmax(-1).flatten(0, 1), v).view(shape)


def in_slices(q, k, v):
    return torch.cat([torch.softmax(scores(part, k), -1) @ v for part in q.split(4, dim=-2)], dim=-2)


def with_a_sink(q, k, v):
    weights = torch.cat([scores(q, k), torch.zeros(*q.shape[:-1], 1)], -1).softmax(-1)[..., :-1]
    return weights @ v


BY_HAND = [by_method, by_function, by_exponentials, by_einsum, by_baddbmm, in_slices, with_a_sink]


class Mixer(nn.Module):
    """Mixes tokens by any attention function, under a name that does not say so."""

    def __init__(self, function):
        super().__init__()
        self.project, self.function = nn.Linear(16, 48), function

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return x + self.function(q, k, v).transpose(1, 2).flatten(2)


def model_of(*functions):
    torch.manual_seed(0)
    return nn.Sequential(*map(Mixer, functions)).eval(), torch.randn(2, 9, 16)


@pytest.mark.parametrize("function", BY_HAND)
def test_attention_by_hand_in_half_of_a_model_is_named(function):
    model, x = model_of(TORCH, function, TORCH, function)
    plain = model(x)
    message, scaling = told(model, lambda: model(x))
    assert "no law was applied in 2 of 4 attention layers" in message
    assert "scaled_dot_product_attention: 1, 3. Compute the attention with torch.nn.functional" in message
    assert set(scaling.unscaled) == {"1", "3"}
    assert set(scaling.frame()["layer"]) == {"0", "2"}
    with pytest.warns(UserWarning, match="layers ran"), ep.capture(model, missing="warn") as captured:
        assert torch.equal(model(x), plain)
    assert set(captured["layer"]) == {"0", "2"}


@pytest.mark.parametrize("function", BY_HAND)
def test_model_with_attention_by_hand_only_is_named(function):
    model, x = model_of(function)
    message, scaling = told(model, lambda: model(x))
    assert "in 1 of 1 attention layers" in message
    assert not len(scaling.frame())


class Router(nn.Module):
    """Softmax of a product with weights, products of activations without a softmax, and one query that pools."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Parameter(torch.randn(4, 16)), nn.Linear(16, 4 * 16)

    def forward(self, x):
        chosen = (x @ self.gate.T).softmax(-1)
        x = (chosen[:, :, None] @ self.experts(x).unflatten(-1, (4, 16))).squeeze(2)
        gram = x @ x.mT
        x = x + gram.tanh() @ x
        pooled = (x.mean(1, keepdim=True) @ x.mT).softmax(-1) @ x
        return x + pooled


def test_other_products_and_softmax_raise_no_alarm(silent):
    model, x = model_of(TORCH)
    model.append(Router())
    with ep.scaled(model, CONSTANT) as scaling, ep.capture(model) as captured:
        model(x)
    assert scaling.unscaled == {}
    assert set(captured["layer"]) == {"0"}


class Fallback:
    """A faster attention that calls torch's own for these shapes, as SageAttention and others do."""

    def __init__(self):
        self.calls = 0

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        self.calls += 1
        return TORCH(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def own_kernel(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    with torch._C.DisableTorchFunction():  # as a kernel that Python does not see
        return scores(query, key).softmax(-1) @ value


@pytest.mark.parametrize("when", ["before", "inside"])
def test_patch_that_calls_torch_is_measured_and_scaled(pipeline, monkeypatch, when, silent):
    with ep.scaled(pipeline, "paper") as scaling, ep.capture(pipeline) as captured:
        expected = images(pipeline)
    patch = Fallback()
    if when == "before":
        monkeypatch.setattr(F, "scaled_dot_product_attention", patch)
    with ep.scaled(pipeline, "paper") as again, ep.capture(pipeline) as patched:
        if when == "inside":
            monkeypatch.setattr(F, "scaled_dot_product_attention", patch)
        assert np.array_equal(images(pipeline), expected)
    assert patch.calls >= 14
    assert patched.frame().equals(captured.frame())
    assert again.frame().equals(scaling.frame())


def test_reference_to_torch_function_is_measured_under_a_patch(monkeypatch, silent):
    model, x = model_of(lambda q, k, v: held(q, k, v))
    monkeypatch.setattr(F, "scaled_dot_product_attention", own_kernel)
    with ep.capture(model) as captured:
        model(x)
    assert len(captured.calls) == 1


@pytest.mark.parametrize("patch", [own_kernel, Fallback])
def test_patch_that_does_not_call_torch_is_named(pipeline, monkeypatch, patch):
    if patch is Fallback:
        patch = Fallback()
        monkeypatch.setattr(Fallback, "__call__", lambda self, *args, **kwargs: own_kernel(*args, **kwargs))
    monkeypatch.setattr(F, "scaled_dot_product_attention", patch)
    message, _ = told(pipeline, lambda: images(pipeline))
    name = "Fallback" if isinstance(patch, Fallback) else "own_kernel"
    assert f"{__name__}.{name} replaces torch.nn.functional.scaled_dot_product_attention" in message
    assert "in 14 of 14 attention layers" in message


def test_patch_inside_a_capture_is_named_after_it_was_removed(pipeline, monkeypatch):
    def patched_for_a_while():
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", own_kernel)
            images(pipeline)

    with pytest.raises(CaptureError, match=r"own_kernel replaces torch\.nn\.functional"), ep.capture(pipeline):
        patched_for_a_while()


def test_law_without_any_image_attention_warns():
    class Cross(nn.Module):
        def forward(self, sample, words):
            tokens = sample.flatten(2).mT[:, None]
            return TORCH(tokens, words, words)

    model, alarm = Cross(), "no law was applied: the model has cross attention only"
    with pytest.warns(UserWarning, match=alarm), ep.scaled(model, CONSTANT):
        model(torch.randn(1, 4, 8, 8), torch.randn(1, 1, 7, 4))


def controlled(pipeline, several):
    torch.manual_seed(0)
    nets = [
        ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 16, 16)).eval()
        for _ in range(1 + several)
    ]
    for net in nets:
        for layer in net.controlnet_down_blocks:
            nn.init.normal_(layer.weight, std=0.1)  # zero at first, so the net would change nothing
    parts = pipeline.components | {"controlnet": nets if several else nets[0]}
    other = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 96, 96)
    return other, {"image": [image, image] if several else image, "size": 96}


@pytest.mark.parametrize("several", [False, True])
def test_controlnet_is_named_and_can_be_scaled_and_captured_too(pipeline, several):
    pipeline, inputs = controlled(pipeline, several)
    kind = MultiControlNetModel.__name__ if several else ControlNetModel.__name__
    plain = images(pipeline, **inputs)
    notice = pytest.warns(UserWarning, match="which also runs in the sampling steps")
    with notice as warned, ep.scaled(pipeline, "paper") as scaling, ep.capture(pipeline):
        only_unet = images(pipeline, **inputs)
    messages = [str(one.message) for one in warned]
    assert [message for message in messages if "is not applied to the attention of" in message] == [
        f"the paper law is not applied to the attention of pipe.controlnet ({kind}), which also runs in the sampling "
        "steps: apply the law to pipe.controlnet too"
    ]
    assert [message for message in messages if "is not measured" in message] == [
        f"the attention of pipe.controlnet ({kind}), which also runs in the sampling steps, is not measured: capture "
        "pipe.controlnet too"
    ]
    of_unet = scaling.frame().set_index("layer")["training_tokens"]
    layers = attention_layers(pipeline.controlnet)
    trained = {name: int(of_unet[re.sub(r"^nets\.\d\.", "", name)]) for name in layers if "attn1" in name}
    with (
        warnings.catch_warnings(action="error"),
        ep.scaled(pipeline, "paper"),
        ep.scaled(pipeline.controlnet, "paper", training_tokens=trained) as of_net,
        ep.capture(pipeline) as unet,
        ep.capture(pipeline.controlnet) as net,
    ):
        both = images(pipeline, **inputs)
    assert not np.array_equal(plain, only_unet)
    assert not np.array_equal(both, only_unet)
    assert set(net["layer"]) == set(layers)
    assert set(of_net.frame()["layer"]) == set(trained)
    assert (of_net.frame()["scale_factor"] > 1).all()
    assert set(unet["layer"]) == set(attention_layers(pipeline.unet))


def test_chosen_layers_of_the_denoiser_raise_no_notice_of_the_controlnet(pipeline, silent):
    pipeline, inputs = controlled(pipeline, several=False)
    with ep.capture(pipeline, layers="mid_block*"):
        images(pipeline, **inputs)
