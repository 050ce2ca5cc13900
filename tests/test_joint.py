"""Joint attention: the position of the image tokens, and the measured rows, maps and parts."""

import pytest
import torch
from families import FAMILIES

from entropy_probe import capture
from entropy_probe.attention.joint import Join, image_start, start_within
from entropy_probe.statistics import dense, stratified_rows

FLUX = next(family for family in FAMILIES if family.name == "Flux")


@pytest.mark.parametrize(
    ("lengths", "tokens", "start"),
    [
        ((64, 7), 64, 0),
        ((7, 64), 64, -64),
        ((8, 7, 64), 64, -64),
        ((7, 128), 64, -128),  # two images, this one first
        ((7, 64, 32), 64, -96),
        ((80, 7), 64, 0),  # padded
        ((64, 64), 64, None),  # 64 words
        ((100, 90), 64, None),
        ((7, 32), 64, None),
        ((71,), 64, None),
        ((), 64, None),
    ],
)
def test_lengths_locate_the_image(lengths, tokens, start):
    assert image_start(lengths, tokens) == start


@pytest.mark.parametrize(
    ("lengths", "others", "image", "start"),
    [
        ((7, 96), 32, None, -96),
        ((64, 96), 32, None, -96),  # 64 words: the image is the part with the reference
        ((7, 64, 32), 32, None, -96),  # joined one by one
        ((96, 96), 32, None, None),
        ((64, 64), 0, 1, -64),
        ((64, 64), 0, 0, 0),
        ((7, 64), 0, 0, -64),  # the part that is given as the image is too short
    ],
)
def test_reference_images_and_a_known_image_locate_the_image(lengths, others, image, start):
    assert image_start(lengths, 64, others, image) == start


