"""Entropy drift of tables with known values, validation, and the JSON of every result."""

import numpy as np
import pandas as pd
import pytest

import entropy_probe as ep
from entropy_probe import baselines, estimation, evaluation
from entropy_probe.baselines import Profile, ProfileComparison
from entropy_probe.errors import InputError
from entropy_probe.estimation import Calibration, Derivation, Fit
from entropy_probe.evaluation import LossCurve, Outcome, Quality, entropy_drift, validate, validate_sweep

SIZES = [(32, 32), (64, 64), (128, 128)]


def table(shift, prompts=6, noise=0.0, laws=("original", "half", "perfect")):
    """Entropies shifted by `shift[head, step]`; the law `half` halves the shift, `perfect` removes it."""
    generator = np.random.default_rng(0)
    remaining = {"original": 1.0, "half": 0.5, "perfect": 0.0, "paper": 1.0}
    rows = []
    for law in laws:
        for height, width in SIZES:
            for prompt in range(prompts):
                for head, step in np.ndindex(shift.shape):
                    moved = 0.0 if height == 64 else remaining[law] * shift[head, step]
                    h = 3.0 + moved + noise * generator.standard_normal()
                    rows.append((law, height, width, f"p{prompt}", 0, "self", "spatial", "layer", head, step, h, 1.0))
    names = [
        "law",
        "height",
        "width",
        "prompt",
        "seed",
        "kind",
        "axes",
        "layer",
        "head",
        "step",
        "entropy",
        "scale_factor",
    ]
    return pd.DataFrame(rows, columns=names)


def by_law(drifts, size=(128, 128)):
    return {d.law: d for d in drifts if d.size == size}


@pytest.mark.parametrize(
    ("level", "expected"), [("layer", 0.25), ("head", (0.75**2 / 2 + 0.25**2 / 2) ** 0.5), ("step", (3.75 / 4) ** 0.5)]
)
def test_level_averages_only_over_finer_levels(level, expected):
    shift = np.array([[1.75, -0.25], [-0.75, 0.25]])  # heads 0.75 and -0.25, together 0.25
    drifts = by_law(entropy_drift(table(shift), (64, 64), level))
    assert drifts["original"].drift == pytest.approx(expected)
    assert drifts["half"].drift == pytest.approx(expected / 2)
    assert [drifts[law].removed for law in ("original", "half", "perfect")] == pytest.approx([0, 0.5, 1])


def test_intervals_cover_true_drift_and_shrink_with_more_prompts():
    def width(prompts):
        half = by_law(entropy_drift(table(np.full((2, 2), 1.0), prompts, noise=0.3), (64, 64)))["half"]
        assert half.low < 0.5 < half.high
        assert half.removed_low < 0.5 < half.removed_high
        return half.high - half.low

    assert width(80) < 0.6 * width(8)


def test_interval_contains_its_estimate_and_noise_has_no_drift():
    """The mean of |H(N) - H(T)| was above 0 for noise alone, and its interval excluded the estimate."""
    drifts = []
    for seed in range(60):
        frame = table(np.zeros((1, 1)), prompts=8)
        frame["entropy"] += 0.2 * np.random.default_rng(seed).standard_normal(len(frame))
        drifts.append(by_law(entropy_drift(frame, (64, 64)))["original"])
    assert all(drift.low <= drift.drift <= drift.high for drift in drifts)
    assert sum(drift.low > 0 for drift in drifts) <= 7  # the exact binomial 99 % range at 5 %
    noise = np.mean([drift.noise**2 for drift in drifts]) ** 0.5
    assert noise == pytest.approx(0.2 * 2**0.5 / 8**0.5, rel=0.15)


def test_interval_covers_the_removed_fraction_in_95_percent():
    covered = 0
    for seed in range(100):
        frame = table(np.full((1, 1), 1.0), prompts=8)
        frame["entropy"] += 0.3 * np.random.default_rng(seed).standard_normal(len(frame))
        half = by_law(entropy_drift(frame, (64, 64)))["half"]
        covered += half.removed_low <= 0.5 <= half.removed_high
    assert covered >= 88


def test_two_prompts_have_a_drift_without_interval(recwarn):
    half = by_law(entropy_drift(table(np.ones((1, 1)), prompts=2), (64, 64)))["half"]
    assert (half.drift, half.removed) == pytest.approx((0.5, 0.5))
    assert np.isnan([half.low, half.high, half.removed_low]).all()
    assert not recwarn.list


def test_layer_drift_has_a_sign():
    drifts = evaluation.layer_drift(table(np.full((1, 2), -0.5), noise=0.01), (64, 64))
    own = drifts[(drifts["law"] == "half") & (drifts["size"] == (128, 128))].iloc[0]
    assert own["drift"] == pytest.approx(-0.25, abs=0.03)
    assert own["low"] < -0.25 < own["high"] < 0


def test_drift_needs_original_model_at_training_size():
    frame = table(np.ones((1, 1)))
    with pytest.raises(InputError, match="original model at the training size"):
        entropy_drift(frame[frame["height"] != 64], (64, 64))
    assert {d.size for d in entropy_drift(frame, (64, 64))} == {(32, 32), (128, 128)}


