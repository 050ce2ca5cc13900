"""The bundled critic, and the parts of its recipe that run without a download."""

import math

import pytest
import torch

import entropy_probe as ep
from entropy_probe.bundled import bundled
from entropy_probe.evaluation import critic
from entropy_probe.evaluation.critic import SIDE, prepare
from entropy_probe.evaluation.image_metrics import features, rank_of_caption
from recipes.critic import Recipe, contrastive_loss, rate_factor, vary


@pytest.fixture(scope="module")
def network():
    return critic.load_critic()


def test_critic_is_small_and_has_no_pickle():
    paths = [p for p in bundled("critic").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in paths) < 15e6
    assert {p.suffix for p in paths} <= {".json", ".safetensors", ".csv", ".md", ".txt"}


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), (64, 64), (256, 256), (64, 192), (128, 64)])
def test_critic_retrieves_captions_at_every_size(network, size):
    real_images = ep.reference.images()[::8]
    rank = rank_of_caption(
        features(network, real_images.at(size)),
        network.embed_captions(real_images.captions),
        torch.arange(len(real_images.captions)),
    )
    assert (rank == 0).float().mean() > 0.8


@torch.no_grad()
def test_embeddings_have_length_one_and_are_independent_of_batch(network):
    images = ep.reference.images()[:3].at((48, 80))
    embedded = network(images)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(3))
    assert torch.allclose(network(images[1:2]), embedded[1:2], atol=1e-5)
    assert network.num_features == embedded.shape[1]
    assert torch.allclose(network.embed_captions(["noto frog"]).norm(), torch.tensor(1.0))


def test_prepare_resizes_shorter_side_and_keeps_white():
    white = torch.full((1, 3, 32, 80), 255, dtype=torch.uint8)
    prepared = prepare(white)
    assert prepared.shape == (1, 3, SIDE, 240)
    assert torch.allclose(prepared, torch.ones(()))


def test_augmentation_is_on_white_and_reproducible():
    images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    recipe = Recipe(shapes=((1, 2),))
    varied = vary(images, recipe, 0.0, torch.Generator().manual_seed(0))
    assert varied.shape == (2, 3, 48, 96)
    assert torch.all(varied[..., :20] == 1)
    assert torch.equal(varied, vary(images, recipe, 0.0, torch.Generator().manual_seed(0)))
    assert vary(images, recipe, 1.0, torch.Generator().manual_seed(0)).shape == (2, 3, 48, 48)


def test_images_with_same_caption_share_target():
    features = torch.eye(3)
    twice = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    texts = torch.stack([features[0] + features[1], features[0] + features[1], features[2]])
    hot = torch.tensor(100.0)
    assert contrastive_loss(texts, texts, twice, hot) == pytest.approx(2 / 3 * math.log(2), abs=1e-5)
    assert contrastive_loss(texts, texts, torch.eye(3, dtype=torch.bool), hot) == pytest.approx(2 / 3 * math.log(2))


def test_learning_rate_decays_to_zero_twice():
    recipe = Recipe(steps=100, warmup=10, settle=20, settle_rate=0.5)
    assert [rate_factor(s, recipe) for s in (0, 9, 10, 55, 100, 110)] == pytest.approx([0.1, 1, 1, 0.5, 0.5, 0.25])
    assert rate_factor(99, recipe) < 0.001
    assert rate_factor(119, recipe) < 0.01


def test_old_name_load_warns():
    with pytest.warns(DeprecationWarning, match="use load_critic"):
        assert critic.load is critic.load_critic
