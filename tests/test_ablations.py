"""The ablations of the study: what each samples, and that its tables say what the outcomes say."""

from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

import entropy_probe as ep
from entropy_probe.evaluation import WHITE, Judge
from entropy_probe.laws import Measured
from entropy_probe.models import training_tokens

ROOT = Path(__file__).parents[1]


class Brightness(torch.nn.Module):
    """Sees how bright an image is."""

    num_features = 1

    def forward(self, images):
        return images.float().mean((1, 2, 3))[:, None] / 255


class Contrast(torch.nn.Module):
    """Sees how much the brightness of an image varies, in its colours."""

    num_features = 3

    def forward(self, images):
        return images.float().std((2, 3)) / 255


@pytest.fixture(scope="module")
def ablations():
    """The benchmarks are no part of what is installed: they are imported from the clone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        import research.ablations as module

        patch.setattr(module, "SHAPES", [(64, 64), (72, 96)])  # fewer and smaller than the study's
        patch.setattr(module, "SETTINGS", {"guidance 1": {"guidance_scale": 1.0}, "3 steps": {"steps": 3}})
        patch.setattr(module, "KAPPAS", {(32, 32): (0.3, 0.65), (128, 128): (2.0,)})
        yield module


@pytest.fixture(scope="module")
def drawn(ablations, tiny_pipeline, tmp_path_factory):
    return ep.sweep(
        tiny_pipeline, prompts=["flat pizza", "noto frog"], sizes=ablations.ENDS, steps=2, guidance_scale=4.0,
        scale_factors=(), store=tmp_path_factory.mktemp("ablations") / "base", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def answer(ablations, tiny_pipeline, drawn):
    """Every question, of two prompts in two steps, by two judges."""
    layers = list(training_tokens(tiny_pipeline))
    measured = Measured({layer: ((-1.0, 0.5), (1.0, 1.5)) for layer in layers}, dict.fromkeys(layers, 0.9))
    judge = Judge({"brightness": Brightness(), "contrast": Contrast()}, ep.reference.images()[::200], WHITE)
    out = drawn.run.path.parent

    def again():
        with pytest.MonkeyPatch.context() as patch:  # a distance takes milliseconds, and there are many
            patch.setattr(import_module("entropy_probe.evaluation.image_quality"), "DISTANCE_RESAMPLES", 5)
            return list(ablations.sample_and_judge(tiny_pipeline, drawn, measured, judge, out, progress=False))

    return again


@pytest.fixture(scope="module")
def found(answer):
    return answer()


def of(found, section):
    return [one for one in found if one.section == section]


def test_each_question_is_asked(found):
    assert list(dict.fromkeys(one.section for one in found)) == ["kappa", "levels", "shapes", "settings"]
    small, large = (one.outcome.sweep.grid for one in of(found, "kappa"))
    assert [small.sizes, large.sizes] == [((32, 32), (64, 64)), ((128, 128), (64, 64))]
    assert [law.kappa["*"] for law in small.laws[1:-1]] == [0.3, 0.65]
    assert [law.kappa["*"] for law in large.laws[1:-1]] == [2.0]
    assert [small.laws[-1].name, large.laws[-1].name] == ["measured", "measured"]
    (shapes,) = of(found, "shapes")
    assert shapes.outcome.sweep.grid.sizes == ((64, 64), (72, 96))


def test_the_levels_are_scaled_one_by_one_and_make_up_the_model(found, tiny_pipeline):
    scaled = []
    for one in of(found, "levels"):
        _, law = one.outcome.sweep.grid.laws
        scaled.append({layer for layer in law.kappa if law.scale_factor(layer, 400, 100) != 1})
    fine, coarse, middle = scaled
    assert all(layer.startswith(("down_blocks.0", "up_blocks.1")) for layer in fine)
    assert all(layer.startswith(("down_blocks.1", "up_blocks.0")) for layer in coarse)
    assert all(layer.startswith("mid_block") for layer in middle)
    assert fine | coarse | middle == set(training_tokens(tiny_pipeline))


def test_a_level_that_is_scaled_changes_the_images(found):
    for one in of(found, "levels"):
        sweep = one.outcome.sweep
        before, after = (sweep.image("noto frog", (128, 128), 0, law.name) for law in sweep.grid.laws)
        assert before.tobytes() != after.tobytes()


def test_the_levels_of_a_transformer_are_thirds_of_its_depth(ablations):
    class Transformer(torch.nn.Module):
        transformer_blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(9))

    pipeline = type("Pipeline", (), {"transformer": Transformer()})()
    early, middle, late = ablations.levels(pipeline).values()
    assert early == ("transformer_blocks.0.*", "transformer_blocks.1.*", "transformer_blocks.2.*")
    assert [len(middle), late[-1]] == [3, "transformer_blocks.8.*"]


def test_settings_are_those_that_are_named(found):
    told = {one.change: one.outcome.sweep.manifest for one in of(found, "settings")}
    assert [told["guidance 1"].steps, told["guidance 1"].guidance_scale] == [2, 1.0]
    assert [told["3 steps"].steps, told["3 steps"].guidance_scale] == [3, 4.0]


def test_the_table_says_what_the_outcomes_say(ablations, found):
    table = ablations.table_of(of(found, "shapes"))
    assert len(table) == 2  # laws beside the original, at the one size beside the training size
    outcome = of(found, "shapes")[0].outcome
    compared = outcome.quality.table().set_index(["law", "size", "metric"])
    row = table[(table["law"] == "measured") & (table["size, px"] == "72x96")].iloc[0]
    for metric, title in [
        ("repetition", "repetition (lower is better)"),
        ("kernel_distance:contrast", "kernel distance by contrast (lower is better)"),
    ]:
        one = compared.loc[("measured", "72x96", metric)]
        assert row[title].startswith(f"{one.difference:+.3g} [{one.low:+.3g}, {one.high:+.3g}]")
    drift = outcome.table("layer").set_index(["law", "size"]).loc[("measured", "72x96")]
    assert row["drift removed"].startswith(f"{100 * drift.removed:.0f} % [{100 * drift.removed_low:.0f}, ")
    assert list(ablations.table_of(of(found, "levels")).columns[:2]) == ["change", "law"]


@pytest.mark.parametrize(
    ("verdict", "mark"), [("better", " **better**"), ("worse", " **worse**"), ("no difference shown", "")]
)
def test_a_cell_gives_difference_interval_and_what_is_shown(ablations, verdict, mark):
    compared = pd.Series({"difference": -0.25, "low": -0.5, "high": 0.125, "verdict": verdict})
    assert ablations.difference(compared) == f"-0.25 [-0.5, +0.125]{mark}"


def test_the_page_has_every_answer_and_is_remade_without_judging(ablations, answer, found, drawn):
    page = ablations.page(answer(), drawn, command="python", charts=["kappa.png"])
    assert page == ablations.page(found, drawn, command="python", charts=["kappa.png"])
    assert "2 pairs of images for every law and size, 2 steps and guidance 4" in page
    assert "κ = 0.5 in the layers of one level, so g = 0.55 at 32 px and 1.30 at 128 px" in page
    assert "{" not in page


def test_a_law_of_other_weights_is_not_taken_up(ablations, tmp_path):
    settings = {"steps": 8, "fingerprint": "abc"}
    assert ablations.law_of_study(tmp_path, settings) is None
    (tmp_path / "settings.json").write_text('{"steps": 8, "true": 48, "fingerprint": "abd"}')
    with pytest.raises(SystemExit, match=r"run benchmarks\.study again"):
        ablations.law_of_study(tmp_path, settings)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({}, "by neither"),
        ({"critic": "worse"}, "worse by critic alone"),
        ({"critic": "worse", "efficientnet-lite0": "worse"}, "worse by both"),
        ({"critic": "worse", "efficientnet-lite0": "better"}, "opposed"),
    ],
)
def test_what_two_networks_show_in_a_few_words(ablations, shown, words):
    assert import_module("research.study").summed_up(shown) == words


def test_networks_agree_as_far_as_they_show_the_same():
    networks = "kernel_distance:critic", "kernel_distance:efficientnet-lite0"
    nothing = "no difference shown"
    said = {  # law: the changes that the two see, and what is shown of them
        "both": ((3.0, 30.0), ("worse", "worse")),
        "alone": ((1.0, 20.0), (nothing, "worse")),
        "opposed": ((-2.0, 10.0), ("better", "worse")),
        "neither": ((2.0, 5.0), (nothing, nothing)),
        "unchanged": ((0.0, 0.0), (nothing, nothing)),
    }
    compared = pd.DataFrame(
        [
            {"law": law, "size": "32", "metric": metric, "difference": change, "low": 0, "high": 0, "verdict": verdict}
            for law, (changes, verdicts) in said.items()
            for metric, change, verdict in zip(networks, changes, verdicts, strict=True)
        ]
    )
    study = import_module("research.study")
    # Ranks 4 2 1 3 beside 4 3 2 1, of the four that change anything: 1 - 6 (0 + 1 + 1 + 4) / (4 * 15).
    assert study.Agreement.of(compared) == study.Agreement(4, pytest.approx(0.4), 3, 1, 1)
    assert list(study.opinions(compared)["shown"]) == [
        "worse by both", "worse by efficientnet-lite0 alone", "opposed", "by neither", "by neither",
    ]  # fmt: skip


def test_the_kept_table_says_what_the_outcomes_say(ablations, found):
    kept = ablations.tidy(found)
    assert list(dict.fromkeys(kept["section"])) == ["kappa", "levels", "shapes", "settings"]
    (one,) = (one for one in found if one.change == "guidance 1")
    own = kept[kept["change"] == "guidance 1"].reset_index(drop=True)
    compared, drift = one.outcome.quality.table(), one.outcome.table("layer").set_index(["law", "size"])
    assert own["difference"].tolist() == compared["difference"].tolist()
    assert own["removed"].tolist() == [
        drift.loc[(law, size), "removed"] for law, size in zip(own["law"], own["size"], strict=True)
    ]


def test_results_of_other_settings_are_not_mixed(ablations, tmp_path):
    check_settings = import_module("research.study").check_settings
    check_settings(tmp_path / "new", {"seeds": (0, 1)}, "images.json")
    check_settings(tmp_path / "new", {"seeds": (0, 1)}, "images.json")
    with pytest.raises(SystemExit, match=r"other settings, \{'seeds': \[0, 1\]\}: delete them"):
        check_settings(tmp_path / "new", {"seeds": (0,)}, "images.json")
