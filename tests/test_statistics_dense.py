"""The dense definition, compared with closed forms and scipy."""

import math

import pytest
import scipy.stats
import torch

from entropy_probe.attention import TokenGrid
from entropy_probe.statistics import dense


def rows(logits, **options):
    """Return the statistics of given logits: with the identity as query, query @ key^T = logits."""
    return dense(torch.eye(len(logits))[None, None], logits.T[None, None], scale=1.0, **options)


def test_uniform_attention_has_entropy_ln_n():
    assert rows(torch.zeros(3, 7)).entropy == pytest.approx(math.log(7))


def test_one_hot_attention_has_entropy_zero():
    assert rows(torch.eye(5) * 1e4).entropy.abs().max() == 0


def test_two_keys_have_the_binary_entropy():
    p = 0.2
    entropy = rows(torch.tensor([[0.0, math.log(p / (1 - p))]])).entropy.item()
    assert entropy == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-7)


def test_gaussian_logits_follow_the_gaussian_theory():
    torch.manual_seed(0)
    result = rows(0.7 * torch.randn(4, 50_000))
    expected = math.log(50_000) - result.logit_variance / 2
    assert result.entropy.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=0.01)


def test_entropy_and_variance_agree_with_scipy_and_torch():
    torch.manual_seed(1)
    query, key = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 3, 11, 8, dtype=torch.float64)
    logits = query @ key.mT / 8**0.5
    result = dense(query, key)
    assert torch.allclose(result.entropy, torch.from_numpy(scipy.stats.entropy(logits.softmax(-1).numpy(), axis=-1)))
    assert torch.allclose(result.logit_variance, logits.var(-1, correction=0))


def test_attention_distance_of_one_hot_and_uniform_attention():
    positions = TokenGrid(2, 2, 1, 1.0).positions()
    one_hot = rows(torch.eye(4)[[3, 3, 3, 3]] * 1e4, positions=(positions, positions)).attention_distance.flatten()
    assert one_hot.tolist() == pytest.approx([(positions[i] - positions[3]).norm().item() for i in range(4)], abs=1e-6)
    uniform = rows(torch.zeros(4, 4), positions=(positions, positions)).attention_distance.flatten()
    squares = (positions[:, None] - positions[None]).square().sum(-1).mean(-1)
    assert uniform.tolist() == pytest.approx(squares.sqrt().tolist(), abs=1e-6)


def test_fully_masked_rows_have_entropy_zero_and_are_not_counted():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    result = rows(torch.zeros(2, 3), mask=mask)
    assert result.entropy.flatten().tolist() == pytest.approx([math.log(2), 0.0])
    assert result.counted.flatten().tolist() == [True, False]
    additive = torch.zeros(2, 3).masked_fill(~mask, -math.inf)
    assert torch.equal(rows(torch.zeros(2, 3), mask=additive).counted, result.counted)


def test_additive_mask_adds_to_logits():
    torch.manual_seed(3)
    logits, mask = torch.randn(4, 6), torch.randn(4, 6)
    added, plain = rows(logits, mask=mask), rows(logits + mask)
    assert torch.allclose(added.entropy, plain.entropy, atol=1e-6)
    assert torch.allclose(added.logit_variance, plain.logit_variance, atol=1e-6)


def test_causal_rows_attend_to_previous_keys():
    assert rows(torch.zeros(4, 4), is_causal=True).entropy.flatten().exp().tolist() == pytest.approx([1, 2, 3, 4])


def test_grouped_queries_share_keys():
    torch.manual_seed(2)
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8)
    shared = dense(query, key, enable_gqa=True).entropy
    assert torch.equal(shared[:, 2:], dense(query[:, 2:], key[:, 1:].expand(-1, 2, -1, -1)).entropy)


def test_rejects_mask_with_is_causal():
    with pytest.raises(ValueError, match="cannot be combined, got both"):
        rows(torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool), is_causal=True)
