"""Paired comparisons of images, with networks and differences of known values."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.weightstats import DescrStatsW

import entropy_probe as ep
from entropy_probe import evaluation
from entropy_probe.errors import InputError
from entropy_probe.evaluation import (
    METRICS,
    WHITE,
    MetricDifference,
    Outcome,
    Quality,
    Scorer,
    in_order,
    metrics,
    quality,
    validate,
)
from entropy_probe.evaluation.differences import corrected, images_needed, metric_difference
from entropy_probe.evaluation.image_metrics import (
    frechet_contributions,
    frechet_distance,
    kernel_contributions,
    kernel_distance,
    text_score,
)
from entropy_probe.laws import Constant
from entropy_probe.models import to_tensor
from entropy_probe.plots import quality_by_law
from entropy_probe.plots.tables import quality_table

PROMPTS = ["noto red apple", "flat pizza", "noto frog"]


class Colours(torch.nn.Module):
    """Embeds an image as its mean colour, and captions as colours."""

    num_features = 3

    def forward(self, images):
        return images.float().mean((2, 3)) / 255 + 0.01

    def embed_captions(self, captions):
        return torch.eye(3)[torch.arange(len(captions)) % 3]


class Quarters(torch.nn.Module):
    """Embeds an image as the brightness of its quarters. It cannot read captions."""

    num_features = 4

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), 2).flatten(1) / 255


@pytest.fixture(scope="module")
def scored(tiny_pipeline):
    scorer = Scorer({"colours": Colours()}, ep.reference.images()[::60], WHITE)
    return validate(
        tiny_pipeline, laws=["paper", Constant(3.0)], prompts=PROMPTS, sizes=[(32, 32), (64, 64)], seeds=[0, 1],
        steps=2, scorer=scorer, progress=False,
    )  # fmt: skip


def test_every_law_is_compared_at_every_other_size(scored):
    table = scored.quality.table()
    assert set(table["law"]) == {"paper", "constant"}
    assert set(table["size"]) == {"32"}
    assert {"text_score", "caption_found", "incompleteness", "repetition", "kernel_distance"} <= set(table["metric"])
    assert (table["images"] == 6).all()
    assert ((table["p"] >= 0) & (table["p"] <= 1)).all()


def test_image_is_scored_by_its_pixels(scored):
    network = Colours()
    row = scored.quality.images.query("law == 'paper' and prompt == 'flat pizza' and seed == 1 and height == 32").iloc[
        0
    ]
    image = to_tensor(scored.sweep.image("flat pizza", (32, 32), 1, "paper"))
    expected = 100 * torch.cosine_similarity(network(image[None])[0], torch.eye(3)[1], dim=0)
    assert row["text_score"] == pytest.approx(float(expected), rel=1e-4)


def test_frechet_distance_is_computed_with_enough_images(scored):
    assert "frechet_distance" in set(scored.quality.table()["metric"])  # 6 images, 3 features


def test_several_networks_score_like_each_alone(scored):
    real = ep.reference.images()[::60]
    both = quality(scored.sweep, Scorer({"colours": Colours(), "quarters": Quarters()}, real, WHITE), progress=False)
    alone = quality(scored.sweep, Scorer({"quarters": Quarters()}, real, WHITE), progress=False)
    assert {"text_score:colours", "kernel_distance:colours", "kernel_distance:quarters"} <= set(both.table()["metric"])
    assert not {"text_score:quarters", "text_score"} & set(both.table()["metric"])
    columns = ["law", "size", "value", "difference", "low", "high"]
    for metric, network, truth in [
        ("text_score", "colours", scored.quality),
        ("kernel_distance", "colours", scored.quality),
        ("kernel_distance", "quarters", alone),
        ("frechet_distance", "quarters", alone),
    ]:
        here, there = both.table(), truth.table()
        here, there = here[here["metric"] == f"{metric}:{network}"], there[there["metric"] == metric]
        assert here[columns].reset_index(drop=True).equals(there[columns].reset_index(drop=True))
    page = quality_table(both)["metric"]
    assert "kernel distance by quarters (lower is better)" in set(page)
    assert in_order(["repetition", "kernel_distance:b", "text_score:a", "kernel_distance:a"]) == [
        "text_score:a", "repetition", "kernel_distance:a", "kernel_distance:b",
    ]  # fmt: skip
    figure, data = quality_by_law(both)
    assert len(figure.axes) >= data["metric"].nunique() == both.table()["metric"].nunique()


def test_outcome_with_quality_survives_json(scored):
    again = Outcome.from_json(scored.to_json(), scored.sweep)
    assert again.quality.comparisons == scored.quality.comparisons
    assert again.quality.images.equals(scored.quality.images)
    assert json.loads(again.to_json()) == json.loads(scored.to_json())


def test_rejects_sweep_without_original(scored):
    from dataclasses import replace

    alone = replace(scored.sweep, grid=replace(scored.sweep.grid, laws=scored.sweep.grid.laws[1:]))
    with pytest.raises(InputError, match="original"):
        quality(alone, Scorer({"colours": Colours()}, ep.reference.images()[::60]), progress=False)


def compared(metric, difference, noise=0.01, prompts=32, seeds=2, before=1.0):
    spread = noise * np.random.default_rng(0).standard_normal((prompts, seeds))
    return metric_difference(
        "paper", (32, 32), metric, before, before + difference, difference + spread - spread.mean()
    )


def test_verdict_depends_on_direction_of_metric_and_on_its_margin():
    differences = corrected(
        [
            compared("text_score", 2.0),
            compared("repetition", 0.2),
            compared("repetition", -0.2),
            compared("repetition", 0.001),
            compared("repetition", 0.03, noise=1.0),
        ]
    )
    assert [c.verdict for c in differences] == ["better", "worse", "better", "equivalent", "not enough images"]


def test_p_values_equal_scipy_and_statsmodels_with_one_seed():
    own = compared("repetition", 0.03, noise=0.1, seeds=1)
    values = 0.1 * np.random.default_rng(0).standard_normal((32, 1))[:, 0]
    values += 0.03 - values.mean()
    assert own.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (own.low, own.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))
    assert own.p_equivalent == pytest.approx(DescrStatsW(values).ttost_mean(-0.05, 0.05)[0])


@pytest.mark.parametrize(("difference", "margin"), [(0.5, 0.2), (0.0, 0.5), (0.1, 0.5)])
def test_images_needed_have_the_power_that_statsmodels_computes(difference, margin):
    images = images_needed(difference, margin, deviation=1.0)
    if difference > margin:
        power = NormalIndPower(ddof=0).power(difference, images, 0.05, ratio=0)
    else:
        error = images**-0.5
        reach = margin - stats.norm.isf(0.05) * error
        power = stats.norm.cdf((reach - difference) / error) - stats.norm.cdf((-reach - difference) / error)
    assert power == pytest.approx(0.8, abs=0.02)


def test_holm_correction_needs_about_twice_the_images():
    alone, many = (
        corrected([compared("repetition", 0.2, noise=1.0)]),
        corrected([compared("repetition", 0.2, 1.0)] * 20),
    )
    assert many[0].needed / alone[0].needed == pytest.approx((3.0233 + 0.8416) ** 2 / (1.96 + 0.8416) ** 2, rel=0.02)


def test_both_corrections_equal_definition_of_holm():
    differences = [
        MetricDifference("paper", (32, 32), "text_score", 1, 1, 0, 2, p, "", 10, None, p_equivalent=q)
        for p, q in ((0.04, 0.005), (0.01, 0.03), (0.03, 0.04), (0.005, 0.01))
    ]
    assert [c.p for c in corrected(differences)] == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert [c.p_equivalent for c in corrected(differences)] == pytest.approx([0.02, 0.06, 0.06, 0.03])


def test_single_pair_decides_nothing():
    single = metric_difference("paper", (32, 32), "repetition", 0.0, 0.1, np.array([[0.1]]))
    assert (single.p, single.p_equivalent) == (1, 1)
    assert np.isnan(single.low)
    assert corrected([single])[0].verdict == "not enough images"


def test_equal_images_are_equivalent():
    (same,) = corrected([metric_difference("paper", (32, 32), "repetition", 0.1, 0.1, np.zeros((8, 2)))])
    assert same.p == 1
    assert same.needed is None
    assert same.verdict == "equivalent"


def test_constant_difference_uses_sign_test():
    constant = metric_difference("paper", (32, 32), "caption_found", 1.0, 0.0, np.full((4, 1), -1.0))
    assert constant.p == 0.125
    assert constant.p_equivalent == 1
    assert constant.needed is None


@pytest.mark.parametrize("distance", ["kernel", "frechet"])
def test_contributions_have_the_standard_error_of_the_distance(distance):
    """The spread over 400 fresh samples against the error from the contributions of one."""
    compute, contributions = {
        "kernel": (kernel_distance, kernel_contributions),
        "frechet": (frechet_distance, frechet_contributions),
    }[distance]
    generator = torch.Generator().manual_seed(0)
    stretch = torch.tensor([1.0, 2.0, 0.5])
    real = torch.randn(120, 3, generator=generator)
    samples = [torch.randn(120, 3, generator=generator) * stretch + 0.5 for _ in range(400)]
    spread = np.std([compute(real, sample) for sample in samples])
    variances = [float(contributions(real, sample).var() / len(sample)) for sample in samples]
    assert np.mean(variances) ** 0.5 == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("distance", ["kernel", "frechet"])
def test_contributions_predict_the_distance_without_an_image(distance):
    compute, contributions = {
        "kernel": (kernel_distance, kernel_contributions),
        "frechet": (frechet_distance, frechet_contributions),
    }[distance]
    generator = torch.Generator().manual_seed(1)
    real, sample = torch.randn(80, 3, generator=generator), torch.randn(80, 3, generator=generator) * 1.5
    own = contributions(real, sample)
    moved = sample.clone()
    moved[7] += 0.02
    step = compute(real, moved) - compute(real, sample)
    assert step == pytest.approx(float(contributions(real, moved)[7] - own[7]) / 80, rel=0.1)


def test_law_with_g_1_changes_no_metric(tiny_pipeline):
    scorer = Scorer({"colours": Colours(), "quarters": Quarters()}, ep.reference.images()[::60], WHITE)
    same = validate(
        tiny_pipeline, laws=[Constant(1.0)], prompts=PROMPTS, sizes=[(32, 32)], seeds=[0, 1], steps=2, scorer=scorer,
        progress=False,
    )  # fmt: skip
    table = same.quality.table()
    assert len(table) == 8  # four metrics of an image, two distances by each network; one network reads captions
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all()


def test_verdict_counts_every_kind_of_comparison():
    def found(verdict, needed):
        return MetricDifference("paper", (32, 32), "repetition", 0.5, 0.1, 0.0, 0.2, 0.5, verdict, 16, needed)

    def sentence(*comparisons):
        (text,) = Quality(pd.DataFrame(), pd.DataFrame(), comparisons).verdict()
        return text.split(": ", 1)[1]

    undecided = "not enough images"
    assert sentence(found("better", 3.0), found("equivalent", 9.0)) == (
        "better in repetition at 32; equivalent in 1 of 2 comparisons."
    )
    assert sentence(found(undecided, 296.0), found(undecided, 304.0)) == (
        "not enough images (16 of about 300) to decide 2 of 2 comparisons."
    )
    assert sentence(found(undecided, None)) == "not enough images (16) to decide 1 of 1 comparisons."


def test_reads_verdicts_of_version_0_1_0(scored):
    fields = json.loads(scored.quality.to_json())
    fields["comparisons"][0]["verdict"] = "no difference shown"
    for name in ("error", "margin", "p_equivalent"):
        del fields["comparisons"][0][name]
    assert Quality.from_json(json.dumps(fields)).comparisons[0].verdict == "not enough images"
    with pytest.raises(InputError, match="not a valid image quality"):
        Quality.from_json("{}")


def test_metrics_are_declared_with_common_names():
    names = {metric.common_name.split(",")[0] for metric in METRICS.values()}
    assert {"FID", "KID", "CLIPScore"} <= names
    assert all(metric.name == name and metric.unit and metric.formula for name, metric in METRICS.items())


def test_metrics_are_declared_in_one_file():
    files = {path.name: path.read_text() for path in Path(evaluation.__file__).parents[1].rglob("*.py")}
    declared = re.compile("|".join([r"\bMetric\(", *(re.escape(metric.formula) for metric in METRICS.values())]))
    assert {name for name, text in files.items() if declared.search(text)} == {"metrics.py"}


@pytest.mark.parametrize(
    ("name", "function"), [("FID", frechet_distance), ("KID", kernel_distance), ("CLIP score", text_score)]
)
def test_docstring_names_the_usual_metric(name, function):
    assert name in function.__doc__
    assert name in metrics.__doc__


def test_old_names_still_work_and_warn():
    with pytest.warns(DeprecationWarning, match="evaluation.Judge is deprecated: use Scorer"):
        assert evaluation.Judge is Scorer
    with pytest.warns(DeprecationWarning, match="evaluation.Comparison is deprecated: use MetricDifference"):
        assert evaluation.Comparison is MetricDifference
