"""The forecast of time and disk space: large sizes are extrapolated from small ones, and never sampled."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.runs.forecasting import Cost, extrapolate, forecast

weights = st.floats(0, 10)
MEASURED = (1024, 4096, 9216, 16384)


@given(constant=weights, linear=weights, quadratic=weights, pixels=st.integers(16_385, 10**7))
def test_cost_of_three_parts_is_extrapolated_exactly(constant, linear, quadratic, pixels):
    def seconds(n):
        return 0.01 + constant + linear * n / 4096 + quadratic * (n / 4096) ** 2

    cost, error = extrapolate([Cost(n, seconds(n), 100 + n) for n in MEASURED], pixels)
    assert cost.seconds == pytest.approx(seconds(pixels), rel=1e-3)
    assert cost.bytes == pytest.approx(100 + pixels, rel=1e-3)
    assert error < 1e-3


def test_error_is_that_of_the_largest_size_that_was_left_out():
    true = [Cost(n, float(n), n) for n in MEASURED[:-1]]
    _, error = extrapolate([*true, Cost(MEASURED[-1], 2.0 * MEASURED[-1], MEASURED[-1])], 10**6)
    assert error == pytest.approx(0.5)


def test_cost_never_falls_with_the_size():
    slow_start = [Cost(1024, 9.0, 1), Cost(4096, 1.0, 2), Cost(9216, 2.0, 3), Cost(16384, 3.0, 4)]
    assert extrapolate(slow_start, 10**5)[0].seconds <= extrapolate(slow_start, 10**6)[0].seconds


def test_large_sizes_are_not_sampled(tiny_pipeline):
    sampled = []
    hook = tiny_pipeline.unet.register_forward_pre_hook(lambda module, args: sampled.append(args[0].shape[-2:].numel()))
    try:
        found = forecast(tiny_pipeline, prompts=["flat pizza"], sizes=[(64, 64), (1024, 512)], steps=1)
    finally:
        hook.remove()
    small, large = found
    assert max(sampled) <= 32 * 32  # latents of twice the training size
    assert math.isnan(small.error)
    assert large.error >= 0
    assert large.seconds > small.seconds
