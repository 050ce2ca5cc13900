"""A factor at a bound of the search is shown as a bound, wherever its law is shown."""

import math

import pandas as pd
import pytest

import entropy_probe as ep
from entropy_probe.cli.output import factor_rows
from entropy_probe.estimation import Derivation, refinement
from entropy_probe.estimation.refinement import FactorEstimate
from entropy_probe.laws import Kappa, Measured, bound_between, factor_bound, factors, from_json, to_json
from entropy_probe.laws.bounds import bound_of
from entropy_probe.plots.scale_factors import draw_factors, factors_by_layer
from entropy_probe.plots.tables import factor_table, factors_by_size, factors_with_intervals
from entropy_probe.reports import Report, report
from entropy_probe.reports.alerts import alerts
from entropy_probe.reports.sentences import factor_sentences
from entropy_probe.views import Viewed

SIZES = [(32, 32), (64, 64), (128, 128)]


@pytest.fixture(scope="module")
def swept(tiny_pipeline):
    return ep.sweep(tiny_pipeline, prompts=list("abcd"), sizes=SIZES, steps=1, progress=False)


@pytest.fixture
def derivation(swept, monkeypatch):
    """A derivation in which every factor above the training size is at the bound 1.01."""
    monkeypatch.setattr(refinement, "MAX_FACTOR", 1.01)
    made = ep.derive(swept, rounds=0, progress=False)
    assert (made.factors.loc[made.factors["tokens"] > made.factors["training_tokens"], "scale_factor"] == 1.01).any()
    return made


def bounded(derivation):
    table = derivation.factors
    return table[table["bound"] == "at least"].astype({"training_tokens": int})


def test_derivation_knows_its_bounds_after_reading_its_file(derivation):
    again = Derivation.from_json(derivation.to_json())
    for row in bounded(derivation).itertuples():
        assert again.factor_bound(row.layer, row.tokens, row.training_tokens) == "at least"
        assert factor_bound(again, row.layer, row.tokens, row.training_tokens) == "at least"
        assert again.factor_bound(row.layer, row.training_tokens, row.training_tokens) == ""


def test_bounds_have_no_intervals(derivation):
    own = bounded(derivation)
    assert own[["low", "high"]].isna().all().all()
    kappa = derivation.kappa.set_index("layer").loc[own["layer"]]
    assert kappa[["kappa_se", "low", "high"]].isna().all().all()


def test_tables_and_command_line_show_bounds(swept, derivation):
    layers = bounded(derivation)["layer"].tolist()
    assert (factors(derivation, [4.0]).set_index("layer").loc[layers, "bound"] == "at least").all()
    texts = factor_table(derivation)["N/T = 4"]
    assert sum(text == "at least 1.010" for text in texts) == len(layers)
    rows = [row["g at N/T = 4"] for row in factor_rows(derivation)]
    assert rows.count("at least 1.010") == len(layers)
    table = factors_with_intervals(derivation.law, swept.frame(), derivation)
    assert (table["bound"] == "at least").sum() == len(layers)
    assert (factors_by_size(table)["128 px", "g"] == "at least 1.01").sum() == len(layers)


def test_report_shows_bounds(swept, derivation):
    shown = report(swept, law=derivation)
    assert any("at least 1.01" in line for line in shown.verdict())
    assert any("Factors at their bounds" in line for line in alerts(shown))
    assert "at least 1.01" in shown.html()
    assert "at least 1.01" in factor_sentences(derivation.law, swept.frame(), derivation)[-1]
    figure, data = factors_by_layer(shown.factors)
    assert (data["bound"] == "at least").sum() == len(bounded(derivation))
    markers = [line for line in figure.axes[0].lines if line.get_marker() == ">"]
    drawn = sum(len(line.get_xdata()) for line in markers if line.get_label().startswith("_"))
    assert drawn == len(bounded(derivation))


def test_plot_of_the_law_dots_the_bounds(derivation):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    data = draw_factors(axes, derivation)
    assert "bound of the search" in axes.get_legend_handles_labels()[1]
    assert set(data.loc[data["law"] == "paper", "bound"]) == {""}
    assert isinstance(derivation, Viewed)
    assert "at least 1.010" in derivation._repr_html_()


def test_comparison_shows_bounds(swept, derivation):
    from entropy_probe.reports.comparison import RunComparison

    runs = {name: Report(swept, ep.fit(swept), derivation.law, None, derivation) for name in ("a", "b")}
    table = RunComparison(runs).factors()
    assert (table["bound"] == "at least").sum() == 2 * len(bounded(derivation))
    assert "at least 1.010" in RunComparison(runs).html()


def test_law_without_derivation_is_bounded_at_the_ends_of_the_search():
    law = from_json(to_json(Measured({"mid": ((-math.log(4), 0.2), (math.log(2), 1.5), (math.log(4), 6.0))})))
    known = {ratio: factor_bound(law, "mid", int(1024 * ratio), 1024) for ratio in (0.25, 0.5, 1, 2, 3, 4, 8)}
    assert known == {0.25: "at most", 0.5: "at most", 1: "", 2: "", 3: "at least", 4: "at least", 8: "at least"}
    assert factor_bound(law, "other", 64, 16) == ""
    assert factor_bound(Kappa({"*": 50.0}), "mid", 4096, 16) == ""


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.5, ""), (1.0, ""), (1.5, "at least"), (2.0, "at least"), (3.0, "at least"), (-1.0, "")]
)
def test_interpolated_factor_has_the_bound_of_its_points(ratio, expected):
    assert bound_between([(1.0, ""), (2.0, "at least")], ratio) == expected


def test_bound_of_a_number():
    assert [bound_of(g) for g in (0.2, 0.3, 5.9, 6.0)] == ["at most", "", "", "at least"]


def test_target_beyond_the_curves_is_a_bound():
    """Curves that end at g = 1.5 are extrapolated to 2.25 at most."""
    keys = pd.MultiIndex.from_tuples([("mid", 256, 64)], names=["layer", "tokens", "training_tokens"])
    index = pd.MultiIndex.from_product([["mid"], [256], [64], [1.0, 1.5]], names=[*keys.names, "scale_factor"])
    curves = pd.DataFrame({"a": [4.0, 3.9], "b": [4.0, 3.9]}, index=index)
    target = pd.DataFrame({"a": [2.0], "b": [2.0]}, index=pd.Index(["mid"], name="layer"))
    start = FactorEstimate(pd.Series(1.0, index=keys), curves, target)
    following = FactorEstimate(start.next_factors(), curves, target, start.next_limits())
    assert following.factors()["bound"].tolist() == ["at least"]
    assert following.factors()["scale_factor"].tolist() == pytest.approx([2.25])
    assert start.bounds().tolist() == [""]
