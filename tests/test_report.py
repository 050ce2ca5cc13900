"""The page and the files beside it, from a run that no model was needed for."""

import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from entropy_probe.reports.images import chosen_prompts
from PIL import Image

from entropy_probe.errors import InputError
from entropy_probe.estimation import Derivation, fit
from entropy_probe.estimation.derivation import Round
from entropy_probe.evaluation import MetricDifference, Quality, outcome_of
from entropy_probe.laws import Kappa, Measured, Paper, resolve
from entropy_probe.plots import figures
from entropy_probe.plots.tables import error_by_rows, kappa_of_laws, quality_against_kappa
from entropy_probe.reports import Report, report
from entropy_probe.reports.run_report import _by_choice
from entropy_probe.runs import EntropyMap, Grid, Manifest, RunDirectory, Sweep, entropy_maps, sweep

PARTS = dict.fromkeys(("image_mass", "mass_entropy", "image_entropy", "text_entropy"), float("nan"))
HOSTILE = "<script>alert(1)</script>"
SIZES = ((32, 48), (64, 64), (128, 128))


class Page(HTMLParser):
    """Collects ids, tags, and everything that would be fetched; complains of tags that are not closed."""

    VOID = {"meta", "link", "br", "img", "hr", "input"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.ids, self.tags, self.links, self.open, self.used = [], [], [], [], []
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
            self.used += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def synthetic(path, *, layers=3, prompts=(HOSTILE, "flat pizza"), sizes=SIZES, seeds=(0,), laws=("original",)):
    """A run on disk whose layers have H = 0.4 + b ln N, moved by a law as ln g moves it."""
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
    return Derivation(law, table, rounds, pd.DataFrame(bounds, columns=["layer", "tokens", "g"]))


def judged(outcome):
    """The outcome with every image of its grid judged by two metrics, text scores higher under the laws."""
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


def test_the_page_is_whole_and_asks_nothing_of_the_outside(page):
    seen = Page(page)
    assert seen.tags.count("svg") == 9
    assert len(seen.ids) == len(set(seen.ids))
    assert all(link.startswith(("#", "data:image/png;base64,", "data:text/csv;")) for link in seen.links)
    inside = {link[1:] for link in [*seen.links, *seen.used] if link.startswith("#")}
    assert inside <= set(seen.ids)
    assert seen.tags.count("script") == 1  # ours, which the policy knows by its hash
    assert not {"link", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert not re.search(r"https?:|//[a-z]|@import", re.sub(r'xmlns(:\w+)?="[^"]*"|base64,[^"]*', "", page))
    assert len(page) < 5e6


def test_every_figure_is_saved_as_its_numbers(full, page):
    saved = re.findall(r'<figure.*?download="[^"]*\.csv" href="data:text/csv;charset=utf-8,([^"]*)"', page, re.DOTALL)
    assert len(saved) == page.count("<figure")
    tables = [pd.read_csv(io.StringIO(unquote(one))) for one in saved]
    maps = next(table for table in tables if [*table][:7] == ["layer", "step", "law", "size", "row", "0", "1"])
    first = maps[maps["law"] == "original"].loc[:, "0":].to_numpy()
    np.testing.assert_allclose(first, full.entropy_maps[0].values, atol=5e-4)


def test_the_quality_of_the_images_is_drawn_and_told(full):
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
            compared("paper", "repetition", 0.0, "no difference detected", None),
            compared("measured", "text_score", -0.1, "worse", 4.0),
            compared("measured", "repetition", 0.001, "no difference detected", 12345.0),
        ),
    )
    judged = replace(full, outcome=replace(full.outcome, quality=found))
    assert "better in text_score at 32x48. No difference detected in 1 of 2." in " ".join(judged.verdict())
    page = judged.html()
    assert "Quality, alignment and defects" in page
    assert Page(page).tags.count("svg") == 12  # the metrics, the two defects, and all against kappa
    assert "12,345" in page
    assert "the images were not judged" not in page
    assert "the images were not judged" in full.html()


def test_quality_stands_beside_the_kappa_of_its_law(full):
    outcome = judged(full.outcome)
    laws = (*outcome.sweep.grid.laws, Kappa({"*": 0.25}))
    kappas = kappa_of_laws(laws, full.frame).set_index(["law", "size"])["kappa"]
    assert kappas["kappa=0.25", "128"] == pytest.approx(0.25)
    assert kappas["original", "128"] == 0
    # The layers alternate between 256 and 64 tokens at the training size; at 128 px both have four times as many.
    by_layer = [(np.log(4 * t) / np.log(t) - 1) / np.log(4) for t in (256, 64, 256)]
    assert kappas["paper", "128"] == pytest.approx(np.mean(by_layer))
    table = quality_against_kappa(outcome.quality, kappas.reset_index())
    assert "64" not in set(table["size"])  # g = 1 whatever kappa is
    row = table[(table["law"] == "paper") & (table["size"] == "128") & (table["metric"] == "repetition")].iloc[0]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.5, 0.45, 0.55))


