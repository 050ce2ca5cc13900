"""Checkpoints on the way of a training: what is kept, and that the tables say what was measured."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

import entropy_probe as ep
from entropy_probe.laws import Original
from entropy_probe.reference import train_dit
from entropy_probe.reference.train_dit import Recipe, examples, milestone, train
from entropy_probe.validation.loss import LossCurve, losses_under

ROOT = Path(__file__).parents[1]
SMALL = Recipe(cycles=(6,), batch=4, warmup=2, width=32, layers=1)


@pytest.fixture(scope="module")
def checkpoints():
    """The benchmarks are no part of what is installed: they are imported from the clone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        import benchmarks.checkpoints as module

        yield module


@pytest.fixture(scope="module")
def learnt():
    """Fifteen drawings, as the transformer learns them."""
    drawings = ep.reference.pictures()[::40]
    pixels = drawings.at((64, 64)).movedim(1, -1)
    return examples(ep.reference.load(device="cpu", dtype="float32"), pixels, list(drawings.captions))


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    """Compiling takes a minute and changes no result."""
    monkeypatch.setattr(torch, "compile", lambda module: module)


def test_examples_end_with_the_empty_caption_and_mask_what_pads_it(learnt):
    latents, context, mask = learnt
    assert len(context) == len(mask) == len(latents) + 1
    assert latents.shape[1:] == (4, 16, 16)
    assert mask[-1].sum() == 2  # where a text begins and ends
    assert (mask[:-1].sum(1) > 2).all()
    assert (mask.diff(dim=1) <= 0).all()  # the text, then padding


def test_the_last_milestone_is_what_was_trained(learnt, tmp_path):
    final = train(tmp_path, *learnt, SMALL, milestones=(6,)).state_dict()
    kept = load_file(milestone(tmp_path, 6))
    assert kept.keys() == final.keys()
    assert all(torch.equal(kept[name], final[name]) for name in final)


@pytest.fixture
def stopped(learnt, tmp_path, monkeypatch):
    """A folder whose training was stopped after three of six steps, each of which was kept as a milestone."""
    save = train_dit.save_checkpoint

    def stop(path, step, **parts):
        save(path, step, **parts)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_dit, "save_checkpoint", stop)
        patch.setattr(train_dit, "CHECKPOINT_SECONDS", -1)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *learnt, SMALL, milestones=range(1, 7))
    return tmp_path


def test_a_milestone_holds_the_averaged_weights_of_its_step(stopped):
    average = torch.load(stopped / "dit.pt", weights_only=True)["average"]
    kept = load_file(milestone(stopped, 3))
    assert all(torch.equal(kept[name], average[name]) for name in average)
    assert not torch.equal(kept["proj_out.weight"], load_file(milestone(stopped, 2))["proj_out.weight"])


def test_a_training_that_was_stopped_goes_on_and_ends_with_the_same_weights(learnt, stopped, tmp_path):
    milestone(stopped, 2).unlink()
    again = train(stopped, *learnt, SMALL, milestones=range(1, 7)).state_dict()
    assert not milestone(stopped, 2).exists()  # it did not begin anew
    assert milestone(stopped, 4).exists()
    once = tmp_path / "once"
    once.mkdir()
    final = train(once, *learnt, SMALL).state_dict()
    assert all(torch.equal(again[name], final[name]) for name in final)


def test_a_training_that_kept_nothing_on_its_way_is_refused(checkpoints, learnt, tmp_path, monkeypatch):
    train(tmp_path, *learnt, SMALL)
    monkeypatch.setattr(checkpoints, "examples", lambda *_: learnt)
    with pytest.raises(SystemExit, match="went past step 1 without keeping it"):
        checkpoints.train_again(tmp_path, SMALL)


@pytest.fixture(scope="module")
def curve():
    """Losses (g - 1.5)^2 + 1 at 32 px and (g - 1)^2 + 1 at 64 px, a little apart for each picture."""
    rows = [
        {"size": (side, side), "x": x, "picture": picture, "timestep": 0.5, "loss": (x - best) ** 2 + 1 + picture / 10}
        for side, best in ((32, 1.5), (64, 1.0))
        for x in (0.5, 1.0, 1.5, 2.0)
        for picture in range(5)
    ]
    return LossCurve("g", 1.0, pd.DataFrame(rows))


def test_what_a_checkpoint_asks_for_is_where_its_loss_is_least(checkpoints, curve):
    asked = checkpoints.asked_for(curve).set_index("size")
    assert asked["g"].to_dict() == pytest.approx({"32": 1.5, "64": 1.0})
    mean = 1 + np.arange(5).mean() / 10
    assert asked["change"].to_dict() == pytest.approx({"32": mean / (mean + 0.25) - 1, "64": 0})
    assert asked.loc["32", "change_low"] < asked.loc["32", "change"] < asked.loc["32", "change_high"]


def test_the_summary_has_a_row_for_each_checkpoint_and_marks_the_ends(checkpoints, curve):
    told = {f"{name}{end}": 0.5 for name in ("peaked", "slope", "loss") for end in ("", "_low", "_high")}
    asked = checkpoints.asked_for(curve).assign(**told)
    asked.loc[asked["size"] == "32", "g"] = max(checkpoints.MULTIPLIERS)
    table = checkpoints.summary(pd.concat([asked.assign(step=step) for step in (100, 200)]))
    assert list(table["step"]) == [100, 200]
    assert table["b"][0] == "0.500 [0.500, 0.500]"
    assert table["g at 32 px"][0].startswith("9.00 [1.50, 1.50] (an end): -17.2% [")
    assert table["g at 64 px"][0].startswith("1.00 [1.00, 1.00]: +0.0% [")


def test_an_interval_of_a_mean_is_students(checkpoints):
    told = checkpoints.with_interval(pd.Series([1.0, 2.0, 3.0, 6.0]), "x")
    expected = stats.ttest_1samp([1.0, 2.0, 3.0, 6.0], 0).confidence_interval()
    assert told == {"x": 3.0, "x_low": pytest.approx(expected.low), "x_high": pytest.approx(expected.high)}


def test_a_checkpoint_is_asked_at_every_size(checkpoints, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SIZES", [(32, 32), (64, 64)])
    monkeypatch.setattr(checkpoints, "ENDS", [(32, 32), (64, 64)])
    monkeypatch.setattr(checkpoints, "PROMPTS", 2)
    true = ep.reference.pictures()[::100]
    found = checkpoints.answer(tiny_pipeline, true, tmp_path / "drawn").set_index("size")
    frame = ep.Sweep.open(tmp_path / "drawn").frame()
    own = frame[(frame["kind"] == "self") & (frame["height"] == 64)]
    layers = own.groupby(["layer", "tokens"])["entropy"].mean().reset_index()
    assert found["peaked"].to_list() == pytest.approx([(layers["entropy"] / np.log(layers["tokens"])).mean()] * 2)
    losses = losses_under(tiny_pipeline, true, [(32, 32), (64, 64)], {1.0: Original()}, progress=False)
    for side in (32, 64):
        mean = losses[losses["size"] == (side, side)]["loss"].mean()
        assert found.loc[str(side), "loss"] == pytest.approx(mean)
        assert found.loc[str(side), "loss_low"] < mean < found.loc[str(side), "loss_high"]
    assert checkpoints.draw(found.reset_index().assign(step=1)).axes[0].get_yscale() == "log"
