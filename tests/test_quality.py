"""Paired comparisons of images, with networks and differences of known values."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

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
from entropy_probe.evaluation.differences import corrected, metric_difference
from entropy_probe.evaluation.drift import bootstrap_weights
from entropy_probe.evaluation.image_metrics import frechet_distance, kernel_distance, text_score
from entropy_probe.evaluation.image_quality import resampled_indices
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


def test_verdict_depends_on_direction_of_metric():
    noise = np.random.default_rng(0).normal(0, 0.01, 1000)

    def compared(metric, difference):
        return metric_difference("paper", (32, 32), metric, 1.0, difference, difference + noise, images=64, prompts=32)

    differences = corrected(
        [
            compared("text_score", 0.2),
            compared("repetition", 0.2),
            compared("repetition", -0.2),
            compared("repetition", 0.001),
        ]
    )
    assert [c.verdict for c in differences] == ["better", "worse", "better", "no difference detected"]
    assert differences[3].needed == pytest.approx(64 * (2.8016 * 0.01 / 0.001) ** 2, rel=0.1)


def test_correction_equals_definition_of_holm():
    differences = [
        MetricDifference("paper", (32, 32), "text_score", 1, 1, 0, 2, p, "", 10, None)
        for p in (0.04, 0.01, 0.03, 0.005)
    ]
    assert [c.p for c in corrected(differences)] == pytest.approx([0.06, 0.03, 0.06, 0.02])


def test_single_pair_detects_no_difference():
    assert metric_difference("paper", (32, 32), "repetition", 0.1, 0.1, np.full(1000, 0.1), images=1, prompts=1).p == 1


def test_equal_images_have_no_difference():
    same = metric_difference("paper", (32, 32), "repetition", 0.1, 0.0, np.zeros(1000), images=16, prompts=8)
    assert same.p == 1
    assert same.needed is None


def test_resample_repeats_images_by_their_weights():
    pairs = pd.MultiIndex.from_product([range(6), range(3)], names=["prompt", "seed"])
    for weights in bootstrap_weights(pairs)[:50]:
        index = resampled_indices(weights)
        assert np.bincount(index, minlength=len(pairs)) == pytest.approx(weights * len(pairs))


def test_bootstrap_of_mean_has_its_standard_error():
    pairs = pd.MultiIndex.from_product([range(200), range(1)], names=["prompt", "seed"])
    values = np.random.default_rng(1).normal(size=200)
    means = [values[resampled_indices(weights)].mean() for weights in bootstrap_weights(pairs)[1:]]
    assert np.std(means) == pytest.approx(values.std() / np.sqrt(200), rel=0.1)


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


def test_constant_difference_uses_sign_test():
    constant = metric_difference(
        "paper", (32, 32), "caption_found", 0.0, -1.0, np.full(1000, -1.0), images=4, prompts=4
    )
    assert constant.p == 0.125
    assert constant.needed is None


def test_verdict_names_better_and_worse_metrics_or_number_of_pairs_needed():
    def compared(verdict, needed):
        return MetricDifference("paper", (32, 32), "repetition", 0.5, 0.1, 0.0, 0.2, 0.5, verdict, 16, needed)

    def sentence(*comparisons):
        (text,) = Quality(pd.DataFrame(), pd.DataFrame(), comparisons).verdict()
        return text.split(": ", 1)[1]

    nothing = "no difference detected"
    assert sentence(compared("better", 3.0), compared(nothing, None)) == (
        "better in repetition at 32. No difference detected in 1 of 2."
    )
    assert sentence(compared(nothing, 296.0), compared(nothing, 304.0)) == (
        "no image difference detected in 2 comparisons; 16 pairs may be too few (about 300 needed)."
    )
    assert sentence(compared(nothing, None)).endswith("16 pairs may be too few.")


def test_reads_verdicts_of_version_0_1_0(scored):
    fields = json.loads(scored.quality.to_json())
    fields["comparisons"][0]["verdict"] = "no difference shown"
    assert Quality.from_json(json.dumps(fields)).comparisons[0].verdict == "no difference detected"
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
