"""docs/results.md: that its numbers are those that the study kept, and that it claims nothing else."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def results():
    """The benchmarks are no part of what is installed: they are imported from the clone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        import benchmarks.results as module

        yield module


@pytest.fixture
def copied(tmp_path):
    """The tables, to be changed."""
    return Path(shutil.copytree(KEPT, tmp_path / "results"))


def test_the_page_is_what_the_tables_say(results):
    assert (ROOT / "docs" / "results.md").read_text() == results.render(KEPT)


@pytest.mark.parametrize("model", ["reference", "reference-dit"])
def test_the_pages_of_the_study_have_the_same_numbers(results, model):
    page = (ROOT / "docs" / f"results-{model}.md").read_text()
    found = results.Findings(KEPT / model)
    for size in ("32", "64", "96", "128", "64x128"):
        assert f"| {found.g(size).decimals(2)} |" in page
    assert f"b = {found.slope().value:.3f} +- " in page
    assert f"power {found.error('power'):.3f}" in page
    assert f"{found.removed('measured', '128'):.0f} % [" in page
    assert f"correlated by {found.agreement.rank:+.2f}" in page
    worse = [line for line in page.splitlines() if "| worse |" in line]
    assert len(worse) == len(found.shown("worse"))


@pytest.mark.parametrize("model", ["reference", "reference-dit"])
def test_the_pages_of_the_ablations_have_the_same_numbers(results, model):
    page = (ROOT / "docs" / f"results-{model}-ablations.md").read_text()
    found = results.Findings(KEPT / model)
    assert f"| {found.ablated_drift('kappa=1', '128'):.0f} % [" in page
    difference = found.ablated("measured", "192", "text_score:critic")
    assert f"{difference.value:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]" in page
    assert page.count("**worse**") - 1 == len(found.ablations_shown("worse"))  # one explains the mark


def test_the_page_of_the_checkpoints_has_the_same_numbers(results):
    page = (ROOT / "docs" / "results-checkpoints.md").read_text()
    learning = results.Learning(KEPT / "checkpoints.json")
    for step in learning.steps:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {step} |"))
        for size in ("32", "64", "128"):
            assert f"| {learning.g(step, size).decimals(2)}" in row
        assert f"| {learning.loss(step, '64'):.3f} [" in row
        assert f"| {learning.peaked(step):.3f} [" in row


def test_a_sentence_that_is_no_longer_true_stops_the_page(results, copied):
    path = copied / "reference" / "quality.json"
    compared = results.saved(path)
    compared.loc[compared["law"] == "paper", "verdict"] = "better"
    path.write_text(compared.to_json(orient="records"))
    with pytest.raises(SystemExit, match="nothing is better in the UNet"):
        results.render(copied)


def test_a_number_that_changes_is_told(results, copied):
    before = results.Findings(copied / "reference").g("128").decimals(2)
    path = copied / "reference" / "loss-g-best.json"
    best = results.saved(path)
    best.loc[best["size"] == "128", ["g", "low", "high"]] = 1.41, 1.31, 1.69
    path.write_text(best.to_json(orient="records"))
    page = results.render(copied)
    assert "1.41 [1.31, 1.69]" in page
    assert f"g = {before}" not in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-7.16, "−7.2"),
        (-10.3, "−10"),
        (0.0457, "0.046"),
        (2.0, "2"),
        (233.4, "230"),
        (4.53e-05, "0.000045"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_out(results, value, text):
    assert results.number(value) == text


def test_an_interval_is_written_as_a_difference_or_with_decimals(results):
    interval = results.Interval(0.0457, 0.0262, -0.0636)
    assert str(interval) == "+0.046 [0.026, −0.064]"
    assert interval.decimals(2) == "0.05 [0.03, −0.06]"
    assert results.Interval(-0.019, -0.024, -0.014).percent() == "−1.9 % [−2.4, −1.4]"
    assert results.Interval(-0.019, -0.024, -0.014).less() == "1.9 % [1.4, 2.4]"


def test_changes_are_told_apart_from_their_absence(results):
    table = pd.DataFrame(
        {
            "law": "kappa", "size": "32", "change": ["only early blocks", None], "metric": "m",
            "difference": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5], "removed": [0.1, 0.2],
        }
    )  # fmt: skip

    class Known(results.Findings):
        ablations = table

    found = Known(Path())
    assert found.ablated("kappa", "32", "m", "only early blocks").value == 1
    assert found.ablated("kappa", "32", "m").value == 2
    assert found.ablated_drift("kappa", "32") == pytest.approx(20)
