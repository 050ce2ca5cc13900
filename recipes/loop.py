"""Shared by the recipes: fresh scenes, text, noise, the learning rate schedule, the curve and the training loop."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from entropy_probe.reference import scenes
from recipes.checkpoints import load_checkpoint, save_checkpoint
from recipes.portable import write_vocabulary

TEXT_LENGTH = 16
"""Tokens of a caption, padding included."""

LATENT_CHANNELS = 4
LATENT_FACTOR = 4
"""Pixels per latent, along each side."""

CHECKPOINT_SECONDS = 300
"""Minimum time between two checkpoints."""

SCENES_PER_SEED = 1_000_000_000
"""Training run `seed` uses the scenes from `seed` times this number, each of them once."""

AUTOENCODER_SEED = 900
"""The autoencoder's block of scenes; no denoiser uses it."""

EVALUATION_SEED = 901
"""The block of scenes that no training run uses."""


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a denoiser and its text encoder."""

    seed: int = 0
    batch: int = 16
    rate: float = 8e-4
    warmup: int = 200
    decay: float = 0.25
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    caption_dropout: float = 0.1
    ema: float = 0.999
    text_width: int = 128
    text_layers: int = 2
    head_width: int = 32


class Budget:
    """A warmup-stable-decay learning rate over a budget of training time.

    The rate rises over `warmup` steps, stays constant, and falls linearly to zero over the last `decay` fraction of
    `minutes`. Write a number of minutes into the file `finish` in the work folder to start the final decay now.
    """

    def __init__(self, work: Path, minutes: float, warmup: int, decay: float) -> None:
        self.flag, self.warmup = work / "finish", warmup
        self.end, self.decay_seconds = 60 * minutes, 60 * minutes * decay
        self.began = time.monotonic()
        self.finishing, self.highest = False, 1.0

    def state_dict(self) -> dict[str, float]:
        """Return the training time, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from the training time of a checkpoint."""
        self.began = time.monotonic() - state["seconds"]

    @property
    def seconds(self) -> float:
        """Training time so far, over all resumed parts of the run."""
        return time.monotonic() - self.began

    @property
    def done(self) -> bool:
        """True after the budget is used up."""
        return self.seconds >= self.end

    def rate(self, step: int) -> float:
        """Fraction of the full learning rate at a step, now."""
        if not self.finishing and self.flag.exists():
            self.highest = min(1.0, (self.end - self.seconds) / self.decay_seconds)
            self.decay_seconds = 60 * float(self.flag.read_text())
            self.end, self.finishing = self.seconds + self.decay_seconds, True
        left = (self.end - self.seconds) / self.decay_seconds
        return max(0.0, min(self.highest, (step + 1) / self.warmup, self.highest * left))


class Curve:
    """The training curve as CSV: step, seconds, mean loss since the last row, learning rate."""

    def __init__(self, path: Path, every: int = 50) -> None:
        self.path, self.every = path, every
        self.recent: list[float] = []
        if not path.exists():
            path.write_text("step,seconds,loss,rate\n")

    def add(self, step: int, seconds: float, loss: float, rate: float) -> None:
        """Record the loss of a step.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss}: lower the learning rate")
        self.recent.append(loss)
        if (step + 1) % self.every == 0:
            with self.path.open("a") as file:
                file.write(f"{step + 1},{seconds:.0f},{np.mean(self.recent):.5f},{rate:.3g}\n")
            self.recent.clear()


def fresh_scenes(
    seed: int, first: int, count: int, split: scenes.Split = "training", size: int = scenes.SIZE
) -> list[scenes.Scene]:
    """Return `count` scenes of `size` x `size` pixels; the same numbers always return the same scenes."""
    start = seed * SCENES_PER_SEED + first
    return [scenes.sample(start + i, size, size, split=split) for i in range(count)]


def pixels_of(drawn: Sequence[scenes.Scene]) -> UInt8[Tensor, "count 3 height width"]:
    """Stack the images of scenes of one size."""
    return torch.from_numpy(np.stack([s.image for s in drawn])).permute(0, 3, 1, 2)


