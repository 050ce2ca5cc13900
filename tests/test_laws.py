"""Scaling laws, their JSON format, and applying them to a model."""

import copy
import json
import math
from dataclasses import replace
from inspect import unwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from entropy_probe.errors import InputError
from entropy_probe.estimation import Derivation
from entropy_probe.laws import (
    Gaussian,
    Kappa,
    Log,
    Measured,
    Origin,
    Original,
    Paper,
    Yarn,
    applied,
    apply,
    factors,
    from_json,
    load_law,
    origin_of,
    remove,
    resolve,
    sample_weights,
    save_law,
    scaled,
    to_json,
)
from entropy_probe.runs.grid import law_id

MEASURED = Measured({"a": ((-1.4, 0.5), (1.4, 2.0))}, {"a": 0.9}, {"a": 0.1})
LAWS = [Original(), Paper(), Log(), Yarn(), Gaussian({"a": 3.0}), MEASURED, Kappa({"a": 0.4}), Kappa({"*": 0.4})]
TOKENS = st.integers(2, 100_000)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
class TestEveryLaw:
    @given(tokens=TOKENS)
    def test_factor_is_one_at_training_size(self, law, tokens):
        assert law.scale_factor("a", tokens, tokens) == pytest.approx(1.0)

    @given(trained=st.integers(16, 10_000), tokens=st.lists(TOKENS, min_size=2, max_size=2))
    def test_factor_does_not_decrease_with_tokens(self, law, trained, tokens):
        few, many = sorted(tokens)
        assert law.scale_factor("a", few, trained) <= law.scale_factor("a", many, trained) + 1e-12

    def test_json_round_trip_is_equal(self, law):
        assert from_json(to_json(law)) == law


def test_names_of_kappa_laws_include_a_shared_kappa():
    names = [law.name for law in (Kappa({"*": 0.1}), Kappa({"*": 0.25}), Kappa({"a": 0.1}))]
    assert names == ["kappa=0.1", "kappa=0.25", "kappa"]


def test_unknown_kappa_is_null_in_json_and_nan_after_reading():
    text = to_json(Measured({"a": ((1.0, 2.0),)}, {"a": math.nan}, {"a": math.nan}))
    assert json.loads(text)["kappa"] == {"a": None}
    law = from_json(text)
    assert isinstance(law, Measured)
    assert math.isnan(law.kappa["a"])
    assert math.isnan(law.kappa_se["a"])


def test_optional_fields_can_be_omitted():
    assert from_json('{"law": "measured", "points": {"a": [[1.0, 2.0]]}}') == Measured({"a": ((1.0, 2.0),)})
    assert from_json('{"law": "kappa", "kappa": {"*": 1}}') == Kappa({"*": 1.0})


def test_derived_law_of_version_0_1_0_is_read():
    text = (Path(__file__).parent / "fixtures" / "run-0.1.0" / "law.json").read_text()
    fields = json.loads(text)
    law = from_json(text)
    assert isinstance(law, Measured)
    assert {name: [list(point) for point in points] for name, points in law.points.items()} == fields["points"]
    del fields["derivation"]
    assert json.loads(to_json(law)) == {"format": 2, **fields, "interpolation": "log-log"}


def test_factors_equal_the_formulas():
    assert Paper().scale_factor("", 4096, 1024) == pytest.approx(math.sqrt(12 / 10))
    assert Log().scale_factor("", 4096, 1024) == pytest.approx(1.2)
    assert Yarn().scale_factor("", 4096, 1024) == pytest.approx((1 + 0.1 * math.log(4)) ** 2)
    assert Yarn().scale_factor("", 16, 1024) == 1.0
    assert Gaussian({"a": 3.0}).scale_factor("a", 4096, 1024) == pytest.approx(math.sqrt(1 + 2 * math.log(4) / 3))


@given(TOKENS, st.integers(16, 10_000), st.floats(0.01, 0.1))
def test_paper_and_gaussian_have_the_kappa_form(tokens, trained, kappa):
    assert Paper().scale_factor("", tokens, trained) == pytest.approx(
        Kappa({"*": 1 / math.log(trained)}).scale_factor("", tokens, trained)
    )
    assert Gaussian({"a": 2 / kappa}).scale_factor("a", tokens, trained) == pytest.approx(
        Kappa({"a": kappa}).scale_factor("a", tokens, trained)
    )


