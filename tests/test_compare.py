"""Several runs side by side, from runs that no model was needed for."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page, derived, judged, synthetic

from entropy_probe.errors import InputError
from entropy_probe.estimation import fit
from entropy_probe.evaluation import outcome_of
from entropy_probe.reports import compare
from entropy_probe.runs import Sweep

PROMPTS = ("a cat", "flat pizza", "a red car")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`base` has a derived law, an outcome and judged images; `other` a layer more, sizes of its own and no more."""
    folder = tmp_path_factory.mktemp("runs")
    base = synthetic(folder / "base", prompts=PROMPTS, laws=("original", "paper"))
    base.run.write("law.json", derived(base).to_json())
    base.run.write("outcome.json", judged(outcome_of(base)).to_json())
    synthetic(folder / "other", prompts=PROMPTS, layers=4, sizes=((32, 32), (64, 64)))
    return folder / "base", folder / "other"


@pytest.fixture(scope="module")
def compared(runs):
    return compare(runs, command="entropy-probe compare base other")


def test_slopes_are_those_of_each_run_by_itself(runs, compared):
    table = compared.slopes().set_index(["run", "layer"])
    for path in runs:
        for law in fit(Sweep.open(path)).layers[:-1]:
            row = table.loc[(path.name, law.layer)]
            assert (row["value"], row["low"], row["high"]) == (law.slope, law.slope_low, law.slope_high)
    assert "3 of 4 layers bear the same name in all runs" in " ".join(compared.verdict())


def test_the_difference_of_two_slopes_has_its_interval(runs, tmp_path):
    """Two runs that differ by a known slope, and two that do not."""
    steep = tmp_path / "steep"
    shutil.copytree(runs[0], steep)
    swept = Sweep.open(steep)
    for cell in swept.grid.cells():
        frame = pd.read_parquet(swept.run.cell_path(cell))
        frame["entropy"] += (0.1 * np.log(frame["tokens"])).astype("float32")
        with_image = swept.image(cell.prompt, cell.size, cell.seed, cell.law)
        swept.run.save(cell, frame, with_image)
    told = " ".join(compare([runs[0], steep]).verdict())
    assert "The slope of steep less that of base is +0.100" in told
    assert "they differ" in told
    same = tmp_path / "same"
    shutil.copytree(runs[0], same)
    assert "+0.000" in compare([runs[0], same]).verdict()[1]
    assert "no difference is shown" in compare([runs[0], same]).verdict()[1]


def test_the_page_has_both_runs_and_matches_layers_by_name(compared):
    page = compared.html()
    seen = Page(page)
    assert seen.tags.count("svg") == 5
    assert "<title>Attention entropy of base, other</title>" in page
    for _, row in compared.slopes().iterrows():
        assert f"{row['value']:.3f} ± {row['se']:.3f}" in page
    wide = page[page.index('<table aria-label="Slope b of every layer">') :]
    wide = wide[: wide.index("</table>")]
    assert wide.count("<tr>") == 1 + 4
    assert wide.count("<td>–</td>") == 1  # the layer that one run lacks
    assert "better" in page  # the verdicts on the images
    assert "The runs also differ in sizes" in page
    assert "<code>entropy-probe compare base other</code>" in page


def test_layers_of_other_names_are_not_matched(runs, compared):
    foreign = replace(compared.runs["other"].fit)
    renamed = tuple(replace(law, layer=f"blocks.{n}") for n, law in enumerate(foreign.layers[:-1]))
    other = replace(compared.runs["other"], fit=replace(foreign, layers=(*renamed, foreign.layers[-1])))
    made = replace(compared, runs={"base": compared.runs["base"], "other": other})
    assert "No layer bears the same name in all runs" in " ".join(made.verdict())
    assert made.html().count("blocks.3") > 1


def test_the_files_say_the_same(compared, tmp_path):
    path = compared.save(tmp_path / "compare.html")
    assert path.read_text() == compared.html()
    facts = json.loads(compared.to_json(), parse_constant=pytest.fail)
    assert facts["verdict"] == compared.verdict()
    assert [one["run"] for one in facts["pooled"]] == ["base", "other"]
    assert compared._repr_html_().startswith("<iframe srcdoc=")


def test_folders_of_one_name_are_told_apart_by_their_path(runs, tmp_path):
    twin = tmp_path / "base"
    shutil.copytree(runs[0], twin)
    assert list(compare([runs[0], twin]).runs) == [str(runs[0]), str(twin)]


def test_hostile_names_are_text(tmp_path):
    name, formula = HOSTILE.replace("/", "") + "\u202e", "=1+1"
    for folder in (name, formula):
        synthetic(tmp_path / folder, sizes=((32, 32), (64, 64)), layers=2)
    page = compare([tmp_path / name, tmp_path / formula]).html()
    saved = [unquote(one) for one in re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', page)]
    cells = [cell for text in saved for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'=1+1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_what_cannot_be_compared_is_refused_with_the_reason(runs, tmp_path):
    with pytest.raises(InputError, match="two runs at least"):
        compare(runs[:1])
    with pytest.raises(InputError, match="named twice"):
        compare([runs[0], runs[0]])
    with pytest.raises(InputError, match=r"is not a run directory, it has no manifest\.json"):
        compare([runs[0], tmp_path])
    synthetic(tmp_path / "one", sizes=((64, 64),))
    with pytest.raises(InputError, match="one has one token count only: sample it at two sizes"):
        compare([runs[0], tmp_path / "one"])
    with pytest.raises(InputError, match="cannot write"):
        compare(runs).save(tmp_path / "none" / "compare.html")