def to_unit(pixels: UInt8[Tensor, "count 3 height width"]) -> Float[Tensor, "count 3 height width"]:
    """Bytes to [-1, 1]."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def encode(
    autoencoder: AutoencoderTiny, pixels: UInt8[Tensor, "count 3 height width"]
) -> Float[Tensor, "count 4 latent_height latent_width"]:
    """Encode images as latents, multiplied by the autoencoder's scaling factor."""
    latents: Tensor = autoencoder.encode(to_unit(pixels)).latents
    return latents * autoencoder.config.scaling_factor


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose merges are learned from the grammar of the captions; trained once per folder."""
    if folder.exists():
        return CLIPTokenizer.from_pretrained(folder)
    nouns = [noun for c in scenes.classes() for noun in (c.name, c.plural)]
    corpus = [f"{n} {noun}" for noun in nouns for n in scenes.NUMBERS[1:]] * 2
    corpus += [f"and on {b.name}" for b in scenes.BACKGROUNDS] * 16
    learn_tokenizer(corpus, vocabulary=1200).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def learn_tokenizer(texts: Sequence[str], vocabulary: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose byte-pair merges are learned from texts. It works with old and new transformers."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    with TemporaryDirectory() as folder:
        model.save(f"{folder}/tokenizer.json")
        write_vocabulary(Path(folder, "tokenizer.json"))
        return CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=TEXT_LENGTH)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Int[Tensor, "count length"]:
    """Return token numbers, padded to `TEXT_LENGTH`."""
    ids: Tensor = tokenizer(
        list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def token_mask(tokens: Int[Tensor, "count length"], end: int) -> Float[Tensor, "count length"]:
    """Return 1 for the tokens of the caption up to its end token, 0 for padding."""
    lengths = (tokens == end).int().argmax(-1) + 1
    return (torch.arange(tokens.shape[1]) < lengths[:, None]).float()


class TextSettings(Protocol):
    """Hyperparameters of a text encoder."""

    @property
    def text_width(self) -> int:
        """Width of the hidden states."""
        ...

    @property
    def text_layers(self) -> int:
        """Number of layers."""
        ...

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        ...


def build_text_encoder(settings: TextSettings, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a small CLIP text encoder with default initialisation, trained together with the denoiser."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.text_width // settings.head_width,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=settings.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Return a cosine schedule with v-prediction.

    Its last timestep is pure noise (a signal-to-noise ratio below 1e-8): otherwise sampling could not produce a uniform
    background.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def add_noise(
    latents: Float[Tensor, "batch 4 h w"], scheduler: DDIMScheduler, generator: torch.Generator
) -> tuple[Float[Tensor, "batch 4 h w"], Float[Tensor, "batch 4 h w"], Int[Tensor, " batch"]]:
    """Return noisy latents, v-prediction targets and timesteps.

    The timesteps of a batch are stratified: item i is uniform in the i-th part of the schedule. The target follows
    Salimans and Ho (2022), https://arxiv.org/abs/2202.00512.
    """
    noise = torch.randn(latents.shape, generator=generator)
    spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    timesteps = (spread * scheduler.config.num_train_timesteps).long()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, scheduler.get_velocity(latents, noise, timesteps), timesteps


def average_of(model: nn.Module, ema: float) -> AveragedModel:
    """Return the exponential moving average of a model's weights, with a shorter memory in the first steps."""

    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        keep = min(ema, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, 1 - keep)

    return AveragedModel(model, multi_avg_fn=update)


