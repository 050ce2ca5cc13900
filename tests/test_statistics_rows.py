"""Sampling rows, and means over them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_probe.statistics import RowStatistics, standard_error, stratified_rows


@given(st.integers(2, 500), st.data())
def test_every_stratum_has_two_rows(total, data):
    strata = data.draw(st.integers(1, total // 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    rows = stratified_rows(total, 2 * strata, generator).unflatten(0, (-1, 2))
    assert len(rows) == strata
    starts = torch.arange(strata)[:, None] * total / strata
    assert ((rows >= starts.floor()) & (rows <= (starts + total / strata).ceil())).all()
    assert rows.min() >= 0
    assert rows.max() < total


@given(st.integers(2, 60), st.data())
def test_every_row_has_equal_probability(total, data):
    """Enumerate the random offsets: over `total` evenly spaced offsets, every row is sampled equally often."""
    chosen = 2 * data.draw(st.integers(1, total // 2))
    counts = torch.zeros(total, dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:
        for j in range(total):
            offset = torch.full((chosen // 2, 2), (j + 0.5) / total, dtype=torch.float64)
            patch.setattr(torch, "rand", lambda *_, offset=offset, **__: offset)
            counts += torch.bincount(stratified_rows(total, chosen), minlength=total)
    assert counts.tolist() == [chosen] * total


@pytest.mark.parametrize("chosen", [0, -2, 5, 12])
def test_rejects_too_few_too_many_or_odd_rows(chosen):
    with pytest.raises(ValueError, match=rf"even number between 2 and 10 \(all rows\), got {chosen}"):
        stratified_rows(10, chosen)


def sample_rows(entropy, rows):
    own = entropy[..., rows]
    return RowStatistics(own, own, own, own, None, torch.isfinite(own))


PATTERNS = {
    "a ramp down the image": lambda y, x: 5 * y,
    "an object in the middle": lambda y, x: 4 * torch.exp(-8 * ((y - 0.5) ** 2 + (x - 0.4) ** 2)),
    "stripes": lambda y, x: 2 * torch.sin(40 * x) + y,
    "a few outlying rows": lambda y, x: torch.where((y + x) % 0.2 < 0.03, 6.0, 1.0),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_mean_is_unbiased_and_95_percent_interval_covers_it(pattern):
    side, draws = 64, 1000
    y, x = torch.meshgrid(*2 * [torch.linspace(0, 1, side, dtype=torch.float64)], indexing="ij")
    noise = torch.randn(side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    entropy = (PATTERNS[pattern](y, x) + 0.3 * noise).flatten()[None, None]
    truth = entropy.mean().item()
    means, errors = [], []
    for seed in range(draws):
        rows = sample_rows(entropy, stratified_rows(side**2, 256, torch.Generator().manual_seed(seed)))
        means.append(rows.means().entropy.item())
        errors.append(standard_error(rows.entropy, rows.counted).item())
    means, errors = torch.tensor(means), torch.tensor(errors)
    assert abs(means.mean() - truth) < 4 * means.std() / draws**0.5
    assert errors.square().mean().sqrt() == pytest.approx(means.std().item(), rel=0.1)
    covered = ((means - truth).abs() <= 1.96 * errors).double().mean()
    assert 0.93 <= covered <= 0.97


def test_standard_error_equals_hand_computation():
    values = torch.tensor([[[1.0, 3.0, 2.0, 2.5]]])
    every = torch.ones_like(values, dtype=torch.bool)
    by_hand = ((2.0**2 + 0.5**2) / 4 / 2**2) ** 0.5
    assert standard_error(values, every).item() == pytest.approx(by_hand)


def test_standard_error_ignores_uncounted_rows():
    """With every fourth row uncounted, the standard error equals the spread of the means over many samples."""
    generator = torch.Generator().manual_seed(0)
    entropy = torch.rand(1, 1, 400, generator=generator) + torch.linspace(0, 3, 400)
    counted = torch.rand(1, 1, 400, generator=generator) > 0.25
    means, errors = [], []
    for _ in range(600):
        rows = stratified_rows(400, 40, generator)
        own = entropy[..., rows]
        statistics = RowStatistics(own, own, own, own, None, counted[..., rows])
        means.append(statistics.means().entropy.item())
        errors.append(standard_error(own, counted[..., rows]).item())
    assert torch.tensor(errors).mean() == pytest.approx(torch.tensor(means).std().item(), rel=0.1)


def test_means_exclude_uncounted_rows():
    values, counted = torch.tensor([[[1.0, 3.0, 100.0]]]), torch.tensor([[[True, True, False]]])
    means = RowStatistics(values, 2 * values, values, values, 3 * values, counted).means()
    assert (means.entropy.item(), means.entropy_std.item()) == (2.0, 1.0)
    assert (means.logit_variance.item(), means.attention_distance.item()) == (4.0, 6.0)


def test_means_equal_torch_and_are_nan_without_counted_rows():
    torch.manual_seed(0)
    values = torch.randn(2, 3, 7)
    every = torch.ones_like(values, dtype=torch.bool)
    means = RowStatistics(values, values, values, values, None, every).means()
    assert torch.allclose(means.entropy, values.mean(-1), atol=1e-6)
    assert torch.allclose(means.entropy_std, values.std(-1, correction=0), atol=1e-6)
    assert means.attention_distance is None
    assert RowStatistics(values, values, values, values, None, ~every).means().entropy.isnan().all()
