"""The recipes that train on scenes: fresh data, learning rate, continued runs. No hours of training."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from recipes import decoder, loop, transformer, unet

DATA = Path(__file__).parents[1] / "data"
"""The checkpoints are not in the installed package."""

SETTINGS = loop.Settings(batch=2, warmup=2, text_width=128)
SEEDS = (0, 1, 2, loop.AUTOENCODER_SEED, loop.EVALUATION_SEED)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return loop.build_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer")


def network(module, tokenizer):
    torch.manual_seed(0)
    return nn.ModuleDict({"text": loop.build_text_encoder(SETTINGS, tokenizer), "denoiser": module.build(SETTINGS)})


def test_fresh_scenes_are_reproducible_and_do_not_repeat():
    first = loop.fresh_scenes(0, 0, 4)
    assert first == loop.fresh_scenes(0, 0, 4)
    assert len({scene.layout for scene in (*first, *loop.fresh_scenes(0, 4, 4), *loop.fresh_scenes(1, 0, 4))}) == 12


def test_blocks_of_scenes_are_disjoint():
    starts = sorted(seed * loop.SCENES_PER_SEED for seed in SEEDS)
    assert min(b - a for a, b in itertools.pairwise(starts)) == loop.SCENES_PER_SEED
    assert decoder.FIRST_SCENE < loop.SCENES_PER_SEED


def test_longest_caption_fits_the_text_encoder(tokenizer):
    from entropy_probe.reference import scenes

    names = [c.name for c in scenes.classes()]
    captions = [
        scenes.Prompt((scenes.Group(a, 2), scenes.Group(b, 1)), background.name).caption
        for a, b, background in zip(names, names[::-1], scenes.BACKGROUNDS * 8, strict=True)
    ]
    tokens = loop.tokenize(tokenizer, captions)
    assert (tokens == tokenizer.eos_token_id).any(-1).all()
    assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == captions


def test_mask_covers_the_caption_up_to_its_end(tokenizer):
    tokens = loop.tokenize(tokenizer, ["one fox on white", ""])
    assert loop.token_mask(tokens, tokenizer.eos_token_id).sum(-1).tolist() == [6, 2]


def test_learning_rate_warms_up_and_falls_to_zero(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    budget = loop.Budget(tmp_path, minutes=10, warmup=4, decay=0.5)
    assert [budget.rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    now[0] += 450
    assert budget.rate(50) == pytest.approx(0.5)
    now[0] += 151
    assert budget.done
    assert budget.rate(60) == 0


def test_finish_file_starts_the_final_decay(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    budget = loop.Budget(tmp_path, minutes=100, warmup=1, decay=0.25)
    assert budget.rate(5) == 1
    (tmp_path / "finish").write_text("2")
    assert budget.rate(6) == 1
    now[0] = 60
    assert budget.rate(7) == pytest.approx(0.5)
    now[0] = 121
    assert budget.done


def test_finish_file_does_not_raise_a_falling_rate(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    budget = loop.Budget(tmp_path, minutes=10, warmup=1, decay=0.5)
    now[0] = 450
    (tmp_path / "finish").write_text("2")
    assert budget.rate(100) == pytest.approx(0.5)
    now[0] = 510
    assert budget.rate(101) == pytest.approx(0.25)


def test_noisy_latents_and_velocity_agree():
    scheduler, latents = loop.build_scheduler(), torch.randn(6, 4, 4, 4)
    noisy, velocity, timesteps = loop.add_noise(latents, scheduler, torch.Generator().manual_seed(0))
    signal = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    noise = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(signal * noisy - noise * velocity, latents, atol=1e-5)


def test_curve_rejects_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss of step 3 is nan: lower the learning rate"):
        loop.Curve(tmp_path / "curve.csv").add(3, 0.0, float("nan"), 1e-3)


@pytest.mark.clone
@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_continued_run_starts_from_the_exported_weights(name, tokenizer):
    module, folder = (
        {"unet": unet, "transformer": transformer}[name],
        DATA / ("scenes-unet" if name == "unet" else "scenes-dit"),
    )
    facts = json.loads((folder / "training.json").read_text())
    settings = dataclasses.replace(SETTINGS, batch=facts["settings"]["batch"])
    model = network(module, tokenizer)
    assert loop.load_start(model, folder, name, settings) == facts["steps"]
    drawn = loop.fresh_scenes(loop.EVALUATION_SEED, 0, 8)
    autoencoder = AutoencoderTiny.from_pretrained(folder / "vae").float().eval()
    generator = torch.Generator().manual_seed(0)
    noisy, target, timesteps = loop.add_noise(
        loop.encode(autoencoder, loop.pixels_of(drawn)), loop.build_scheduler(), generator
    )
    tokens = loop.tokenize(tokenizer, [scene.caption for scene in drawn])
    with torch.no_grad():
        loss = (module.denoise(model.eval(), noisy, timesteps, tokens) - target).square().mean()
    assert loss < 0.3


@pytest.mark.clone
def test_continued_run_must_not_repeat_scenes(tokenizer):
    with pytest.raises(ValueError, match="seed 0 and a batch of at least 32, got seed 0 and batch 2"):
        loop.load_start(network(unet, tokenizer), DATA / "scenes-unet", "unet", SETTINGS)


@pytest.mark.clone
def test_training_continues_the_count_of_steps_and_resumes(tmp_path, tokenizer):
    folder = DATA / "scenes-unet"
    model = network(unet, tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    _, steps = loop.train(tmp_path / "run", folder, model, unet.denoise, SETTINGS, 0.02, steps_before=100)
    assert steps > 100
    assert any(not torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    again, resumed = loop.train(tmp_path / "run", folder, network(unet, tokenizer), unet.denoise, SETTINGS, 0.02, 100)
    assert resumed == steps
    assert set(again.state_dict()) == set(before)


@pytest.mark.clone
def test_decoder_training_leaves_the_encoder_unchanged(tmp_path):
    start = DATA / "scenes-unet" / "vae"
    before = AutoencoderTiny.from_pretrained(start).float()
    after = decoder.train(tmp_path, start, 0.02)
    for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    )


def test_longer_text_encoder_gives_the_same_embeddings(tokenizer):
    text = loop.build_text_encoder(SETTINGS, tokenizer).eval()
    longer = transformer.lengthen(text, transformer.PROMPT_LENGTH)
    tokens = loop.tokenize(tokenizer, ["two lemons and one fox on white"])
    with torch.no_grad():
        assert torch.allclose(text(tokens).last_hidden_state, longer(tokens).last_hidden_state, atol=1e-5)
