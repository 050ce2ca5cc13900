"""Procedural scenes: reproducible, drawable at any size, with correct boxes, captions and held-out combinations."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.reference import scenes

SEEDS = st.integers(0, 10**12)
SIDES = st.integers(scenes.MIN_SIDE, 160)
SPLITS = st.sampled_from(["training", "held-out", "all"])
few = settings(max_examples=40, deadline=None)


@few
@given(SEEDS, SIDES, SIDES)
def test_same_seed_gives_same_scene(seed, height, width):
    first, second = (scenes.sample(seed, height, width) for _ in range(2))
    assert first == second
    assert np.array_equal(first.image, second.image)


def test_different_seeds_give_different_scenes():
    images = {scenes.sample(seed).image.tobytes() for seed in range(50)}
    assert len(images) == 50


def test_published_scene_does_not_change():
    """Checkpoints and studies refer to scenes by their seed."""
    scene = scenes.sample(7)
    assert scene.caption == "three monkey faces on dusk"
    boxes = [(box.left, box.top, box.right, box.bottom) for box in scene.boxes]
    assert boxes == [(35, 40, 62, 61), (3, 43, 25, 60), (21, 7, 45, 26)]


@few
@given(SEEDS, SIDES, SIDES)
def test_image_has_the_requested_size(seed, height, width):
    scene = scenes.sample(seed, height, width)
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert scene.background.pixels(height, width).shape == (height, width, 3)


@few
@given(SEEDS, SIDES, SIDES)
def test_boxes_enclose_every_pixel_that_differs_from_the_background(seed, height, width):
    scene = scenes.sample(seed, height, width)
    outside = scene.image != scene.background.pixels(height, width)
    for box in scene.boxes:
        drawn = outside[box.top : box.bottom, box.left : box.right]
        assert drawn.any(), "the box is empty"
        drawn[:] = False
    assert not outside.any()


@few
@given(SEEDS, SIDES, SIDES)
def test_boxes_are_inside_the_frame_and_do_not_overlap(seed, height, width):
    boxes = scenes.sample(seed, height, width).boxes
    for i, a in enumerate(boxes):
        assert 0 <= a.left < a.right <= width
        assert 0 <= a.top < a.bottom <= height
        for b in boxes[:i]:
            apart_x = max(a.left, b.left) >= min(a.right, b.right)
            apart_y = max(a.top, b.top) >= min(a.bottom, b.bottom)
            assert apart_x or apart_y


@few
@given(SEEDS)
def test_layout_keeps_margin_gap_and_scale(seed):
    placements = scenes.sample(seed).layout.placements
    for p in placements:
        assert scenes.SCALES[0] <= p.scale <= scenes.SCALES[1]
    for i, p in enumerate(placements):
        aspect = scenes.by_name()[p.name].aspect
        half = np.array([min(aspect, 1), min(1 / aspect, 1)]) * p.scale / 2
        centre = np.array([p.x, p.y])
        assert (np.minimum(centre, 1 - centre) - half >= scenes.MARGIN - 1e-9).all()
        for q in placements[:i]:
            other = scenes.by_name()[q.name].aspect
            room = np.abs(centre - [q.x, q.y]) - half - np.array([min(other, 1), min(1 / other, 1)]) * q.scale / 2
            assert room.max() >= scenes.GAP - 1e-9


@few
@given(SEEDS, SPLITS)
def test_caption_agrees_with_the_boxes(seed, split):
    scene = scenes.sample(seed, split=split)
    parsed = scenes.parse(scene.caption)
    assert parsed == scene.prompt
    assert sorted(box.name for box in scene.boxes) == sorted(parsed.names)
    assert scene.background.name == parsed.background


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_held_out_combinations_never_occur_in_the_training_split(seed):
    rng = np.random.default_rng(seed)
    prompt = scenes.sample_prompt(rng, "training")
    assert not any(scenes.held_out(g.name, g.count, prompt.background) for g in prompt.groups)
    prompt = scenes.sample_prompt(rng, "held-out")
    assert any(scenes.held_out(g.name, g.count, prompt.background) for g in prompt.groups)


def test_every_class_is_trained_with_every_count_and_on_every_background():
    names, backgrounds = [c.name for c in scenes.classes()], [b.name for b in scenes.BACKGROUNDS]
    lost = {n: [(c, b) for c in (1, 2, 3) for b in backgrounds if scenes.held_out(n, c, b)] for n in names}
    assert len(names) == len(set(names)) == 64
    assert {len(combinations) for combinations in lost.values()} <= {2, 3}
    for combinations in lost.values():
        assert max([c for c, _ in combinations].count(count) for count in (1, 2, 3)) < len(backgrounds)
        assert max([b for _, b in combinations].count(name) for name in backgrounds) < 3


def test_prompts_use_all_counts_backgrounds_and_classes():
    rng = np.random.default_rng(0)
    prompts = [scenes.sample_prompt(rng, "all") for _ in range(2000)]
    assert {p.count for p in prompts} == {1, 2, 3}
    assert {p.background for p in prompts} == {b.name for b in scenes.BACKGROUNDS}
    assert {name for p in prompts for name in p.names} == set(scenes.by_name())
    assert np.mean([len(p.groups) == 2 for p in prompts]) == pytest.approx(2 / 9, abs=0.03)


@few
@given(SEEDS, st.sampled_from([(32, 32), (128, 128), (96, 192)]))
def test_zoom_keeps_the_layout_and_scales_the_boxes(seed, size):
    trained = scenes.sample(seed)
    larger = scenes.sample(seed, *size)
    assert larger.prompt == trained.prompt
    factor = min(size) / scenes.SIZE
    if size[0] == size[1]:
        assert larger.layout == trained.layout
        for a, b in zip(trained.boxes, larger.boxes, strict=True):
            assert b.right - b.left == pytest.approx(factor * (a.right - a.left), abs=1 + factor / 2)
            assert b.bottom - b.top == pytest.approx(factor * (a.bottom - a.top), abs=1 + factor / 2)


@few
@given(SEEDS, st.integers(64, 200), st.integers(64, 200))
def test_canvas_keeps_the_size_of_the_objects_in_pixels(seed, height, width):
    trained, larger = scenes.sample(seed), scenes.sample(seed, height, width, larger="canvas")
    assert larger.prompt == trained.prompt
    shapes = [[(b.right - b.left, b.bottom - b.top) for b in s.boxes] for s in (trained, larger)]
    assert np.abs(np.subtract(*shapes)).max() <= 1


def test_canvas_of_the_training_size_is_the_training_scene():
    assert scenes.sample(5, larger="canvas") == scenes.sample(5)


def test_given_prompt_is_drawn():
    prompt = scenes.parse("two lemons and one fox on dusk")
    scene = scenes.sample(3, 80, 50, prompt=prompt)
    assert scene.prompt == prompt
    assert [box.name for box in scene.boxes] == ["lemon", "lemon", "fox"]


def test_gradient_runs_from_top_to_bottom():
    sea = scenes.background("sea")
    rows = sea.pixels(100, 30)
    assert np.abs(rows[0, 0].astype(int) - sea.top).max() <= 1
    assert np.abs(rows[-1, 0].astype(int) - sea.bottom).max() <= 1
    assert (rows == rows[:, :1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0, "height": 8}, "height and width must be at least 20 pixels, got 8 x 64"),
        ({"seed": 0, "split": "test"}, "split must be 'training', 'held-out' or 'all', got 'test'"),
        ({"seed": 0, "larger": "crop"}, "larger must be 'zoom' or 'canvas', got 'crop'"),
        ({"seed": 0, "height": 48, "larger": "canvas"}, "at least 64 pixels high and wide, got 48 x 64"),
    ],
)
def test_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scenes.sample(**arguments)


@pytest.mark.parametrize("count", [0, 4])
def test_rejects_bad_number_of_objects(count):
    with pytest.raises(ValueError, match=f"max_objects must be 1 to 3, got {count}"):
        scenes.sample_prompt(np.random.default_rng(0), max_objects=count)


@pytest.mark.parametrize("caption", ["", "two lemon on white", "four lemons on white", "one zebra on white", "lemon"])
def test_rejects_caption_outside_the_grammar(caption):
    with pytest.raises(ValueError, match="caption"):
        scenes.parse(caption)


def test_rejects_unknown_background():
    with pytest.raises(ValueError, match="background must be one of white, blue"):
        scenes.background("green")
    with pytest.raises(ValueError, match="background must be one of"):
        scenes.parse("one fox on green")


def test_scenes_are_immutable():
    scene = scenes.sample(0)
    assert replace(scene, boxes=()) != scene
    with pytest.raises(AttributeError):
        scene.boxes = ()