def test_measured_interpolates_and_extrapolates_its_points():
    at = {x: MEASURED.scale_factor("a", round(1e6 * math.exp(x)), 10**6) for x in (-2.8, -1.4, 0, 0.7, 1.4, 2.8)}
    assert list(at.values()) == pytest.approx([0.25, 0.5, 1.0, 2**0.5, 2.0, 4.0], rel=1e-3)


def test_rejects_layer_of_another_model():
    with pytest.raises(InputError, match=r"no factor for layer 'b' \(its layers: a"):
        MEASURED.scale_factor("b", 2, 1)


def test_resolves_laws_names_and_files(tmp_path):
    path = tmp_path / "law.json"
    path.write_text(to_json(MEASURED))
    assert resolve("paper") == Paper()
    assert resolve(path) == MEASURED
    assert resolve(str(path)) == MEASURED
    assert resolve(MEASURED) is MEASURED


def test_resolve_rejects_other_types():
    with pytest.raises(InputError, match=r"a law must be a name, .* got 3"):
        unwrap(resolve)(3)  # without the type check of the tests


def test_resolve_rejects_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="unknown law 'nothing': give original, paper"):
        resolve("nothing")
    with pytest.raises(InputError, match=r"yarn-side, time_yarn, measured, log_power=NUMBER, .* or the JSON"):
        resolve("papr", also=["measured"])
    for name in ("nothing.json", "no/thing", tmp_path / "nothing"):
        with pytest.raises(InputError, match="there is no file"):
            resolve(name)


def test_resolve_rejects_names_of_laws_that_need_numbers():
    for name in ("measured", "gaussian", "calibrated"):
        with pytest.raises(InputError, match=f"derive it first .entropy-probe derive --method {name}"):
            resolve(name)
    for name in ("kappa", "log_power", "pippo"):
        with pytest.raises(InputError, match=f"{name!r} needs numbers: .*, or a name such as {name}=1.5"):
            resolve(name)
    with pytest.raises(InputError, match=r"'head_entropy' needs numbers: pass the JSON file that contains them$"):
        resolve("head_entropy")
    for name in ("log_power=", "pippo=-1", "kappa=nan", "log_power=two"):
        with pytest.raises(InputError, match=f"law '{name}' needs a positive number after '='"):
            resolve(name)


def test_load_law_returns_the_saved_law(tmp_path):
    save_law(MEASURED, tmp_path / "law.json")
    assert load_law(tmp_path / "law.json") == MEASURED
    with pytest.raises(InputError, match="cannot write"):
        save_law(MEASURED, tmp_path / "missing" / "law.json")


ORIGIN = Origin("mine", "2:0", "Mine", (64, 64), {"a": 64, "b": 16}, at_bounds={"b": (4,)})


def test_file_of_a_derived_law_is_self_contained():
    fields = json.loads(to_json(replace(MEASURED, origin=ORIGIN)))
    assert list(fields) == ["format", "law", "points", "kappa", "kappa_se", "interpolation", "origin"]
    assert fields["origin"]["training_tokens"] == {"a": 64, "b": 16}
    assert fields["origin"]["at_bounds"] == {"b": [4]}
    assert origin_of(from_json(json.dumps(fields))) == ORIGIN


def test_file_of_a_formula_can_name_a_model():
    text = to_json(Paper(), origin=ORIGIN)
    assert json.loads(text)["origin"]["model"] == "mine"
    assert from_json(text) == Paper()


def test_rejects_newer_format():
    with pytest.raises(InputError, match="'format' must be 1 or 2, got 3: install the version"):
        from_json('{"format": 3, "law": "new", "other": 1}')


def test_cells_of_a_law_do_not_depend_on_its_origin():
    assert law_id(replace(MEASURED, origin=ORIGIN)) == law_id(MEASURED)


