"""The fit against statsmodels and known truth, and the derived law."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.errors import InputError
from entropy_probe.estimation import POOLED, Derivation, derive, derive_gaussian, derive_measured, fit
from entropy_probe.estimation.derivation import _root, _Try
from entropy_probe.runs import sweep

TOKENS = (64, 144, 256, 576, 1024)


class Records:
    """What `fit` needs of a sweep: a table."""

    def __init__(self, entropy, seed=0, prompts=6, variance=lambda n: 2.0, noise=0.03):
        generator = np.random.default_rng(seed)
        rows = []
        for prompt in range(prompts):
            level = noise * generator.standard_normal()
            for tokens in TOKENS:
                for seed_ in range(2):
                    h = entropy(tokens) + level + noise * generator.standard_normal()
                    rows.append((f"p{prompt}", seed_, tokens, h, variance(tokens)))
        table = pd.DataFrame(rows, columns=["prompt", "seed", "query_tokens", "entropy", "logit_variance"])
        self.table = table.assign(
            law="original",
            kind="self",
            axes="spatial",
            layer="a",
            training_tokens=256,
            tokens=table["query_tokens"],
            height=table["query_tokens"],
            width=1,
        )

    def frame(self):
        return self.table


def test_the_log_law_and_its_clustered_errors_are_those_of_statsmodels():
    records = Records(lambda n: 0.5 + 0.8 * math.log(n))
    law = fit(records).layers[0]
    model = smf.ols("entropy ~ np.log(query_tokens)", records.table)
    groups = records.table["prompt"].astype("category").cat.codes
    direct = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert law.slope == pytest.approx(direct.params.iloc[1])
    assert law.intercept == pytest.approx(direct.params.iloc[0])
    assert law.slope_se == pytest.approx(direct.bse.iloc[1])
    assert law.intercept_se == pytest.approx(direct.bse.iloc[0])
    assert (law.slope_low, law.slope_high) == pytest.approx(tuple(direct.conf_int().iloc[1]))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    laws = [fit(Records(lambda n: 0.5 + 0.8 * math.log(n), seed)).layers[0] for seed in range(100)]
    covered = sum(law.slope_low <= 0.8 <= law.slope_high for law in laws)
    assert 85 <= covered <= 100


@pytest.mark.parametrize(
    ("form", "entropy"),
    [
        ("log", lambda n: 0.5 + 0.8 * math.log(n)),
        ("power", lambda n: 0.4 * n**0.4),
        ("linear", lambda n: 1 + 0.004 * n),
        ("gaussian", lambda n: math.log(n) - 1.0 - 0.1 * (n % 5)),
    ],
)
def test_the_true_form_ranks_first(form, entropy):
    variance = (lambda n: 2.0 + 0.2 * (n % 5)) if form == "gaussian" else (lambda n: 9.0)
    ranked = fit(Records(entropy, variance=variance, noise=0.003)).rivals
    assert ranked[ranked["layer"] == "a"].iloc[0]["form"] == form
    assert ranked[ranked["layer"] == POOLED].iloc[0]["form"] == form


def test_one_prompt_has_no_error_bar_and_one_size_no_law():
    assert math.isnan(fit(Records(math.log, prompts=1)).pooled.slope_se)
    records = Records(math.log)
    assert "on a size left out, nats: " in str(fit(records))
    records.table = records.table[records.table["query_tokens"] <= 144]
    assert str(fit(records)).endswith("three sizes with different token counts would tell")
    records.table = records.table[records.table["query_tokens"] == 64]
    with pytest.raises(InputError, match="at least two sizes"):
        fit(records)


@given(st.lists(st.floats(0.01, 3), min_size=2, max_size=6), st.floats(0, 1))
def test_the_root_of_a_falling_curve_is_found(falls, place):
    x = np.arange(len(falls) + 1) / 2
    y = 5 - np.concatenate([[0], np.cumsum(falls)])
    aim = y[-1] + place * (y[0] - y[-1])
    assert np.interp(_root(x, y, aim), x, y) == pytest.approx(aim)
    assert x[0] - 0.5 - 1e-9 <= _root(x, y, y[0] + 100) <= x[0]
    assert x[-1] <= _root(x, y, y[-1] - 100) <= x[-1] + 0.5 + 1e-9


def test_kappa_is_recovered_with_an_interval_that_covers_it():
    generator = np.random.default_rng(0)
    index = pd.MultiIndex.from_tuples([("a", n, 256) for n in TOKENS if n != 256])
    index = index.set_names(["layer", "tokens", "training_tokens"])
    g = pd.Series([math.sqrt(1 + 0.4 * math.log(n / 256)) for n in index.get_level_values(1)], index=index)
    level = pd.Series(3.0, index=[f"p{i}" for i in range(8)])
    curves = []
    for scale_factor in (0.5, 1.0, 2.0):
        noise = 0.05 * generator.standard_normal((len(index), 8))
        rows = pd.DataFrame(level.to_numpy() - math.log(scale_factor) + noise, index=index, columns=level.index)
        curves.append(rows.assign(scale_factor=scale_factor).set_index("scale_factor", append=True))
    target = pd.DataFrame([level], index=pd.Index(["a"], name="layer"))
    found = _Try(g, pd.concat(curves), target).kappa().iloc[0]
    assert found["kappa"] == pytest.approx(0.4)
    assert found["low"] < 0.4 < found["high"]
    assert 0 < found["kappa_se"] < 0.1
    assert found["paper"] == pytest.approx(1 / math.log(256))


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    return sweep(
        tiny_pipeline, prompts=["a", "b"], sizes=[(64, 64), (96, 96), (64, 96)], seeds=[0, 1], steps=2,
        guidance_scale=1.0, store=tmp_path_factory.mktemp("runs") / "run", progress=False,
    )  # fmt: skip


def test_the_measured_law_removes_drift_when_sampled_anew(sampled):
    derivation = derive_measured(sampled, rounds=2, progress=False)
    assert derivation.rounds[0].drift > 5 * derivation.rounds[0].drift_se
    assert min(r.drift for r in derivation.rounds[1:]) < 0.2 * derivation.rounds[0].drift
    assert all(g > 1 for points in derivation.law.points.values() for _, g in points)
    again = Derivation.from_json(derivation.to_json())
    assert again.law == derivation.law
    assert again.rounds == derivation.rounds
    assert np.allclose(again.kappa["kappa"], derivation.kappa["kappa"])


def test_g_at_its_bounds_is_reported(sampled, monkeypatch):
    monkeypatch.setattr(sys.modules["entropy_probe.estimation.derivation"], "MOST", 1.01)
    unreachable = derive_measured(sampled, rounds=0, progress=False).unreachable
    assert (unreachable["g"] == 1.01).all()
    assert len(unreachable) > 0


def test_the_gaussian_law_takes_the_variance_at_the_training_size(sampled):
    frame = sampled.frame()
    trained = frame[(frame["height"] == 64) & (frame["width"] == 64) & (frame["kind"] == "self")]
    expected = trained.groupby("layer")["logit_variance"].mean()
    law = derive_gaussian(sampled)
    assert derive(sampled, "gaussian") == law
    assert law.logit_variance == pytest.approx(expected.to_dict(), rel=1e-5)


def test_the_training_size_is_needed(tiny_pipeline):
    settings = dict(prompts=["a"], seeds=[0], steps=1, guidance_scale=1.0, progress=False)
    with pytest.raises(InputError, match="lacks the training size, 64x64"):
        derive(sweep(tiny_pipeline, sizes=[(32, 32), (96, 96)], **settings))
    with pytest.raises(InputError, match="no size with another number of tokens"):
        derive(sweep(tiny_pipeline, sizes=[(64, 64)], **settings))
