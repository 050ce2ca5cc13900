"""The report of a run: its page, figures, sentences and files. The runs are synthetic, so no model is loaded."""

import csv
import io
import json
import re
import shutil
import zlib
from contextlib import suppress
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from PIL import Image

from entropy_probe import plots
from entropy_probe.errors import InputError
from entropy_probe.estimation import Calibration, Derivation, LossChange, Unconverged, fit
from entropy_probe.estimation.derivation import Round
from entropy_probe.evaluation import MetricDifference, Quality, outcome_of
from entropy_probe.laws import Calibrated, Kappa, Measured, Paper, resolve
from entropy_probe.models import short_name
from entropy_probe.plots.marks import marks
from entropy_probe.plots.tables import error_by_rows, kappa_of_laws, quality_against_kappa
from entropy_probe.reports import Report, gallery, publication, report
from entropy_probe.reports.alerts import alerts
from entropy_probe.reports.prompts import chosen_prompts
from entropy_probe.reports.run_details import missing_parts, row_sampling_error, run_tables
from entropy_probe.reports.run_figures import run_figures
from entropy_probe.reports.saved_files import PAGE_MARK
from entropy_probe.reports.summary import overview, summary
from entropy_probe.runs import EntropyMap, Grid, Manifest, RunDirectory, Sweep, entropy_maps, sweep

PARTS = dict.fromkeys(("image_mass", "mass_entropy", "image_entropy", "text_entropy"), float("nan"))
HOSTILE = "<script>alert(1)</script>"
SIZES = ((32, 48), (64, 64), (128, 128))
METRICS = "Quality, alignment and defects"
"""The section of the image metrics."""


