"""The explorer, driven by the values of its widgets, without a browser."""

import sys
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch

import entropy_probe as ep
from entropy_probe.errors import InputError
from entropy_probe.reports.explorer import Choice, layer_view, plot_layer_view
from entropy_probe.runs import sweep

FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FINE = "up_blocks.1.attentions.1.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    return sweep(
        tiny_pipeline, prompts=["flat pizza", "noto red apple"], sizes=[(64, 64), (64, 96)], seeds=[0], steps=2,
        guidance_scale=4.0, scale_factors=(), store=tmp_path_factory.mktemp("runs") / "run", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def explorer(sampled):
    return ep.explore(sampled)


@pytest.fixture(scope="module")
def views(sampled):
    """Sample each view once: a function of the layer and the step."""
    return lru_cache(partial(layer_view, sampled, "flat pizza", (64, 96)))


def controls(explorer):
    return {control.description: control for control in explorer.children[0].children}


@pytest.mark.parametrize("layer", [FIRST, FINE])
@pytest.mark.parametrize("step", [0, 1])
def test_view_equals_the_measurements_of_the_sweep(sampled, views, step, layer):
    shown = views(layer, step)
    assert shown.image.size == (96, 64)
    assert shown.image.tobytes() == sampled.image("flat pizza", (64, 96), 0).tobytes()
    assert shown.entropy.shape == (2, 16, 24)
    frame = sampled.frame()
    own = frame[(frame["layer"] == layer) & (frame["prompt"] == "flat pizza") & (frame["width"] == 96)]
    own = own[(own["step"] == step) & (own["branch"] == "cond")].sort_values("head")
    torch.testing.assert_close(shown.entropy.mean((1, 2)), torch.tensor(own["entropy"].to_numpy()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [FIRST, FINE])
def test_attention_of_a_token_has_the_entropy_of_its_row(views, layer):
    shown = views(layer, 1)
    for row, column in [(0, 0), (7, 20), (15, 23)]:
        attention = shown.attention(row, column)
        assert attention.shape == (2, 16, 24)
        torch.testing.assert_close(attention.sum((1, 2)), torch.ones(2))
        entropy = torch.special.entr(attention).sum((1, 2))
        torch.testing.assert_close(entropy, shown.entropy[:, row, column], atol=1e-4, rtol=0)


def test_plot_returns_entropy_and_attention_of_every_token(sampled, views):
    shown = views(FIRST, 1)
    frame = sampled.frame()
    curves = frame[(frame["layer"] == FIRST) & (frame["prompt"] == "flat pizza")]
    choice = Choice("flat pizza", (64, 96), FIRST, 1, 1, across=0.5, down=0.25)
    figure, data = plot_layer_view(shown, curves, choice)
    row, column = choice.token(shown.grid)
    assert (row, column) == (4, 12)
    assert len(figure.axes) == 5  # three panels and two colour bars
    values = data.set_index(["row", "column"])
    assert values["attention"].sum() == pytest.approx(1, abs=1e-5)
    assert values.loc[(3, 7), "entropy"] == pytest.approx(float(shown.entropy[1, 3, 7]))
    assert values.loc[(3, 7), "attention"] == pytest.approx(float(shown.attention(row, column)[1, 3, 7]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", "noto red apple"), ("size", (64, 96)), ("layer", FINE), ("head", 1), ("step", 0),
        ("across", 0.1), ("down", 0.9),
    ],
)  # fmt: skip
def test_every_control_changes_the_figure(explorer, name, value):
    panel, control = explorer.children[1], controls(explorer)[name]
    before, first = panel.value, control.value
    assert before.startswith("<svg ")
    control.value = value
    assert panel.value.startswith("<svg ")
    assert panel.value != before
    control.value = first  # the explorer is shared
    assert panel.value == before


def test_offers_the_heads_of_the_layer(explorer):
    control = controls(explorer)
    control["head"].value = 1
    control["layer"].value = next(name for _, name in control["layer"].options if name.startswith("mid_block"))
    assert [head for _, head in control["head"].options] == [None, 0, 1, 2, 3]
    control["layer"].value = FIRST


def test_returning_to_a_view_samples_nothing(explorer, sampled):
    class Stopped:
        def __call__(self, *args, **kwargs):
            raise AssertionError("sampled again")

    control = controls(explorer)["step"]
    before = explorer.children[1].value
    control.value = 0
    hook = sampled.pipeline.unet.register_forward_pre_hook(Stopped())
    try:
        control.value = 1
    finally:
        hook.remove()
    assert explorer.children[1].value == before


def test_rejects_a_sweep_that_cannot_be_explored(sampled):
    with pytest.raises(InputError, match="open the run with its pipeline"):
        ep.explore(replace(sampled, pipeline=None))
    with ep.scaled(sampled.pipeline, "paper"), pytest.raises(InputError, match="paper law is applied"):
        layer_view(sampled, "flat pizza", (64, 96), FIRST, 0)


def test_missing_ipywidgets_is_an_error_with_the_remedy(sampled, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r'this needs ipywidgets: pip install "entropy-probe\[notebook\]"$'):
        ep.explore(sampled)