def of_model(pipeline):
    tokens = dict.fromkeys((f"down_blocks.{n}.attentions.0.transformer_blocks.0.attn1" for n in (0, 1)), 256)
    return replace(ORIGIN, training_tokens=tokens, weights=sample_weights(pipeline))


def test_law_of_the_same_model_is_applied_without_warning(tiny_pipeline, recwarn):
    apply(tiny_pipeline, replace(MEASURED, origin=of_model(tiny_pipeline)))
    remove(tiny_pipeline)
    half = copy.deepcopy(tiny_pipeline.unet).to(torch.bfloat16)
    apply(half, replace(MEASURED, origin=of_model(tiny_pipeline)))
    assert not [str(warning.message) for warning in recwarn if "derived on" in str(warning.message)]


def test_law_of_other_weights_is_applied_with_a_warning(tiny_pipeline):
    other = copy.deepcopy(tiny_pipeline.unet)
    for weight in other.parameters():
        weight.data *= 1.1
    with pytest.warns(
        UserWarning, match=r"derived on 'mine' \(fingerprint 2:0\), and the weights of this model differ"
    ):
        apply(other, replace(MEASURED, origin=of_model(tiny_pipeline)))
    remove(other)


def test_law_of_other_layers_is_refused(tiny_pipeline):
    law = replace(MEASURED, origin=ORIGIN)
    with pytest.raises(
        InputError, match="derived on 'mine', and UNet2DConditionModel lacks 2 of its 2 layers, such as 'a'"
    ):
        apply(tiny_pipeline, law)
    assert applied(tiny_pipeline) is None


def test_user_may_name_the_layers_of_a_part_of_a_model():
    module, x = BareAttention(), torch.randn(1, 2, 16, 8)
    law = Measured({"": ((math.log(4), 2.0),)}, origin=ORIGIN)
    with scaled(module, law, training_tokens={"": 4}):
        found = module(x)
    assert torch.allclose(found, nn.functional.scaled_dot_product_attention(x, x, x, scale=2 / 8**0.5))


class OldLaw:
    """A user law for version 0.1.0."""

    name = "old"

    def multiplier(self, layer, tokens, training_tokens):
        return tokens / training_tokens


def test_law_with_the_old_method_name_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"OldLaw\.multiplier\(\) is deprecated: rename it to scale_factor"):
        law = unwrap(resolve)(OldLaw())  # the type check of the tests rejects the old method name
    assert (law.name, law.scale_factor("a", 8, 4)) == ("old", 2.0)
    with pytest.raises(InputError, match=r"only the laws original, .* can be written as JSON, got 'old' of class"):
        to_json(law)


def test_rejects_writing_a_law_of_another_class(tmp_path):
    class Mine(Paper):
        """Has a formula that no file contains."""

        name = "mine"

    with pytest.raises(InputError, match=r"got 'mine' of class Mine: apply it with apply\(\)"):
        save_law(Mine(), tmp_path / "law.json")
    assert not (tmp_path / "law.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"law": "measured"}', "the field 'points' is missing"),
        ('{"points": {}}', "the field 'law' is missing"),
        ("[]", r"the file must be an object, got \[\]"),
        ('{"law": ["paper"]}', r"'law' must be one of 'original', 'paper', .*, got \['paper'\]"),
        ('{"law": "papr"}', "'law' must be one of 'original', 'paper', .*, got 'papr'"),
        ('{"law": "paper", "kappa": {}}', "unknown field 'kappa': remove it"),
        ('{"law": "measured", "points": {}, "kappa": 3}', "'kappa' must be an object, got 3"),
        ('{"law": "measured", "points": {"a": [[0, -1]]}}', r"'points\.a\.0\.1' must be greater than 0, got -1"),
        ('{"law": "kappa", "kappa": {"*": null}}', r"'kappa\.\*' must be a valid number, got None"),
        ("paper", "invalid JSON: expected value at line 1 column 1"),
    ],
)
def test_error_names_file_field_and_value(tmp_path, text, reason):
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(InputError, match=f"law.json: this is not a valid scaling law: {reason}") as caught:
        resolve(tmp_path / "law.json")
    assert "\n" not in str(caught.value)


