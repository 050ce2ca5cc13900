"""The distances against torchmetrics fed with images, and the retrieval and CLIP plumbing."""

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
from entropy_probe.evaluation.networks import Clip, judge_for


class Small(nn.Module):
    """A network of five features."""

    num_features = 5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3 * 8 * 8, 5)

    def forward(self, images):
        return self.mix(images.float().flatten(1) / 255)


def images(count, seed, low=0):
    return torch.randint(low, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_is_that_of_torchmetrics_on_the_images():
    from torchmetrics.image.fid import FrechetInceptionDistance

    network, real, drawn = Small(), images(150, 0), images(100, 1, low=60)
    metric = FrechetInceptionDistance(feature=network, input_img_size=(3, 8, 8))
    with torch.no_grad():
        metric.update(real, real=True)
        metric.update(drawn, real=False)
    ours = frechet_distance(features(network, real), features(network, drawn))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)
    assert frechet_distance(features(network, real), features(network, real)) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_of_equal_sets_in_full_is_that_of_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    network, real, drawn = Small(), images(60, 0), images(60, 1, low=60)
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
            "needs at least 6 images of either kind, not 5",
        ),
        (lambda: kernel_distance(torch.randn(9, 5), torch.randn(1, 5)), "needs at least 2 images"),
        (lambda: features(Small(), []), "no images"),
        (lambda: features(Small(), [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]), "mixed sizes"),
        (lambda: judge_for("no/such", None), "give a folder of them with --images"),
        (lambda: judge_for([]), "at least one network"),
        (lambda: judge_for(["critic", "inceptoin"]), "unknown network 'inceptoin': there is no such folder"),
        (lambda: judge_for(["critic", "critic"]), "two networks of one name: critic, critic"),
        (lambda: judge_for(["critic", "./no-such-folder"]), "not at hand: give 'critic', 'inception'"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_score_and_rank_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    captions = torch.tensor([[2.0, 0.0], [0.0, -1.0], [1.0, 0.9]])
    assert text_score(images, captions).tolist() == pytest.approx([100, 0, 99.86], abs=0.01)
    assert rank_of_caption(images, captions, torch.tensor([0, 1, 0])).tolist() == [0, 2, 1]


@pytest.fixture
def clip_folder(tmp_path):
    """A small CLIP with random weights, as save_pretrained writes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor

    from recipes.emoji_networks import build_tokenizer

    torch.manual_seed(0)
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
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def images_of(drawn):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in drawn]


CAPTIONS = ["red apple", "pizza", "flat pizza"]


@pytest.fixture
def drawn():
    return torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_clip_of_transformers_judges_as_it_does_by_itself(clip_folder, drawn):
    from transformers import CLIPProcessor

    clip = judge_for(clip_folder, reference.images()).networks["clip"]
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        whole = model(**processor(text=CAPTIONS, images=images_of(drawn), return_tensors="pt", padding=True))
        assert torch.allclose(clip(drawn), whole.image_embeds, atol=1e-5)
        assert torch.allclose(clip.embed_captions(CAPTIONS), whole.text_embeds, atol=1e-5)
    assert clip.num_features == 12


class AsTorchmetricsAsks(CLIPModel):
    """Features as tensors: torchmetrics 1.9 does not know yet that transformers 5 returns them in an object."""

    def get_image_features(self, *arguments, **named):
        return super().get_image_features(*arguments, **named).pooler_output

    def get_text_features(self, *arguments, **named):
        return super().get_text_features(*arguments, **named).pooler_output


def test_the_text_score_is_the_clip_score_of_torchmetrics(clip_folder, drawn):
    from torchmetrics.multimodal import CLIPScore

    clip = Clip.load(clip_folder)
    theirs = CLIPScore(lambda: (AsTorchmetricsAsks.from_pretrained(clip_folder).eval(), clip.processor))
    with torch.no_grad():
        ours = text_score(features(clip, drawn), clip.embed_captions(CAPTIONS))
    for image, caption, score in zip(drawn, CAPTIONS, ours, strict=True):
        assert float(theirs(image, caption)) == pytest.approx(float(score), abs=1e-3)
        theirs.reset()


NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {
    "vit": lambda: ViTModel(ViTConfig(**NARROW, image_size=32)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "segformer": lambda: SegformerModel(SegformerConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])),
    "vit-msn": lambda: ViTMSNModel(ViTMSNConfig(**NARROW, image_size=32)),  # it pools nothing
}


@pytest.mark.parametrize(("step", "few"), [(10, False), (100, True)])
def test_distances_to_a_handful_of_images_are_warned_of(step, few, recwarn):
    judge_for("critic", reference.images()[::step])
    told = [str(w.message) for w in recwarn if "real images" in str(w.message)]
    assert bool(told) == few
    assert not few or "only 6 real images" in told[0]


@pytest.mark.parametrize("name", SMALL)
def test_an_image_model_of_transformers_judges_as_it_does_by_itself(tmp_path, drawn, name):
    model, processor = SMALL[name]().eval(), ViTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path / name)
    processor.save_pretrained(tmp_path / name)
    network = judge_for(str(tmp_path / name), reference.images()).networks[name]
    with torch.no_grad():
        seen = model(processor(images=images_of(drawn), return_tensors="pt").pixel_values)
        places = {"vit-msn": (1,), "segformer": (2, 3)}.get(name)
        truth = seen.last_hidden_state.mean(places) if places else seen.pooler_output.flatten(1)
        assert torch.allclose(network(drawn), truth, atol=1e-5)
    assert network.num_features == truth.shape[1]


def test_a_model_that_reads_is_no_judge_of_images(tmp_path):
    BertModel(BertConfig(**NARROW)).save_pretrained(tmp_path / "bert")
    ViTImageProcessor().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="takes input_ids, not images"):
        judge_for(str(tmp_path / "bert"), reference.images())


@pytest.mark.parametrize(
    ("network", "package", "remedy"),
    [
        ("inception", "torch_fidelity", "pip install torch-fidelity"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", r"pip install '.\[imagenet\]'"),
    ],
)
def test_a_network_that_is_not_installed_is_named_with_the_remedy(network, package, remedy):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(InputError, match=f"{network}' is not at hand: {remedy}"):
        judge_for(network, reference.images())


@pytest.mark.skipif(bool(find_spec("torchvision")), reason="with torchvision the processor is there")
def test_a_network_whose_processor_needs_torchvision_is_refused_in_a_line(tmp_path):
    ViTModel(ViTConfig(**NARROW)).save_pretrained(tmp_path / "dino")
    (tmp_path / "dino" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "DINOv3ViTImageProcessorFast"}'
    )
    with pytest.raises(InputError, match=r"dino' is not at hand: .*requires the Torchvision library"):
        judge_for(str(tmp_path / "dino"), reference.images())


@pytest.mark.skipif(not find_spec("efficientnet_lite_pytorch"), reason="the extra imagenet is not installed")
def test_the_classifier_of_efficientnet_reads_our_features():
    network = judge_for("efficientnet-lite0", reference.images()).networks["efficientnet-lite0"]
    square = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        logits = network.network((square.float() - 127) / 128)
        assert torch.allclose(network.network._fc(network(square)), logits, atol=1e-4)
