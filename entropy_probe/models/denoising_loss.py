"""The denoising loss of a pipeline: its training objective, on captioned images of any size.

This is the only place that computes it. `calibrate` minimises it, and `loss` measures it as a function of g.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from entropy_probe.attention import Denoisers, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.models.sizes import Size, at_exact_size, check_size

ENCODED_AT_ONCE = 32
"""Number of images, and of captions, that are encoded in one batch."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""Prediction types of a diffusion scheduler whose loss is supported. Flow matching is supported too."""


@dataclass(frozen=True)
class Objective:
    """The training objective of a denoiser on given images and captions.

    Attributes:
        pipeline: the pipeline of the denoiser.
        latents: latents of the images, in the format that the denoiser takes.
        timesteps: number of timesteps. A timestep is an integer from 0 (nearly clean) to `timesteps` - 1 (noise).
    """

    pipeline: Any
    latents: Float[Tensor, "count channels h w"]
    timesteps: int
    _conditions: dict[str, Any]
    _sample: str
    _timestep_dtype: torch.dtype

    def losses(
        self,
        images: Int[Tensor, " batch"],
        timesteps: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, " batch"]:
        """Compute the mean squared error of the prediction for each image.

        Args:
            images: indices of the images.
            timesteps: the timestep to which each image is noised.
            noise: standard normal noise, in the shape of the latents of these images.
        """
        latents = self.latents[images.to(self.latents.device)]
        device = latents.device
        noisy, target = noisy_and_target(
            self.pipeline.scheduler, latents.float(), noise.to(device, torch.float32), timesteps.to(device)
        )
        times = (timesteps + 1 if _is_flow(self.pipeline.scheduler) else timesteps).to(device, self._timestep_dtype)
        conditions = _selected(self._conditions, images.to(device), len(self.latents))
        denoiser = find_denoiser(self.pipeline)
        output = denoiser(**{self._sample: noisy.to(latents.dtype)}, timestep=times, **conditions)
        predicted: Tensor = output[0][:, : target.shape[1]]  # more channels are a learned variance
        return (predicted.float() - target).square().mean((1, 2, 3))

    def training_losses(self, images: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Compute the losses at random timesteps, stratified over the schedule, and with random noise."""
        spread = (torch.arange(len(images)) + torch.rand(len(images), generator=generator)) / len(images)
        noise = torch.randn(len(images), *self.latents.shape[1:], generator=generator)
        return self.losses(images, (spread * self.timesteps).long(), noise)

    def losses_at(self, images: Int[Tensor, " batch"], timestep: int, seed: int) -> Float[Tensor, " batch"]:
        """Compute the losses at one timestep. The noise of an image depends only on the timestep and the seed."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + timestep)
        noise = torch.randn(self.latents.shape, generator=generator)[images]
        return self.losses(images, torch.full((len(images),), timestep), noise)


def objective(pipeline: Any, images: UInt8[Tensor, "count 3 height width"], captions: Sequence[str]) -> Objective:
    """Return the denoising loss of a pipeline on captioned images, at the size of the images.

    The pipeline samples one step for the captions. The arguments that its denoiser receives in this step are recorded
    and reused, so the conditioning is always the pipeline's own.

    Args:
        pipeline: a diffusers text-to-image pipeline whose denoiser takes an image of latents or of pixels.
        images: bytes, all of one size.
        captions: one caption per image.

    Raises:
        InputError: if the pipeline cannot sample this size, the numbers of captions and images differ, or the pipeline
            packs its latents or maps its timesteps.

    Examples:
        >>> objective(pipeline, images, ["red apple"]).losses_at(torch.tensor([0]), 500, seed=0)  # doctest: +SKIP
    """
    if len(images) != len(captions):
        raise InputError(f"each image needs one caption, got {len(images)} images and {len(captions)} captions")
    size = images.shape[-2], images.shape[-1]
    check_size(pipeline, size)
    batches = [captions[first : first + ENCODED_AT_ONCE] for first in range(0, len(captions), ENCODED_AT_ONCE)]
    recorded = [_conditioning(pipeline, batch, size) for batch in batches]
    sample, timestep, _ = recorded[0]
    return Objective(
        pipeline=pipeline,
        latents=encode(pipeline, images),
        timesteps=int(pipeline.scheduler.config.num_train_timesteps),
        _conditions=_joined([conditions for _, _, conditions in recorded], list(map(len, batches))),
        _sample=sample,
        _timestep_dtype=timestep.dtype,
    )


@torch.no_grad()
def encode(pipeline: Any, images: UInt8[Tensor, "count 3 height width"]) -> Float[Tensor, "count channels h w"]:
    """Return the latents that the denoiser takes. Without an autoencoder, these are the images in [-1, 1].

    >>> import entropy_probe as ep
    >>> encode(ep.reference.load(), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([1, 4, 16, 16])
    """
    denoiser: Any = find_denoiser(pipeline)
    autoencoder = getattr(pipeline, "vae", None)
    unit = images.float() / 127.5 - 1
    if autoencoder is None:
        return unit.to(denoiser.device, denoiser.dtype)
    parts = [encode_with(autoencoder, part) for part in unit.split(ENCODED_AT_ONCE)]
    return torch.cat(parts).to(denoiser.dtype)


def encode_with(autoencoder: Any, images: Float[Tensor, "count 3 height width"]) -> Float[Tensor, "count c h w"]:
    """Return the latents of images in [-1, 1], scaled and shifted by the configuration of the autoencoder.

    >>> import entropy_probe as ep
    >>> encode_with(ep.reference.load().vae, torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 4, 16, 16])
    """
    encoded = autoencoder.encode(images.to(autoencoder.device, autoencoder.dtype))
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    config = autoencoder.config
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values).to(latents).view(1, -1, 1, 1) for values in (mean, std))
        scaled: Tensor = (latents - mean) * config.scaling_factor / std
    else:
        scaled = (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
    return scaled


def noisy_and_target(
    scheduler: Any,
    latents: Float[Tensor, "batch channels h w"],
    noise: Float[Tensor, "batch channels h w"],
    timesteps: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
    """Return noised latents, and the target that the denoiser is trained to predict from them.

    diffusers adds the noise, with its schedulers for training. The scheduler of a pipeline is not used
    for this. It can be a sampler such as Euler, which adds noise on another scale, and it holds only the timesteps of
    the last sampling.

    Args:
        scheduler: the scheduler of a pipeline. It is not changed.
        latents: latents without noise.
        noise: standard normal noise.
        timesteps: integers from 0 to the number of training timesteps - 1.

    Raises:
        InputError: if the scheduler is neither a flow nor a diffusion with a prediction type in `PREDICTION_TYPES`.

    Examples:
        >>> latents, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> noisy, target = noisy_and_target(FlowMatchEulerDiscreteScheduler(), latents, noise, torch.tensor([249]))
        >>> noisy.item(), target.item()
        (0.25, 1.0)
    """
    config = scheduler.config
    if _is_flow(scheduler):
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps)
        descending = flow.timesteps.to(timesteps.device)[config.num_train_timesteps - 1 - timesteps]
        return flow.scale_noise(latents, descending, noise), noise - latents
    if not hasattr(scheduler, "alphas_cumprod"):
        kind = type(scheduler).__name__
        raise InputError(f"the denoising loss supports diffusion and flow-matching schedulers, got {kind}")
    if config.prediction_type not in PREDICTION_TYPES:
        known = ", ".join(map(repr, PREDICTION_TYPES))
        raise InputError(f"prediction_type must be {known} or a flow, got {config.prediction_type!r}")
    diffusion = DDPMScheduler(num_train_timesteps=config.num_train_timesteps)
    diffusion.alphas_cumprod = scheduler.alphas_cumprod
    noisy = diffusion.add_noise(latents, noise, timesteps)
    if config.prediction_type == "v_prediction":
        return noisy, diffusion.get_velocity(latents, noise, timesteps)
    return noisy, noise if config.prediction_type == "epsilon" else latents


def _is_flow(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_noise")


@torch.no_grad()
def _conditioning(pipeline: Any, captions: Sequence[str], size: Size) -> tuple[str, Tensor, dict[str, Any]]:
    """Return the name of the denoiser's first argument, the timestep it received, and all its other arguments."""
    denoiser = find_denoiser(pipeline)
    if isinstance(denoiser, Denoisers):
        raise InputError(
            f"{type(pipeline).__name__} has two denoisers, each for a part of the noise levels, and the denoising loss "
            "needs one for all: use measured laws, which need no loss"
        )
    names = list(inspect.signature(denoiser.forward).parameters)
    calls: list[dict[str, Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append({**dict(zip(names, args, strict=False)), **kwargs})

    handle = denoiser.register_forward_pre_hook(record, with_kwargs=True)
    try:
        pipeline(
            prompt=list(captions),
            height=size[0],
            width=size[1],
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="latent",
            **at_exact_size(pipeline),
        )
    finally:
        handle.remove()
    given = calls[0]
    sample, timestep = given.pop(names[0]), torch.as_tensor(given.pop("timestep"))
    kind = type(pipeline).__name__
    if sample.ndim != 4 or len(sample) != len(captions):
        raise InputError(
            f"the denoising loss of {kind} is not supported: its denoiser takes {tuple(sample.shape)}, "
            "not one image of latents per caption"
        )
    if not torch.isclose(timestep.flatten()[0].double().cpu(), pipeline.scheduler.timesteps[0].double().cpu()):
        raise InputError(
            f"the denoising loss of {kind} is not supported: it maps its timesteps before it calls its denoiser"
        )
    given.pop("return_dict", None)
    return names[0], timestep, {**given, "return_dict": False}


def _selected(value: Any, index: Int[Tensor, " batch"], count: int) -> Any:
    """Return the conditions of the images with these indices, out of `count` images."""
    return _mapped(lambda tensor: tensor[index] if tensor.ndim and len(tensor) == count else tensor, value)


def _joined(values: list[Any], counts: list[int]) -> Any:
    """Join the conditions of batches of these sizes into the conditions of one batch."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _joined([value[name] for value in values], counts) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(parts), counts) for parts in zip(*values, strict=True))
    if isinstance(first, Tensor) and first.ndim and len(first) == counts[0]:
        return torch.cat(values)
    return first


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor in nested dictionaries, tuples and lists."""
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(change, part) for part in value)
    return change(value) if isinstance(value, Tensor) else value
