"""The denoising loss of a pipeline: its own training objective, on captioned images of any size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from entropy_probe.attention import find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.models.sizes import Size, at_exact_size, check_size

ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class Objective:
    """What the denoiser was trained to minimise, on given images and captions.

    Attributes:
        pipeline: whose denoiser it is.
        latents: of the images, as the denoiser takes them.
        timesteps: how many there are; a timestep is a number from 0 (clean) to one less (noise).
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
        """Mean squared error of the prediction for the images of these numbers, noised to these timesteps."""
        latents = self.latents[images.to(self.latents.device)]
        noisy, target = _noised(self.pipeline.scheduler, latents, noise.to(latents), timesteps)
        device = latents.device
        times = (timesteps + 1 if _is_flow(self.pipeline.scheduler) else timesteps).to(device, self._timestep_dtype)
        conditions = _taken(self._conditions, images.to(device), len(self.latents))
        output = find_denoiser(self.pipeline)(**{self._sample: noisy}, timestep=times, **conditions)
        predicted: Tensor = output[0][:, : target.shape[1]]  # a learned variance, where there is one, is the rest
        return (predicted.float() - target.float()).square().mean((1, 2, 3))

    def training_losses(self, images: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Losses at random timesteps, spread evenly over the schedule, and random noise."""
        spread = (torch.arange(len(images)) + torch.rand(len(images), generator=generator)) / len(images)
        noise = torch.randn(len(images), *self.latents.shape[1:], generator=generator)
        return self.losses(images, (spread * self.timesteps).long(), noise)

    def losses_at(self, images: Int[Tensor, " batch"], timestep: int, seed: int) -> Float[Tensor, " batch"]:
        """Losses at one timestep; the noise of an image depends on the timestep and the seed alone."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + timestep)
        noise = torch.randn(self.latents.shape, generator=generator)[images]
        return self.losses(images, torch.full((len(images),), timestep), noise)


def objective(pipeline: Any, images: UInt8[Tensor, "count 3 height width"], captions: Sequence[str]) -> Objective:
    """The denoising loss of a pipeline on captioned images, at their size.

    How the pipeline conditions its denoiser is seen, not rebuilt: it samples one step for the captions, and the
    arguments that its denoiser gets are kept.

    Args:
        pipeline: a diffusers text-to-image pipeline whose denoiser takes latents (or pixels) as an image.
        images: of one size, bytes.
        captions: one for each image.

    Raises:
        InputError: for a size that the pipeline cannot draw, a count of captions other than that of the images, or
            a pipeline that packs its latents or maps its timesteps in a way of its own.
    """
    if len(images) != len(captions):
        raise InputError(f"there are {len(images)} images and {len(captions)} captions: give one for each")
    size = images.shape[-2], images.shape[-1]
    check_size(pipeline, size)
    parts = [
        _conditioning(pipeline, captions[first : first + ENCODED_AT_ONCE], size)
        for first in range(0, len(captions), ENCODED_AT_ONCE)
    ]
    sample, timestep, _ = parts[0]
    kept = [conditions for _, _, conditions in parts]
    counts = [len(captions[first : first + ENCODED_AT_ONCE]) for first in range(0, len(captions), ENCODED_AT_ONCE)]
    return Objective(
        pipeline=pipeline,
        latents=encode(pipeline, images),
        timesteps=int(pipeline.scheduler.config.num_train_timesteps),
        _conditions=_joined(kept, counts),
        _sample=sample,
        _timestep_dtype=timestep.dtype,
    )


@torch.no_grad()
def encode(pipeline: Any, images: UInt8[Tensor, "count 3 height width"]) -> Float[Tensor, "count channels h w"]:
    """Latents of images as the denoiser takes them; the images in [-1, 1] where there is no autoencoder."""
    denoiser: Any = find_denoiser(pipeline)
    autoencoder = getattr(pipeline, "vae", None)
    unit = images.float() / 127.5 - 1
    if autoencoder is None:
        return unit.to(denoiser.device, denoiser.dtype)
    parts = [encode_with(autoencoder, part) for part in unit.split(ENCODED_AT_ONCE)]
    return torch.cat(parts).to(denoiser.dtype)


def encode_with(autoencoder: Any, images: Float[Tensor, "count 3 height width"]) -> Float[Tensor, "count c h w"]:
    """Latents of images in [-1, 1], scaled and shifted as the autoencoder's configuration says."""
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


@torch.no_grad()
def _conditioning(pipeline: Any, captions: Sequence[str], size: Size) -> tuple[str, Tensor, dict[str, Any]]:
    """Name of the denoiser's first argument, the timestep it was given, and all its other arguments."""
    denoiser = find_denoiser(pipeline)
    names = list(inspect.signature(denoiser.forward).parameters)
    seen: list[dict[str, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append({**dict(zip(names, args, strict=False)), **kwargs})

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
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
    given = seen[0]
    sample, timestep = given.pop(names[0]), torch.as_tensor(given.pop("timestep"))
    kind = type(pipeline).__name__
    if sample.ndim != 4 or len(sample) != len(captions):
        raise InputError(
            f"the denoising loss of {kind} is not supported: its denoiser takes {tuple(sample.shape)}, "
            "not the latents of one image for each caption"
        )
    if not torch.isclose(timestep.flatten()[0].double().cpu(), pipeline.scheduler.timesteps[0].double().cpu()):
        raise InputError(f"the denoising loss of {kind} is not supported: it maps its timesteps in a way of its own")
    given.pop("return_dict", None)
    return names[0], timestep, {**given, "return_dict": False}


def _is_flow(scheduler: Any) -> bool:
    return not hasattr(scheduler, "alphas_cumprod")


def _noised(
    scheduler: Any,
    latents: Float[Tensor, "batch channels h w"],
    noise: Float[Tensor, "batch channels h w"],
    timesteps: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
    """Noised latents and what the denoiser should say of them.

    Raises:
        InputError: for a prediction type that is not epsilon, v_prediction, sample or a flow.
    """
    if _is_flow(scheduler):
        sigma = ((timesteps + 1) / scheduler.config.num_train_timesteps).to(latents).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise, noise - latents
    alpha = scheduler.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)].view(-1, 1, 1, 1)
    signal, sigma = alpha.sqrt().to(latents), (1 - alpha).sqrt().to(latents)
    noisy = signal * latents + sigma * noise
    targets = {"epsilon": noise, "v_prediction": signal * noise - sigma * latents, "sample": latents}
    kind = scheduler.config.prediction_type
    if kind not in targets:
        raise InputError(f"prediction type {kind!r} is not known: {', '.join(targets)} and flow matching are")
    return noisy, targets[kind]


def _taken(value: Any, index: Int[Tensor, " batch"], count: int) -> Any:
    """The conditions of some of `count` images."""
    return _mapped(lambda tensor: tensor[index] if tensor.ndim and len(tensor) == count else tensor, value)


def _joined(values: list[Any], counts: list[int]) -> Any:
    """Conditions of batches, of these sizes, as those of one batch."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _joined([value[name] for value in values], counts) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(parts), counts) for parts in zip(*values, strict=True))
    if isinstance(first, Tensor) and first.ndim and len(first) == counts[0]:
        return torch.cat(values)
    return first


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(change, part) for part in value)
    return change(value) if isinstance(value, Tensor) else value
