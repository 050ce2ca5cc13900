"""Choosing rows, and means over them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.statistics import RowStatistics, stratified_rows


@given(st.integers(1, 500), st.data())
def test_rows_are_spread_over_the_strata(total, data):
    chosen = data.draw(st.integers(1, total))
    rows = stratified_rows(total, chosen, data.draw(st.integers(0, 1000)))
    assert len(rows) == chosen
    strata = torch.arange(chosen) * total / chosen
    assert ((rows >= strata.floor()) & (rows <= (strata + total / chosen).ceil())).all()
    assert rows.min() >= 0
    assert rows.max() < total


def test_every_row_is_drawn_equally_often():
    draws = torch.cat([stratified_rows(10, 4, seed) for seed in range(5000)])
    assert torch.bincount(draws, minlength=10) / 5000 == pytest.approx(torch.full((10,), 0.4), abs=0.03)


@given(st.integers(1, 60), st.data())
def test_every_row_has_exactly_the_same_chance(total, data):
    """All of the randomness, enumerated: `total` evenly spaced offsets draw each row `chosen` times."""
    chosen = data.draw(st.integers(1, total))
    counts = torch.zeros(total, dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:
        for j in range(total):
            offset = torch.full((chosen,), (j + 0.5) / total, dtype=torch.float64)
            patch.setattr(torch, "rand", lambda *_, offset=offset, **__: offset)
            counts += torch.bincount(stratified_rows(total, chosen), minlength=total)
    assert counts.tolist() == [chosen] * total


@pytest.mark.parametrize("chosen", [0, -1, 11])
def test_too_few_or_too_many_rows_are_refused(chosen):
    with pytest.raises(ValueError, match=f"10 rows there are, not {chosen}"):
        stratified_rows(10, chosen)


def test_uncounted_rows_are_left_out_of_means():
    values, counted = torch.tensor([[[1.0, 3.0, 100.0]]]), torch.tensor([[[True, True, False]]])
    means = RowStatistics(values, 2 * values, values, values, 3 * values, counted).means()
    assert (means.entropy.item(), means.entropy_std.item()) == (2.0, 1.0)
    assert (means.logit_variance.item(), means.attention_distance.item()) == (4.0, 6.0)


def test_means_and_spread_are_torchs_and_without_a_counted_row_they_are_nan():
    torch.manual_seed(0)
    values = torch.randn(2, 3, 7)
    every = torch.ones_like(values, dtype=torch.bool)
    means = RowStatistics(values, values, values, values, None, every).means()
    assert torch.allclose(means.entropy, values.mean(-1), atol=1e-6)
    assert torch.allclose(means.entropy_std, values.std(-1, correction=0), atol=1e-6)
    assert means.attention_distance is None
    assert RowStatistics(values, values, values, values, None, ~every).means().entropy.isnan().all()
