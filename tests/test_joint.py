"""Joint attention: where the image stands in it, and what follows for rows, maps and guidance."""

import pytest
import torch
from families import FAMILIES

from entropy_probe import capture
from entropy_probe.capture.calls import image_start

FLUX = next(family for family in FAMILIES if family.name == "Flux")


@pytest.mark.parametrize(
    ("lengths", "tokens", "start"),
    [
        ((64, 7), 64, 0),
        ((7, 64), 64, -64),
        ((8, 7, 64), 64, -64),
        ((7, 128), 64, -128),  # two images, ours first
        ((7, 64, 32), 64, -96),
        ((80, 7), 64, 0),  # padded
        ((64, 64), 64, None),  # as many words as image tokens
        ((100, 90), 64, None),
        ((7, 32), 64, None),
        ((71,), 64, None),
        ((), 64, None),
    ],
)
def test_lengths_tell_where_the_image_begins(lengths, tokens, start):
    assert image_start(lengths, tokens) == start


def run(denoiser, inputs, words=None):
    if words:
        inputs = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :words]}
        inputs["txt_ids"] = inputs["txt_ids"][:words]
    with torch.no_grad():
        denoiser(**inputs)


def test_a_text_of_another_length_in_the_next_forward():
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


def test_the_chain_rule_holds_in_the_frame():
    denoiser = FLUX.build()
    with capture(denoiser) as captured:
        run(denoiser, FLUX.inputs(denoiser, 8, 16))
    frame = captured.frame()
    mass = frame["image_mass"]
    sum_of_parts = frame["mass_entropy"] + mass * frame["image_entropy"] + (1 - mass) * frame["text_entropy"]
    assert sum_of_parts.to_numpy() == pytest.approx(frame["entropy"].to_numpy(), abs=1e-5)
    assert (frame["rows"] == 32).all()
    assert (frame["query_tokens"] == 39).all()


def test_rows_are_drawn_among_the_image_tokens():
    denoiser = FLUX.build()
    inputs = FLUX.inputs(denoiser, 16, 16)
    with capture(denoiser, keep="transformer_blocks.0.attn") as captured:
        run(denoiser, inputs)
    rows = captured.entropy_map("transformer_blocks.0.attn", step=0).flatten(-2)
    assert rows.shape[-1] == 64
    every = captured.records[0].means.entropy
    assert torch.allclose(rows.mean(-1), every, atol=1e-5)
    with capture(denoiser, rows=64) as drawn:
        run(denoiser, inputs)
    assert torch.allclose(drawn.records[0].means.entropy, every, atol=1e-5)
    with capture(denoiser, rows=16, multipliers=[2.0]) as drawn:
        run(denoiser, inputs)
    for record in drawn.records:
        assert record.rows == 16
        assert (record.split is None) == (record.multiplier == 2.0)
    errors = (drawn.records[0].means.entropy - every).abs()
    assert errors.max() <= 5 * rows.std(-1).max() / 16**0.5


def test_distances_are_those_among_the_image_tokens():
    denoiser = FLUX.build()
    with torch.no_grad():
        for layer in denoiser.transformer_blocks:  # logits of 0: attention is the same everywhere
            layer.attn.norm_q.weight.zero_()
            layer.attn.norm_added_q.weight.zero_()
    with capture(denoiser, layers="transformer_blocks.*") as captured:
        run(denoiser, FLUX.inputs(denoiser, 16, 16))
    grid = captured.records[0].grid.positions()
    apart = torch.cdist(grid, grid).square().mean(-1).sqrt().mean()
    frame = captured.frame()
    assert frame["attention_distance"].to_numpy() == pytest.approx(apart.item(), abs=1e-5)
    assert frame["image_mass"].to_numpy() == pytest.approx(64 / 71, abs=1e-6)
    assert frame["image_entropy"].to_numpy() == pytest.approx(torch.tensor(64.0).log().item(), abs=1e-5)
