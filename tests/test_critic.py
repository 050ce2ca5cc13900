"""The bundled critic, and the parts of its recipe that need no download."""

import math
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import entropy_probe as ep
from entropy_probe.evaluation import critic
from entropy_probe.evaluation.critic import SIDE, prepare
from entropy_probe.evaluation.image_metrics import features, rank_of_caption
from recipes.critic import Recipe, contrastive_loss, rate_factor, vary


@pytest.fixture(scope="module")
def network():
    return critic.load()


def test_it_is_small_and_holds_no_pickle():
    found = [p for p in Path(str(files("entropy_probe.data") / "critic")).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in found) < 15e6
    assert {p.suffix for p in found} <= {".json", ".safetensors", ".csv", ".md"}


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), (64, 64), (256, 256), (64, 192), (128, 64)])
def test_it_finds_the_captions_of_drawings_at_every_size(network, size):
    drawings = ep.reference.images()[::8]
    rank = rank_of_caption(
        features(network, drawings.at(size)),
        network.embed_captions(drawings.captions),
        torch.arange(len(drawings.captions)),
    )
    assert (rank == 0).float().mean() > 0.8


@torch.no_grad()
def test_embeddings_have_length_one_and_do_not_depend_on_the_batch(network):
    images = ep.reference.images()[:3].at((48, 80))
    embedded = network(images)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(3))
    assert torch.allclose(network(images[1:2]), embedded[1:2], atol=1e-5)
    assert network.num_features == embedded.shape[1]
    assert torch.allclose(network.embed_captions(["noto frog"]).norm(), torch.tensor(1.0))


def test_the_shorter_side_is_brought_to_size_and_white_stays_white():
    white = torch.full((1, 3, 32, 80), 255, dtype=torch.uint8)
    prepared = prepare(white)
    assert prepared.shape == (1, 3, SIDE, 240)
    assert torch.allclose(prepared, torch.ones(()))


def test_images_are_varied_on_white_and_repeatably():
    images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    recipe = Recipe(shapes=((1, 2),))
    varied = vary(images, recipe, 0.0, torch.Generator().manual_seed(0))
    assert varied.shape == (2, 3, 48, 96)
    assert torch.all(varied[..., :20] == 1)
    assert torch.equal(varied, vary(images, recipe, 0.0, torch.Generator().manual_seed(0)))
    assert vary(images, recipe, 1.0, torch.Generator().manual_seed(0)).shape == (2, 3, 48, 48)


def test_images_of_one_caption_share_the_target():
    features = torch.eye(3)
    twice = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    texts = torch.stack([features[0] + features[1], features[0] + features[1], features[2]])
    hot = torch.tensor(100.0)
    assert contrastive_loss(texts, texts, twice, hot) == pytest.approx(2 / 3 * math.log(2), abs=1e-5)
    assert contrastive_loss(texts, texts, torch.eye(3, dtype=torch.bool), hot) == pytest.approx(2 / 3 * math.log(2))


def test_the_rate_falls_to_zero_twice():
    recipe = Recipe(steps=100, warmup=10, settle=20, settle_rate=0.5)
    assert [rate_factor(s, recipe) for s in (0, 9, 10, 55, 100, 110)] == pytest.approx([0.1, 1, 1, 0.5, 0.5, 0.25])
    assert rate_factor(99, recipe) < 0.001
    assert rate_factor(119, recipe) < 0.01
