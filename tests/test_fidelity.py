"""Distances and text score, compared with torchmetrics; loading networks by name."""

from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)

from entropy_probe import reference
from entropy_probe.errors import InputError
from entropy_probe.evaluation.image_metrics import (
    features,
    frechet_distance,
    kernel_distance,
    rank_of_caption,
    text_score,
)
from entropy_probe.evaluation.networks import Clip, load_scorer


class Small(nn.Module):
    """Embeds images into five features."""

    num_features = 5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3 * 8 * 8, 5)

    def forward(self, images):
        return self.mix(images.float().flatten(1) / 255)


def images(count, seed, low=0):
    return torch.randint(low, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    network, real, sampled = Small(), images(150, 0), images(100, 1, low=60)
    metric = FrechetInceptionDistance(feature=network, input_img_size=(3, 8, 8))
    with torch.no_grad():
        metric.update(real, real=True)
        metric.update(sampled, real=False)
    ours = frechet_distance(features(network, real), features(network, sampled))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)
    assert frechet_distance(features(network, real), features(network, real)) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_of_equal_sets_equals_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    network, real, sampled = Small(), images(60, 0), images(60, 1, low=60)
    metric = KernelInceptionDistance(feature=network, subsets=1, subset_size=60)
    with torch.no_grad():
        metric.update(real, real=True)
        metric.update(sampled, real=False)
    ours = kernel_distance(features(network, real), features(network, sampled))
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def test_kernel_distance_does_not_change_global_random_state():
    embedded = torch.randn(20, 5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = kernel_distance(embedded, embedded[:8] + 1)
    assert torch.equal(torch.rand(4), expected)
    assert kernel_distance(embedded, embedded[:8] + 1) == first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: frechet_distance(torch.randn(9, 5), torch.randn(5, 5)),
            "needs at least 6 real and sampled images, got 5",
        ),
        (lambda: kernel_distance(torch.randn(9, 5), torch.randn(1, 5)), "needs at least 2 real and sampled images"),
        (lambda: features(Small(), []), "images is empty"),
        (lambda: features(Small(), [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]), "must have one size"),
        (lambda: load_scorer("no/such", None), "give a folder of them with --real-images"),
        (lambda: load_scorer([]), "at least one network"),
        (lambda: load_scorer(["critic", "inceptoin"]), "unknown network 'inceptoin': it is not a folder"),
        (lambda: load_scorer(["critic", "critic"]), "must have different names, got critic, critic"),
        (
            lambda: load_scorer(["critic", "./no-such-folder"]),
            "cannot load the network './no-such-folder': give 'critic', 'inception'",
        ),
    ],
)
def test_rejects_invalid_images_and_networks(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_text_score_and_rank_of_known_embeddings():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    captions = torch.tensor([[2.0, 0.0], [0.0, -1.0], [1.0, 0.9]])
    assert text_score(images, captions).tolist() == pytest.approx([100, 0, 99.86], abs=0.01)
    assert rank_of_caption(images, captions, torch.tensor([0, 1, 0])).tolist() == [0, 2, 1]


@pytest.fixture
def clip_folder(tmp_path):
    """A small CLIP with random weights, as save_pretrained writes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor

    from recipes.loop import learn_tokenizer

    torch.manual_seed(0)
    tokenizer = learn_tokenizer(["noto red apple", "flat pizza"], 300)
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
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def images_of(sampled):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in sampled]


CAPTIONS = ["red apple", "pizza", "flat pizza"]


@pytest.fixture
def sampled():
    return torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_clip_embeds_like_transformers(clip_folder, sampled):
    from transformers import CLIPProcessor

    clip = load_scorer(clip_folder, reference.images()).networks["clip"]
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        output = model(**processor(text=CAPTIONS, images=images_of(sampled), return_tensors="pt", padding=True))
        assert torch.allclose(clip(sampled), output.image_embeds, atol=1e-5)
        assert torch.allclose(clip.embed_captions(CAPTIONS), output.text_embeds, atol=1e-5)
    assert clip.num_features == 12


class ClipForTorchmetrics(CLIPModel):
    """Returns features as tensors, because torchmetrics 1.9 does not support the objects of transformers 5."""

    def get_image_features(self, *arguments, **named):
        return super().get_image_features(*arguments, **named).pooler_output

    def get_text_features(self, *arguments, **named):
        return super().get_text_features(*arguments, **named).pooler_output


def test_text_score_equals_clip_score_of_torchmetrics(clip_folder, sampled):
    from torchmetrics.multimodal import CLIPScore

    clip = Clip.load(clip_folder)
    theirs = CLIPScore(lambda: (ClipForTorchmetrics.from_pretrained(clip_folder).eval(), clip.processor))
    with torch.no_grad():
        ours = text_score(features(clip, sampled), clip.embed_captions(CAPTIONS))
    for image, caption, score in zip(sampled, CAPTIONS, ours, strict=True):
        assert float(theirs(image, caption)) == pytest.approx(float(score), abs=1e-3)
        theirs.reset()


NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {
    "vit": lambda: ViTModel(ViTConfig(**NARROW, image_size=32)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "segformer": lambda: SegformerModel(SegformerConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])),
    "vit-msn": lambda: ViTMSNModel(ViTMSNConfig(**NARROW, image_size=32)),  # has no pooled output
}


@pytest.mark.parametrize(("step", "few"), [(10, False), (100, True)])
def test_warns_about_few_real_images(step, few, recwarn):
    load_scorer("critic", reference.images()[::step])
    messages = [str(w.message) for w in recwarn if "real images" in str(w.message)]
    assert bool(messages) == few
    assert not few or "only 6 real images" in messages[0]


@pytest.mark.parametrize("name", SMALL)
def test_image_model_embeds_like_transformers(tmp_path, sampled, name):
    model, processor = SMALL[name]().eval(), ViTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path / name)
    processor.save_pretrained(tmp_path / name)
    network = load_scorer(str(tmp_path / name), reference.images()).networks[name]
    with torch.no_grad():
        output = model(processor(images=images_of(sampled), return_tensors="pt").pixel_values)
        axes = {"vit-msn": (1,), "segformer": (2, 3)}.get(name)
        truth = output.last_hidden_state.mean(axes) if axes else output.pooler_output.flatten(1)
        assert torch.allclose(network(sampled), truth, atol=1e-5)
    assert network.num_features == truth.shape[1]


def test_rejects_text_model_as_image_network(tmp_path):
    BertModel(BertConfig(**NARROW)).save_pretrained(tmp_path / "bert")
    ViTImageProcessor().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="must take images, but takes input_ids"):
        load_scorer(str(tmp_path / "bert"), reference.images())


@pytest.mark.parametrize(
    ("network", "package", "remedy"),
    [
        ("inception", "torch_fidelity", "cannot load the network 'inception': pip install torch-fidelity"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", r"pip install \"entropy-probe\[imagenet\]\"$"),
    ],
)
def test_missing_network_error_names_package(network, package, remedy):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(InputError, match=remedy):
        load_scorer(network, reference.images())


@pytest.mark.skipif(bool(find_spec("torchvision")), reason="torchvision is installed, so the processor loads")
def test_missing_torchvision_is_reported_in_one_line(tmp_path):
    ViTModel(ViTConfig(**NARROW)).save_pretrained(tmp_path / "dino")
    (tmp_path / "dino" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "DINOv3ViTImageProcessorFast"}'
    )
    with pytest.raises(InputError, match=r"cannot load the network '.*dino': .*requires the Torchvision library"):
        load_scorer(str(tmp_path / "dino"), reference.images())


@pytest.mark.skipif(not find_spec("efficientnet_lite_pytorch"), reason="the extra imagenet is not installed")
def test_efficientnet_features_reproduce_its_logits():
    network = load_scorer("efficientnet-lite0", reference.images()).networks["efficientnet-lite0"]
    square = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        logits = network.network((square.float() - 127) / 128)
        assert torch.allclose(network.network._fc(network(square)), logits, atol=1e-4)