def test_outcome_survives_json_and_verdict_has_its_numbers(tiny_pipeline, tmp_path):
    outcome = validate(
        tiny_pipeline,
        laws=["paper"],
        prompts=["a", "b"],
        sizes=[(96, 96)],
        steps=1,
        store=tmp_path / "run",
        progress=False,
    )
    assert set(outcome.table()["law"]) == {"original", "paper"}
    again = Outcome.from_json(outcome.to_json(), outcome.sweep)
    assert repr(again.drifts) == repr(outcome.drifts)  # not ==, because NaN differs from itself
    assert again.sweep.grid == outcome.sweep.grid
    sentence, images = outcome.verdict()
    assert images == "The drift was measured on 2 prompts and 1 seed."
    paper = next(d for d in outcome.drifts if d.law == "paper" and d.level == "layer")
    assert f"{100 * paper.removed:.0f} % (too few prompts for an interval) at 96" in sentence
    with pytest.warns(DeprecationWarning, match=r"use Outcome.from_json\(text, sweep\)"):
        assert repr(Outcome.from_json(outcome.sweep, outcome.to_json()).drifts) == repr(outcome.drifts)
    with pytest.raises(InputError, match="not a valid outcome"):
        Outcome.from_json("{}", outcome.sweep)


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    return ep.sweep(
        tiny_pipeline, prompts=["a"], sizes=[(64, 64), (96, 96)], steps=1, store=tmp_path_factory.mktemp("runs") / "a",
        progress=False,
    )  # fmt: skip


def test_validate_accepts_sweep_and_derivation(sampled):
    outcome = validate(sampled, ["paper", ep.derive(sampled, "gaussian")], progress=False)
    assert {d.law for d in outcome.drifts} == {"original", "paper", "gaussian"}
    assert outcome.sweep.grid.prompts == sampled.grid.prompts
    with pytest.warns(DeprecationWarning, match="use validate"):
        old = validate_sweep(sampled, ["paper"], progress=False)
    assert repr(old.drifts) == repr(validate(sampled, ["paper"], progress=False).drifts)


def test_derived_law_is_judged_on_other_prompts_and_seeds(tiny_pipeline, tmp_path):
    swept = ep.sweep(
        tiny_pipeline, prompts=["a", "b", "c", "d"], sizes=[(64, 64), (96, 96)], seeds=[0, 1], steps=1,
        store=tmp_path / "run", progress=False,
    )  # fmt: skip
    derivation = ep.derive(swept, rounds=0)
    assert (derivation.prompts, derivation.seeds) == (("a", "b"), (0,))
    law = tmp_path / "law.json"
    law.write_text(derivation.to_json())
    for given in (derivation, law, str(law)):
        outcome = validate(swept, ["paper", given], progress=False)
        assert (outcome.prompts, outcome.seeds, outcome.in_sample) == (("c", "d"), (1,), False)
        assert outcome.verdict()[-1] == (
            "The drift was measured on 2 prompts and 1 seed, which no law was derived from."
        )
    frame = outcome.sweep.frame()
    unseen = frame[frame["prompt"].isin(["c", "d"]) & (frame["seed"] == 1)]
    assert repr(outcome.drifts[: len(outcome.table())]) == repr(tuple(entropy_drift(unseen, (64, 64))))
    again = Outcome.from_json(outcome.to_json(), outcome.sweep)
    assert again.verdict() == outcome.verdict()


def test_law_derived_from_every_prompt_is_said_to_be_judged_on_them(sampled):
    outcome = validate(sampled, [ep.derive(sampled, rounds=0)], progress=False)
    assert outcome.in_sample
    assert outcome.verdict()[-1].endswith("which a law was derived from; on other prompts it is larger.")
    everything = ep.derive(sampled, "gaussian", hold_out=False)
    assert everything.prompts == sampled.grid.prompts


RESULTS = {
    Calibration: "calibration",
    Derivation: "law",
    Fit: "fit",
    LossCurve: "loss curve",
    Outcome: "outcome",
    Profile: "baseline",
    ProfileComparison: "comparison",
    Quality: "image quality",
}


def test_every_result_type_has_to_json_and_from_json():
    public = [getattr(package, name) for package in (estimation, evaluation, baselines) for name in package.__all__]
    assert {kind for kind in public if hasattr(kind, "to_json")} == RESULTS.keys()
    assert all(hasattr(kind, "from_json") for kind in RESULTS)


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"law": "paper"}', '{"drifts": [1], "grid": 2}'])
def test_from_json_rejects_text_of_another_type(sampled, kind, text):
    files = {Outcome: [sampled], ProfileComparison: [None, None]}.get(kind, [])
    with pytest.raises(InputError, match=RESULTS[kind]):
        kind.from_json(text, *files)


def test_validate_rejects_arguments_that_sweep_sets(sampled, tiny_pipeline):
    with pytest.raises(InputError, match="prompts is set by the sweep: remove it"):
        validate(sampled, ["paper"], prompts=["b"])
    with pytest.raises(InputError, match="steps is set by the sweep: remove it"):
        validate(sampled, ["paper"], steps=2)
    with pytest.raises(InputError, match="sizes is missing"):
        validate(tiny_pipeline, ["paper"], prompts=["a"])
