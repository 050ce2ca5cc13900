"""What results show of themselves in a notebook, and their figures on the caller's axes."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from test_report import HOSTILE, synthetic

import entropy_probe as ep
from entropy_probe.attention import Captured
from entropy_probe.errors import InputError
from entropy_probe.estimation import fit
from entropy_probe.evaluation import outcome_of
from entropy_probe.laws import LAWS, Constant, Gaussian, Kappa, Measured, Paper, factors
from entropy_probe.plots.tables import captured_table, drift_table, entropy_table, factor_table, fit_table

mpl.use("agg")

LAW = Measured({"down.attn1": ((-1.4, 0.5), (1.4, 2.0)), "mid.attn1": ((-1.4, 0.7), (1.4, 1.5))})


@pytest.fixture(scope="module")
def captured(tiny_pipeline):
    with ep.capture(tiny_pipeline) as captured:
        for _ in range(2):
            tiny_pipeline("flat pizza", height=64, width=64, num_inference_steps=2, output_type="latent")
    return captured


@pytest.fixture(scope="module")
def results(captured, tmp_path_factory):
    """One of each, with the table that its view should hold."""
    swept = synthetic(tmp_path_factory.mktemp("runs") / "run", laws=("original", "paper"))
    fitted, outcome = fit(swept), outcome_of(swept)
    drift = drift_table(outcome)
    return {
        "Captured": (captured, captured_table(captured)),
        "Sweep": (swept, entropy_table(swept.frame())),
        "Fit": (fitted, fit_table(fitted)),
        "ScalingLaw": (LAW, factor_table(LAW)),
        "Outcome": (outcome, drift[drift["level"] == "layer"].drop(columns="level")),
    }


KINDS = ["Captured", "Sweep", "Fit", "ScalingLaw", "Outcome"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_view_holds_the_table_and_a_figure(results, kind):
    result, table = results[kind]
    view = result._repr_html_()
    tree = ElementTree.fromstring(view.replace("xlink:href", "href"))  # one well-formed element
    cells = [cell.text or "" for cell in tree.iter("td")]
    assert cells == [str(value) for row in table.itertuples(index=False) for value in row]
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_view_takes_the_colours_and_the_width_of_the_notebook(results, kind):
    view = results[kind][0]._repr_html_()
    assert "currentColor" in view
    assert not re.search("#262626|#000000|#ffffff", view)  # ink that is unseen on black, ground that is not clear
    assert "max-width: 48em" in view
    assert "max-width: 100%" in view
    assert not re.search(r"<script|<style|https?:(?!//www\.w3\.org/)", view)


def test_views_on_one_page_have_ids_of_their_own(results):
    page = "".join(result._repr_html_() for result, _ in results.values())
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page)) <= set(ids)


def test_a_hostile_model_name_is_shown_not_run(results):
    assert HOSTILE not in results["Sweep"][0]._repr_html_()


@pytest.mark.parametrize("kind", KINDS)
def test_plot_draws_on_the_axes_it_is_given(results, kind):
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2)
    assert results[kind][0].plot(ax=right) is right
    assert right.has_data()
    assert right.get_legend() is not None
    assert not left.has_data()
    made = results[kind][0].plot()
    assert made.figure is not figure
    assert made.figure.number in pyplot.get_fignums()  # a notebook shows it
    pyplot.close("all")


def test_the_figure_of_a_capture_shows_every_head(captured):
    frame = captured.frame()
    axes = captured.plot()
    heads = frame.groupby(["layer", "head"])["entropy"].mean()
    drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 0] for dots in axes.collections])
    assert np.isin(heads, drawn).all()


def test_a_capture_is_short_in_a_terminal(captured):
    layers = captured.frame()["layer"].nunique()
    assert repr(captured) == f"Captured({len(captured.calls)} measurements of {layers} layers)"


def test_an_empty_capture_says_what_to_do():
    assert "run the model inside" in Captured()._repr_html_()
    with pytest.raises(InputError, match="run the model inside"):
        Captured().plot()


def test_factors_are_those_of_the_law():
    table = factors(LAW, [0.5, 4.0])
    assert list(table["layer"]) == ["down.attn1", "down.attn1", "mid.attn1", "mid.attn1"]
    assert table["scale_factor"].iloc[3] == LAW.scale_factor("mid.attn1", 4096, 1024)
    assert factors(Paper(), [4.0], training_tokens=256)["scale_factor"].item() == Paper().scale_factor("", 1024, 256)


@pytest.mark.parametrize("name", LAWS)
def test_every_law_has_a_view(name):
    numbers = {
        "gaussian": Gaussian({"a": 1.0}), "measured": LAW, "calibrated": LAWS["calibrated"]({"*": ((1.0, 2.0),)}),
        "constant": Constant(1.5, ("up*",)), "kappa": Kappa({"*": 0.5}),
    }  # fmt: skip
    law = numbers.get(name) or LAWS[name]()
    assert f"Scaling law “{law.name}”" in law._repr_html_()
