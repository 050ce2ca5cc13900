"""The notebook views of results, and their figures on given axes."""

from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from test_report import HOSTILE, Page, synthetic

import entropy_probe as ep
from entropy_probe.attention import Captured
from entropy_probe.errors import InputError
from entropy_probe.estimation import fit
from entropy_probe.evaluation import outcome_of
from entropy_probe.laws import (
    LAWS,
    Constant,
    Gaussian,
    HeadEntropy,
    Kappa,
    LogPower,
    Measured,
    MeasuredHeads,
    MeasuredSteps,
    Paper,
    Pippo,
    factors,
)
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
    """One result of each kind, with the expected table of its view."""
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


@pytest.fixture(scope="module")
def html_of(results):
    """The notebook view of each kind, drawn once."""
    return {kind: results[kind][0]._repr_html_() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_view_has_the_table_and_one_figure(results, html_of, kind):
    table = results[kind][1]
    tree = ElementTree.fromstring(html_of[kind])
    cells = [cell.text or "" for cell in tree.iter("td")]
    assert cells == [str(value) for row in table.itertuples(index=False) for value in row]
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_view_has_the_text_colour_and_the_width_of_the_notebook(html_of, kind):
    tree = ElementTree.fromstring(html_of[kind])
    used = {value for element in tree.iter() for value in element.attrib.values()}
    assert "currentColor" in used
    assert not [value for value in used for colour in ("#262626", "#000000", "#ffffff") if colour in value]
    assert tree.get("style") == "max-width: 48em"
    (svg,) = tree.iter("{http://www.w3.org/2000/svg}svg")
    assert "max-width: 100%" in svg.get("style")
    assert not {"script", "style"} & set(Page(html_of[kind]).tags)
    assert not [link for link in Page(html_of[kind]).links if not link.startswith(("#", "data:"))]


def test_ids_of_views_on_one_page_are_unique(html_of):
    page = Page("".join(html_of.values()))
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in [*page.links, *page.used] if link.startswith("#")} <= set(page.ids)


def test_untrusted_model_name_is_escaped(html_of):
    assert HOSTILE not in html_of["Sweep"]


@pytest.mark.parametrize("kind", KINDS)
def test_plot_draws_on_given_axes(results, kind):
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


def test_saved_plot_has_the_width_of_a_column(results, tmp_path):
    fitted = results["Fit"][0]
    fitted.save_plot(tmp_path / "fit.svg", "double")
    root = ElementTree.parse(tmp_path / "fit.svg").getroot()
    assert root.get("width") == f"{6.9 * 72:g}pt"
    assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # outlines need no font
    with pytest.raises(InputError, match="the ending of the file must be pdf, png or svg, got 'jpg'"):
        fitted.save_plot(tmp_path / "fit.jpg")


def test_figure_of_a_capture_shows_every_head(captured):
    frame = captured.frame()
    axes = captured.plot()
    heads = frame.groupby(["layer", "head"])["entropy"].mean()
    drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 0] for dots in axes.collections])
    assert np.isin(heads, drawn).all()


def test_repr_of_a_capture_is_short(captured):
    layers = captured.frame()["layer"].nunique()
    assert repr(captured) == f"Captured({len(captured.calls)} measurements of {layers} layers)"


def test_view_of_an_empty_capture_explains_how_to_fill_it():
    assert "run the model inside" in Captured()._repr_html_()
    with pytest.raises(InputError, match="run the model inside"):
        Captured().plot()


def test_factors_equal_the_scale_factors_of_the_law():
    table = factors(LAW, [0.5, 4.0])
    assert list(table["layer"]) == ["down.attn1", "down.attn1", "mid.attn1", "mid.attn1"]
    assert table["scale_factor"].iloc[3] == LAW.scale_factor("mid.attn1", 4096, 1024)
    assert factors(Paper(), [4.0], training_tokens=256)["scale_factor"].item() == Paper().scale_factor("", 1024, 256)


@pytest.mark.parametrize("name", LAWS)
def test_every_law_has_a_view(name):
    numbers = {
        "gaussian": Gaussian({"a": 1.0}), "measured": LAW, "calibrated": LAWS["calibrated"]({"*": ((1.0, 2.0),)}),
        "constant": Constant(1.5, ("up*",)), "kappa": Kappa({"*": 0.5}),
        "measured_head": MeasuredHeads({"a": (((1.0, 2.0),),)}),
        "measured_step": MeasuredSteps((0.5,), {"a": ((((1.0, 2.0),),),)}),
        "log_power": LogPower(2.0), "pippo": Pippo(1.5), "head_entropy": HeadEntropy({"a": (0.2, 0.9)}, 1.0, 1.5),
    }  # fmt: skip
    law = numbers.get(name) or LAWS[name]()
    assert f"Scaling law “{law.name}”" in law._repr_html_()
