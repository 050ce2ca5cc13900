"""The denoising loss against the formulas, written out for each prediction type and family."""

import sys

import pytest
import torch

from entropy_probe.errors import InputError
from entropy_probe.models import ImageFolder, encode, objective

CAPTIONS = ["noto red apple", "flat pizza", "noto red"]


def images(count=3, size=(64, 64)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prediction(tiny_pipeline):
    """Sets the prediction type of the shared pipeline and puts it back."""
    before = tiny_pipeline.scheduler.config.prediction_type
    yield lambda kind: tiny_pipeline.scheduler.register_to_config(prediction_type=kind)
    tiny_pipeline.scheduler.register_to_config(prediction_type=before)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_objective_of_the_prediction_type(tiny_pipeline, prediction, kind):
    prediction(kind)
    asked = objective(tiny_pipeline, images(size=(64, 96)), CAPTIONS)
    index, timesteps = torch.tensor([2, 0]), torch.tensor([700, 20])
    noise = torch.randn(2, *asked.latents.shape[1:], generator=torch.Generator().manual_seed(1))
    latents = asked.latents[index]
    alpha = tiny_pipeline.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    target = {
        "epsilon": noise,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
        "sample": latents,
    }[kind]
    tokens = tiny_pipeline.tokenizer(
        [CAPTIONS[2], CAPTIONS[0]], padding="max_length", max_length=16, return_tensors="pt"
    ).input_ids
    context = tiny_pipeline.text_encoder(tokens).last_hidden_state
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    predicted = tiny_pipeline.unet(noisy, timesteps, context).sample
    expected = (predicted - target).square().mean((1, 2, 3))
    assert torch.allclose(asked.losses(index, timesteps, noise), expected, rtol=1e-5)


@torch.no_grad()
def test_latents_are_what_the_autoencoder_gives_and_decode_to_the_images(tiny_pipeline):
    latents = encode(tiny_pipeline, images())
    expected = tiny_pipeline.vae.encode(images().float() / 127.5 - 1).latents
    assert torch.allclose(latents, expected * tiny_pipeline.vae.config.scaling_factor, atol=1e-5)


def test_a_variational_autoencoder_gives_its_mode_scaled_and_shifted():
    from diffusers import AutoencoderKL

    from entropy_probe.models import encode_with

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=0.5, shift_factor=0.1
    )
    unit = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(encode_with(vae, unit), (vae.encode(unit).latent_dist.mode() - 0.1) * 0.5)


@torch.no_grad()
def test_a_flow_predicts_noise_minus_latents(tiny_pipeline):
    from diffusers import FlowMatchEulerDiscreteScheduler

    from entropy_probe.models.denoising_loss import _noised

    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noisy, target = _noised(scheduler, latents, noise, torch.tensor([999, 249]))
    assert torch.equal(target, noise - latents)
    assert torch.allclose(noisy[0], noise[0])
    assert torch.allclose(noisy[1], 0.75 * latents[1] + 0.25 * noise[1], atol=1e-6)


@torch.no_grad()
def test_more_images_than_are_encoded_at_once_keep_their_own_captions(tiny_pipeline, monkeypatch):
    captions = [*CAPTIONS, "flat red"]
    whole = objective(tiny_pipeline, images(4), captions).losses_at(torch.arange(4), 500, seed=0)
    monkeypatch.setattr(sys.modules["entropy_probe.models.denoising_loss"], "ENCODED_AT_ONCE", 3)
    parts = objective(tiny_pipeline, images(4), captions)
    assert torch.allclose(parts.losses_at(torch.arange(4), 500, seed=0), whole, rtol=1e-4)
    single = torch.cat([parts.losses_at(torch.tensor([i]), 500, seed=0) for i in range(4)])
    assert torch.allclose(single, whole, rtol=1e-4)


def test_what_cannot_be_judged_is_refused(tiny_pipeline, prediction):
    with pytest.raises(InputError, match="3 images and 2 captions"):
        objective(tiny_pipeline, images(), CAPTIONS[:2])
    with pytest.raises(InputError, match="multiples of"):
        objective(tiny_pipeline, images(size=(60, 64)), CAPTIONS)
    prediction("nonsense")
    with pytest.raises((InputError, ValueError), match="nonsense"):
        objective(tiny_pipeline, images(), CAPTIONS).losses_at(torch.arange(3), 500, seed=0)


def test_a_folder_of_images_is_cropped_to_every_shape(tmp_path):
    from PIL import Image

    image = Image.new("RGB", (120, 60), "white")
    image.paste((255, 0, 0), (40, 0, 80, 60))
    image.save(tmp_path / "red-bar_two.png")
    image.save(tmp_path / "other.png")
    (tmp_path / "other.txt").write_text(" a bar\n")
    found = ImageFolder.open(tmp_path)
    assert found.captions == ("a bar", "red bar two")
    square = found.at((30, 30))
    assert square.shape == (2, 3, 30, 30)
    assert square[0, :, 15, 15].tolist() == [255, 0, 0]
    assert square[0, 1, 15, 1] > 200  # the middle 60 x 60 begins left of the bar
    assert found.at((60, 20))[0, 1].max() < 60  # a third of its width is all bar


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no images"):
        ImageFolder.open(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        ImageFolder.open(tmp_path / "none")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        ImageFolder.open(tmp_path).at((8, 8))
