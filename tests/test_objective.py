"""The denoising loss, compared with the formula of each prediction type, and folders of images."""

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from families.pipelines import flux

from entropy_probe.errors import InputError
from entropy_probe.models import ImageFolder, denoising_loss, encode, encode_with, objective
from entropy_probe.models.denoising_loss import noisy_and_target

CAPTIONS = ["noto red apple", "flat pizza", "noto red"]


def images(count=3, size=(64, 64)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prediction(tiny_pipeline):
    """Return a function that sets the prediction type of the shared pipeline until the end of the test."""
    before = tiny_pipeline.scheduler.config.prediction_type
    yield lambda kind: tiny_pipeline.scheduler.register_to_config(prediction_type=kind)
    tiny_pipeline.scheduler.register_to_config(prediction_type=before)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_equals_formula_of_prediction_type(tiny_pipeline, prediction, kind):
    prediction(kind)
    loss = objective(tiny_pipeline, images(size=(64, 96)), CAPTIONS)
    index, timesteps = torch.tensor([2, 0]), torch.tensor([700, 20])
    noise = torch.randn(2, *loss.latents.shape[1:], generator=torch.Generator().manual_seed(1))
    latents = loss.latents[index]
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
    assert torch.allclose(loss.losses(index, timesteps, noise), expected, rtol=1e-5)


@torch.no_grad()
def test_latents_equal_scaled_output_of_autoencoder(tiny_pipeline):
    latents = encode(tiny_pipeline, images())
    expected = tiny_pipeline.vae.encode(images().float() / 127.5 - 1).latents
    assert torch.allclose(latents, expected * tiny_pipeline.vae.config.scaling_factor, atol=1e-5)


def test_latents_of_variational_autoencoder_are_its_scaled_and_shifted_mode():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=0.5, shift_factor=0.1
    )
    unit = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(encode_with(vae, unit), (vae.encode(unit).latent_dist.mode() - 0.1) * 0.5)


def latents_noise_and_timesteps():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1000, 4, 2, 2, generator=generator)
    return latents, noise, torch.arange(1000)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", [DDPMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_target_equal_formula_at_every_timestep(scheduler, kind, zero_snr):
    sampler = scheduler(beta_schedule="scaled_linear", prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    sampler.set_timesteps(3)
    levels = sampler.alphas_cumprod.clone()
    latents, noise, timesteps = latents_noise_and_timesteps()
    noisy, target = noisy_and_target(sampler, latents, noise, timesteps)
    signal, sigma = (level.view(-1, 1, 1, 1) for level in (levels.sqrt(), (1 - levels).sqrt()))
    expected = {"epsilon": noise, "v_prediction": signal * noise - sigma * latents, "sample": latents}[kind]
    assert torch.allclose(noisy, signal * latents + sigma * noise, rtol=0, atol=1e-6)
    assert torch.allclose(target, expected, rtol=0, atol=1e-6)
    assert torch.equal(sampler.alphas_cumprod, levels)
    assert len(sampler.timesteps) == 3


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_mixes_latents_and_noise_linearly_and_predicts_their_difference(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(3)
    latents, noise, timesteps = latents_noise_and_timesteps()
    noisy, target = noisy_and_target(scheduler, latents, noise, timesteps)
    sigma = ((timesteps + 1) / 1000).view(-1, 1, 1, 1)
    assert torch.allclose(noisy, (1 - sigma) * latents + sigma * noise, rtol=0, atol=1e-6)
    assert torch.equal(target, noise - latents)


def test_loss_rejects_scheduler_that_is_neither_diffusion_nor_flow():
    latents = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match="supports diffusion and flow-matching schedulers, got EDMEulerScheduler"):
        noisy_and_target(EDMEulerScheduler(), latents, latents, torch.tensor([0]))


@torch.no_grad()
def test_images_keep_their_captions_when_encoded_in_batches(tiny_pipeline, monkeypatch):
    captions = [*CAPTIONS, "flat red"]
    whole = objective(tiny_pipeline, images(4), captions).losses_at(torch.arange(4), 500, seed=0)
    monkeypatch.setattr(denoising_loss, "ENCODED_AT_ONCE", 3)
    parts = objective(tiny_pipeline, images(4), captions)
    assert torch.allclose(parts.losses_at(torch.arange(4), 500, seed=0), whole, rtol=1e-4)
    single = torch.cat([parts.losses_at(torch.tensor([i]), 500, seed=0) for i in range(4)])
    assert torch.allclose(single, whole, rtol=1e-4)


def test_loss_refuses_flux_which_packs_its_latents():
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(InputError, match="loss of FluxPipeline is not supported: its denoiser takes"):
        objective(flux(), images, ["a", "b"])


def test_loss_rejects_wrong_number_of_captions_size_and_prediction_type(tiny_pipeline, prediction):
    with pytest.raises(InputError, match="each image needs one caption, got 3 images and 2 captions"):
        objective(tiny_pipeline, images(), CAPTIONS[:2])
    with pytest.raises(InputError, match="multiples of"):
        objective(tiny_pipeline, images(size=(60, 64)), CAPTIONS)
    prediction("nonsense")
    with pytest.raises((InputError, ValueError), match="nonsense"):
        objective(tiny_pipeline, images(), CAPTIONS).losses_at(torch.arange(3), 500, seed=0)
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="nonsense")
    latents = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match=r"prediction_type must be 'epsilon', .* or a flow, got 'nonsense'"):
        noisy_and_target(scheduler, latents, latents, torch.tensor([0]))


def test_image_folder_crops_to_every_shape(tmp_path):
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
    assert square[0, 1, 15, 1] > 200  # the central 60 x 60 starts left of the bar
    assert found.at((60, 20))[0, 1].max() < 60  # the central third contains only the bar


def test_image_folder_rejects_missing_folder_and_unreadable_image(tmp_path):
    with pytest.raises(InputError, match="has no images"):
        ImageFolder.open(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        ImageFolder.open(tmp_path / "none")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(InputError, match=r"cannot read .*x\.png as an image"):
        ImageFolder.open(tmp_path).at((8, 8))
