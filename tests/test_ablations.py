"""The ablations of the study: what each samples, and that its tables say what the outcomes say."""

from pathlib import Path

import pytest
import torch

import entropy_probe as ep
from entropy_probe.laws import Measured
from entropy_probe.pipelines import training_tokens
from entropy_probe.validation import WHITE, Judge

ROOT = Path(__file__).parents[1]


class Brightness(torch.nn.Module):
    """Sees how bright a picture is."""

    num_features = 1

    def forward(self, pictures):
        return pictures.float().mean((1, 2, 3))[:, None] / 255


@pytest.fixture(scope="module")
def ablations():
    """The benchmarks are no part of what is installed: they are imported from the clone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        import benchmarks.ablations as module

        yield module


@pytest.fixture(scope="module")
def found(ablations, tiny_pipeline, tmp_path_factory):
    """Every question, of one prompt and seed in two steps."""
    work = tmp_path_factory.mktemp("ablations")
    layers = list(training_tokens(tiny_pipeline))
    measured = Measured({layer: ((-1.0, 0.9), (1.0, 1.1)) for layer in layers}, dict.fromkeys(layers, 0.25))
    drawn = ep.sweep(
        tiny_pipeline, prompts=["flat pizza"], sizes=ablations.ENDS, steps=2, guidance_scale=4.0, multipliers=(),
        store=work / "base", progress=False,
    )  # fmt: skip
    judge = Judge({"brightness": Brightness()}, ep.reference.pictures()[::60], WHITE)
    return list(ablations.ablations(tiny_pipeline, drawn, measured, judge, work))


def of(found, section):
    return [one for one in found if one.section == section]


def test_each_question_is_asked(found):
    assert list(dict.fromkeys(one.section for one in found)) == ["kappa", "levels", "shapes", "settings"]
    small, large = (one.outcome.sweep.grid for one in of(found, "kappa"))
    assert [small.sizes, large.sizes] == [((32, 32), (64, 64)), ((128, 128), (64, 64))]
    assert [law.kappa["*"] for law in small.laws[1:-1]] == [0.15, 0.3, 0.5, 0.65]
    (shapes,) = of(found, "shapes")
    assert {(72, 96), (128, 64), (72, 128), (192, 192)} < set(shapes.outcome.sweep.grid.sizes)


def test_a_level_is_scaled_by_itself(found):
    for one in of(found, "levels"):
        _, law = one.outcome.sweep.grid.laws
        scaled = {layer for layer in law.kappa if law.multiplier(layer, 400, 100) != 1}
        assert 0 < len(scaled) < len(law.kappa)
        word = {"fine": ("down_blocks.0", "up_blocks.1"), "coarse": ("down_blocks.1", "up_blocks.0"), "midd": ("mid",)}
        starts = next(starts for name, starts in word.items() if name in one.change)
        assert all(layer.startswith(starts) for layer in scaled)


def test_settings_are_those_that_are_named(found):
    told = {one.change: one.outcome.sweep.manifest for one in of(found, "settings")}
    assert [told["guidance 1"].guidance_scale, told["guidance 7.5"].guidance_scale] == [1.0, 7.5]
    assert [told["20 steps"].steps, told["20 steps"].guidance_scale] == [20, 4.0]
    assert told["guidance 1"].steps == 2


def test_the_table_has_a_row_for_every_law_and_size(ablations, found):
    table = ablations.table_of(of(found, "shapes"))
    assert len(table) == 2 * 4  # two laws beside the original; four sizes beside the training size
    one = of(found, "shapes")[0].outcome
    compared = one.quality.table().set_index(["law", "size", "metric"])
    row = table[(table["law"] == "paper") & (table["size, px"] == "192")].iloc[0]
    told = next(row[column] for column in table.columns if column.startswith("repetition"))
    expected = compared.loc[("paper", "192", "repetition")]
    assert told.startswith(f"{expected.difference:+.3g} [{expected.low:+.3g}, {expected.high:+.3g}]")
    assert list(ablations.table_of(of(found, "levels")).columns[:2]) == ["change", "law"]
