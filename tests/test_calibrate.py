"""Calibration and loss curves, compared with the denoising loss itself."""

import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from entropy_probe.errors import InputError
from entropy_probe.estimation import Calibration, Derivation, Unconverged, calibrate, derive
from entropy_probe.estimation import derivation as derivation_module
from entropy_probe.estimation.calibration import ALL_LAYERS, relative_change
from entropy_probe.evaluation.loss_curves import LossCurve, loss, loss_against_g, loss_against_kappa
from entropy_probe.laws import Constant, from_json, scaled, to_json
from entropy_probe.models import objective
from entropy_probe.runs import sweep


@dataclass
class RandomImages:
    """Random images: the same at every size except for the resolution."""

    count: int

    @property
    def captions(self):
        return ["noto red apple", "flat pizza"] * (self.count // 2)

    def at(self, size):
        images = torch.rand(self.count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
        return torch.nn.functional.interpolate(images, size).byte()


def test_gradient_step_lowers_loss(tiny_pipeline):
    images = RandomImages(8)
    calibration = calibrate(
        tiny_pipeline, images, [(32, 32)], per_layer=False, steps=1, rate=0.2, batch=4, progress=False
    )
    direct = objective(tiny_pipeline, images.at((32, 32)), images.captions)

    def loss_at(g):
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:4]
        index = order[torch.randperm(4, generator=generator)]
        with torch.no_grad(), scaled(tiny_pipeline, Constant(g)):
            return direct.training_losses(index, generator).mean().item()

    assert (calibration.points["g_first"].item() > 1) == (loss_at(1.05) < loss_at(0.95))


@pytest.mark.slow
def test_warns_if_calibration_did_not_converge(tiny_pipeline):
    short = {"per_layer": False, "batch": 4, "progress": False}
    with pytest.warns(UserWarning, match=r"at 32, g had not converged after 1 steps, which reach g = 1\.2 at most"):
        calibrate(tiny_pipeline, RandomImages(8), [(32, 32)], steps=1, rate=0.2, **short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(tiny_pipeline, RandomImages(8), [(32, 32)], steps=30, rate=0.5, **short)


def test_calibration_leaves_model_unchanged(tiny_pipeline):
    before = {n: p.clone() for n, p in tiny_pipeline.unet.named_parameters()}
    trained = {n for n, p in tiny_pipeline.unet.named_parameters() if p.requires_grad}
    calibrate(tiny_pipeline, RandomImages(8), [(32, 32), (64, 64)], steps=2, batch=4, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in tiny_pipeline.unet.named_parameters())
    assert {n for n, p in tiny_pipeline.unet.named_parameters() if p.requires_grad} == trained
    assert all(p.grad is None for p in tiny_pipeline.unet.parameters())
    assert not tiny_pipeline.unet._forward_pre_hooks


def test_calibration_has_point_for_every_layer_and_size(tiny_pipeline):
    calibration = calibrate(
        tiny_pipeline, RandomImages(8), [(32, 32), (64, 64), (64, 96)], steps=2, batch=4, progress=False
    )
    layers = list(dict.fromkeys(calibration.points["layer"]))
    assert len(calibration.points) == 3 * len(layers)
    assert ALL_LAYERS not in layers
    assert calibration.law.scale_factor(layers[0], 256, 256) == 1
    point = calibration.points.query("layer == @layers[0] and ratio < 0").iloc[0]
    assert calibration.law.scale_factor(layers[0], 64, 256) == pytest.approx(point["g"])
    assert from_json(to_json(calibration.law)) == calibration.law
    assert list(calibration.table()["size"]) == ["32", "64", "64x96"]


def test_single_g_applies_to_every_layer(tiny_pipeline):
    calibration = calibrate(
        tiny_pipeline, RandomImages(8), [(32, 32)], per_layer=False, steps=2, batch=4, progress=False
    )
    assert calibration.law.scale_factor("any layer", 64, 256) == pytest.approx(calibration.points["g"].item())


def test_rejects_too_few_images_and_scaled_model(tiny_pipeline):
    with pytest.raises(InputError, match="at least 8 images"):
        calibrate(tiny_pipeline, RandomImages(4), [(32, 32)], progress=False)
    with scaled(tiny_pipeline, "paper"), pytest.raises(InputError, match="paper"):
        calibrate(tiny_pipeline, RandomImages(8), [(32, 32)], progress=False)


def test_relative_change_of_halved_loss():
    before = np.random.default_rng(0).uniform(1, 2, 50)
    change, low, high = relative_change(before, before / 2)
    assert (change, low, high) == pytest.approx((-0.5, -0.5, -0.5))


def test_loss_curve_equals_loss_under_constant_law(tiny_pipeline):
    images = RandomImages(8)
    curve = loss(tiny_pipeline, images, [(64, 32)], [0.5, 2.0], progress=False)
    direct = objective(tiny_pipeline, images.at((64, 32)), images.captions)
    with torch.no_grad(), scaled(tiny_pipeline, Constant(2.0)):
        expected = direct.losses_at(torch.arange(8), int(0.3 * direct.timesteps), seed=0)
    own = curve.losses.query("x == 2.0 and timestep == 0.3")["loss"].to_numpy()
    assert own == pytest.approx(expected.numpy(), rel=1e-5)
    table = curve.table()
    assert table.query("g == 1.0")[["change", "low", "high"]].to_numpy() == pytest.approx(0)
    assert len(curve.table(by_timestep=True)) == 3 * 5


def test_loss_of_unmatched_layers_and_at_training_size_does_not_change(tiny_pipeline):
    none = loss(tiny_pipeline, RandomImages(8), [(32, 32)], [2.0], layers=["nothing*"], progress=False)
    assert none.table()["change"].abs().max() == 0
    kappa = loss_against_kappa(tiny_pipeline, RandomImages(8), [(64, 64)], [1.0], progress=False)
    assert kappa.table()["change"].abs().max() == 0
    with pytest.raises(InputError, match="sizes is empty"):
        loss(tiny_pipeline, RandomImages(8), [], progress=False)


def curve_of(losses_at):
    """A loss curve at two sizes, with losses that do not vary over the images."""
    rows = [
        {"size": size, "x": x, "image": image, "timestep": 0.5, "loss": value}
        for size, values in losses_at.items()
        for x, value in values.items()
        for image in range(3)
    ]
    return LossCurve("g", 1.0, pd.DataFrame(rows)[["image", "loss", "size", "x", "timestep"]])


def test_minimum_is_interpolated_between_scale_factors():
    best = curve_of({(64, 64): {x: (x - 0.87) ** 2 + 1 for x in (0.5, 0.8, 1.0, 1.5)}}).best().iloc[0]
    assert (best["g"], best["minimum"]) == pytest.approx((0.87, 0.87))
    assert not best["edge"]


def test_minimum_at_edge_of_scan_is_not_reported_as_optimum():
    curve = curve_of(
        {
            (64, 64): {0.8: 2.0, 1.0: 1.0, 1.2: 2.0},
            (128, 128): {0.8: 3.0, 1.0: 2.0, 1.2: 1.0},
            (32, 32): {0.8: 1.0, 1.0: 2.0, 1.2: 3.0},
        }
    )
    best = curve.best().set_index("size")
    assert best["optimum"].to_dict() == {"64": "1.00 [1.00, 1.00]", "128": "at least 1.20", "32": "at most 0.80"}
    assert best["edge"].to_dict() == {"64": "", "128": "upper", "32": "lower"}
    assert best["g"].isna().to_dict() == {"64": False, "128": True, "32": True}


def test_calibration_and_loss_curve_survive_json(tiny_pipeline):
    calibration = calibrate(tiny_pipeline, RandomImages(8), [(32, 32)], steps=1, rate=1e-3, batch=4, progress=False)
    again = Calibration.from_json(calibration.to_json())
    assert again.law == calibration.law
    assert again.changes == calibration.changes
    assert again.unconverged == calibration.unconverged == (Unconverged((32, 32), 7, 7),)
    pd.testing.assert_frame_equal(again.points, calibration.points)
    curve = curve_of({(64, 64): {0.8: 2.0, 1.0: 1.0, 1.2: 2.0}})
    same = LossCurve.from_json(curve.to_json())
    assert (same.name, same.neutral) == ("g", 1.0)
    pd.testing.assert_frame_equal(same.losses, curve.losses)


def test_derive_calibrated_returns_derivation(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(derivation_module, "calibrate", partial(calibrate, steps=2, batch=4))
    sampled = sweep(
        tiny_pipeline, prompts=["a"], sizes=[(32, 32), (64, 64)], steps=1, store=tmp_path / "run", progress=False
    )
    with pytest.warns(DeprecationWarning, match=r"derive\(pictures=...\) is deprecated: use images=..."):
        derivation = derive(sampled, "calibrated", pictures=RandomImages(8), progress=False)
    assert derivation.law == derivation.calibration.law
    again = Derivation.from_json(derivation.to_json())
    assert again.law == derivation.law
    assert again.calibration.changes == derivation.calibration.changes


def test_old_loss_function_and_keyword_still_work_and_warn(tiny_pipeline):
    images = RandomImages(8)
    with pytest.warns(DeprecationWarning, match="use loss"):
        old = loss_against_g(tiny_pipeline, pictures=images, sizes=[(32, 32)], scale_factors=[2.0], progress=False)
    assert old.losses.equals(loss(tiny_pipeline, images, [(32, 32)], [2.0], progress=False).losses)
