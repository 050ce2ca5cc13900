"""The study and its ablations: what they sample, and that their tables show the numbers of the outcomes."""

import re
from functools import partial

import pandas as pd
import pytest
import torch

import entropy_probe as ep
from entropy_probe.evaluation import WHITE, Scorer
from entropy_probe.laws import Measured
from entropy_probe.models import training_tokens
from research import ablations, losses, study, study_page
from research.agreement import Agreement, judge_table, summarize
from research.losses import layer_groups
from research.storage import check_settings

pytestmark = pytest.mark.slow


class Brightness(torch.nn.Module):
    """A network whose only feature is the mean brightness of an image."""

    num_features = 1

    def forward(self, images):
        return images.float().mean((1, 2, 3))[:, None] / 255


class Contrast(torch.nn.Module):
    """A network whose features are the standard deviations of the colour channels."""

    num_features = 3

    def forward(self, images):
        return images.float().std((2, 3)) / 255


@pytest.fixture(scope="module", autouse=True)
def small_ablations():
    """Replace the conditions of the ablations by fewer and smaller ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, "ENDS", [(32, 32), (64, 64), (96, 96)])
        patch.setattr(ablations, "SHAPES", [(64, 64), (48, 64)])
        patch.setattr(ablations, "SETTINGS", {"guidance 1": {"guidance_scale": 1.0}, "3 steps": {"steps": 3}})
        patch.setattr(ablations, "KAPPAS", {(32, 32): (0.3, 0.65), (96, 96): (2.0,)})
        yield


@pytest.fixture(scope="module")
def original(tiny_pipeline, tmp_path_factory):
    return ep.sweep(
        tiny_pipeline, prompts=["flat pizza", "noto frog"], sizes=ablations.ENDS, steps=2, guidance_scale=4.0,
        scale_factors=(), store=tmp_path_factory.mktemp("ablations") / "base", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_ablations(tiny_pipeline, original):
    """Run every ablation: two prompts, two steps, two networks."""
    layers = list(training_tokens(tiny_pipeline))
    measured = Measured({layer: ((-1.0, 0.5), (1.0, 1.5)) for layer in layers}, dict.fromkeys(layers, 0.9))
    scorer = Scorer({"brightness": Brightness(), "contrast": Contrast()}, ep.reference.images()[::200], WHITE)
    out = original.run.path.parent

    def run():
        return list(ablations.sample_and_judge(tiny_pipeline, original, measured, scorer, out, progress=False))

    return run


@pytest.fixture(scope="module")
def found(run_ablations):
    return run_ablations()


def of_section(found, section):
    return [ablation for ablation in found if ablation.section == section]


def test_every_section_samples_its_laws_and_sizes(found):
    assert list(dict.fromkeys(ablation.section for ablation in found)) == ["kappa", "groups", "shapes", "settings"]
    small, large = (ablation.outcome.sweep.grid for ablation in of_section(found, "kappa"))
    assert [small.sizes, large.sizes] == [((32, 32), (64, 64)), ((96, 96), (64, 64))]
    assert [law.kappa["*"] for law in small.laws[1:-1]] == [0.3, 0.65]
    assert [law.kappa["*"] for law in large.laws[1:-1]] == [2.0]
    assert [small.laws[-1].name, large.laws[-1].name] == ["measured", "measured"]
    (shapes,) = of_section(found, "shapes")
    assert shapes.outcome.sweep.grid.sizes == ((64, 64), (48, 64))


def test_layer_groups_are_scaled_separately_and_cover_the_model(found, tiny_pipeline):
    scaled = []
    for ablation in of_section(found, "groups"):
        _, law = ablation.outcome.sweep.grid.laws
        scaled.append({layer for layer in law.kappa if law.scale_factor(layer, 400, 100) != 1})
    fine, coarse, middle = scaled
    assert all(layer.startswith(("down_blocks.0", "up_blocks.1")) for layer in fine)
    assert all(layer.startswith(("down_blocks.1", "up_blocks.0")) for layer in coarse)
    assert all(layer.startswith("mid_block") for layer in middle)
    assert fine | coarse | middle == set(training_tokens(tiny_pipeline))


def test_scaling_a_layer_group_changes_the_images(found):
    for ablation in of_section(found, "groups"):
        sweep = ablation.outcome.sweep
        before, after = (sweep.image("noto frog", (96, 96), 0, law.name) for law in sweep.grid.laws)
        assert before.tobytes() != after.tobytes()


def test_layer_groups_of_a_transformer_are_thirds_of_its_depth():
    class Transformer(torch.nn.Module):
        transformer_blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(9))

    pipeline = type("Pipeline", (), {"transformer": Transformer()})()
    early, middle, late = layer_groups(pipeline).values()
    assert early == ("transformer_blocks.0.*", "transformer_blocks.1.*", "transformer_blocks.2.*")
    assert [len(middle), late[-1]] == [3, "transformer_blocks.8.*"]


def test_settings_match_their_names(found):
    manifests = {ablation.change: ablation.outcome.sweep.manifest for ablation in of_section(found, "settings")}
    assert [manifests["guidance 1"].steps, manifests["guidance 1"].guidance_scale] == [2, 1.0]
    assert [manifests["3 steps"].steps, manifests["3 steps"].guidance_scale] == [3, 4.0]


def test_page_table_shows_the_numbers_of_the_outcomes(found):
    table = ablations.page_table(of_section(found, "shapes"))
    assert len(table) == 2  # two laws other than the original, one size other than the training size
    outcome = of_section(found, "shapes")[0].outcome
    compared = outcome.quality.table().set_index(["law", "size", "metric"])
    row = table[(table["law"] == "measured") & (table["size, px"] == "48x64")].iloc[0]
    for metric, title in [
        ("repetition", "repetition (lower is better)"),
        ("kernel_distance:contrast", "kernel distance by contrast (lower is better)"),
    ]:
        expected = compared.loc[("measured", "48x64", metric)]
        assert row[title].startswith(f"{expected.difference:+.3g} [{expected.low:+.3g}, {expected.high:+.3g}]")
    drift = outcome.table("layer").set_index(["law", "size"]).loc[("measured", "48x64")]
    assert row["drift removed"] == f"{100 * drift.removed:.0f} %"  # two prompts: no interval
    assert list(ablations.page_table(of_section(found, "groups")).columns[:2]) == ["change", "law"]


@pytest.mark.parametrize(
    ("verdict", "mark"), [("better", " **better**"), ("worse", " **worse**"), ("no difference detected", "")]
)
def test_table_cell_shows_difference_interval_and_significant_verdict(verdict, mark):
    compared = pd.Series({"difference": -0.25, "low": -0.5, "high": 0.125, "verdict": verdict})
    assert ablations.difference(compared) == f"-0.25 [-0.5, +0.125]{mark}"


def test_second_run_returns_the_stored_outcomes_and_the_same_page(run_ablations, found, original):
    page = ablations.page(run_ablations(), original, command="python", charts=["kappa.png"])
    assert page == ablations.page(found, original, command="python", charts=["kappa.png"])
    assert "2 pairs of images for every law and size, sampled in 2 steps with guidance 4" in page
    assert "κ = 0.5 in one group of layers, which gives g = 0.55 at 32 px and 1.30 at 128 px" in page
    assert "{" not in page


def test_rejects_law_of_study_with_other_weights(tmp_path):
    settings = {"steps": 8, "fingerprint": "abc"}
    assert ablations.law_of_study(tmp_path, settings) is None
    (tmp_path / "settings.json").write_text('{"steps": 8, "real_images": 48, "fingerprint": "abd"}')
    with pytest.raises(SystemExit, match=r"run research\.study again"):
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
def test_summary_says_whether_two_networks_agree(shown, words):
    assert summarize(shown) == words


def test_agreement_counts_equal_and_opposed_verdicts():
    networks = "kernel_distance:critic", "kernel_distance:efficientnet-lite0"
    nothing = "no difference detected"
    verdicts_of = {  # law: the changes by the two networks, and the verdicts
        "both": ((3.0, 30.0), ("worse", "worse")),
        "alone": ((1.0, 20.0), (nothing, "worse")),
        "opposed": ((-2.0, 10.0), ("better", "worse")),
        "neither": ((2.0, 5.0), (nothing, nothing)),
        "unchanged": ((0.0, 0.0), (nothing, nothing)),
    }
    compared = pd.DataFrame(
        [
            {"law": law, "size": "32", "metric": metric, "difference": change, "low": 0, "high": 0, "verdict": verdict}
            for law, (changes, verdicts) in verdicts_of.items()
            for metric, change, verdict in zip(networks, changes, verdicts, strict=True)
        ]
    )
    # Ranks 4 2 1 3 and 4 3 2 1 of the four laws that change anything: 1 - 6 (0 + 1 + 1 + 4) / (4 * 15).
    assert Agreement.of(compared) == Agreement(4, pytest.approx(0.4), 3, 1, 1)
    assert list(judge_table(compared)["shown"]) == [
        "worse by both", "worse by efficientnet-lite0 alone", "opposed", "by neither", "by neither",
    ]  # fmt: skip


def test_long_table_holds_the_numbers_of_the_outcomes(found):
    table = ablations.long_table(found)
    assert list(dict.fromkeys(table["section"])) == ["kappa", "groups", "shapes", "settings"]
    (ablation,) = (ablation for ablation in found if ablation.change == "guidance 1")
    rows = table[table["change"] == "guidance 1"].reset_index(drop=True)
    compared, drift = ablation.outcome.quality.table(), ablation.outcome.table("layer").set_index(["law", "size"])
    assert rows["difference"].tolist() == compared["difference"].tolist()
    assert rows["removed"].tolist() == [
        drift.loc[(law, size), "removed"] for law, size in zip(rows["law"], rows["size"], strict=True)
    ]


def test_rejects_results_of_other_settings(tmp_path):
    check_settings(tmp_path / "new", {"seeds": (0, 1)}, "images.json")
    check_settings(tmp_path / "new", {"seeds": (0, 1)}, "images.json")
    with pytest.raises(SystemExit, match=r"other settings, \{'seeds': \[0, 1\]\}: delete them"):
        check_settings(tmp_path / "new", {"seeds": (0,)}, "images.json")


def at_two_sizes(calibrate, pipeline, images, sizes, **keywords):
    return calibrate(pipeline, images, sizes[:2], **keywords)


def with_two_images(loss, pipeline, images, *arguments, **keywords):
    return loss(pipeline, images[:2], *arguments, **keywords)


@pytest.mark.slow
def test_study_and_ablations_run_end_to_end(tiny_pipeline, tmp_path, monkeypatch):
    networks = {"critic": Brightness(), "efficientnet-lite0": Contrast()}
    scorer = Scorer(networks, ep.reference.images()[::200], WHITE)
    for module in (study, ablations):
        monkeypatch.setattr(module, "load", lambda model, device: tiny_pipeline)
        monkeypatch.setattr(module, "load_scorer", lambda names: scorer)
    two_kappas = partial(losses.loss_against_kappa, kappas=(0.5, 1.0))
    monkeypatch.setattr(losses, "loss", partial(with_two_images, losses.loss))
    monkeypatch.setattr(losses, "loss_against_kappa", partial(with_two_images, two_kappas))
    monkeypatch.setattr(study, "derive", partial(study.derive, rounds=1))
    monkeypatch.setattr(losses, "calibrate", partial(at_two_sizes, losses.calibrate))
    monkeypatch.setattr(study, "LAW_PROMPTS", 2)
    monkeypatch.setattr(study, "LAW_SEEDS", (0,))
    for module in (losses, study, study_page, ablations):
        monkeypatch.setattr(module, "SIZES", [(16, 16), (64, 64), (32, 32), (48, 48)])
    monkeypatch.setattr(ablations, "ENDS", [(32, 32), (64, 64), (48, 48)])
    monkeypatch.setattr(ablations, "SHAPES", [(64, 64), (32, 48)])
    monkeypatch.setattr(ablations, "SETTINGS", {"guidance 1": {"guidance_scale": 1.0}})
    monkeypatch.setattr(ablations, "KAPPAS", {(32, 32): (0.3,)})
    folders = {"out": tmp_path / "run", "docs": tmp_path}
    study.main(
        model="tiny", results=None, count=2, seeds=1, real_images=8, laws="original,paper,measured,gaussian,calibrated",
        steps=2, scale_factors="0.7,1.0,1.4", fit_steps=1, fit_batch=2, **folders,
    )  # fmt: skip
    ablations.main(model="tiny", count=2, seeds=1, steps=2, **folders)
    pages = [(tmp_path / name).read_text() for name in ("results-tiny.md", "results-tiny-ablations.md")]
    assert "{" not in "".join(pages)
    assert "--model tiny --prompts 2 --seeds 1 --real-images 8" in pages[0]
    for page in pages:
        figures = re.findall(r"\]\((.*?)\)", page)
        assert figures
        assert all((tmp_path / figure).exists() for figure in figures)
