"""Laws of other methods, compared with their published formulas and with code on PyPI; laws of a site."""

import json
import math
from inspect import unwrap

import law_page
import numpy as np
import pytest
import torch
from families import FAMILIES
from families.pipelines import by_family, seeded
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from entropy_probe import capture
from entropy_probe.attention import Forward, attention_layers
from entropy_probe.errors import InputError
from entropy_probe.laws import (
    HeadEntropy,
    Log,
    LogPower,
    Paper,
    Pippo,
    Site,
    TimeYarn,
    Yarn,
    factor_at,
    from_json,
    resolve,
    scaled,
    to_json,
)
from entropy_probe.laws.attach import _apply
from entropy_probe.laws.noise import NoiseLevel

SIZES = [(n, t) for t in (64, 1024, 4096) for n in (t // 4, t, 2 * t, 4 * t, 16 * t)]
HEADS = HeadEntropy({"a": (0.0, 0.25, 1.0)}, g_min=1.1, g_max=1.5, gamma=2.0)


@pytest.mark.parametrize(("tokens", "trained"), SIZES)
def test_laws_equal_their_published_formulas(tokens, trained):
    logs, s = math.log(tokens) / math.log(trained), max(1.0, tokens / trained)
    assert LogPower(1.7).scale_factor("", tokens, trained) == pytest.approx(logs**1.7)
    assert LogPower(0.5).scale_factor("", tokens, trained) == pytest.approx(Paper().scale_factor("", tokens, trained))
    assert LogPower(1.0).scale_factor("", tokens, trained) == pytest.approx(Log().scale_factor("", tokens, trained))
    assert Pippo(1.4).scale_factor("", tokens, trained) == pytest.approx(math.sqrt(1.4 * logs))
    assert Yarn().scale_factor("", tokens, trained) == pytest.approx((0.1 * math.log(s) + 1) ** 2)
    assert Yarn("side").scale_factor("", tokens, trained) == pytest.approx((0.1 * math.log(math.sqrt(s)) + 1) ** 2)
    for t in (1.0, 0.6, 0.1, 0.0):
        m = 1 + 0.1 * math.log(s) * (t / 1.0) ** 3
        law = TimeYarn(exponent=3.0, ratio="tokens")
        assert law.factor_at(Site("", tokens, trained, noise_level=t)) == pytest.approx(m**2)


def test_yarn_at_four_times_the_tokens_depends_on_the_ratio():
    assert Yarn().scale_factor("", 4096, 1024) == pytest.approx(1.2965, abs=5e-5)
    assert Yarn("side").scale_factor("", 4096, 1024) == pytest.approx(1.1434, abs=5e-5)


@pytest.mark.parametrize("factor", [2.0, 4.0, 16.0])
def test_yarn_equals_the_code_of_transformers(factor):
    """transformers multiplies the rotary embedding of queries and keys, so its factor is squared in the logits."""
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=1024)
    config.rope_parameters = {"rope_type": "yarn", "factor": factor, "rope_theta": 10_000.0}
    config.rope_parameters["original_max_position_embeddings"] = 1024
    config.rope_scaling = config.rope_parameters
    _, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    assert Yarn().scale_factor("", round(1024 * factor), 1024) == pytest.approx(attention_factor**2)


def test_paper_equals_the_proportional_attention_of_diffusers():
    family = next(family for family in FAMILIES if family.name == "Lumina-Next")
    model = family.build()
    inputs = family.inputs(model, 16, 16)
    inputs["cross_attention_kwargs"] = {**(inputs.get("cross_attention_kwargs") or {}), "base_sequence_length": 16}
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    own = captured.frame()
    own = own[own["kind"] == "self"]
    width = model.config.hidden_size // model.config.num_attention_heads
    assert own["scale"].to_numpy() * math.sqrt(width) == pytest.approx(Paper().scale_factor("", 64, 16))


def test_law_is_not_stacked_on_proportional_attention():
    pipeline = seeded(lambda: by_family("Lumina-Next"))
    arguments = {"num_inference_steps": 1, "output_type": "latent", "height": 64, "width": 64}

    def sample(**further):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline("a", **arguments, **further, generator=torch.Generator().manual_seed(0)).images

    pipeline.default_image_size = 32  # b = 4 tokens, so the model scales its logits at 64 pixels
    original = sample()
    with (
        pytest.warns(
            UserWarning, match=r"the log law was not applied in \d attention layers, because the model already"
        ),
        scaled(pipeline, "log") as scaling,
    ):
        assert torch.equal(torch.as_tensor(sample()), torch.as_tensor(original))
    assert all("already multiplies its logits by" in reason for reason in scaling.unscaled.values())
    assert scaling.frame().empty


def test_head_entropy_gives_local_heads_the_larger_factor():
    assert HEADS.factor_at(Site("a", 64, 16, heads=3)) == pytest.approx((1.5, 1.1 + 0.4 * 0.75**2, 1.1))
    assert HEADS.factor_at(Site("a", 16, 16, heads=3)) == (1.0, 1.0, 1.0)
    assert HEADS.scale_factor("a", 64, 16) == pytest.approx(sum((1.5, 1.1 + 0.4 * 0.75**2, 1.1)) / 3)
    with pytest.raises(InputError, match="has 3 heads for layer 'a', which has 2: measure the entropies"):
        HEADS.factor_at(Site("a", 64, 16, heads=2))


def test_head_entropy_is_measured_from_a_capture(tiny_pipeline, sample):
    with capture(tiny_pipeline) as captured:
        sample()
    law = HeadEntropy.measured(captured.frame(), g_min=1.0, g_max=1.3)
    assert all(0 <= z <= 1 for heads in law.entropy.values() for z in heads)
    own = captured.frame().query("kind == 'self'")
    first = own[own["layer"] == own["layer"].iloc[0]]
    expected = first.groupby("head")["entropy"].mean() / math.log(first["key_tokens"].iloc[0])
    assert law.entropy[own["layer"].iloc[0]] == pytest.approx(tuple(expected), rel=1e-5)
    with scaled(tiny_pipeline, law) as scaling:
        changed = sample((96, 96))
    assert not np.array_equal(changed[0], sample((96, 96))[0])
    assert scaling.frame()["scale_factor"].between(1.0, 1.3).all()


class Attention(nn.Module):
    def forward(self, query, timestep=None):
        return nn.functional.scaled_dot_product_attention(query, query, query)


def test_one_number_per_head_multiplies_the_queries_of_each_head():
    module, query = Attention(), torch.randn(2, 3, 64, 8)
    law = HeadEntropy({"*": (0.0, 0.25, 1.0)}, g_min=1.1, g_max=1.5)
    with scaled(module, law, training_tokens={"": 16}):
        found = module(query)
    for head, g in enumerate(law.factor_at(Site("", 64, 16, heads=3))):
        one = query[:, head : head + 1]
        expected = nn.functional.scaled_dot_product_attention(one, one, one, scale=g / 8**0.5)
        torch.testing.assert_close(found[:, head : head + 1], expected)


def test_law_of_the_noise_level_changes_from_pass_to_pass():
    module, query = Attention(), torch.randn(1, 2, 64, 8)
    seen = []
    with scaled(module, TimeYarn(), training_tokens={"": 16}) as scaling:
        for timestep in (1.0, 0.5, 0.0):
            module(query, timestep=torch.tensor([timestep]))
            seen.append(scaling.frame()["scale_factor"].item())
        with pytest.raises(InputError, match="needs the noise level, and the forward pass has no timestep"):
            module(query)
    assert seen == [TimeYarn().factor_at(Site("", 64, 16, noise_level=t)) for t in (1.0, 0.5, 0.0)]
    assert seen[2] == 1.0


@pytest.mark.parametrize(("steps", "expected"), [(4, (751, 501, 251, 1))])
def test_noise_level_of_a_pipeline_follows_its_scheduler(steps, expected, tiny_pipeline, sample):
    seen = []

    class Watching:
        name = "watching"
        changes_with_noise = True

        def scale_factor(self, layer, tokens, training_tokens):
            return 1.0

        def factor_at(self, site):
            seen.append(site)
            return 1.0

    with scaled(tiny_pipeline, Watching()):
        sample((96, 64), steps=steps)
    assert sorted({site.noise_level for site in seen}, reverse=True) == pytest.approx([t / 1000 for t in expected])
    assert {(site.grid, site.training_grid, site.heads) for site in seen} >= {((24, 16), (16, 16), 2)}


class Scheduler:
    config = type("Config", (), {"num_train_timesteps": 1000})

    def __init__(self, timesteps, **state):
        self.timesteps = torch.tensor(timesteps)
        vars(self).update(state)


@pytest.mark.parametrize(
    ("scheduler", "timestep", "level"),
    [
        (None, 0.25, 0.25),
        (None, torch.tensor([500, 500]), 0.5),
        (None, None, None),
        (Scheduler([900, 1]), torch.tensor(1), 0.001),
        (Scheduler([1000.0, 600.0], step_index=None), torch.tensor([0.0]), 1.0),  # the time runs the other way
        (Scheduler([1000.0, 600.0], step_index=1), torch.tensor([0.4]), 0.6),
        (Scheduler([1000.0, 600.0], step_index=None, begin_index=1), torch.tensor([600.0]), 0.6),
        (Scheduler([900, 1]), 250.0, 0.25),
    ],
)
def test_noise_level(scheduler, timestep, level):
    model = type("Pipeline", (), {"scheduler": scheduler})()
    found = NoiseLevel(model).of(Forward(timestep=timestep))
    assert found is None if level is None else found == pytest.approx(level)


@pytest.mark.parametrize("tokens", ["image", "all"])
def test_joint_attention_counts_image_tokens_or_all(tokens):
    family = next(family for family in FAMILIES if family.name == "Flux")
    model = family.build()
    inputs, trained = family.inputs(model, 16, 16), dict.fromkeys(attention_layers(model), 16)
    with torch.no_grad(), scaled(model, "paper", training_tokens=trained, tokens=tokens) as scaling:
        model(**inputs)
    extra = inputs["encoder_hidden_states"].shape[1] if tokens == "all" else 0
    assert set(scaling.frame()["tokens"]) == {64 + extra}
    assert scaling.frame()["scale_factor"].tolist() == pytest.approx(
        [Paper().scale_factor("", 64 + extra, 16 + extra)] * len(scaling.frame())
    )
    with pytest.raises(InputError, match="tokens must be 'image' or 'all', got 'text'"):
        unwrap(_apply)(model, "paper", None, None, "text")  # without the type check of the tests


def test_flux_at_2048_pixels_depends_on_the_tokens_that_are_counted():
    assert Paper().scale_factor("", 16384, 4096) == pytest.approx(1.080, abs=5e-4)
    assert Paper().scale_factor("", 16384 + 512, 4096 + 512) == pytest.approx(1.074, abs=5e-4)


@pytest.mark.parametrize(
    "law", [LogPower(2.0), Pippo(1.5), Yarn("side"), TimeYarn(1.0), HEADS], ids=lambda law: law.name
)
def test_json_round_trip(law):
    assert from_json(to_json(law)) == law
    assert law.name.partition("=")[0].partition("-")[0] == json.loads(to_json(law))["law"]


@pytest.mark.parametrize("law", [LogPower(2.0), Pippo(1.5), Yarn(), Yarn("side"), TimeYarn()], ids=lambda law: law.name)
def test_name_selects_the_law(law):
    assert resolve(law.name) == law


def test_law_without_sites_is_asked_as_before():
    assert factor_at(Paper(), Site("a", 64, 16)) == Paper().scale_factor("a", 64, 16)


@pytest.mark.clone
def test_reference_tables_of_the_page_are_current():
    text = law_page.PAGE.read_text()
    assert law_page.updated(text) == text, "run python -m tests.law_page"
