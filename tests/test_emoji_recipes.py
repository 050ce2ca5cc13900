"""The recipes of the bundled models: parts that need neither a download nor hours of training."""

import math
from functools import partial

import pandas as pd
import pytest
import torch

from recipes import emoji_transformer
from recipes.emoji_download import is_selected
from recipes.emoji_loop import Curve, batch_indices, rate_factor, weight_average
from recipes.emoji_networks import Recipe, train_tokenizer
from recipes.emoji_rescaling import GAINS, maximum_entropy_gains, minimum_variance_gains, multiply_logits
from recipes.loop import add_noise, build_scheduler

SMALL = emoji_transformer.Recipe(cycles=(4, 2), batch=2, warmup=2, width=32, head_width=16, layers=1)


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("red-apple", True), ("black-medium-square", True), ("light-bulb", True), ("person-surfing", True),
        ("man-surfing", False), ("waving-hand-medium-dark", False), ("keycap-5", False), ("two-oclock", False),
        ("letter-a", False), ("family-man-boy", False),
    ],
)  # fmt: skip
def test_selection_excludes_variants(name, selected):
    names = {"red-apple", "black-medium-square", "light-bulb", "person-surfing", "waving-hand"}
    assert is_selected(name, names) is selected


def test_epoch_contains_every_image_once_and_is_reproducible():
    chosen = torch.arange(100, 112)
    epoch = torch.cat([batch_indices(chosen, 4, step, 0) for step in range(3)])
    assert sorted(epoch.tolist()) == chosen.tolist()
    assert not torch.equal(epoch, torch.cat([batch_indices(chosen, 4, step, 0) for step in range(3, 6)]))
    assert torch.equal(batch_indices(chosen, 4, 5, 0), batch_indices(chosen, 4, 5, 0))


def test_image_and_noise_follow_from_noisy_latents_and_velocity():
    latents, scheduler = torch.randn(2, 4, 3, 3), build_scheduler()
    noisy, target, timesteps = add_noise(latents, scheduler, torch.Generator().manual_seed(0))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    assert torch.allclose(alpha.sqrt() * noisy - (1 - alpha).sqrt() * target, latents, atol=1e-6)
    assert torch.allclose((1 - alpha).sqrt() * noisy + alpha.sqrt() * target, noise, atol=1e-6)


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    factor = partial(rate_factor, cycles=(1000, 500), warmup=100, decay=0.2)
    assert [factor(step) for step in (0, 99, 500, 900)] == pytest.approx([0.01, 1, 1, 0.5])
    assert [factor(step) for step in (1000, 1300, 1450, 1500)] == pytest.approx([0.01, 1, 0.5, 0])


def test_weight_average_decays_faster_in_the_first_updates():
    model = torch.nn.Linear(1, 1, bias=False)
    average = weight_average(model, decay=0.15)
    expected = model.weight.item()
    for update, keep in ((1, 1 / 10), (2, 0.15)):
        model.weight.data.fill_(update)
        average.update_parameters(model)
        expected = keep * expected + (1 - keep) * update
        assert average.module.weight.item() == pytest.approx(expected)


def test_interrupted_training_resumes_with_identical_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(6, 4, 16, 16, generator=generator)
    context, mask = torch.randn(7, 5, 8, generator=generator), torch.ones(7, 5)
    add = Curve.add

    def train(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return emoji_transformer.train(tmp_path / name, latents, context, mask, SMALL).state_dict()

    def stop_at_step_3(curve, step, loss):
        if step == 3:
            raise KeyboardInterrupt
        add(curve, step, loss)

    whole = train("whole")
    with monkeypatch.context() as interruption:
        interruption.setattr(Curve, "add", stop_at_step_3)
        interruption.setattr(emoji_transformer, "CHECKPOINT_SECONDS", -1)
        with pytest.raises(KeyboardInterrupt):
            train("resumed")
    resumed = train("resumed")
    assert all(torch.equal(weights, resumed[name]) for name, weights in whole.items())


def test_resumed_training_loads_its_tokenizer(tmp_path):
    first = train_tokenizer(tmp_path, ["noto red apple", "flat pizza"], Recipe())
    again = train_tokenizer(tmp_path, ["quite other captions"], Recipe())
    assert first("flat red apple").input_ids == again("flat red apple").input_ids


def test_entropy_gains_lower_the_entropy_to_half_of_its_maximum():
    entropy = {"diffuse": [4.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1], "sharp": [1.0] * 7}
    rows = [(layer, g, h, math.exp(4)) for layer, hs in entropy.items() for g, h in zip(GAINS, hs, strict=True)]
    means = pd.DataFrame(rows, columns=["layer", "scale_factor", "entropy", "key_tokens"])
    gains = maximum_entropy_gains(means.set_index(["layer", "scale_factor"]), Recipe(sharpen_to=0.5))
    assert gains == pytest.approx({"diffuse": 2.0})


def test_variance_gains_raise_the_logit_variance_to_the_minimum():
    rows = [("uniform", 1.0, 0.25), ("sharp", 1.0, 5.0)]
    means = pd.DataFrame(rows, columns=["layer", "scale_factor", "logit_variance"])
    gains = minimum_variance_gains(means.set_index(["layer", "scale_factor"]), Recipe(wake_variance=4.0))
    assert gains == {"uniform": 4.0}


def test_gain_multiplies_the_logits():
    layer = torch.nn.ModuleDict({"to_q": torch.nn.Linear(3, 3, False), "to_k": torch.nn.Linear(3, 3, False)})
    before = layer["to_q"].weight.T @ layer["to_k"].weight
    multiply_logits(torch.nn.ModuleDict({"attn": layer}), {"attn": 2.5})
    assert torch.allclose(layer["to_q"].weight.T @ layer["to_k"].weight, 2.5 * before)
