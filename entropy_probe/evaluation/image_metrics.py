"""Fréchet distance (FID), kernel distance (KID), text score (CLIPScore, CLIP score) and caption retrieval.

torchmetrics computes the distances. The embeddings come from the bundled critic, Inception, CLIP, or any module that
returns one embedding per image. `METRICS` declares the direction, the unit and the formula of each metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from entropy_probe.errors import InputError
from entropy_probe.extras import name_missing_extra

BATCH = 64
MAX_SUBSETS = 50
"""Maximum number of subsets that a kernel distance averages over."""

MEAN_USES = 8
"""Number of subsets that contain an image of the larger set, on average, if that needs fewer than `MAX_SUBSETS`."""


class ImageEncoder(Protocol):
    """A network that embeds images, such as Inception."""

    num_features: int

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return one embedding per image."""
        ...


@runtime_checkable
class TextImageEncoder(ImageEncoder, Protocol):
    """A network that embeds images and captions into one space, such as CLIP or the bundled critic."""

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Return one embedding per caption."""
        ...


@torch.no_grad()
def features(
    network: Any, images: UInt8[Tensor, "count 3 height width"] | Sequence[UInt8[Tensor, "3 height width"]]
) -> Float[Tensor, "count features"]:
    """Compute the embeddings of all images, in batches.

    Args:
        network: an `ImageEncoder`.
        images: bytes, all of one size.

    Raises:
        InputError: if `images` is empty, or the sizes differ.

    Examples:
        >>> features(lambda images: images.float().mean((2, 3)), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([4, 3])
    """
    sizes = {tuple(image.shape[-2:]) for image in images}
    if not sizes:
        raise InputError("images is empty: give at least one image")
    if len(sizes) > 1:
        named = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
        raise InputError(f"images must have one size, got {named}: resize them")
    stacked = images if isinstance(images, Tensor) else torch.stack(list(images))
    return torch.cat([network(part).float() for part in stacked.split(BATCH)])


def frechet_distance(real: Float[Tensor, "count features"], sampled: Float[Tensor, "count features"]) -> float:
    """Compute the Fréchet distance between the embeddings of real and sampled images.

    Heusel et al. 2017 (arXiv 1706.08500). FID is this distance with the embeddings of Inception, usually of 10,000 to
    50,000 images. The expected distance decreases with the number of images, so compare it only for equal numbers.

    Args:
        real: embeddings of real images.
        sampled: embeddings of sampled images.

    Raises:
        InputError: if a set does not have more images than features: its covariance would be singular.

    Examples:
        >>> real = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> print(f"{frechet_distance(real, real + 3):.1f}")  # the means differ by 3 in two features: 9 + 9
        18.0
    """
    with name_missing_extra():
        from torchmetrics.image.fid import FrechetInceptionDistance

    needed, fewest = real.shape[1] + 1, min(len(real), len(sampled))
    if fewest < needed:
        raise InputError(
            f"the Fréchet distance with {real.shape[1]} features needs at least {needed} real and sampled images, "
            f"got {fewest}: sample more images, or use the kernel distance"
        )
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(sampled, real=False)
    return float(metric.compute())


def kernel_distance(real: Float[Tensor, "count features"], sampled: Float[Tensor, "count features"]) -> float:
    """Compute the kernel distance between the embeddings of real and sampled images.

    Binkowski et al. 2018 (arXiv 1801.01401). KID is this distance with the embeddings of Inception. Some papers
    multiply KID by 100 or 1000; this function does not. The estimate is unbiased for any number of images, and can be
    negative.

    The result is a mean over random subsets, each as large as the smaller set. There are at most `MAX_SUBSETS` subsets,
    or fewer if every image of the larger set is then used `MEAN_USES` times on average.

    Args:
        real: embeddings of real images.
        sampled: embeddings of sampled images.

    Raises:
        InputError: if there are fewer than two real or sampled images.

    Examples:
        >>> real = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> kernel_distance(real, real + 3) > kernel_distance(real, real + 1) > 0
        True
    """
    with name_missing_extra():
        from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(sampled))
    if size < 2:
        raise InputError(f"the kernel distance needs at least 2 real and sampled images, got {size}")
    larger = max(len(real), len(sampled))
    # If both sets have one size, every subset is the full set.
    subsets = 1 if larger == size else min(MAX_SUBSETS, math.ceil(MEAN_USES * larger / size))
    metric = KernelInceptionDistance(feature=_Identity(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(sampled, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics samples the subsets with the global generator
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)


def kernel_contributions(
    real: Float[Tensor, "count features"], sampled: Float[Tensor, "count features"]
) -> Float[Tensor, " count"]:
    """Compute how much each sampled image contributes to the kernel distance, up to a common constant.

    To first order, the distance is the mean of the contributions (Hoeffding's projection of the U-statistic), so their
    standard error equals the one of the distance with fixed real images. The kernel is the one of `kernel_distance`:
    (x y / features + 1)^3.

    Examples:
        >>> kernel_contributions(torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [1.0]])).tolist()
        [0.0, 7.0, 7.0]
    """
    x, y = real.double(), sampled.double()
    within, between = ((y @ other.T / y.shape[1] + 1) ** 3 for other in (y, x))
    others = (within.sum(1) - within.diagonal()) / (len(y) - 1)
    return 2 * (others - between.mean(1))


def frechet_contributions(
    real: Float[Tensor, "count features"], sampled: Float[Tensor, "count features"]
) -> Float[Tensor, " count"]:
    """Compute how much each sampled image contributes to the Fréchet distance, up to a common constant.

    These are the values of the influence function: the derivative of the distance in the mean and in the covariance of
    the sampled images. To first order their standard error is that of the distance with fixed real images. With A = C1,
    the derivative in C2 is 1 - A^(1/2) (A^(1/2) C2 A^(1/2))^(-1/2) A^(1/2).

    Examples:
        >>> real = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> sampled = torch.cat([real, torch.tensor([[9.0, 9.0]])])
        >>> frechet_contributions(real, sampled).argmax().item()
        50
    """
    x, y = real.double(), sampled.double()
    centred, shift = y - y.mean(0), y.mean(0) - x.mean(0)
    half = _power(torch.cov(x.T).reshape(x.shape[1], -1), 0.5)
    covariance = torch.cov(y.T).reshape(y.shape[1], -1)
    gradient = torch.eye(len(half), dtype=x.dtype) - half @ _power(half @ covariance @ half, -0.5) @ half
    return 2 * centred @ shift + torch.einsum("nf,fg,ng->n", centred, gradient, centred)


def _power(matrix: Float[Tensor, "n n"], exponent: float) -> Float[Tensor, "n n"]:
    """Return a power of a symmetric positive matrix. Directions without variance are left out."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values.max().clamp_min(1e-300) * 1e-10
    result: Tensor = (vectors[:, kept] * values[kept] ** exponent) @ vectors[:, kept].T
    return result


