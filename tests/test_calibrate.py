"""Calibration against a grid search, and the loss curves against the loss itself."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from entropy_probe.errors import InputError
from entropy_probe.estimation import calibrate
from entropy_probe.estimation.calibration import ALL, relative_change
from entropy_probe.evaluation.loss_curves import _vertex, loss_against_g, loss_against_kappa
from entropy_probe.laws import Constant, from_json, scaled, to_json
from entropy_probe.models import objective


@dataclass
class Some:
    """Random images that are the same at every size but for their resolution."""

    count: int

    @property
    def captions(self):
        return ["noto red apple", "flat pizza"] * (self.count // 2)

    def at(self, size):
        drawn = torch.rand(self.count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
        return torch.nn.functional.interpolate(drawn, size).byte()


def test_one_gradient_step_goes_the_way_in_which_the_loss_falls(tiny_pipeline):
    images = Some(8)
    found = calibrate(tiny_pipeline, images, [(32, 32)], per_layer=False, steps=1, rate=0.2, batch=4, progress=False)
    asked = objective(tiny_pipeline, images.at((32, 32)), images.captions)

    def loss(g):
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:4]
        index = order[torch.randperm(4, generator=generator)]
        with torch.no_grad(), scaled(tiny_pipeline, Constant(g)):
            return asked.training_losses(index, generator).mean().item()

    assert (found.points["g_first"].item() > 1) == (loss(1.05) < loss(0.95))


def test_a_calibration_that_did_not_arrive_is_warned_of(tiny_pipeline):
    short = {"per_layer": False, "batch": 4, "progress": False}
    with pytest.warns(
        UserWarning, match=r"at 32 the one g was still moving after 1 steps, which reach g = 1\.2 at most"
    ):
        calibrate(tiny_pipeline, Some(8), [(32, 32)], steps=1, rate=0.2, **short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(tiny_pipeline, Some(8), [(32, 32)], steps=30, rate=0.5, **short)  # back and forth about the least


def test_the_model_is_left_as_it_was(tiny_pipeline):
    before = {n: p.clone() for n, p in tiny_pipeline.unet.named_parameters()}
    trained = {n for n, p in tiny_pipeline.unet.named_parameters() if p.requires_grad}
    calibrate(tiny_pipeline, Some(8), [(32, 32), (64, 64)], steps=2, batch=4, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in tiny_pipeline.unet.named_parameters())
    assert {n for n, p in tiny_pipeline.unet.named_parameters() if p.requires_grad} == trained
    assert all(p.grad is None for p in tiny_pipeline.unet.parameters())
    assert not tiny_pipeline.unet._forward_pre_hooks


def test_every_layer_has_a_point_at_every_size_and_the_law_keeps_the_training_size(tiny_pipeline):
    found = calibrate(tiny_pipeline, Some(8), [(32, 32), (64, 64), (64, 96)], steps=2, batch=4, progress=False)
    layers = list(dict.fromkeys(found.points["layer"]))
    assert len(found.points) == 3 * len(layers)
    assert ALL not in layers
    assert found.law.scale_factor(layers[0], 256, 256) == 1
    point = found.points.query("layer == @layers[0] and ratio < 0").iloc[0]
    assert found.law.scale_factor(layers[0], 64, 256) == pytest.approx(point["g"])
    assert from_json(to_json(found.law)) == found.law
    assert list(found.table()["size"]) == ["32", "64", "64x96"]


def test_one_g_for_all_serves_every_layer(tiny_pipeline):
    found = calibrate(tiny_pipeline, Some(8), [(32, 32)], per_layer=False, steps=2, batch=4, progress=False)
    assert found.law.scale_factor("any layer", 64, 256) == pytest.approx(found.points["g"].item())


def test_too_few_images_and_a_law_applied_are_refused(tiny_pipeline):
    with pytest.raises(InputError, match="at least 8 images"):
        calibrate(tiny_pipeline, Some(4), [(32, 32)], progress=False)
    with scaled(tiny_pipeline, "paper"), pytest.raises(InputError, match="paper law is applied"):
        calibrate(tiny_pipeline, Some(8), [(32, 32)], progress=False)


def test_the_change_of_a_halved_loss_is_minus_one_half():
    before = np.random.default_rng(0).uniform(1, 2, 50)
    change, low, high = relative_change(before, before / 2)
    assert (change, low, high) == pytest.approx((-0.5, -0.5, -0.5))


def test_the_curve_is_the_loss_under_the_law(tiny_pipeline):
    images = Some(8)
    curve = loss_against_g(tiny_pipeline, images, [(64, 32)], [0.5, 2.0], progress=False)
    asked = objective(tiny_pipeline, images.at((64, 32)), images.captions)
    with torch.no_grad(), scaled(tiny_pipeline, Constant(2.0)):
        expected = asked.losses_at(torch.arange(8), int(0.3 * asked.timesteps), seed=0)
    own = curve.losses.query("x == 2.0 and timestep == 0.3")["loss"].to_numpy()
    assert own == pytest.approx(expected.numpy(), rel=1e-5)
    table = curve.table()
    assert table.query("g == 1.0")[["change", "low", "high"]].to_numpy() == pytest.approx(0)
    assert len(curve.table(by_timestep=True)) == 3 * 5


def test_layers_may_be_chosen_and_the_training_size_knows_no_kappa(tiny_pipeline):
    none = loss_against_g(tiny_pipeline, Some(8), [(32, 32)], [2.0], layers=["nothing*"], progress=False)
    assert none.table()["change"].abs().max() == 0
    kappa = loss_against_kappa(tiny_pipeline, Some(8), [(64, 64)], [1.0], progress=False)
    assert kappa.table()["change"].abs().max() == 0
    with pytest.raises(InputError, match="at least one size"):
        loss_against_g(tiny_pipeline, Some(8), [], progress=False)


def test_the_vertex_of_a_parabola_is_found_between_its_points():
    x = np.array([0.5, 0.8, 1.0, 1.5])
    assert _vertex(x, (x - 0.87) ** 2) == pytest.approx(0.87)
    assert _vertex(x, x) == 0.5
    assert _vertex(x, -x) == 1.5