def test_the_prompts_on_which_laws_differ_most_and_least_are_shown(tmp_path):
    prompts = [f"prompt {n}" for n in range(6)]
    swept = synthetic(tmp_path / "run", prompts=prompts, laws=("original", "paper"), layers=1)
    for cell in swept.grid.cells():
        if cell.law == "paper" and cell.size == (128, 128):
            shade = 200 - 10 * prompts.index(cell.prompt)
            Image.new("RGB", (128, 128), (shade, 40, 40)).save(swept.run.image_path(cell))
    chosen = chosen_prompts(swept, 4)
    assert [prompt for prompt, _ in chosen] == ["prompt 5", "prompt 4", "prompt 1", "prompt 0"]
    # One channel of three, at one of two sizes; on the original images all laws agree.
    assert [share for _, share in chosen] == pytest.approx([50 / 255 / 6, 40 / 255 / 6, 10 / 255 / 6, 0])
    assert chosen_prompts(replace(swept, grid=replace(swept.grid, laws=swept.grid.laws[:1])), 2) == [
        ("prompt 0", 0.0), ("prompt 1", 0.0),
    ]  # fmt: skip
    page = report(swept, outcome=outcome_of(swept)).html()
    assert "prompt 2\u2069”, seed" not in page
    assert "whose pixels the laws move by 3.3 % on average" in page


def test_the_losses_of_a_run_directory_are_drawn(tmp_path):
    swept = synthetic(tmp_path / "run")
    assert "The denoising loss" not in Report.open(tmp_path / "run").html()
    losses = pd.DataFrame(
        [
            {"size": size, "g": g, "change": (g - 1.2) ** 2 - 0.04, "low": -0.05, "high": 0.05}
            for size in ("32x48", "128")
            for g in (0.5, 1.0, 1.25, 2.0)
        ]
    )
    swept.run.write("loss-g.json", losses.to_json(orient="records"))
    opened = Report.open(tmp_path / "run")
    pd.testing.assert_frame_equal(opened.losses["g"], losses)
    page = opened.html()
    assert page.count("The denoising loss") > 1
    assert "g, what the logits are multiplied by: 1.25" in page  # under the pointer
    swept.run.write("loss-g.json", '[{"size": "32x48"}]')
    with pytest.raises(InputError, match=r"loss-g\.json is no table of losses"):
        Report.open(tmp_path / "run")


