"""Token grids: size, positions and invalid numbers of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.attention import Latents, token_grid

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.sampled_from([1, 2, 4, 8]))
def test_grid_follows_from_the_number_of_tokens(height, width, stride):
    grid = token_grid(-(-height // stride) * -(-width // stride), Latents(height, width))
    assert grid is not None
    assert grid.tokens == -(-height // stride) * -(-width // stride)
    assert grid.at(Latents(height, width)) == grid


@given(st.integers(2, 40), st.integers(2, 40))
def test_unit_of_positions_is_the_image_diagonal(height, width):
    places = token_grid(height * width, Latents(height, width)).positions()
    step = (height**2 + width**2) ** -0.5
    assert (places[1] - places[0]).norm().item() == pytest.approx(step, rel=1e-4)
    assert (places[width] - places[0]).norm().item() == pytest.approx(step, rel=1e-4)
    assert places.max() < 1


def test_unsuitable_number_of_tokens_gives_no_grid():
    assert token_grid(17, Latents(16, 16)) is None


@given(SIDES, SIDES, st.sampled_from([1, 2, 4]))
def test_positions_span_the_image_for_every_stride(height, width, stride):
    grid = token_grid(-(-height // stride) * -(-width // stride), Latents(height, width))
    places, diagonal = grid.positions(), (height**2 + width**2) ** 0.5
    assert places.shape == (grid.tokens, 2)
    assert places.mean(0).tolist() == pytest.approx([width / diagonal / 2, height / diagonal / 2], rel=1e-3)
    across = [(grid.width - 1) / grid.width * width / diagonal, (grid.height - 1) / grid.height * height / diagonal]
    assert (places[-1] - places[0]).tolist() == pytest.approx(across, abs=1e-5)
