"""Fréchet and kernel distance between drawn and real images, and how well images go with their captions.

torchmetrics computes the distances; the network that looks at the images is the critic, or any module that returns an
embedding for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from entropy_probe.errors import InputError

LOOKED_AT_ONCE = 64
SUBSETS = 50
"""Of images, at most, that a kernel distance is the mean over."""

TURNS = 8
"""That every image of the larger set takes on average, in fewer subsets."""


class Network(Protocol):
    """A network in the place of Inception: looks at images."""

    num_features: int

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Embeddings of images."""
        ...


@runtime_checkable
class Reader(Network, Protocol):
    """A network in the place of CLIP, which reads captions too: `critic.Critic` is one."""

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Embeddings of captions, in the same space."""
        ...


@torch.no_grad()
def features(
    network: Any, images: UInt8[Tensor, "count 3 height width"] | Sequence[UInt8[Tensor, "3 height width"]]
) -> Float[Tensor, "count features"]:
    """Embeddings of all images.

    Raises:
        InputError: for no images, or images of mixed sizes.
    """
    sizes = {tuple(image.shape[-2:]) for image in images}
    if not sizes:
        raise InputError("there are no images to compare")
    if len(sizes) > 1:
        named = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
        raise InputError(f"the images are of mixed sizes ({named}): a distance compares images of one size")
    together = images if isinstance(images, Tensor) else torch.stack(list(images))
    return torch.cat([network(part).float() for part in together.split(LOOKED_AT_ONCE)])


def frechet_distance(real: Float[Tensor, "count features"], drawn: Float[Tensor, "count features"]) -> float:
    """Fréchet distance of Heusel et al. (2017, arXiv 1706.08500) between two sets of embeddings.

    Raises:
        InputError: for fewer images than features: their covariance would be singular.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    least = real.shape[1] + 1
    if min(len(real), len(drawn)) < least:
        raise InputError(
            f"the Fréchet distance on {real.shape[1]} features needs at least {least} images of either kind, "
            f"not {min(len(real), len(drawn))}: draw more, or take the kernel distance"
        )
    metric = FrechetInceptionDistance(feature=_Embedded(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    return float(metric.compute())


def kernel_distance(real: Float[Tensor, "count features"], drawn: Float[Tensor, "count features"]) -> float:
    """Kernel distance of Binkowski et al. (2018, arXiv 1801.01401): unbiased for few images too, may be negative.

    Mean over random subsets as large as the smaller set, `SUBSETS` of them, or as many as take every image of the
    larger set `TURNS` times on average if these are fewer; cubic polynomial kernel.

    Raises:
        InputError: for fewer than two images of either kind.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(drawn))
    if size < 2:
        raise InputError(f"the kernel distance needs at least 2 images of either kind, not {size}")
    most = max(len(real), len(drawn))
    subsets = 1 if most == size else min(SUBSETS, math.ceil(TURNS * most / size))  # of equal sets, all are the same
    metric = KernelInceptionDistance(feature=_Embedded(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws its subsets from the global generator
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)


def text_score(
    images: Float[Tensor, "count features"], captions: Float[Tensor, "count features"]
) -> Float[Tensor, " count"]:
    """100 max(cos, 0) of each image and its caption: CLIPScore, Hessel et al. (2021, arXiv 2104.08718)."""
    return 100 * torch.cosine_similarity(images, captions, dim=-1).clamp_min(0)


def rank_of_caption(
    images: Float[Tensor, "count features"],
    captions: Float[Tensor, "candidates features"],
    own: Int[Tensor, " count"],
) -> Int[Tensor, " count"]:
    """Place of each image's own caption among the candidates by nearness, 0 for the nearest: retrieval."""
    scores = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(captions, dim=-1).T
    return (scores > scores.gather(1, own[:, None])).sum(-1)


class _Embedded(nn.Module):
    """In place of a network in torchmetrics, where the embeddings are at hand."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings
