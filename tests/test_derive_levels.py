"""`derive(level=...)`: measured laws with one factor per layer, per head, or per head and step."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from entropy_probe import derive, scaled, sweep, validate
from entropy_probe.cli.main import app
from entropy_probe.errors import InputError
from entropy_probe.estimation import Derivation, factor_count
from entropy_probe.estimation.levels import law_of_parts, layer_of, noise_levels, part_labels
from entropy_probe.laws import HeadEntropy, Measured, MeasuredHeads, MeasuredSteps, Paper, Site, from_json, to_json
from entropy_probe.laws.origin import origin_of
from entropy_probe.plots import views

SIZES = [(32, 32), (64, 64), (96, 96)]
TWO = ((math.log(4), 2.0),)
ONE = ((math.log(4), 1.0),)
HEADS = MeasuredHeads({"a": (TWO, ONE)})
STEPS = MeasuredSteps((0.2, 0.8), {"a": ((ONE, ONE), (TWO, ONE))})


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    prompts, store = ["noto red apple", "flat pizza", "a", "b"], tmp_path_factory.mktemp("runs") / "levels"
    return sweep(tiny_pipeline, prompts=prompts, sizes=SIZES, seeds=(0, 1), steps=2, store=store, progress=False)


@pytest.fixture(scope="module")
def derivations(sampled):
    return {level: derive(sampled, level=level, rounds=1, progress=False) for level in ("layer", "head", "step")}


def test_finer_levels_have_more_factors(derivations):
    counts = {level: factor_count(derivation) for level, derivation in derivations.items()}
    layers = len(origin_of(derivations["layer"]).training_tokens)
    assert counts["layer"] == 2 * layers  # two sizes other than the training size
    assert counts["layer"] < counts["head"] < counts["step"] == 2 * counts["head"]
    assert factor_count(Paper()) == 0


def test_law_of_each_level_removes_drift_of_that_level(derivations):
    for derivation in derivations.values():
        before, after = derivation.rounds
        assert after.drift < before.drift / 2
        assert set(map(layer_of, derivation.factors["layer"])) == set(origin_of(derivation).training_tokens)


def test_validation_reports_held_out_drift_of_every_law(sampled, derivations):
    outcome = validate(sampled, list(derivations.values()), progress=False)
    table = outcome.table()
    assert set(table["law"]) == {"original", "measured", "measured_head", "measured_step"}
    assert (table.loc[table["law"] != "original", "removed"] > 0.3).all()


def test_derivation_of_each_level_is_read_again(derivations):
    for derivation in derivations.values():
        again = Derivation.from_json(derivation.to_json())
        assert again.law == derivation.law
        assert origin_of(again) == origin_of(derivation)
        pd.testing.assert_frame_equal(again.factors, derivation.factors)


def test_law_of_heads_changes_the_image(tiny_pipeline, derivations, sample):
    with scaled(tiny_pipeline, derivations["head"]) as scaling:
        changed = sample((96, 96))
    assert not np.array_equal(changed[0], sample((96, 96))[0])
    assert all(isinstance(g, tuple) for _, g in scaling.factors.values())


def test_command_derives_each_level(sampled, tiny_folder):
    out = str(sampled.run.path)
    command = ["derive", "--out", out, "--model", str(tiny_folder), "--device", "cpu", "--rounds", "0"]
    result = CliRunner().invoke(app, [*command, "--level", "head", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["law"] == "measured_head"
    assert (sampled.run.path / "law-head.json").exists()


def test_rejects_unknown_levels(sampled):
    with pytest.raises(InputError, match="level must be layer, head, step, got 'token'"):
        derive(sampled, level="token")
    with pytest.raises(InputError, match="level 'head' needs method 'measured', got 'gaussian'"):
        derive(sampled, "gaussian", level="head")


def test_laws_of_heads_and_steps_interpolate_their_points():
    assert HEADS.factor_at(Site("a", 128, 64, heads=2)) == pytest.approx((math.sqrt(2), 1.0))
    assert HEADS.scale_factor("a", 256, 64) == pytest.approx(1.5)
    for level, g in ((0.0, 1.0), (0.2, 1.0), (0.5, math.sqrt(2)), (0.8, 2.0), (1.0, 2.0)):
        assert STEPS.factor_at(Site("a", 256, 64, heads=2, noise_level=level)) == pytest.approx((g, 1.0))
    for law in (HEADS, STEPS):
        with pytest.raises(InputError, match="has 2 heads for layer 'a', which has 3: derive it on this model"):
            law.factor_at(Site("a", 256, 64, heads=3, noise_level=0.5))
        with pytest.raises(InputError, match="has no factor for layer 'b'"):
            law.factor_at(Site("b", 256, 64, heads=2, noise_level=0.5))
        assert from_json(to_json(law)) == law
    with pytest.raises(InputError, match="needs the noise level"):
        STEPS.factor_at(Site("a", 256, 64, heads=2))


def test_points_of_parts_become_a_law():
    rows = pd.DataFrame({"layer": ["a", "a"], "head": [0, 1], "step": [0, 1]})
    assert list(part_labels(rows, "head")) == ["a head 0", "a head 1"]
    points = {f"a head {head} step {step}": ONE if head or step else TWO for head in (0, 1) for step in (0, 1)}
    assert law_of_parts(points, "step", {0: 0.8, 1: 0.2}) == STEPS
    assert law_of_parts({"a head 0": TWO, "a head 1": ONE}, "head", {}) == HEADS
    assert law_of_parts({"a": TWO}, "layer", {}) == Measured({"a": TWO})


def test_noise_levels_of_flows_and_of_reversed_times():
    times = pd.DataFrame({"step": [0, 0, 1], "timestep": [1.0, 1.0, 0.25]})
    assert noise_levels(times, 1000) == {0: 1.0, 1: 0.25}
    assert noise_levels(times.assign(timestep=[900.0, 900.0, 100.0]), 1000) == {0: 0.9, 1: 0.1}
    assert noise_levels(times.assign(timestep=[0.0, 0.0, 0.75]), 1000) == {0: 1.0, 1: 0.25}


def test_plots_show_g_of_each_head_and_each_noise_level():
    """The data of a figure equals `factor_at` of the law at the largest derived N/T."""
    ratio = math.log(4)
    heads = MeasuredHeads({"a": (((ratio, 2.0),), ((ratio, 1.5),)), "b": (((-ratio, 0.5), (ratio, 3.0)),)})
    steps = MeasuredSteps((0.0, 1.0), {"a": ((((ratio, 1.0),), ((ratio, 2.0),)), (((ratio, 3.0),), ((ratio, 5.0),)))})
    by_head = views.view(heads).draw(Figure().subplots())
    assert by_head["scale_factor"].round(9).tolist() == [2.0, 1.5, 3.0]
    assert by_head[["layer", "head"]].to_numpy().tolist() == [["a", 0], ["a", 1], ["b", 0]]
    by_step = views.view(steps).draw(Figure().subplots())
    assert by_step["noise_level"].tolist() == [0.0, 1.0]
    assert by_step[["scale_factor", "low", "high"]].round(9).to_numpy().tolist() == [[1.5, 1, 2], [4, 3, 5]]
    assert "<svg" in heads._repr_html_()
    assert steps.plot().get_xlabel() == "noise level (noise to image)"
    axes = views.plot(HeadEntropy({"a": (0.2, 1.0)}, g_min=1.0, g_max=1.3))
    assert axes.get_xlabel() == "scale factor g at N/T = 4"
