"""The defects on ground truth: whole, cropped, erased and tiled drawings."""

import numpy as np
import pytest
import torch

import entropy_probe as ep
from entropy_probe.evaluation import WHITE, defects
from entropy_probe.models import to_tensor

SIDE = 96


@pytest.fixture(scope="module")
def drawings():
    return ep.reference.images()[::24]


def crop(drawings, share, side=SIDE):
    """Keep the middle: `share` of the height and width is lost."""
    whole = drawings.at((round(side / (1 - share)),) * 2)
    first = (whole.shape[-1] - side) // 2
    return whole[..., first : first + side, first : first + side]


def tiled(images, count):
    small = torch.nn.functional.interpolate(images.float(), scale_factor=1 / count, mode="area")
    return small.repeat(1, 1, count, count).round().byte()


def test_whole_drawings_have_neither_defect_at_any_size(drawings):
    for size in [(32, 32), (64, 64), (128, 128), (64, 192), (128, 64)]:
        found = defects(drawings.at(size), WHITE)
        assert found.incompleteness.mean() < 0.03
        assert found.repetition.mean() < 0.04


def test_cropping_raises_incompleteness_steadily(drawings):
    for background in (WHITE, None):
        means = [defects(crop(drawings, share), background).cut_off.mean() for share in (0, 0.1, 0.2, 0.3)]
        assert np.all(np.diff(means) > 0.03)


def test_leaving_out_a_part_raises_incompleteness_steadily(drawings):
    means = []
    for share in (0.2, 0.3, 0.4, 0.5, 0.6):
        images = drawings.at((SIDE, SIDE))
        images[:, :, : round(share * SIDE)] = 255
        means.append(defects(images, WHITE).incompleteness.mean())
    assert np.all(np.diff(means) > 0)
    assert means[-1] > 0.3


def test_copies_raise_repetition(drawings):
    means = [defects(tiled(drawings.at((SIDE, SIDE)), count), WHITE).repetition.mean() for count in (1, 2, 3)]
    assert means[0] < 0.04
    assert means[1] > 0.25
    assert means[2] > means[1] + 0.05


def test_two_copies_of_a_blob_repeat_by_half():
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    image[:, 24:40, 4:20] = 0
    assert defects(image[None], WHITE).repetition[0] == 0
    image[:, 24:40, 44:60] = 0  # of two copies one has a neighbour: rho = 1/2, and nothing between
    assert defects(image[None], WHITE).repetition[0] == pytest.approx(0.5, abs=1e-9)


def test_a_square_that_the_frame_halves_is_cut_by_a_share_of_its_outline():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    image[:, :8, 8:24] = 0  # 16 wide, 8 high, 16 of 48 edges on the frame
    assert defects(image[None]).cut_off[0] == pytest.approx(16 / 48)


def test_an_empty_image_is_incomplete_and_repeats_nothing():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    found = defects(white, WHITE)
    assert found.incompleteness[0] == 1
    assert found.repetition[0] == 0


def test_the_ground_is_found_where_it_is_not_given():
    image = torch.zeros((3, 32, 32), dtype=torch.uint8)
    image[:, 8:24, 8:24] = 200
    assert defects(image[None]).cut_off[0] == 0
    assert defects(image[None], WHITE).cut_off[0] > 0.5


def test_images_become_tensors_and_stay_what_they_are():
    from PIL import Image

    image = Image.new("RGB", (5, 3), (1, 2, 3))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 3, 5)
    assert tensor[:, 0, 0].tolist() == [1, 2, 3]