def test_model_is_unchanged_after_a_law_was_applied(tiny_pipeline, sample):
    before = sample()
    with scaled(tiny_pipeline, "paper") as law:
        assert applied(tiny_pipeline) == law == Paper()
        changed = sample((96, 96))
    assert applied(tiny_pipeline) is None
    assert all(np.array_equal(a, b) for a, b in zip(before, sample(), strict=True))
    assert not np.array_equal(changed[0], sample((96, 96))[0])


def test_law_is_removed_after_an_error(tiny_pipeline):
    with pytest.raises(KeyError), scaled(tiny_pipeline, "paper"):
        raise KeyError
    assert applied(tiny_pipeline) is None


def test_law_leaves_image_unchanged_at_training_size(tiny_pipeline, sample):
    with scaled(tiny_pipeline, "paper"):
        assert np.array_equal(sample()[0], sample()[0])
        scaled_images = sample()
    assert np.array_equal(scaled_images[0], sample()[0])


def test_visual_attention_is_scaled_by_g(tiny_pipeline, sample):
    """The image equals that of attention processors that multiply the softmax scale of self-attention by g."""
    with scaled(tiny_pipeline, "log"):
        expected = sample((96, 96), steps=1)

    class Scaled:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            pairs = ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
            query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in pairs)
            tokens = query.shape[2]
            trained = {576: 256, 144: 64}[tokens]
            g = math.log(tokens) / math.log(trained) if encoder_hidden_states is None else 1.0
            scale = g / query.shape[-1] ** 0.5
            out = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

    originals = dict(tiny_pipeline.unet.attn_processors)
    tiny_pipeline.unet.set_attn_processor(Scaled())
    by_hand = sample((96, 96), steps=1)
    tiny_pipeline.unet.set_attn_processor(originals)
    assert np.abs(np.asarray(expected[0], int) - np.asarray(by_hand[0], int)).max() <= 1


def test_factors_of_a_derivation_equal_the_factors_of_its_law():
    pd.testing.assert_frame_equal(factors(Derivation(MEASURED), [0.5, 4.0]), factors(MEASURED, [0.5, 4.0]))


def test_rejects_second_law(tiny_pipeline):
    apply(tiny_pipeline, "paper")
    with pytest.raises(InputError, match="paper law is applied"):
        apply(tiny_pipeline, "log")
    remove(tiny_pipeline)
    remove(tiny_pipeline)
    assert applied(tiny_pipeline) is None


class BareAttention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_module_without_configuration_needs_training_tokens():
    module, x = BareAttention(), torch.randn(1, 2, 16, 8)
    with pytest.raises(InputError, match="training_tokens="), scaled(module, "log"):
        module(x)
    with pytest.raises(InputError, match="names 'zzz', which is not a layer of the model; layers: ''"):
        apply(module, "log", training_tokens={"zzz": 4})
    for tokens in ({"": 4}, 4):  # T of this layer, and T of every layer
        with scaled(module, "log", training_tokens=tokens):
            found = module(x)
        assert torch.allclose(found, nn.functional.scaled_dot_product_attention(x, x, x, scale=2 / 8**0.5))


@pytest.mark.parametrize("tokens", [0, -4, {"": 0}, True])
def test_training_tokens_must_be_positive(tokens):
    module, message = BareAttention(), r"training_tokens must be a positive number of tokens, got (0|-4|True)"
    with pytest.raises(InputError, match=message), scaled(module, "log", training_tokens=tokens):
        module(torch.randn(1, 2, 16, 8))


def test_one_number_of_training_tokens_replaces_that_of_the_configuration(tiny_pipeline):
    with scaled(tiny_pipeline, "log", training_tokens=32) as scaling:
        tiny_pipeline("noto red apple", height=32, width=32, num_inference_steps=1)
    assert set(scaling.frame()["training_tokens"]) == {32}


def test_measured_law_without_known_errors_equals_its_file():
    """A layer with a factor at a bound has no error of kappa."""
    law = Measured({"mid": ((1.4, 6.0),)}, kappa={"mid": 3.0}, kappa_se={"mid": math.nan})
    again = from_json(to_json(law))
    assert again == law
    assert again.kappa == law.kappa
    assert math.isnan(again.kappa_se["mid"])
