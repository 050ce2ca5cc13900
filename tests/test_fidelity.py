"""The distances against torchmetrics fed with pictures, and the retrieval and CLIP plumbing."""

import pytest
import torch
from torch import nn

from entropy_probe.errors import InputError
from entropy_probe.validation.fidelity import features, frechet_distance, kernel_distance, rank_of_caption, text_score
from entropy_probe.validation.networks import Clip, judge_for


class Small(nn.Module):
    """A network of five features."""

    num_features = 5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3 * 8 * 8, 5)

    def forward(self, pictures):
        return self.mix(pictures.float().flatten(1) / 255)


def pictures(count, seed, low=0):
    return torch.randint(low, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_is_that_of_torchmetrics_on_the_pictures():
    from torchmetrics.image.fid import FrechetInceptionDistance

    network, real, drawn = Small(), pictures(150, 0), pictures(100, 1, low=60)
    metric = FrechetInceptionDistance(feature=network, input_img_size=(3, 8, 8))
    with torch.no_grad():
        metric.update(real, real=True)
        metric.update(drawn, real=False)
    ours = frechet_distance(features(network, real), features(network, drawn))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)
    assert frechet_distance(features(network, real), features(network, real)) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_of_equal_sets_in_full_is_that_of_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    network, real, drawn = Small(), pictures(60, 0), pictures(60, 1, low=60)
    metric = KernelInceptionDistance(feature=network, subsets=1, subset_size=60)
    with torch.no_grad():
        metric.update(real, real=True)
        metric.update(drawn, real=False)
    ours = kernel_distance(features(network, real), features(network, drawn))
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def test_the_kernel_distance_leaves_the_random_state_alone():
    embedded = torch.randn(20, 5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = kernel_distance(embedded, embedded[:8] + 1)
    assert torch.equal(torch.rand(4), expected)
    assert kernel_distance(embedded, embedded[:8] + 1) == first


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: frechet_distance(torch.randn(9, 5), torch.randn(5, 5)),
            "needs at least 6 pictures of either kind, not 5",
        ),
        (lambda: kernel_distance(torch.randn(9, 5), torch.randn(1, 5)), "needs at least 2 pictures"),
        (lambda: features(Small(), []), "no pictures"),
        (lambda: features(Small(), [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]), "mixed sizes"),
        (lambda: judge_for("no/such", None), "give a folder of them with --images"),
        (lambda: Clip.load("./no-such-folder"), "not at hand"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_score_and_rank_by_hand():
    pictures = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    captions = torch.tensor([[2.0, 0.0], [0.0, -1.0], [1.0, 0.9]])
    assert text_score(pictures, captions).tolist() == pytest.approx([100, 0, 99.86], abs=0.01)
    assert rank_of_caption(pictures, captions, torch.tensor([0, 1, 0])).tolist() == [0, 2, 1]


def test_a_clip_of_transformers_judges_as_it_does_by_itself(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from entropy_probe.reference.train import build_tokenizer

    tokenizer = build_tokenizer(["noto red apple", "flat pizza"], 300)
    text = dict(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    size = {"shortest_edge": 32}
    processor = CLIPProcessor(CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}), tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    clip = Clip.load(tmp_path)
    drawn = torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8)
    captions = ["red apple", "pizza", "flat pizza"]
    from PIL import Image

    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in drawn]
    with torch.no_grad():
        whole = model(**processor(text=captions, images=images, return_tensors="pt", padding=True))
        assert torch.allclose(clip(drawn), whole.image_embeds, atol=1e-5)
        assert torch.allclose(clip.embed_captions(captions), whole.text_embeds, atol=1e-5)
    assert clip.num_features == 12
