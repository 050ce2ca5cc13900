"""Regression and derivation: compared with statsmodels and with known values."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given
from hypothesis import strategies as st

import entropy_probe as ep
from entropy_probe import laws
from entropy_probe.errors import InputError
from entropy_probe.estimation import POOLED, Derivation, Fit, derive, derive_gaussian, derive_measured, fit, refinement
from entropy_probe.estimation.refinement import FactorEstimate, find_root
from entropy_probe.runs import sweep

TOKENS = (64, 144, 256, 576, 1024)


class Records:
    """A table with the columns that `fit` reads from a sweep."""

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


def test_log_law_and_clustered_errors_equal_statsmodels():
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


@pytest.mark.slow
def test_interval_covers_true_slope_in_95_percent_of_fits():
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
def test_true_form_ranks_first(form, entropy):
    variance = (lambda n: 2.0 + 0.2 * (n % 5)) if form == "gaussian" else (lambda n: 9.0)
    ranked = fit(Records(entropy, variance=variance, noise=0.003)).rivals
    assert ranked[ranked["layer"] == "a"].iloc[0]["form"] == form
    assert ranked[ranked["layer"] == POOLED].iloc[0]["form"] == form


def test_bend_at_the_training_size_equals_statsmodels():
    records = Records(lambda n: 3 + (0.77 if n < 256 else 0.98) * math.log(n / 256))
    law = fit(records).layers[0]
    ratio = np.log(records.table["query_tokens"] / 256)
    table = records.table.assign(x=ratio, extra=ratio.clip(lower=0))
    model = smf.ols("entropy ~ x + extra", table)  # another parametrisation: `extra` is the difference of the slopes
    direct = model.fit(cov_type="cluster", cov_kwds={"groups": table["prompt"].factorize()[0]}, use_t=True)
    assert law.slope_below == pytest.approx(direct.params["x"])
    assert law.slope_above - law.slope_below == pytest.approx(direct.params["extra"])
    assert law.bend_p == pytest.approx(direct.pvalues["extra"], rel=1e-6)
    assert (law.slope_below_low, law.slope_below_high) == pytest.approx(tuple(direct.conf_int().loc["x"]))
    assert law.slope_below_low < 0.77 < law.slope_below_high
    assert law.slope_above_low < 0.98 < law.slope_above_high
    assert law.bend_p < 1e-3


@pytest.mark.slow
def test_straight_law_shows_a_bend_in_5_percent_of_fits():
    shown = [fit(Records(lambda n: 0.5 + 0.8 * math.log(n), seed)).layers[0].bend_p < 0.05 for seed in range(200)]
    assert 2 <= sum(shown) <= 20  # the exact binomial 99 % range at 5 %


def test_sizes_on_one_side_have_no_bend():
    records = Records(math.log)
    records.table = records.table[records.table["query_tokens"] >= 256]
    law = fit(records).layers[0]
    assert math.isnan(law.slope_below)
    assert math.isnan(law.bend_p)


def test_variance_between_layers_is_not_explained():
    one, other = Records(lambda n: 1 + 0.02 * math.log(n)), Records(lambda n: 9 + 0.02 * math.log(n), seed=1)
    other.table = other.table.assign(layer="b")
    both = Records(math.log)
    both.table = pd.concat([one.table, other.table])
    separate = [fit(records).layers[0].r_squared for records in (one, other)]
    assert fit(both).pooled.r_squared == pytest.approx(np.mean(separate), abs=0.05)
    assert fit(both).pooled.r_squared < 0.5
    assert separate[0] == pytest.approx(smf.ols("entropy ~ np.log(tokens)", one.table).fit().rsquared)


def test_gaussian_form_has_a_constant():
    """The entropy of Gaussian logits with an offset of 2 nats, which the constant absorbs."""
    records = Records(lambda n: math.log(n) - 3.0 - 0.1 * (n % 5), variance=lambda n: 2.0 + 0.2 * (n % 5), noise=0.003)
    rivals = fit(records).rivals.set_index(["layer", "form"])["error"]
    assert rivals["a", "gaussian"] < 0.01


def test_single_prompt_has_no_error_bar_and_single_size_has_no_fit():
    assert math.isnan(fit(Records(math.log, prompts=1)).pooled.slope_se)
    records = Records(math.log)
    assert "error at token counts left out of the fit, nats: " in str(fit(records))
    records.table = records.table[records.table["query_tokens"] <= 144]
    assert str(fit(records)).endswith("sample at least three sizes with different token counts")
    records.table = records.table[records.table["query_tokens"] == 64]
    with pytest.raises(InputError, match="at least two sizes"):
        fit(records)


@given(st.lists(st.floats(0.01, 3), min_size=2, max_size=6), st.floats(0, 1))
def test_root_of_falling_curve(falls, place):
    x = np.arange(len(falls) + 1) / 2
    y = 5 - np.concatenate([[0], np.cumsum(falls)])
    target = y[-1] + place * (y[0] - y[-1])
    assert np.interp(find_root(x, y, target), x, y) == pytest.approx(target)
    assert x[0] - 0.5 - 1e-9 <= find_root(x, y, y[0] + 100) <= x[0]
    assert x[-1] <= find_root(x, y, y[-1] - 100) <= x[-1] + 0.5 + 1e-9


def test_kappa_is_recovered_within_its_interval():
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
    row = FactorEstimate(g, pd.concat(curves), target).kappa().iloc[0]
    assert row["kappa"] == pytest.approx(0.4)
    assert row["low"] < 0.4 < row["high"]
    assert 0 < row["kappa_se"] < 0.1
    assert row["paper"] == pytest.approx(1 / math.log(256))


def test_interval_of_a_factor_contains_the_true_factor_in_95_percent():
    """H = 3 - ln(g m) at g = 1 and m, so an error e of H moves ln g by e."""
    index = pd.MultiIndex.from_tuples([("a", 1024, 256)], names=["layer", "tokens", "training_tokens"])
    prompts, covered = [f"p{i}" for i in range(6)], 0
    for seed in range(300):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(6)
        curves = [
            pd.DataFrame([3.0 - math.log(m) + noise], index=index, columns=prompts)
            .assign(scale_factor=m)
            .set_index("scale_factor", append=True)
            for m in (0.5, 1.0, 2.0)
        ]
        target = pd.DataFrame([[3.0] * 6], index=pd.Index(["a"], name="layer"), columns=prompts)
        estimate = FactorEstimate(pd.Series(1.0, index=index), pd.concat(curves), target)
        row = FactorEstimate(estimate.next_factors(), pd.concat(curves), target).factors().iloc[0]
        covered += row["low"] < 1.0 < row["high"]
        assert row["bound"] == ""
    assert 275 <= covered <= 295  # 95 % of 300, within three standard errors


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    return sweep(
        tiny_pipeline, prompts=list("abcde"), sizes=[(64, 64), (96, 96), (64, 96)], seeds=[0], steps=2,
        guidance_scale=1.0, store=tmp_path_factory.mktemp("runs") / "run", progress=False,
    )  # fmt: skip


def test_measured_law_removes_drift(sampled):
    derivation = derive(sampled, rounds=2, progress=False)
    assert derivation.rounds[0].drift > 5 * derivation.rounds[0].drift_se
    assert min(r.drift for r in derivation.rounds[1:]) < 0.2 * derivation.rounds[0].drift
    assert all(g > 1 for points in derivation.law.points.values() for _, g in points)
    again = Derivation.from_json(derivation.to_json())
    assert again.law == derivation.law
    assert again.rounds == derivation.rounds
    assert np.allclose(again.kappa["kappa"], derivation.kappa["kappa"])
    pd.testing.assert_frame_equal(again.entropies, derivation.entropies)
    before, after = (
        (derivation.entropies[name] - derivation.entropies["target"]).pow(2).mean() ** 0.5
        for name in ("original", "scaled")
    )
    assert before == pytest.approx(derivation.rounds[0].drift, rel=0.02)  # the rounds subtract the sampling noise
    assert after < 0.2 * before


def test_reports_scale_factors_at_bounds(sampled, monkeypatch):
    monkeypatch.setattr(refinement, "MAX_FACTOR", 1.01)
    unreachable = derive(sampled, rounds=0, progress=False).unreachable
    assert (unreachable["g"] == 1.01).all()
    assert len(unreachable) > 0


def test_gaussian_law_uses_logit_variance_at_training_size(sampled):
    frame = sampled.frame()
    trained = frame[(frame["height"] == 64) & (frame["width"] == 64) & (frame["kind"] == "self")]
    expected = trained[trained["prompt"].isin(["a", "b", "c"])].groupby("layer")["logit_variance"].mean()
    derivation = derive(sampled, "gaussian")  # from the first half of the prompts
    assert derivation.prompts == ("a", "b", "c")
    assert derivation.law.logit_variance == pytest.approx(expected.to_dict(), rel=1e-5)
    assert derivation.kappa["kappa"].tolist() == pytest.approx((2 / expected[derivation.kappa["layer"]]).tolist())
    assert derivation.entropies["scaled"].isna().all()
    assert Derivation.from_json(derivation.to_json()).law == derivation.law


def test_rejects_sweep_without_training_size_or_another_size(tiny_pipeline):
    settings = dict(prompts=["a"], seeds=[0], steps=1, guidance_scale=1.0, progress=False)
    with pytest.raises(InputError, match="lacks the training size 64x64"):
        derive(sweep(tiny_pipeline, sizes=[(32, 32), (96, 96)], **settings))
    with pytest.raises(InputError, match="add a size with another token count"):
        derive(sweep(tiny_pipeline, sizes=[(64, 64)], **settings))


def test_fit_survives_json():
    fitted = fit(Records(lambda n: 0.5 + 0.8 * math.log(n)))
    again = Fit.from_json(fitted.to_json())
    assert again.layers == fitted.layers
    pd.testing.assert_frame_equal(again.rivals, fitted.rivals)
    pd.testing.assert_frame_equal(again.points, fitted.points)
    with pytest.raises(InputError, match="not a valid fit"):
        Fit.from_json("{}")


def test_rejects_unknown_method_and_negative_rounds(sampled):
    with pytest.raises(InputError, match="method must be 'measured', 'gaussian' or 'calibrated', got 'gausian'"):
        derive(sampled, "gausian")
    with pytest.raises(InputError, match="rounds must be 0 or a positive integer, got -1"):
        derive(sampled, rounds=-1)
    with pytest.raises(InputError, match="needs captioned real images"):
        derive(sampled, "calibrated")


def test_rejects_sweep_without_measured_curves(tiny_pipeline):
    settings = dict(prompts=["a"], seeds=[0], steps=1, guidance_scale=1.0, progress=False)
    without_curves = sweep(tiny_pipeline, sizes=[(64, 64), (96, 96)], scale_factors=(), **settings)
    with pytest.raises(InputError, match=r"needs the entropy curves H\(g\), but the sweep has none"):
        derive(without_curves, rounds=0)


@pytest.mark.parametrize("method", ["measured", "gaussian"])
def test_law_derived_from_single_prompt_is_saved_and_loaded(tiny_pipeline, tmp_path, method):
    sampled = sweep(
        tiny_pipeline, prompts=["a"], sizes=[(64, 64), (96, 96)], steps=1, guidance_scale=1.0, progress=False
    )
    derivation = derive(sampled, method, rounds=0)
    ep.save_law(derivation.law, tmp_path / "law.json")
    ep.save_law(derivation, tmp_path / "derivation.json")
    layer = derivation.kappa["layer"][0]
    for name in ("law", "derivation"):
        law = laws.load_law(tmp_path / f"{name}.json")
        assert law.scale_factor(layer, 144, 64) == derivation.law.scale_factor(layer, 144, 64)
    assert Derivation.from_json(derivation.to_json()).to_json() == derivation.to_json()


def test_functions_that_take_a_law_take_a_derivation(sampled, tiny_pipeline):
    derivation = derive(sampled, rounds=0, progress=False)
    assert laws.resolve(derivation) is derivation.law
    assert laws.from_json(laws.to_json(derivation)) == derivation.law
    with ep.scaled(tiny_pipeline, derivation):
        assert laws.applied(tiny_pipeline) is derivation.law
    layer = derivation.kappa["layer"][0]
    assert derivation.scale_factor(layer, 144, 64) == derivation.law.scale_factor(layer, 144, 64)


def test_old_functions_still_derive_and_warn(sampled):
    with pytest.warns(DeprecationWarning, match=r"use derive\(sweep\)"):
        assert derive_measured(sampled, rounds=0, progress=False).law == derive(sampled, rounds=0).law
    with pytest.warns(DeprecationWarning, match=r"use derive\(sweep, 'gaussian'\).law"):
        assert derive_gaussian(sampled) == derive(sampled, "gaussian").law
