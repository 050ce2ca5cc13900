"""Compare runs. The runs are synthetic, so no model is loaded."""

import csv
import io
import json
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page, derived, synthetic, with_quality

from entropy_probe.errors import InputError
from entropy_probe.estimation import fit
from entropy_probe.evaluation import outcome_of
from entropy_probe.reports import compare
from entropy_probe.reports.gallery import gallery_of_runs
from entropy_probe.runs import Sweep

PROMPTS = ("a cat", "flat pizza", "a red car")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Write two runs: `base` has a law, an outcome and image metrics; `other` has four layers and other sizes."""
    folder = tmp_path_factory.mktemp("runs")
    base = synthetic(folder / "base", prompts=PROMPTS, laws=("original", "paper"))
    base.run.write("law.json", derived(base).to_json())
    base.run.write("outcome.json", with_quality(outcome_of(base)).to_json())
    synthetic(folder / "other", prompts=PROMPTS, layers=4, sizes=((32, 32), (64, 64)))
    return folder / "base", folder / "other"


@pytest.fixture(scope="module")
def compared(runs):
    return compare(runs, command="entropy-probe compare base other")


@pytest.fixture(scope="module")
def page(compared):
    return compared.html()


def test_slopes_equal_the_fits_of_the_separate_runs(runs, compared):
    table = compared.slopes().set_index(["run", "layer"])
    for path in runs:
        for law in fit(Sweep.open(path)).layers[:-1]:
            row = table.loc[(path.name, law.layer)]
            assert (row["value"], row["low"], row["high"]) == (law.slope, law.slope_low, law.slope_high)
    assert "3 of 4 layers have the same name in all runs" in " ".join(compared.verdict())


def copy_with_slope(run, folder, added):
    """Copy a run, and add `added` to the slope of its entropy in ln N."""
    shutil.copytree(run, folder)
    swept = Sweep.open(folder)
    for cell in swept.grid.cells():
        frame = pd.read_parquet(swept.run.cell_path(cell))
        frame["entropy"] += (added * np.log(frame["tokens"])).astype("float32")
        swept.run.save(cell, frame, swept.image(cell.prompt, cell.size, cell.seed, cell.law))
    return folder


def test_verdict_detects_a_known_difference_of_slopes(runs, tmp_path):
    verdict = " ".join(compare([runs[0], copy_with_slope(runs[0], tmp_path / "steep", 0.1)]).verdict())
    assert "Slope b of steep minus slope b of base: +0.100" in verdict
    assert "The slopes differ." in verdict


def test_verdict_on_equal_slopes_states_the_number_of_prompts(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "same")
    sentence = compare([runs[0], tmp_path / "same"]).verdict()[1]
    assert "+0.000" in sentence
    assert sentence.endswith("No difference detected; 3 prompts may be too few.")


def test_verdict_on_a_small_difference_states_the_number_of_prompts_needed(runs, tmp_path):
    """The number needed follows from the formula for a normal test with a power of 80 %."""
    made = compare([runs[0], copy_with_slope(runs[0], tmp_path / "near", 0.001)])
    a, b = (report.fit.pooled for report in made.runs.values())
    error = np.hypot(a.slope_se, b.slope_se)
    needed = int(np.ceil(3 * ((1.959964 + 0.841621) * error / (b.slope - a.slope)) ** 2))
    about = f"(about {needed:,} needed to detect a difference of this size)"
    assert made.verdict()[1].endswith(f"No difference detected; 3 prompts may be too few {about}.")


def test_page_shows_both_runs_and_matches_layers_by_name(compared, page):
    seen = Page(page)
    assert seen.tags.count("svg") == 6
    assert "<title>Attention entropy of base, other</title>" in page
    for _, row in compared.slopes().iterrows():
        assert f'<td class="number">{row["value"]:.3f}</td>' in page
        assert f'<td class="number">{row["se"]:.3f}</td>' in page
    wide = page[page.index('aria-label="Slope b of every layer">') :]
    wide = wide[: wide.index("</table>")]
    assert wide.count("<tr>") == 2 + 4
    assert wide.count(">–</td>") == 2  # one run does not have this layer: no value and no error
    assert "The runs also differ in sizes (1 of 4 shared)" in page
    assert page.index("The runs also differ") < page.index("<h2>Summary</h2>")
    assert "<code>entropy-probe compare base other</code>" in page


def test_one_table_has_the_effect_of_every_law_in_every_run(compared):
    table = compared.overview()
    rows = table[[("", "run"), ("", "size, px"), ("", "law")]].to_numpy().tolist()
    assert rows == [
        *(["base", size, law] for size in ("32x48", "128") for law in ("original", "paper")),
        ["other", "–", "–"],  # no law was sampled
    ]
    assert table.loc[1, ("text score ↑", "score")] == "0.500 ▲"
    slope = compared.runs["other"].fit.pooled.slope
    assert table.loc[4, ("entropy rise per doubling of N", "nats")] == f"{slope * np.log(2):.2f}"


def test_images_of_the_shared_prompts_are_side_by_side(compared):
    shown = gallery_of_runs(compared.runs)
    assert shown.columns == ("32 px, other", "32x48 px, base", "64 px, base", "64 px, other", "128 px, base")
    assert len(shown.sets) == len(PROMPTS)
    assert [image is None for image in shown.sets[0].rows["paper"]] == [True, False, False, True, False]
    strangers = {
        name: replace(run, sweep=replace(run.sweep, grid=replace(run.sweep.grid, prompts=(name,))), outcome=None)
        for name, run in compared.runs.items()
    }
    assert gallery_of_runs(strangers) is None


def test_layers_with_other_names_are_not_matched(runs, compared):
    foreign = replace(compared.runs["other"].fit)
    renamed = tuple(replace(law, layer=f"blocks.{n}") for n, law in enumerate(foreign.layers[:-1]))
    other = replace(compared.runs["other"], fit=replace(foreign, layers=(*renamed, foreign.layers[-1])))
    made = replace(compared, runs={"base": compared.runs["base"], "other": other})
    assert "No layer has the same name in all runs" in " ".join(made.verdict())
    assert "blocks.3" in set(made.slopes()["layer"])


def test_saved_files_agree(compared, page, tmp_path):
    path = compared.save(tmp_path / "compare.html")
    assert path.read_text() == page
    facts = json.loads(compared.to_json(), parse_constant=pytest.fail)
    assert facts["verdict"] == compared.verdict()
    assert [one["run"] for one in facts["pooled"]] == ["base", "other"]


def test_folders_with_the_same_name_are_named_by_their_path(runs, tmp_path):
    twin = tmp_path / "base"
    shutil.copytree(runs[0], twin)
    assert list(compare([runs[0], twin]).runs) == [str(runs[0]), str(twin)]


def test_untrusted_names_are_escaped(tmp_path):
    name, formula = HOSTILE.replace("/", "") + "\u202e", "=1+1"
    for folder in (name, formula):
        synthetic(tmp_path / folder, sizes=((32, 32), (64, 64)), layers=2)
    page = compare([tmp_path / name, tmp_path / formula]).html()
    saved = [unquote(link.partition(",")[2]) for link in Page(page).links if link.startswith("data:text/csv")]
    cells = [cell for text in saved for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'=1+1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_rejects_runs_that_cannot_be_compared(runs, tmp_path):
    with pytest.raises(InputError, match="at least two runs, got 1"):
        compare(runs[:1])
    with pytest.raises(InputError, match="given twice"):
        compare([runs[0], runs[0]])
    with pytest.raises(InputError, match=r"is not a run directory, it has no manifest\.json"):
        compare([runs[0], tmp_path])
    synthetic(tmp_path / "one", sizes=((64, 64),))
    with pytest.raises(InputError, match="one has one token count, and a comparison needs two"):
        compare([runs[0], tmp_path / "one"])
    with pytest.raises(InputError, match="cannot write"):
        compare(runs).save(tmp_path / "none" / "compare.html")


def with_schedule(run, folder, timesteps):
    """Copy a run whose denoiser gets other timesteps. The entropy is 1 + 3 times the noise level."""
    shutil.copytree(run, folder)
    swept = Sweep.open(folder)
    flow = max(timesteps) <= 1
    for cell in swept.grid.cells():
        frame = pd.read_parquet(swept.run.cell_path(cell))
        one = frame[frame["step"] == 0]
        level = [t if flow else t / 1000 for t in timesteps]
        level = [1 - own for own in level] if timesteps[0] < timesteps[-1] else level
        steps = [
            one.assign(step=number, timestep=float(t), entropy=np.float32(1 + 3 * own))
            for number, (t, own) in enumerate(zip(timesteps, level, strict=True))
        ]
        swept.run.save(cell, pd.concat(steps), swept.image(cell.prompt, cell.size, cell.seed, cell.law))
    return folder


FEW, MANY = (1.0, 0.75, 0.5, 0.25), tuple(range(981, 0, -20))


@pytest.mark.parametrize("few", [FEW, tuple(1 - t for t in FEW)], ids=["flow", "reversed flow"])
def test_few_step_run_is_compared_at_equal_noise_levels(runs, tmp_path, few):
    turbo = with_schedule(runs[1], tmp_path / "turbo", few)
    base = with_schedule(runs[1], tmp_path / "many", MANY)
    made = compare([turbo, base])
    curves = made.noise_levels().set_index("run")
    assert len(curves.loc["turbo"]) == 4
    assert curves.loc["turbo", "noise_level"].tolist() == pytest.approx(FEW)
    assert curves.loc["many", "noise_level"].tolist() == pytest.approx([t / 1000 for t in MANY])
    table = made._tables()["Entropy at equal noise levels, nats"]
    assert table["noise level"].tolist() == ["0.750", "0.500", "0.250"]  # 1.0 is outside the other run
    assert table["turbo"].tolist() == table["many"].tolist() == ["3.250", "2.500", "1.750"]
    assert "Entropy at equal noise levels, nats" in made.html()
    assert len(json.loads(made.to_json())["noise_levels"]) == 54
