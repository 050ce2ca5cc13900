"""The counter of objects: right on real scenes of every size, and on scenes with known faults."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.evaluation import count_objects
from entropy_probe.evaluation.counting import find_objects, is_cut_off, is_merged
from entropy_probe.reference import scenes

FIRST = 905_000_000_000


def counts_of(drawn, larger="zoom"):
    images = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2)
    return count_objects(images, [scene.background.name for scene in drawn], larger)


def layout_of(*placements, background="white"):
    prompt = scenes.Prompt((scenes.Group("lemon", 1),), background)
    return scenes.Layout(prompt, tuple(scenes.Placement(*p) for p in placements))


def disc(side, *circles):
    """Return a mask with circles of (row, column, radius)."""
    rows, columns = np.mgrid[:side, :side]
    return np.any([(rows - r) ** 2 + (columns - c) ** 2 <= radius**2 for r, c, radius in circles], axis=0)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128, 192])
def test_counts_real_scenes_at_every_size(size):
    drawn = [scenes.sample(FIRST + i, size, size, split="all") for i in range(40)]
    counts = counts_of(drawn)
    assert np.mean(counts.objects == [scene.prompt.count for scene in drawn]) >= 0.97
    assert not counts.empty.any()
    assert np.mean(counts.cut_off > 0) <= 0.03
    assert np.mean(counts.merged > 0) <= 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([(64, 128), (128, 64), (96, 72)]))
def test_count_is_within_one_on_other_shapes(seed, size):
    scene = scenes.sample(seed, *size)
    assert abs(int(counts_of([scene]).objects[0]) - scene.prompt.count) <= 1


def test_counts_small_objects_on_a_large_canvas():
    drawn = [scenes.sample(FIRST + i, 192, 128, split="all", larger="canvas") for i in range(40)]
    requested = [scene.prompt.count for scene in drawn]
    assert np.mean(counts_of(drawn, "canvas").objects == requested) >= 0.97


@pytest.mark.parametrize("background", [b.name for b in scenes.BACKGROUNDS])
def test_background_alone_is_empty(background):
    counts = counts_of([scenes.draw(layout_of(background=background), 48, 80)])
    assert counts.objects.tolist() == [0]
    assert counts.empty.tolist() == [True]
    assert counts.complete.tolist() == [False]


def test_more_objects_than_a_scene_has_are_counted():
    places = [("lemon", x, y, 0.25) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)]
    counts = counts_of([scenes.draw(layout_of(*places), 128, 128)])
    assert counts.objects.tolist() == [9]
    assert counts.complete.tolist() == [True]


def test_object_cut_by_the_frame_is_cut_off():
    scene = scenes.draw(layout_of(("lemon", 0.5, 0.5, 0.6)), 64, 64)
    whole, half = counts_of([scene]), scene.image[:, 32:]
    cut = count_objects(torch.from_numpy(half.copy()).permute(2, 0, 1)[None], ["white"])
    assert (whole.cut_off.tolist(), whole.complete.tolist()) == ([0], [True])
    assert (cut.cut_off.tolist(), cut.complete.tolist()) == ([1], [False])


def test_speckles_are_not_objects():
    scene = scenes.draw(layout_of(("lemon", 0.5, 0.6, 0.5)), 64, 64)
    scene.image[2:4, 2:4] = 0
    assert counts_of([scene]).objects.tolist() == [1]


def test_nearly_touching_fragments_are_one_object():
    mask = disc(64, (20, 20, 8), (20, 37, 8))
    assert len(find_objects(mask, 64)) == 1
    assert len(find_objects(disc(64, (20, 20, 8), (20, 45, 8)), 64)) == 2


def test_two_discs_with_a_narrow_connection_are_merged():
    assert is_merged(disc(64, (32, 20, 10), (32, 38, 10)), 64)
    assert not is_merged(disc(64, (32, 32, 14)), 64)
    assert not is_merged(disc(64, (32, 30, 14), (32, 34, 14)), 64)


def test_hole_does_not_divide_an_object():
    ring = disc(64, (32, 32, 20)) & ~disc(64, (32, 32, 12))
    assert not is_merged(ring, 64)


def test_contact_with_the_frame_must_be_long():
    touching, half = disc(64, (12, 32, 12)), disc(64, (0, 32, 12))
    assert not is_cut_off(touching, touching)
    assert is_cut_off(half, half)
    assert not is_cut_off(half, np.zeros_like(half))


def test_no_images_give_no_counts():
    counts = count_objects(torch.zeros(0, 3, 64, 64, dtype=torch.uint8), [])
    assert len(counts.objects) == len(counts.empty) == 0


@pytest.mark.parametrize(
    ("backgrounds", "larger", "message"),
    [
        (["white", "white"], "zoom", "one background per image, got 2 for 1"),
        (["green"], "zoom", "background must be one of white, blue"),
        (["white"], "crop", "larger must be 'zoom' or 'canvas', got 'crop'"),
    ],
)
def test_rejects_bad_arguments(backgrounds, larger, message):
    with pytest.raises(ValueError, match=message):
        count_objects(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), backgrounds, larger)