def run(denoiser, inputs, words=None, reference=0):
    """Run a forward pass with a number of words, and a number of tokens of a reference image after the image."""
    if words is not None:
        text, repeats = inputs["encoder_hidden_states"], -(-words // 7)
        inputs = inputs | {"encoder_hidden_states": text.repeat(1, repeats, 1)[:, :words]}
        inputs["txt_ids"] = torch.zeros(words, 3)
    if reference:
        latents, ids = inputs["hidden_states"], inputs["img_ids"]
        following = ids[:reference] + torch.tensor([1.0, 0.0, 0.0])  # as the pipeline of Flux Kontext marks it
        inputs = inputs | {"hidden_states": torch.cat([latents, latents[:, :reference]], 1)}
        inputs["img_ids"] = torch.cat([ids, following])
    with torch.no_grad():
        return denoiser(**inputs)[0]


def measured(denoiser, inputs, **how):
    with capture(denoiser) as captured:
        run(denoiser, inputs, **how)
    return captured.frame()[PARTS].reset_index(drop=True)


PARTS = ["layer", "head", "rows", "tokens", "entropy", "image_mass", "image_entropy", "text_entropy"]


def maps_of(monkeypatch, denoiser, inputs, **how):
    """Return the attention maps of a forward pass, in float64."""
    maps, fused = [], torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, *args, **kwargs):
        maps.append((query.double() @ key.double().mT * query.shape[-1] ** -0.5).softmax(-1))
        return fused(query, key, value, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        run(denoiser, inputs, **how)
    return maps


# Flux concatenates the text, the image and its reference in this order.
@pytest.mark.parametrize(("words", "reference"), [(7, 0), (7, 8), (32, 0), (32, 8), (24, 8), (40, 8)])
def test_image_is_located_next_to_text_and_references(words, reference, monkeypatch):
    denoiser = FLUX.build()
    inputs = FLUX.inputs(denoiser, 8, 16)
    frame = measured(denoiser, inputs, words=words, reference=reference)
    own = slice(words, words + 32)
    maps = maps_of(monkeypatch, denoiser, inputs, words=words, reference=reference)
    rows = torch.stack([attention[:, :, own] for attention in maps])
    assert (frame["rows"] == 32).all()
    assert frame["entropy"].to_numpy() == pytest.approx(
        torch.special.entr(rows).sum(-1).mean(-1).flatten().numpy(), abs=1e-5
    )
    assert frame["image_mass"].to_numpy() == pytest.approx(rows[..., own].sum(-1).mean(-1).flatten().numpy(), abs=1e-5)


def test_references_and_texts_may_change_between_forwards():
    denoiser = FLUX.build()
    inputs = FLUX.inputs(denoiser, 8, 16)
    ways = [{"words": words, "reference": reference} for words in (7, 32, 3, 24) for reference in (0, 8)]
    with capture(denoiser) as captured:
        outputs = [run(denoiser, inputs, **how) for how in ways]
    frame = captured.frame()[PARTS]
    rows = len(frame) // len(ways)
    for i, (how, output) in enumerate(zip(ways, outputs, strict=True)):
        assert torch.equal(output, run(denoiser, inputs, **how))
        assert frame.iloc[i * rows : (i + 1) * rows].reset_index(drop=True).equals(measured(denoiser, inputs, **how))


def test_unlocated_image_tokens_raise_a_warning():
    class Blended(torch.nn.Linear):
        """A projection that returns a new tensor, as adapters do: its storage does not identify the image."""

        def forward(self, x):
            return super().forward(x) + 0.0

    denoiser = FLUX.build()
    for module in [m for m in denoiser.modules() if type(m) is torch.nn.Linear]:
        module.__class__ = Blended
    inputs = FLUX.inputs(denoiser, 8, 16)
    with pytest.warns(UserWarning, match="transformer_blocks.0.attn.*max_sequence_length"):
        frame = measured(denoiser, inputs, words=32)
    assert (frame["rows"] == 64).all()
    assert frame["image_mass"].isna().all()


class CausalAttention(torch.nn.Module):
    processor = None

    def forward(self, hidden_states):
        heads = hidden_states.unflatten(-1, (2, 8)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)


class Causal(torch.nn.Module):
    """Words first, then an image; each token attends to those before it."""

    def __init__(self):
        super().__init__()
        self.attention = CausalAttention()

    def forward(self, sample, text):
        return self.attention(torch.cat([text, sample.flatten(2).mT], 1))


@pytest.mark.parametrize("rows", ["all", 10])
def test_causal_attention_over_words_and_image_is_measured(rows):
    torch.manual_seed(0)
    sample, text, model = 3 * torch.randn(1, 16, 4, 4), 3 * torch.randn(1, 5, 16), Causal()
    with capture(model, rows=rows, scale_factors=[2.0]) as captured:
        model(sample, text)
    tokens = torch.cat([text, sample.flatten(2).mT], 1).unflatten(-1, (2, 8)).transpose(1, 2)
    every = dense(tokens, tokens, is_causal=True).entropy[:, :, 5:]
    plain, doubled = captured.calls
    assert not plain.image_mass.isnan().any()
    chosen = stratified_rows(16, 10, torch.Generator().manual_seed(0)) if rows == 10 else torch.arange(16)
    assert torch.allclose(plain.entropy.double(), every[:, :, chosen].mean(-1), atol=1e-5)
    stronger = dense(tokens, tokens, is_causal=True, scale=2 * 8**-0.5).entropy[:, :, 5:]
    assert torch.allclose(doubled.entropy.double(), stronger[:, :, chosen].mean(-1), atol=1e-5)


def test_text_may_change_its_length_between_forwards():
    denoiser = FLUX.build()
    inputs = FLUX.inputs(denoiser, 8, 16)
    with capture(denoiser) as captured:
        run(denoiser, inputs)
        run(denoiser, inputs, words=3)
    with capture(denoiser) as alone:
        run(denoiser, inputs, words=3)
    both = captured.frame()
    assert both["image_mass"].between(0, 1, inclusive="neither").all()
    columns = ["layer", "head", "entropy", "image_mass", "image_entropy", "text_entropy"]
    second = both.iloc[len(both) // 2 :][columns].reset_index(drop=True)
    assert second.equals(alone.frame()[columns])


def test_chain_rule_of_entropy_holds_in_the_table():
    denoiser = FLUX.build()
    with capture(denoiser) as captured:
        run(denoiser, FLUX.inputs(denoiser, 8, 16))
    frame = captured.frame()
    mass = frame["image_mass"]
    sum_of_parts = frame["mass_entropy"] + mass * frame["image_entropy"] + (1 - mass) * frame["text_entropy"]
    assert sum_of_parts.to_numpy() == pytest.approx(frame["entropy"].to_numpy(), abs=1e-5)
    assert (frame["rows"] == 32).all()
    assert (frame["query_tokens"] == 39).all()


def test_rows_are_sampled_among_the_image_tokens():
    denoiser = FLUX.build()
    inputs = FLUX.inputs(denoiser, 16, 16)
    with capture(denoiser, keep="transformer_blocks.0.attn") as captured:
        run(denoiser, inputs)
    rows = captured.entropy_map("transformer_blocks.0.attn", step=0).flatten(-2)
    assert rows.shape[-1] == 64
    every = captured.calls[0].entropy
    assert torch.allclose(rows.mean(-1), every, atol=1e-5)
    with capture(denoiser, rows=64) as sampled:
        run(denoiser, inputs)
    assert torch.allclose(sampled.calls[0].entropy, every, atol=1e-5)
    with capture(denoiser, rows=16, scale_factors=[2.0]) as sampled:
        run(denoiser, inputs)
    for record in sampled.calls:
        assert record.rows == 16
        assert record.image_mass.isnan().all() == (record.scale_factor == 2.0)
    errors = (sampled.calls[0].entropy - every).abs()
    assert errors.max() <= 5 * rows.std(-1).max() / 16**0.5


def test_distances_are_measured_between_image_tokens():
    denoiser = FLUX.build()
    with torch.no_grad():
        for layer in denoiser.transformer_blocks:  # logits of 0: attention is the same everywhere
            layer.attn.norm_q.weight.zero_()
            layer.attn.norm_added_q.weight.zero_()
    with capture(denoiser, layers="transformer_blocks.*") as captured:
        run(denoiser, FLUX.inputs(denoiser, 16, 16))
    grid = captured.calls[0].grid.positions()
    apart = torch.cdist(grid, grid).square().mean(-1).sqrt().mean()
    frame = captured.frame()
    assert frame["attention_distance"].to_numpy() == pytest.approx(apart.item(), abs=1e-5)
    assert frame["image_mass"].to_numpy() == pytest.approx(64 / 71, abs=1e-6)
    assert frame["image_entropy"].to_numpy() == pytest.approx(torch.tensor(64.0).log().item(), abs=1e-5)


def test_history_in_front_and_a_longer_text_locate_the_image():
    """Framepack: 44 tokens of history, 48 of the image, then 256 words."""
    joins = {92: Join((44, 48), None), 348: Join((92, 256), None)}
    assert start_within(joins, 348, 48, 0) == -304
    assert start_within({**joins, 96: Join((48, 48), None), 352: Join((96, 256), None)}, 352, 48, 0) is None