def tidy_autoencoder(out: Path) -> None:
    """Remove two entries from the configuration of a saved autoencoder.

    `block_out_channels` is derived by diffusers, which warns if it is set; `_name_or_path` is a path of this machine.
    """
    path = out / "vae" / "config.json"
    config = json.loads(path.read_text())
    kept = {name: value for name, value in config.items() if name not in ("block_out_channels", "_name_or_path")}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def rate_schedule(
    optimizer: torch.optim.Optimizer, budget: Budget, rate: float, done: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning rate of a budget, for a run that has done a number of steps.

    Args:
        optimizer: the optimiser.
        budget: the budget of the run.
        rate: the full learning rate.
        done: number of steps of this run before it was resumed.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    return torch.optim.lr_scheduler.LambdaLR(optimizer, budget.rate, last_epoch=done - 1)


def load_start(model: nn.ModuleDict, folder: Path, part: str, settings: Settings) -> int:
    """Load the weights of an exported pipeline into `model`; return the number of steps they were trained for.

    Args:
        model: text encoder under `text`, denoiser under `denoiser`.
        folder: the exported pipeline, with its `training.json`.
        part: the pipeline's name of the denoiser, `unet` or `transformer`.
        settings: hyperparameters of the new run.

    Raises:
        ValueError: if the new run would repeat scenes of the earlier one: smaller batch, or another seed.
    """
    facts = json.loads((folder / "training.json").read_text())
    before = facts["settings"]
    if settings.batch < before["batch"] or settings.seed != before["seed"]:
        raise ValueError(
            f"a continued run needs seed {before['seed']} and a batch of at least {before['batch']}, "
            f"got seed {settings.seed} and batch {settings.batch}"
        )
    denoiser = type(model["denoiser"]).from_pretrained(folder / part, use_safetensors=True)
    model["denoiser"].load_state_dict(denoiser.float().state_dict())
    weights = CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict()
    (name,) = (n for n in weights if n.endswith("position_embedding.weight"))
    weights[name] = weights[name][:TEXT_LENGTH]
    model["text"].load_state_dict(weights)
    return int(facts["steps"])


def train(
    work: Path,
    base: Path,
    model: nn.ModuleDict,
    denoise: Callable[[nn.ModuleDict, Tensor, Tensor, Tensor], Tensor],
    settings: Settings,
    minutes: float,
    steps_before: int = 0,
) -> tuple[nn.ModuleDict, int]:
    """Train a text encoder and a denoiser on fresh scenes; return their averaged weights and the number of steps.

    Resumes from `work/checkpoint.pt`. Every step uses new scenes: step s of a run starts at scene s times the batch
    size, counted from `settings.seed * SCENES_PER_SEED`. Steps are counted from the first run on.

    Args:
        work: folder for the checkpoint and the curve.
        base: folder with the finished autoencoder and the tokenizer.
        model: the modules to train, with the text encoder under `text`.
        denoise: `denoise(model, noisy, timesteps, tokens)` returns the predicted velocity.
        settings: hyperparameters.
        minutes: budget of training time; see `Budget`.
        steps_before: steps of the run that produced the initial weights; see `load_start`.
    """
    work.mkdir(parents=True, exist_ok=True)
    autoencoder = AutoencoderTiny.from_pretrained(base / "vae", use_safetensors=True).eval()
    tokenizer = build_tokenizer(base / "tokenizer")
    scheduler = build_scheduler()
    average = average_of(model, settings.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, betas=settings.betas
    )
    budget = Budget(work, minutes, settings.warmup, settings.decay)
    checkpoint = work / "checkpoint.pt"
    parts = {"model": model, "average": average, "optimizer": optimizer, "budget": budget}
    step = max(steps_before, load_checkpoint(checkpoint, **parts))
    schedule = rate_schedule(optimizer, budget, settings.rate, step - steps_before)
    curve, saved = Curve(work / "curve.csv"), time.monotonic()
    empty = tokenize(tokenizer, [""])
    while not budget.done:
        generator = torch.Generator().manual_seed(settings.seed * SCENES_PER_SEED + step)
        drawn = fresh_scenes(settings.seed, step * settings.batch, settings.batch)
        latents = encode(autoencoder, pixels_of(drawn))
        noisy, target, timesteps = add_noise(latents, scheduler, generator)
        tokens = tokenize(tokenizer, [s.caption for s in drawn])
        dropped = torch.rand(len(tokens), 1, generator=generator) < settings.caption_dropout
        loss = F.mse_loss(denoise(model, noisy, timesteps, torch.where(dropped, empty, tokens)), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        curve.add(step, budget.seconds, loss.item(), schedule.get_last_lr()[0])
        step += 1
        schedule.step()
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint, step, **parts)
            saved = time.monotonic()
    save_checkpoint(checkpoint, step, **parts)
    finished: nn.ModuleDict = copy.deepcopy(average.module).eval()
    return finished, step