def text_score(
    images: Float[Tensor, "count features"], captions: Float[Tensor, "count features"]
) -> Float[Tensor, " count"]:
    """Compute the text score of each image and its caption from their cosine similarity.

    With the embeddings of CLIP, this is the CLIP score of torchmetrics (`CLIPScore`) of a single image. torchmetrics
    sets a negative mean to 0; here, each negative value is 0. CLIPScore of Hessel et al. 2021 (arXiv 2104.08718) has
    a factor of 2.5 instead of 100, and adds the prompt "A photo depicts".

    Examples:
        >>> text_score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])).tolist()
        [100.0, 0.0]
    """
    return 100 * torch.cosine_similarity(images, captions, dim=-1).clamp_min(0)


def rank_of_caption(
    images: Float[Tensor, "count features"],
    captions: Float[Tensor, "candidates features"],
    own: Int[Tensor, " count"],
) -> Int[Tensor, " count"]:
    """Compute the rank of each image's caption among all candidates by cosine similarity; 0 is the nearest.

    The fraction of rank 0 is the top-1 retrieval accuracy (R-precision).

    Args:
        images: embeddings of the images.
        captions: embeddings of the candidates.
        own: index of each image's caption among the candidates.

    Examples:
        >>> images, captions = torch.eye(2), torch.tensor([[1.0, 0.1], [1.0, 0.0]])
        >>> rank_of_caption(images, captions, torch.tensor([1, 1])).tolist()
        [0, 1]
    """
    scores = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(captions, dim=-1).T
    return (scores > scores.gather(1, own[:, None])).sum(-1)


class _Identity(nn.Module):
    """Replaces the network of torchmetrics, because the embeddings are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings
