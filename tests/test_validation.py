"""Entropy drift on tables with known answers."""

import numpy as np
import pandas as pd
import pytest

from entropy_probe.errors import InputError
from entropy_probe.evaluation import Outcome, entropy_drift, validate

SIZES = [(32, 32), (64, 64), (128, 128)]


def table(shift, prompts=6, noise=0.0, laws=("original", "half", "perfect")):
    """Entropies that other sizes shift by `shift[head, step]`; the law `half` halves that, `perfect` ends it."""
    generator = np.random.default_rng(0)
    left = {"original": 1.0, "half": 0.5, "perfect": 0.0, "paper": 1.0}
    rows = []
    for law in laws:
        for height, width in SIZES:
            for prompt in range(prompts):
                for head, step in np.ndindex(shift.shape):
                    moved = 0.0 if height == 64 else left[law] * shift[head, step]
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


@pytest.mark.parametrize(("level", "expected"), [("layer", 0.25), ("head", 0.5), ("step", 1.0)])
def test_a_level_forgives_only_what_is_below_it(level, expected):
    shift = np.array([[1.75, -0.25], [-0.75, 0.25]])  # heads 0.75 and -0.25, together 0.25; steps 0.75 on average
    expected = {0.25: 0.25, 0.5: 0.5, 1.0: 0.75}[expected]
    found = by_law(entropy_drift(table(shift), (64, 64), level))
    assert found["original"].drift == pytest.approx(expected)
    assert found["half"].drift == pytest.approx(expected / 2)
    assert [found[law].removed for law in ("original", "half", "perfect")] == pytest.approx([0, 0.5, 1])


def test_intervals_cover_the_truth_and_shrink_with_more_prompts():
    def width(prompts):
        one = by_law(entropy_drift(table(np.full((2, 2), 1.0), prompts, noise=0.3), (64, 64)))["half"]
        assert one.low < 0.5 < one.high
        assert one.removed_low < 0.5 < one.removed_high
        return one.high - one.low

    assert width(80) < 0.6 * width(8)


def test_drift_is_measured_from_the_original_at_the_training_size():
    frame = table(np.ones((1, 1)))
    with pytest.raises(InputError, match="original model at the training size"):
        entropy_drift(frame[frame["height"] != 64], (64, 64))
    assert {d.size for d in entropy_drift(frame, (64, 64))} == {(32, 32), (128, 128)}


def test_an_outcome_survives_json_and_says_its_numbers(tiny_pipeline, tmp_path):
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
    again = Outcome.from_json(outcome.sweep, outcome.to_json())
    assert again.drifts == outcome.drifts
    assert again.sweep.grid == outcome.sweep.grid
    (sentence,) = outcome.verdict()
    paper = next(d for d in outcome.drifts if d.law == "paper" and d.level == "layer")
    assert f"{round(100 * paper.removed)} % [" in sentence
    assert "at 96" in sentence