class Page(HTMLParser):
    """Collect the elements of a page, and check that all are closed.

    Attributes:
        ids: all ids.
        tags: all tags.
        links: all values of attributes that a browser can load or follow.
        used: ids in `url(#...)`.
        files: content of the CSV files of the figures.
        text: text outside of figures and scripts.
    """

    VOID = {"meta", "link", "br", "img", "hr", "input"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.ids, self.tags, self.links, self.open, self.used = [], [], [], [], []
        self.files, self.text = [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.links.append(value)
            self.used += [part.partition(")")[0] for part in (value or "").split("url(")[1:]]
        if tag == "a" and "figure" in self.open:
            self.files.append(unquote(dict(attrs)["href"].partition(",")[2]))

    def handle_data(self, data):
        if not {"svg", "script", "style"} & set(self.open):
            self.text += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def synthetic(
    path, *, layers=3, prompts=(HOSTILE, "flat pizza", "noto frog"), sizes=SIZES, seeds=(0,), laws=("original",)
):
    """Write a run whose layers have H = 0.4 + 0.8 ln N - 1.2 ln g, with noise."""
    laws = [resolve(law) for law in laws]
    generator = np.random.default_rng(0)
    run = RunDirectory(path)
    manifest = Manifest(
        model="synthetic & <b>bold</b>", fingerprint="0" * 16, pipeline="StableDiffusionPipeline", dtype="float32",
        training_size=(64, 64), steps=2, guidance_scale=4.0, rows="all", scale_factors=(2.0,),
        versions={"entropy-probe": "0", "torch": "2"}, hardware="a machine",
    )  # fmt: skip
    run.create(manifest)
    grid = Grid(tuple(prompts), tuple(sizes), tuple(seeds), tuple(laws))
    run.write("grid.json", grid.to_json())
    named = {law.name: law for law in laws}
    for cell in grid.cells():
        rows = []
        for number in range(layers):
            name = f"down_blocks.{number}.attentions.0.transformer_blocks.0.attn1"
            stride = 4 * (1 + number % 2)
            tokens, trained = (h * w // stride**2 for h, w in (cell.size, (64, 64)))
            g = named[cell.law].scale_factor(name, tokens, trained)
            for step, timestep in enumerate((900.0, 400.0)):
                for head in range(2 + number % 2):
                    for m in (1.0, 2.0):
                        h = 0.4 + 0.8 * np.log(tokens) - 1.2 * np.log(g * m) + generator.normal(0, 0.05)
                        rows.append({
                            "step": step, "timestep": timestep, "branch": "cond", "layer": name,
                            "kind": "self", "axes": "spatial",
                            "head": head, "tokens": tokens, "query_tokens": tokens, "key_tokens": tokens,
                            "training_tokens": trained,
                            "scale": 0.2, "scale_factor": m, "rows": tokens, "entropy": h, "entropy_std": 0.3,
                            "entropy_se": 0.0, "logit_variance": 1.5, "attention_distance": 0.2, **PARTS,
                        })  # fmt: skip
        where = {"prompt": cell.prompt, "seed": cell.seed, "height": cell.size[0], "width": cell.size[1]}
        frame = pd.DataFrame(rows).assign(**where, law=cell.law)
        run.save(cell, frame, Image.new("RGB", cell.size[::-1], (200, 40, 40)))
    return Sweep(grid, run, manifest)


def derived(base, bounds=()):
    """Return a measured law of a synthetic run. `bounds` are its unreachable factors."""
    points = {
        name: ((-0.98, 0.4), (1.39, 1.9)) for name in dict.fromkeys(base.frame()["layer"])
    }  # ln(N/T) of the two other sizes
    table = pd.DataFrame(
        [
            {"layer": n, "kappa": 1.1 + i / 9, "kappa_se": 0.1, "low": 0.9 + i / 9, "high": 1.3 + i / 9, "paper": 0.18}
            for i, n in enumerate(points)
        ]
    )
    law = Measured(points, dict.fromkeys(points, 1.1), dict.fromkeys(points, 0.1))
    rounds = (Round(0, 0.9, 0.02), Round(1, 0.05, 0.02))
    factors = [
        {"layer": name, "tokens": h * w // stride**2, "training_tokens": 64**2 // stride**2, "scale_factor": g,
         "low": low, "high": 1.1 * g if bound == "" else np.nan, "bound": bound}
        for i, name in enumerate(points)
        for stride in [4 * (1 + i % 2)]
        for (h, w), g, low, bound in [((32, 48), 0.4, np.nan, "at most"), ((128, 128), 1.9, 1.8, "")]
    ]  # fmt: skip
    return Derivation(
        law, table, rounds, pd.DataFrame(bounds, columns=["layer", "tokens", "g"]), factors=pd.DataFrame(factors)
    )


def with_quality(outcome):
    """Return the outcome with two metrics of every image. The text score is higher under the laws."""
    grid = outcome.sweep.grid
    generator = np.random.default_rng(0)
    images = pd.DataFrame(
        [
            {"prompt": c.prompt, "seed": c.seed, "height": c.size[0], "width": c.size[1], "law": c.law,
             "text_score": generator.normal(0.5, 0.1), "repetition": generator.uniform()}
            for c in grid.cells()
        ]
    )  # fmt: skip
    original = [{"size": s, "metric": m, "value": 0.4} for s in grid.sizes for m in ("text_score", "repetition")]
    compared = tuple(
        MetricDifference(law.name, size, metric, 0.5, 0.1, 0.05, 0.15, 0.01, "better", 2, 30.0)
        for law in grid.laws[1:]
        for size in grid.sizes
        if size != outcome.sweep.manifest.training_size
        for metric in ("text_score", "repetition")
    )
    return replace(outcome, quality=Quality(images, pd.DataFrame(original), compared))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def full(base, tmp_path_factory):
    derivation = derived(base, [(base.frame()["layer"][0], 96, 0.2)])
    laws = ("original", "paper", derivation.law)
    outcome = outcome_of(synthetic(tmp_path_factory.mktemp("runs") / "all", laws=laws))
    values = np.linspace(2, 5, 256).reshape(16, 16)
    one = EntropyMap(Image.new("RGB", (64, 64)), values, (64, 64), "down_blocks.0.attn1", 1, "original")
    maps = [one, replace(one, law="measured", size=(64, 96), image=Image.new("RGB", (96, 64)))]
    return report(base, None, None, outcome, derivation=derivation, entropy_maps=maps, command="test --x '<i>'")


@pytest.fixture(scope="module")
def page(full):
    return full.html()


@pytest.fixture(scope="module")
def complete(full):
    """The full report with image metrics and denoising losses."""
    return replace(full, outcome=with_quality(full.outcome), losses={"g": losses()})


@pytest.fixture(scope="module")
def drawn(complete):
    """The section, the tooltips and the data of every figure of the complete report, drawn once."""
    with plots.page_theme():
        made = [(shown.section, *shown.draw()) for shown in run_figures(complete)]
        return [(section, marks(figure), data) for section, figure, data in made]


def losses():
    """Return a table of denoising losses with a minimum at g = 1.2."""
    return pd.DataFrame(
        [
            {"size": size, "g": g, "change": (g - 1.2) ** 2 - 0.04, "low": -0.05, "high": 0.05}
            for size in ("32x48", "128")
            for g in (0.5, 1.0, 1.25, 2.0)
        ]
    )


def read_numbers(text):
    """Parse a CSV file without rounding."""
    rows = list(csv.reader(io.StringIO(text)))
    table = pd.DataFrame(rows[1:], columns=rows[0])
    return table.replace("", "nan")


def sections(results):
    """Return the sections of a report, one for each figure."""
    return [shown.section for shown in run_figures(results)]


def test_page_is_well_formed_and_makes_no_requests(page):
    seen = Page(page)
    assert seen.tags.count("svg") == 12
    assert len(seen.ids) == len(set(seen.ids))
    assert all(
        link.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,", "data:text/csv;"))
        for link in seen.links
    )
    inside = {link[1:] for link in [*seen.links, *seen.used] if link.startswith("#")}
    assert inside <= set(seen.ids)
    assert seen.tags.count("script") == 1  # the policy of the page has its hash
    assert not {"link", "iframe", "object", "embed", "base", "style"} & set(seen.tags[seen.tags.index("body") :])
    without_names = page.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(
        'xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    assert not re.search(r"https?:|[^A-Za-z0-9+/]//[a-z]|@import", without_names)
    assert len(page) < 5e6


def test_csv_of_every_figure_holds_the_data_of_its_plot(drawn, page):
    """The image tables of `drawn` also have the metrics, which the page does not have."""
    data = [table for section, _, table in drawn if section not in (METRICS, "The denoising loss")]
    saved = [read_numbers(text) for text in Page(page).files]
    assert len(saved) == len(data) == 12
    for table, expected in zip(saved, data, strict=True):
        expected = expected.drop(columns=["text_score", "repetition"], errors="ignore")
        assert [*table] == [str(name) for name in expected]
        for name, column in expected.select_dtypes("number").items():
            np.testing.assert_array_equal(table[str(name)].astype(column.dtype), column)


def test_every_number_in_a_tooltip_is_in_the_data_of_its_plot(drawn):
    """Tooltips are read from the drawing, and the data comes from the result. The removed drift is drawn in percent."""
    checked = 0
    for section, tooltips, data in drawn:
        numbers = data.select_dtypes("number").to_numpy(float).ravel()
        numbers = np.concatenate([numbers, 100 * numbers]) if section == "Drift" else numbers
        numbers = np.sort(numbers[np.isfinite(numbers)])
        for mark in tooltips:
            places = [number for number in (mark.y, mark.x) if isinstance(number, float)][:1]
            shown = [mark.value] if np.isfinite(mark.value) else places
            for number in [*shown, *(number for number in (mark.low, mark.high) if np.isfinite(number))]:
                place = np.searchsorted(numbers, number)
                nearest = numbers[max(0, place - 1) : place + 1]
                assert np.isclose(nearest, number, rtol=1e-6, atol=1e-9).any(), (section, mark)
                checked += 1
    assert checked > 500


def test_tooltips_name_layers_and_sizes(drawn, full):
    layers = {short_name(law.layer) for law in full.fit.layers[:-1]}
    by_section = {section: tooltips for section, tooltips, _ in drawn}
    assert {mark.y for mark in by_section["The scale factor"]} == {mark.y for mark in by_section["Layers and heads"]}
    assert {mark.y for mark in by_section["The scale factor"]} == layers
    assert {mark.x for mark in by_section["Drift"]} == {"32x48", "128"}


def test_plots_return_data_by_layer_size_and_law(drawn, full):
    data = {}
    for section, _, table in drawn:
        data.setdefault(section, []).append(table)
    over_layers, forms, by_layer = data["Entropy against the number of tokens"]
    assert set(over_layers["form"]) == {"measured"}
    assert set(forms["form"]) == {"measured", "log", "power", "linear", "gaussian"}
    assert len(by_layer) == len(full.fit.points)
    assert [set(table["law"]) for table in data["Entropy during sampling"]] == [
        {"original"},
        {"original", "paper"},  # the target is the original model
        {"original", "measured"},
    ]
    maps = data["Entropy over the image"][0]
    first = maps[maps["law"] == "original"].iloc[:, 5:21].to_numpy()
    np.testing.assert_allclose(first, full.entropy_maps[0].values, atol=5e-4)
    assert set(data["The scale factor"][0]["series"]) == {"law", "paper"}
    assert data["The denoising loss"][0]["change_percent"].min() == pytest.approx(100 * (0.05**2 - 0.04))
    metrics, defects, by_kappa = data[METRICS]
    assert (set(metrics["metric"]), set(defects["metric"])) == ({"text_score"}, {"repetition"})
    assert "kappa" in by_kappa
    at_training = metrics[metrics["size"] == "64"]
    assert set(at_training["value"]) == {0.4}  # there every law leaves the model unchanged
    assert set(at_training["difference"]) == {0.0}
    compared = metrics[(metrics["law"] == "paper") & (metrics["size"] == "128")].iloc[0]
    assert (compared["difference"], compared["low"], compared["high"]) == (0.1, 0.05, 0.15)


def test_svg_keeps_the_colours_in_text_and_renames_ids():
    with plots.page_theme():
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1, 2], [3, 4], "ks", label="#000000 <b>")
        axes.set_title("url(#a) #262626")
        svg = plots.inline_svg(figure, "f7-", 'Title "with quotes"')
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert "url(#a) #262626" in texts
    assert "#000000" not in "".join(element.get("style", "") for element in root.iter())
    assert root.get("aria-label").startswith('Title "with quotes" url(#a) #262626')
    assert all(element.get("id").startswith("f7-") for element in root.iter() if element.get("id"))


def test_image_metrics_are_in_the_figures_the_table_and_the_verdict(full):
    def compared(law, metric, difference, verdict, needed):
        interval = (difference - 0.01, difference + 0.01)
        return MetricDifference(law, (32, 48), metric, 0.5, difference, *interval, 0.01, verdict, 16, needed)

    rows = [
        {"size": size, "metric": m, "value": 0.4} for size in [(32, 48), (64, 64)] for m in ("text_score", "repetition")
    ]
    found = Quality(
        pd.DataFrame(),
        pd.DataFrame(rows),
        (
            compared("paper", "text_score", 0.1, "better", 3.0),
            compared("paper", "repetition", 0.0, "not enough images", None),
            compared("measured", "text_score", -0.1, "worse", 4.0),
            compared("measured", "repetition", 0.001, "not enough images", 12345.0),
        ),
    )
    scored = replace(full, outcome=replace(full.outcome, quality=found))
    undecided = "not enough images (16) to decide 1 of 2 comparisons."
    assert f"better in text_score at 32x48; {undecided}" in " ".join(scored.verdict())
    assert sections(scored).count(METRICS) == 3  # metrics, defects, both against kappa
    assert "12,000" in set(
        next(table for title, table in run_tables(scored).items() if "Images" in title)["images needed"]
    )
    assert "16 images per law and size" in " ".join(shown.intro for shown in run_figures(scored))
    assert "image metrics" not in missing_parts(scored)
    assert "image metrics" in missing_parts(full)


def test_quality_is_joined_with_the_kappa_of_its_law(full):
    outcome = with_quality(full.outcome)
    laws = (*outcome.sweep.grid.laws, Kappa({"*": 0.25}))
    kappas = kappa_of_laws(laws, full.frame).set_index(["law", "size"])["kappa"]
    assert kappas["kappa=0.25", "128"] == pytest.approx(0.25)
    assert kappas["original", "128"] == 0
    # The layers alternate between 256 and 64 tokens at the training size. At 128 px both have four times that number.
    by_layer = [(np.log(4 * t) / np.log(t) - 1) / np.log(4) for t in (256, 64, 256)]
    assert kappas["paper", "128"] == pytest.approx(np.mean(by_layer))
    table = quality_against_kappa(outcome.quality, kappas.reset_index())
    assert "64" not in set(table["size"])  # g = 1 for every kappa
    row = table[(table["law"] == "paper") & (table["size"] == "128") & (table["metric"] == "repetition")].iloc[0]
    assert (row["value"], row["difference"], row["low"], row["high"]) == pytest.approx((0.5, 0.1, 0.05, 0.15))


def test_large_report_shows_the_prompts_that_laws_change_most_and_least(tmp_path, monkeypatch):
    prompts = [f"prompt {n}" for n in range(6)]
    swept = synthetic(tmp_path / "run", prompts=prompts, laws=("original", "paper"), layers=1)
    for cell in swept.grid.cells():
        if cell.law == "paper" and cell.size == (128, 128):
            shade = 200 - 10 * prompts.index(cell.prompt)
            Image.new("RGB", (128, 128), (shade, 40, 40)).save(swept.run.image_path(cell))
    chosen = chosen_prompts(swept, 4)
    assert [prompt for prompt, _ in chosen] == ["prompt 5", "prompt 4", "prompt 1", "prompt 0"]
    # One channel of three, at one of two sizes; on the original images all laws agree.
    assert [change for _, change in chosen] == pytest.approx([50 / 255 / 6, 40 / 255 / 6, 10 / 255 / 6, 0])
    assert chosen_prompts(replace(swept, grid=replace(swept.grid, laws=swept.grid.laws[:1])), 2) == [
        ("prompt 0", 0.0), ("prompt 1", 0.0),
    ]  # fmt: skip
    monkeypatch.setattr(gallery, "MAX_IMAGES", 4 * 2 * 3)
    shown = gallery.gallery(report(swept, outcome=outcome_of(swept)))
    assert shown.prompts == [f"\u2068prompt {n}\u2069" for n in (0, 1, 4, 5)]
    assert "4 of 6 prompts" in shown.caption
    assert set(shown.table["prompt"]) == {"prompt 0", "prompt 1", "prompt 4", "prompt 5"}


def test_losses_of_a_run_directory_are_plotted(tmp_path):
    swept = synthetic(tmp_path / "run")
    assert "The denoising loss" not in sections(Report.open(tmp_path / "run"))
    swept.run.write("loss-g.json", losses().to_json(orient="records"))
    opened = Report.open(tmp_path / "run")
    pd.testing.assert_frame_equal(opened.losses["g"], losses(), check_like=True)  # in any order of columns
    figure, data = next(shown for shown in run_figures(opened) if shown.section == "The denoising loss").draw()
    assert any("g, factor of the logits: 1.25" in mark.text() for mark in marks(figure))
    assert data[["size", "g"]].to_numpy().tolist() == losses()[["size", "g"]].to_numpy().tolist()
    swept.run.write("loss-g.json", '[{"size": "32x48"}]')
    with pytest.raises(InputError, match=r"loss-g\.json is not a table of denoising losses"):
        Report.open(tmp_path / "run")


def test_report_of_a_run_directory_equals_the_report_of_its_results(base, full, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(full.outcome.sweep.run.path, folder)
    swept = Sweep.open(folder)
    swept.run.write("law.json", full.derivation.to_json())
    swept.run.write("outcome.json", full.outcome.to_json())
    opened = Report.open(folder)
    assert opened.verdict() == replace(full, sweep=swept, fit=fit(swept)).verdict()


def test_untrusted_text_is_escaped(page):
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>bold" not in page
    assert "<i>" not in page


def test_page_shows_the_numbers_of_the_results(full, page):
    def cells(*texts):
        return "".join(f'<td class="number">{text}</td>' for text in texts)

    for law in full.fit.layers:
        assert cells(f"{law.slope:.3f}", f"{law.slope_low:.3f} to {law.slope_high:.3f}") in page
    for drift in full.outcome.drifts:
        assert cells(f"{drift.drift:.3f}", f"{drift.low:.3f} to {drift.high:.3f}") in page
    for row in full.derivation.factors.itertuples():
        interval = "–" if row.bound else f"{row.low:.2f} to {row.high:.2f}"
        assert cells(f"{row.bound} {row.scale_factor:.2f}".strip(), interval) in page
    assert "test --x &#39;&lt;i&gt;&#39;" in page


def test_verdict_states_the_numbers(full):
    text = " ".join(full.verdict())
    rise = full.fit.pooled.slope * np.log(2)
    assert f"When the token count doubles, attention entropy rises by {rise:.2f} nats (95 % interval" in text
    assert "Its 95 % interval excludes 1" in text
    paper = np.sqrt(np.log(96) / np.log(256))  # 2 of 3 layers have T = 256, and 96 tokens at 32 x 48
    median = "a scale factor g of at most 0.40 in the median layer (at most 0.40 over the layers)"
    assert f"At 32x48 px (N/T = 0.375), the measured law has {median}; the paper's law has {paper:.2f}." in text
    assert "At 128 px (N/T = 4), the measured law has a scale factor g of 1.90" in text
    assert "kappa" not in text
    assert "Drift of the original model: 0.900 nats. After 1 round of refinement: 0.050 ± 0.020 nats." in text
    assert "In 1 of 6 pairs of layer and size, g reached a bound of the search" in text
    assert "Entropy drift removed by the measured law: " in text


def scored_by(full, *verdicts):
    """Return the report with a comparison of the measured law at 128 px for each verdict."""
    numbers = (0.5, 0.1, 0.05, 0.15, 0.01)
    needed = {verdict: 400.0 if verdict == UNDECIDED else 10.0 for verdict in verdicts}
    compared = tuple(
        MetricDifference("measured", (128, 128), "repetition", *numbers, verdict, 16, needed[verdict])
        for verdict in verdicts
    )
    original = pd.DataFrame([{"size": (128, 128), "metric": "repetition", "value": 0.4}])
    return replace(full, outcome=replace(full.outcome, quality=Quality(pd.DataFrame(), original, compared)))


UNDECIDED = "not enough images"


def test_summary_has_the_measurement_the_effect_and_the_certainty(full):
    measured, helped, sure, then = summary(scored_by(full, "worse", "equivalent", UNDECIDED)).values()
    assert measured == (
        "Attention entropy of a model trained at 64 px, at 3 sizes (32x48 to 128 px), under the original model and the "
        "scaling laws paper, measured."
    )
    removed = [d.removed for d in full.outcome.drifts if d.law == "measured" and d.level == "layer"]
    low, high = 100 * min(removed), 100 * max(removed)
    assert helped.endswith(
        f"The measured law removes {low:.0f} to {high:.0f} % of the entropy change, and makes the images worse (worse "
        "in 1, equivalent in 1, undecided in 1 of 3 comparisons)."
    )
    assert "The paper law" in helped
    assert sure == (
        "Based on 3 prompts and 1 seed per size and law. Intervals are 95 %. 1 of 3 comparisons of the images are "
        "undecided with 16 images; the median one needs about 400."
    )
    assert then.startswith("Sample about 400 images per size and law")


@pytest.mark.parametrize(
    ("verdicts", "effect"),
    [
        (["better", UNDECIDED], "improves the images (better in 1, undecided in 1 of 2"),
        (["better", "worse"], "improves some image scores and worsens others"),
        (["equivalent"], "its images are equivalent to the original"),
        (["equivalent", UNDECIDED], "its effect on the images is undecided"),
    ],
)
def test_summary_claims_no_more_than_the_comparisons_show(full, verdicts, effect):
    assert effect in summary(scored_by(full, *verdicts))["Did it help?"]


def test_summary_without_laws(base):
    assert (
        summary(report(base))["Did it help?"] == "No law was sampled, so this report does not show whether one helps."
    )
    assert not len(overview(report(base)))


def test_alerts_name_what_the_results_cannot_show(full, base):
    text = " ".join(alerts(scored_by(full, "worse", UNDECIDED)))
    assert "Few prompts: with 3, the intervals are wide." in text
    assert "Too few images: 1 of 2 comparisons are undecided with 16 images. They need about 400" in text
    assert "Factors at their bounds: 3 of 6 (3 at 32x48 px)." in text
    assert "The evidence disagrees: the measured law restores the entropy, but its images are worse in 1" in text
    assert "memorised" not in text
    bundled = replace(base, manifest=replace(base.manifest, model="reference"))
    assert "memorised its training images" in " ".join(alerts(report(bundled)))


@pytest.mark.parametrize(("changes", "edge"), [((0.0, -0.1, 0.2), False), ((0.0, -0.1, -0.2), True)])
def test_lowest_loss_at_the_edge_of_the_scan_is_an_alert(base, changes, edge):
    table = pd.DataFrame({"size": "128", "g": (1.0, 1.2, 1.5), "change": changes, "low": changes, "high": changes})
    shown = report(base, losses={"g": table})
    found = " ".join(alerts(shown))
    assert ("edge of the scan" in summary(shown)["Did it help?"]) == edge
    assert "undecided" not in summary(shown)["Did it help?"]
    unsure = report(base, losses={"g": table.assign(high=0.1)})
    assert "undecided" in summary(unsure)["Did it help?"]
    assert ("at 128 px is at the edge of the scan, g = 1.5: widen it" in found) == edge


def test_overview_has_a_row_for_each_size_and_law(full):
    table = overview(scored_by(full, "worse")).set_index([("", "size, px"), ("", "law")])
    laws = ("original", "paper", "measured")
    assert set(table.index) == {(size, law) for size in ("32x48", "128") for law in laws}
    row = table.loc["128", "measured"]
    assert row["repetition ↓"].tolist() == ["0.500 ▼", "+0.050 to +0.150"]
    assert row["images", "needed"] == "–"  # every comparison is decided
    open_one = overview(scored_by(full, "worse", UNDECIDED)).set_index([("", "size, px"), ("", "law")])
    assert open_one.loc["128", "measured"]["images", "needed"] == "400"
    assert table.loc["128", "original"]["repetition ↓"].tolist() == ["0.400", "–"]


def test_top_of_the_page_has_the_summary_the_alerts_the_table_and_the_terms(full, page):
    top = page[: page.index('id="verdict"')]
    for text in (*summary(full).values(), *alerts(full), "Five terms", "arXiv:2306.08645", "entropy change removed"):
        assert escape(text) in top


def test_verdict_names_the_best_form_and_its_error(full):
    errors = full.fit.rivals[full.fit.rivals["layer"] == "(pooled)"].set_index("form")["error"]
    assert f"left out of the fit: log, error {errors['log']:.3f} nats" in " ".join(full.verdict())
    assert errors.idxmin() == "log"


def test_save_reproduces_the_page_and_writes_the_same_numbers(full, page, tmp_path):
    kept = [np.zeros(n) for n in range(100)]  # changes addresses in memory, which matplotlib uses in ids
    path = full.save(tmp_path / "report.html", data=True)
    del kept
    assert path.read_text() == page
    records = pd.read_parquet(tmp_path / "records.parquet")
    pd.testing.assert_frame_equal(records, full.outcome.sweep.frame())
    assert set(records["scale_factor"]) == {1.0}
    keys = ["law", "height", "width", "layer"]
    means = records.groupby(keys)["entropy"].mean()
    summary = pd.read_csv(tmp_path / "summary.csv")
    means_in_file = summary.set_index(keys)["entropy"].sort_index()
    pd.testing.assert_series_equal(means_in_file, means.sort_index(), check_dtype=False)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["verdict"] == full.verdict()
    assert facts["fit"]["layers"][0]["slope"] == full.fit.layers[0].slope
    assert facts["settings"]["seeds"] == [0]
    assert facts["settings"]["command"] == "test --x '<i>'"
    assert {path.name for path in tmp_path.iterdir()} == {
        "records.parquet", "report.html", "report.json", "summary.csv",
    }  # fmt: skip


def test_save_writes_one_file_and_replaces_only_reports(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Report, "html", lambda _: PAGE_MARK.decode())  # drawing the page takes a second
    shown = report(base)
    path = tmp_path / "x.html"
    shown.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]
    shown.save(path)
    for name in ("summary.csv", "report.json", "records.parquet"):
        own = tmp_path / name
        own.write_text("mine")
        with pytest.raises(InputError, match=f"{name} exists and was not written by entropy-probe: choose another"):
            shown.save(path, data=True)
        assert own.read_text() == "mine"
        own.unlink()
    shown.save(path, data=True)
    shown.save(path, data=True)
    path.write_text("<html>mine</html>")
    with pytest.raises(InputError, match=r"x\.html exists and was not written by entropy-probe"):
        shown.save(path)


def test_report_names_the_missing_results(base):
    alone = report(base)
    for part in ("a derived scaling law (entropy-probe derive)", "images under scaling laws (entropy-probe validate)"):
        assert part in missing_parts(alone)
    assert len(sections(alone)) == 6
    assert alone.verdict() == report(base, fit(base)).verdict()
    assert missing_parts(alone) in Page(alone.html()).text


def test_law_without_derivation_has_factors_without_intervals(base):
    shown = report(base, law=derived(base).law)
    assert "a derived scaling law" not in missing_parts(shown)
    assert "The scale factor" in sections(shown)
    everywhere = report(base, law=Kappa({"*": 0.5}))
    assert "interval" not in everywhere.verdict()[-1]
    table = run_tables(everywhere)["Scale factor of every layer, with 95 % intervals"]
    assert set(table["128 px", "g"]) == {f"{np.sqrt(1 + 0.5 * np.log(4)):.2f}"}


@pytest.mark.parametrize("sizes", [[(64, 64)], [(32, 32)]])
def test_one_size_has_no_fit(tmp_path, sizes):
    shown = report(synthetic(tmp_path / "run", sizes=sizes))
    assert "two sizes with different token counts" in missing_parts(shown)
    assert shown.verdict() == []
    assert "Entropy against the number of tokens" not in sections(shown)
    assert "This sweep has one size." in Page(shown.html()).text


def test_one_prompt_has_no_error_bars_and_json_has_no_nan(tmp_path):
    shown = report(synthetic(tmp_path / "run", prompts=["red"]))
    shown.save(tmp_path / "report.html", data=True)
    assert "nan" not in Page((tmp_path / "report.html").read_text()).text.lower()
    assert "(one prompt: no interval)" in shown.verdict()[0]
    facts = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert facts["fit"]["layers"][0]["slope_se"] is None


@pytest.mark.slow
def test_page_of_a_large_model_is_below_5_mb(tmp_path):
    big = synthetic(tmp_path / "run", layers=70, sizes=[(64, 64), (1024, 1024)])
    generator = np.random.default_rng(0)
    for cell in big.grid.cells():
        noise = generator.integers(0, 255, (*cell.size, 3), dtype=np.uint8)  # noise does not compress
        Image.fromarray(noise).save(big.run.image_path(cell))
    text = report(big, law=derived(big).law).html()
    assert len(text) < 5e6
    assert "<summary>Layer by layer</summary>" in text


def test_rejects_a_folder_that_cannot_be_written(base, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Report, "html", lambda _: "page")
    for target in (tmp_path / "file" / "report.html", tmp_path / "none" / "report.html"):
        with pytest.raises(InputError, match="cannot write"):
            report(base).save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failing_figure_leaves_no_files(base, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "entropy_by_layer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(base).save(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_notebook_shows_the_page_in_a_frame(tmp_path):
    shown = report(synthetic(tmp_path / "run", sizes=[(64, 64)], prompts=["red"]))._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<script" not in shown


def test_entropy_maps_cover_the_training_size_and_the_largest_size(tiny_pipeline, tmp_path):
    sampled = sweep(
        tiny_pipeline, prompts=["flat pizza"], sizes=[(64, 64), (64, 96)], seeds=[0], steps=2, guidance_scale=4.0,
        scale_factors=(), store=tmp_path / "run", progress=False,
    )  # fmt: skip
    maps = entropy_maps(sampled, Paper())
    assert [(m.size, m.law) for m in maps] == [((64, 64), "original"), ((64, 96), "original"), ((64, 96), "paper")]
    assert maps[1].values.shape == (16, 24)
    assert entropy_maps(Sweep.open(tmp_path / "run")) == ()


def test_error_of_row_sampling_is_computed_by_image_and_rounded_up():
    """Two branches of three steps and two heads: heads count as one, steps are independent, the worse branch counts."""
    errors = {"cond": [(0.03, 0.01), (0.02, 0.02), (0.0, 0.04)], "uncond": [(0.001, 0.001)] * 3}
    frame = pd.DataFrame(
        {
            "law": "original", "height": 64, "width": 64, "prompt": "a", "seed": 0, "layer": "x", "branch": branch,
            "step": step, "head": head, "entropy_se": error,
        }
        for branch, steps in errors.items() for step, heads in enumerate(steps) for head, error in enumerate(heads)
    )  # fmt: skip
    assert error_by_rows(frame) == pytest.approx((3 * 0.02**2) ** 0.5 / 3)
    assert "at most 0.0116 nats" in row_sampling_error(frame)
    assert row_sampling_error(frame.assign(entropy_se=0.0)) == ""


def test_alert_on_a_calibration_that_did_not_converge(base):
    law = Calibrated({"*": ((1.39, 9.0),)}, {"*": 50.0})
    change = LossChange((128, 128), -0.04, -0.05, -0.03, 16)
    calibration = Calibration(law, pd.DataFrame(), (change,), (Unconverged((128, 128), 2, 15),))
    shown = report(base, calibration=calibration)
    assert "The calibration at 128 px did not converge: 2 of 15 factors" in " ".join(alerts(shown))
    assert "by -4.0 % [-5.0, -3.0] at 128 px" in summary(shown)["Did it help?"]


def test_alert_if_the_loss_is_higher_at_the_factor_that_restores_the_entropy(full):
    """The median factor at 128 px is 1.9."""
    table = pd.DataFrame({"size": "128", "g": [0.5, 1.0, 2.0, 4.0], "change": [0.1, 0.0, 0.05, 0.3]})
    table = table.assign(low=table["change"] - 0.02, high=table["change"] + 0.02)
    text = " ".join(alerts(replace(full, losses={"g": table})))
    assert "at 128 px the measured law has a median factor near g = 2, where the denoising loss is 5.0 % higher" in text
    uncertain = table.assign(low=table["change"] - 0.2)
    assert "evidence disagrees" not in " ".join(alerts(replace(full, losses={"g": uncertain})))


def unpacked(stream):
    """Return the content of a compressed stream of a PDF file; nothing for other streams."""
    with suppress(zlib.error):
        return zlib.decompressobj().decompress(stream)
    return b""


def test_export_has_figures_at_the_width_of_a_column_and_tables(complete, tmp_path, monkeypatch):
    """The PDF files are read without matplotlib: page width, fonts, and the font sizes in the page content."""
    one_of_each_kind = {"drift", "change-repetition", "scale-factors", "loss-g", "head-drift"}
    shown = [one for one in run_figures(complete) if getattr(one.draw, "name", "") in one_of_each_kind]
    monkeypatch.setattr(publication, "run_figures", lambda _: shown)
    paths = complete.save_figures(tmp_path, "pdf", "single")
    figures = [path for path in paths if path.suffix == ".pdf"]
    assert {path.stem for path in figures} == {*one_of_each_kind, "images"}
    for path in figures:
        content = path.read_bytes()
        (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+)", content)
        assert float(box) == pytest.approx(3.3 * 72), path.name
        assert content.count(b"/FontFile2") == content.count(b"/Type /FontDescriptor") >= 1
        starts = [match.end() for match in re.finditer(rb"\nstream\r?\n", content)]
        page = b"".join(unpacked(content[start:]) for start in starts)
        sizes = [float(size) for size in re.findall(rb"/F\d+ ([\d.]+) Tf", page)]
        assert min(sizes) >= 7, path.name
    _, heading, _, *rows = (tmp_path / "table-overview.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == overview(complete).to_numpy().tolist()
    assert "text score ↑: change" in heading
    lines = (tmp_path / "table-overview.tex").read_text().splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert {line.count("&") for line in body} == {len(cells[0]) - 1}


def test_export_replaces_only_its_own_files_and_rejects_unknown_formats(complete, tmp_path, monkeypatch):
    monkeypatch.setattr(publication, "_figure_files", lambda *_: {})
    complete.save_figures(tmp_path / "new")
    complete.save_figures(tmp_path / "new")
    (tmp_path / "new" / "table-overview.tex").write_text("mine")
    with pytest.raises(InputError, match=r"table-overview\.tex exists and was not written by entropy-probe"):
        complete.save_figures(tmp_path / "new")
    with pytest.raises(InputError, match="format must be pdf, png or svg, got 'gif'"):
        complete.save_figures(tmp_path, "gif")
    with pytest.raises(InputError, match="width must be single or double, got 'wide'"):
        complete.save_figures(tmp_path, "pdf", "wide")


def test_heat_map_hatches_missing_heads_and_uses_the_whole_colour_scale(base):
    axes = Figure().subplots()
    data = plots.draw_head_drift(axes, base.frame(), (64, 64))
    mesh = next(one for one in axes.collections if isinstance(one, QuadMesh))
    low, high = mesh.get_clim()
    assert (low, high) == (0.0, pytest.approx(data["drift"].max()))  # every drift is positive here
    assert [patch.get_hatch() for patch in axes.patches] == ["////"]
    darkest, white = mesh.cmap(1.0), mesh.cmap(0.0)
    assert sum(white[:3]) > 2.8 > sum(darkest[:3])  # zero is white, and the largest drift has the end of the scale
