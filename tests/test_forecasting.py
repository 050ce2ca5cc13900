"""The forecast of time and disk space: large sizes are extrapolated from small ones, and never sampled."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.runs.forecasting import Cost, extrapolate, forecast

weights = st.floats(0, 10)
MEASURED = (1024, 4096, 9216, 16384)


@given(constant=weights, linear=weights, quadratic=weights, pixels=st.integers(16_385, 10**7), seen=st.booleans())
def test_cost_of_three_parts_is_extrapolated_exactly(constant, linear, quadratic, pixels, seen):
    def cost(n):
        attention = (0.001 + quadratic) * (n / 4096) ** 2
        return Cost(n, 0.01 + constant + linear * n / 4096 + attention, 100 + n, attention if seen else 0.0)

    found, error = extrapolate([cost(n) for n in MEASURED], pixels)
    assert found.seconds == pytest.approx(cost(pixels).seconds, rel=1e-3)
    assert found.attention == pytest.approx(cost(pixels).attention, rel=1e-3)
    assert found.bytes == pytest.approx(100 + pixels, rel=1e-3)
    assert error < 1e-3


def test_noise_of_other_parts_is_not_taken_for_attention():
    """Times of the bundled transformer, in seconds. A polynomial of degree 2 through all of the time gave 2 to 3 times
    the true time."""
    times = (0.204, 0.003), (0.409, 0.007), (0.75, 0.022), (1.413, 0.057)
    measured = [Cost(n, seconds, 1, attention) for n, (seconds, attention) in zip(MEASURED, times, strict=True)]
    assert extrapolate(measured, 256 * 256)[0].seconds == pytest.approx(5.385, rel=0.1)
    assert extrapolate(measured, 512 * 512)[0].seconds == pytest.approx(32.455, rel=0.1)


def test_error_is_measured_at_the_largest_size():
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
