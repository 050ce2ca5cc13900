"""Paired comparisons: what is made worse on purpose is found worse, what is left alone is not."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import entropy_probe as ep
from entropy_probe.errors import InputError
from entropy_probe.evaluation import WHITE, Judge, Outcome, quality, validate
from entropy_probe.evaluation.drift import resamples
from entropy_probe.evaluation.image_quality import Comparison, _compare, _corrected, drawn_again
from entropy_probe.laws import Constant
from entropy_probe.models import to_tensor
from entropy_probe.plots.figures import quality_by_law
from entropy_probe.plots.tables import in_order, quality_table

PROMPTS = ["noto red apple", "flat pizza", "noto frog"]


class Colours(torch.nn.Module):
    """Sees the mean colour of an image, and reads any caption as the same one."""

    num_features = 3

    def forward(self, images):
        return images.float().mean((2, 3)) / 255 + 0.01

    def embed_captions(self, captions):
        return torch.eye(3)[torch.arange(len(captions)) % 3]


class Quarters(torch.nn.Module):
    """Sees how bright the quarters of an image are, and cannot read."""

    num_features = 4

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), 2).flatten(1) / 255


@pytest.fixture(scope="module")
def judged(tiny_pipeline):
    judge = Judge({"colours": Colours()}, ep.reference.images()[::60], WHITE)
    return validate(
        tiny_pipeline, laws=["paper", Constant(3.0)], prompts=PROMPTS, sizes=[(32, 32), (64, 64)], seeds=[0, 1],
        steps=2, judge=judge, progress=False,
    )  # fmt: skip


def test_every_law_is_compared_at_every_other_size(judged):
    table = judged.quality.table()
    assert set(table["law"]) == {"paper", "constant"}
    assert set(table["size"]) == {"32"}
    assert {"text_score", "caption_found", "incompleteness", "repetition", "kernel_distance"} <= set(table["metric"])
    assert (table["images"] == 6).all()
    assert ((table["p"] >= 0) & (table["p"] <= 1)).all()


def test_a_image_is_judged_by_its_own_pixels(judged):
    network = Colours()
    row = judged.quality.images.query("law == 'paper' and prompt == 'flat pizza' and seed == 1 and height == 32").iloc[
        0
    ]
    image = to_tensor(judged.sweep.image("flat pizza", (32, 32), 1, "paper"))
    expected = 100 * torch.cosine_similarity(network(image[None])[0], torch.eye(3)[1], dim=0)
    assert row["text_score"] == pytest.approx(float(expected), rel=1e-4)


def test_the_frechet_distance_appears_where_there_are_images_enough(judged):
    assert "frechet_distance" in set(judged.quality.table()["metric"])  # 6 images, 3 features


def test_several_networks_judge_as_each_does_alone(judged):
    real = ep.reference.images()[::60]
    both = quality(judged.sweep, Judge({"colours": Colours(), "quarters": Quarters()}, real, WHITE), progress=False)
    alone = quality(judged.sweep, Judge({"quarters": Quarters()}, real, WHITE), progress=False)
    assert {"text_score:colours", "kernel_distance:colours", "kernel_distance:quarters"} <= set(both.table()["metric"])
    assert not {"text_score:quarters", "text_score"} & set(both.table()["metric"])
    columns = ["law", "size", "value", "difference", "low", "high"]
    for metric, network, truth in [
        ("text_score", "colours", judged.quality),
        ("kernel_distance", "colours", judged.quality),
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
    assert len(quality_by_law(both).axes) >= len(set(both.table()["metric"]))


def test_an_outcome_with_quality_survives_json(judged):
    again = Outcome.from_json(judged.sweep, judged.to_json())
    assert again.quality.comparisons == judged.quality.comparisons
    assert again.quality.images.equals(judged.quality.images)
    assert json.loads(again.to_json()) == json.loads(judged.to_json())


def test_the_original_must_be_there(judged):
    from dataclasses import replace

    alone = replace(judged.sweep, grid=replace(judged.sweep.grid, laws=judged.sweep.grid.laws[1:]))
    with pytest.raises(InputError, match="original"):
        quality(alone, Judge({"colours": Colours()}, ep.reference.images()[::60]), progress=False)


def test_a_shown_difference_is_named_by_the_way_that_is_better():
    noise = np.random.default_rng(0).normal(0, 0.01, 1000)

    def compared(metric, difference):
        return _compare("paper", (32, 32), metric, 1.0, difference, difference + noise, images=64, prompts=32)

    found = _corrected(
        [
            compared("text_score", 0.2),
            compared("repetition", 0.2),
            compared("repetition", -0.2),
            compared("repetition", 0.001),
        ]
    )
    assert [c.verdict for c in found] == ["better", "worse", "better", "no difference shown"]
    assert found[3].needed == pytest.approx(64 * (2.8016 * 0.01 / 0.001) ** 2, rel=0.1)


def test_holm_is_the_definition():
    made = [Comparison("paper", (32, 32), "text_score", 1, 1, 0, 2, p, "", 10, None) for p in (0.04, 0.01, 0.03, 0.005)]
    assert [c.p for c in _corrected(made)] == pytest.approx([0.06, 0.03, 0.06, 0.02])


def test_one_pair_shows_nothing():
    assert _compare("paper", (32, 32), "repetition", 0.1, 0.1, np.full(1000, 0.1), images=1, prompts=1).p == 1


def test_equal_images_show_no_difference():
    same = _compare("paper", (32, 32), "repetition", 0.1, 0.0, np.zeros(1000), images=16, prompts=8)
    assert same.p == 1
    assert same.needed is None


def test_a_resample_draws_once_and_keeps_prompts_and_seeds_whole():
    pairs = pd.MultiIndex.from_product([range(6), range(3)], names=["prompt", "seed"])
    for weights in resamples(pairs)[:50]:
        index = drawn_again(weights)
        assert np.bincount(index, minlength=len(pairs)) == pytest.approx(weights * len(pairs))


def test_what_is_drawn_again_varies_as_sampling_does():
    """For a mean the standard error is known."""
    pairs = pd.MultiIndex.from_product([range(200), range(1)], names=["prompt", "seed"])
    values = np.random.default_rng(1).normal(size=200)
    means = [values[drawn_again(weights)].mean() for weights in resamples(pairs)[1:]]
    assert np.std(means) == pytest.approx(values.std() / np.sqrt(200), rel=0.1)


def test_images_that_a_law_leaves_alone_differ_in_nothing(tiny_pipeline):
    judge = Judge({"colours": Colours(), "quarters": Quarters()}, ep.reference.images()[::60], WHITE)
    same = validate(
        tiny_pipeline, laws=[Constant(1.0)], prompts=PROMPTS, sizes=[(32, 32)], seeds=[0, 1], steps=2, judge=judge,
        progress=False,
    )  # fmt: skip
    table = same.quality.table()
    assert len(table) == 8  # four of the images, two distances by either network, of which one reads
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all()


def test_a_difference_that_does_not_vary_is_as_sure_as_its_signs():
    lost = _compare("paper", (32, 32), "caption_found", 0.0, -1.0, np.full(1000, -1.0), images=4, prompts=4)
    assert lost.p == 0.125
    assert lost.needed is None