def test_a_run_directory_holds_its_report(base, full, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(full.outcome.sweep.run.path, folder)
    swept = Sweep.open(folder)
    swept.run.write("law.json", full.derivation.to_json())
    swept.run.write("outcome.json", full.outcome.to_json())
    opened = Report.open(folder)
    assert opened.verdict() == replace(full, sweep=swept, fit=fit(swept)).verdict()


def test_the_page_is_the_same_each_time(full, page):
    kept = [np.zeros(n) for n in range(100)]  # other addresses in memory: matplotlib makes ids of some
    assert full.html() == page
    del kept


def test_hostile_texts_are_shown_not_run(page):
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>bold" not in page
    assert "<i>" not in page


def test_numbers_on_the_page_are_those_of_the_tables(full, page):
    for law in full.fit.layers:
        assert f"<td>{law.slope:.3f} ± {law.slope_se:.3f}</td>" in page
    for drift in full.outcome.drifts:
        assert f"<td>{drift.drift:.3f} [{drift.low:.3f}, {drift.high:.3f}]</td>" in page
    for row in full.derivation.kappa.itertuples():
        assert f"<td>{row.kappa:.3f} ± {row.kappa_se:.3f}</td>" in page
    assert "test --x &#39;&lt;i&gt;&#39;" in page


def test_the_verdict_has_its_numbers(full):
    text = " ".join(full.verdict())
    assert f"{full.fit.pooled.slope:.3f} nats for every e-fold" in text
    assert "outside that interval" in text
    assert "kappa between 1.10 (down.0.0.0.attn1) and 1.32 (down.2.0.0.attn1)" in text
    assert "one more sampling: 0.900 nats of drift before, 0.050 ± 0.020 after" in text
    assert "In 1 of 6 pairs of layer and size g ran into its bounds" in text
    assert "Entropy drift removed by the measured law: " in text


def test_the_files_agree(full, page, tmp_path):
    path = full.save(tmp_path / "report.html")
    assert path.read_text() == page
    records = pd.read_parquet(tmp_path / "records.parquet")
    pd.testing.assert_frame_equal(records, full.outcome.sweep.frame())
    assert set(records["scale_factor"]) == {1.0}
    keys = ["law", "height", "width", "layer"]
    means = records.groupby(keys)["entropy"].mean()
    summary = pd.read_csv(tmp_path / "summary.csv")
    told = summary.set_index(keys)["entropy"].sort_index()
    pd.testing.assert_series_equal(told, means.sort_index(), check_dtype=False)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["verdict"] == full.verdict()
    assert facts["fit"]["layers"][0]["slope"] == full.fit.layers[0].slope
    assert facts["settings"]["seeds"] == [0]
    assert facts["settings"]["command"] == "test --x '<i>'"
    assert {path.name for path in tmp_path.iterdir()} == {
        "records.parquet", "report.html", "report.json", "summary.csv",
    }  # fmt: skip


def test_what_was_not_run_is_left_out_and_said(base):
    alone = report(base)
    text = alone.html()
    assert "no law was sampled" in text
    assert "no scaling law was derived" in text
    assert Page(text).tags.count("svg") == 6
    assert text == report(base, fit(base)).html()


def test_a_law_without_its_derivation_still_tells_kappa(base):
    shown = report(base, law=derived(base).law)
    assert "no scaling law was derived" not in shown.html()
    assert Page(shown.html()).tags.count("svg") == 7
    assert any("kappa between 1.10" in sentence for sentence in shown.verdict())
    everywhere = report(base, law=Kappa({"*": 0.5}))
    assert "interval" not in everywhere.verdict()[-1]
    assert "<td>0.500</td>" in everywhere.html()


@pytest.mark.parametrize("sizes", [[(64, 64)], [(32, 32)]])
def test_one_size_has_no_law_and_says_so(tmp_path, sizes):
    shown = report(synthetic(tmp_path / "run", sizes=sizes))
    assert "no law was fitted" in shown.html()
    assert shown.verdict() == []


def test_one_prompt_has_no_errors_and_json_has_no_nan(tmp_path):
    shown = report(synthetic(tmp_path / "run", prompts=["red"]))
    shown.save(tmp_path / "report.html")
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL).lower()
    facts = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert facts["fit"]["layers"][0]["slope_se"] is None


def test_a_big_model_stays_within_bounds(tmp_path):
    big = synthetic(tmp_path / "run", layers=70, sizes=[(64, 64), (1024, 1024)])
    generator = np.random.default_rng(0)
    for cell in big.grid.cells():
        noise = generator.integers(0, 255, (*cell.size, 3), dtype=np.uint8)  # the heaviest image there is
        Image.fromarray(noise).save(big.run.image_path(cell))
    text = report(big, law=derived(big).law).html()
    assert len(text) < 5e6
    assert "<summary>Layer by layer</summary>" in text


def test_a_folder_that_cannot_be_written_is_refused(base, tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "report.html", tmp_path / "none" / "report.html"):
        with pytest.raises(InputError, match="cannot write"):
            report(base).save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_figure_that_fails_leaves_nothing_behind(base, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "layers_and_heads", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(base).save(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_the_page_in_a_frame(base):
    shown = report(base)._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<script" not in shown


def test_entropy_maps_lie_on_the_image(tiny_pipeline, tmp_path):
    sampled = sweep(
        tiny_pipeline, prompts=["flat pizza"], sizes=[(64, 64), (64, 96)], seeds=[0], steps=2, guidance_scale=4.0,
        scale_factors=(), store=tmp_path / "run", progress=False,
    )  # fmt: skip
    maps = entropy_maps(sampled, Paper())
    assert [(m.size, m.law) for m in maps] == [((64, 64), "original"), ((64, 96), "original"), ((64, 96), "paper")]
    assert maps[1].values.shape == (16, 24)
    assert entropy_maps(Sweep.open(tmp_path / "run")) == ()


def test_the_error_by_the_choice_of_rows_by_hand_and_never_told_too_small():
    """Two branches of three steps and two heads: heads count as one, steps apart, the worse branch is told."""
    errors = {"cond": [(0.03, 0.01), (0.02, 0.02), (0.0, 0.04)], "uncond": [(0.001, 0.001)] * 3}
    frame = pd.DataFrame(
        {
            "law": "original", "height": 64, "width": 64, "prompt": "a", "seed": 0, "layer": "x", "branch": branch,
            "step": step, "head": head, "entropy_se": error,
        }
        for branch, steps in errors.items() for step, heads in enumerate(steps) for head, error in enumerate(heads)
    )  # fmt: skip
    assert error_by_rows(frame) == pytest.approx((3 * 0.02**2) ** 0.5 / 3)
    assert "at most 0.0116 nats" in _by_choice(frame)
    assert _by_choice(frame.assign(entropy_se=0.0)) == ""
