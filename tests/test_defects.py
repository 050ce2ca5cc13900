"""Defect scores of complete, cropped, erased and tiled images."""

import numpy as np
import pytest
import torch

import entropy_probe as ep
from entropy_probe.evaluation import WHITE, defects
from entropy_probe.models import to_tensor

SIDE = 96


@pytest.fixture(scope="module")
def real_images():
    return ep.reference.images()[::24]


def crop(real_images, fraction, side=SIDE):
    """Crop to the centre: remove the fraction `fraction` of the height and width."""
    larger = real_images.at((round(side / (1 - fraction)),) * 2)
    first = (larger.shape[-1] - side) // 2
    return larger[..., first : first + side, first : first + side]


def tiled(images, count):
    small = torch.nn.functional.interpolate(images.float(), scale_factor=1 / count, mode="area")
    return small.repeat(1, 1, count, count).round().byte()


def test_complete_images_have_no_defect_at_any_size(real_images):
    for size in [(32, 32), (64, 64), (128, 128), (64, 192), (128, 64)]:
        scores = defects(real_images.at(size), WHITE)
        assert scores.incompleteness.mean() < 0.03
        assert scores.repetition.mean() < 0.04


def test_incompleteness_increases_with_cropping(real_images):
    for background in (WHITE, None):
        means = [defects(crop(real_images, fraction), background).cut_off.mean() for fraction in (0, 0.1, 0.2, 0.3)]
        assert np.all(np.diff(means) > 0.03)


def test_incompleteness_increases_with_erased_part(real_images):
    means = []
    for fraction in (0.2, 0.3, 0.4, 0.5, 0.6):
        images = real_images.at((SIDE, SIDE))
        images[:, :, : round(fraction * SIDE)] = 255
        means.append(defects(images, WHITE).incompleteness.mean())
    assert np.all(np.diff(means) > 0)
    assert means[-1] > 0.3


def test_repetition_increases_with_number_of_copies(real_images):
    means = [defects(tiled(real_images.at((SIDE, SIDE)), count), WHITE).repetition.mean() for count in (1, 2, 3)]
    assert means[0] < 0.04
    assert means[1] > 0.25
    assert means[2] > means[1] + 0.05


def test_two_copies_have_repetition_one_half():
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    image[:, 24:40, 4:20] = 0
    assert defects(image[None], WHITE).repetition[0] == 0
    image[:, 24:40, 44:60] = 0  # one of two copies has a neighbour: rho = 1/2, with a valley at 0
    assert defects(image[None], WHITE).repetition[0] == pytest.approx(0.5, abs=1e-9)


def test_cut_off_is_fraction_of_outline_on_frame():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    image[:, :8, 8:24] = 0  # 16 wide, 8 high, 16 of 48 edges on the frame
    assert defects(image[None]).cut_off[0] == pytest.approx(16 / 48)


def test_empty_image_is_incomplete_without_repetition():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    scores = defects(white, WHITE)
    assert scores.incompleteness[0] == 1
    assert scores.repetition[0] == 0


def test_unknown_background_is_median_of_frame():
    image = torch.zeros((3, 32, 32), dtype=torch.uint8)
    image[:, 8:24, 8:24] = 200
    assert defects(image[None]).cut_off[0] == 0
    assert defects(image[None], WHITE).cut_off[0] > 0.5


def test_to_tensor_keeps_pixels():
    from PIL import Image

    image = Image.new("RGB", (5, 3), (1, 2, 3))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 3, 5)
    assert tensor[:, 0, 0].tolist() == [1, 2, 3]


def test_old_name_of_off_centre_warns():
    image = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    scores = defects(image, WHITE)
    with pytest.warns(DeprecationWarning, match="use Defects.off_centre"):
        assert scores.lopsided is scores.off_centre
