"""Attention split into image and text keys, compared with the full map in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_probe.statistics import dense, parts


def split_by_map(query, key, image, mask, scale):
    """Return the image mass and the entropy within each part, computed from the attention map."""
    logits = scale * query.double() @ key.double().mT
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits = logits + mask.double()
    attention = logits.softmax(-1).nan_to_num(0.0)
    is_image = torch.zeros(key.shape[2], dtype=torch.bool)
    is_image[image] = True
    own, other = attention[..., is_image], attention[..., ~is_image]
    within = [torch.special.entr((part / part.sum(-1, keepdim=True)).nan_to_num(0.0)).sum(-1) for part in (own, other)]
    return own.sum(-1), *within


@st.composite
def joint_calls(draw):
    """Draw an attention call over image and text keys, in any order and with any mask."""
    batch, heads, queries, width = (draw(st.integers(1, n)) for n in (2, 2, 30, 40))
    start, length, rest = draw(st.integers(0, 9)), draw(st.integers(1, 40)), draw(st.integers(0, 9))
    keys = start + length + rest + (start + rest == 0)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    query = draw(st.sampled_from([0.1, 2.0, 20.0])) * torch.randn(batch, heads, queries, width, generator=generator)
    key = torch.randn(batch, heads, keys, width, generator=generator) + draw(st.sampled_from([0.0, 2.0]))
    keep = torch.rand(batch, 1, queries, keys, generator=generator) > 0.4
    mask = {
        "none": None,
        "keys": keep[:, :, :1],
        "rows": keep,
        "additive": torch.randn(keep.shape, generator=generator).masked_fill(~keep, -math.inf),
        "one axis": keep[0, 0, 0],
        "no text": torch.arange(keys).ge(start) & torch.arange(keys).lt(start + length),
        "nothing": torch.zeros_like(keep[:, :, :1]),
    }[draw(st.sampled_from(["none", "none", "keys", "rows", "additive", "one axis", "no text", "nothing"]))]
    return query, key, slice(start, start + length), mask


@settings(max_examples=200, deadline=None)
@given(joint_calls())
def test_parts_equal_full_map(call):
    query, key, image, mask = call
    scale = query.shape[-1] ** -0.5
    positions = torch.rand(query.shape[2], 2), torch.rand(image.stop - image.start, 2)
    found = parts(query, key, image, mask, scale, positions=positions)
    mass, own, other = split_by_map(query, key, image, mask, scale)
    assert (found.image_mass - mass).abs().max() <= 1e-4
    for part, expected, weight in ((found.image, own, mass), (found.text, other, 1 - mass)):
        assert (weight * (part.entropy - expected)).abs().max() <= 1e-5
    whole = dense(query, key, mask, scale=scale)
    assert torch.equal(found.whole.counted, whole.counted)
    assert (found.whole.entropy - whole.entropy).abs().max() <= 2e-5
    counted = whole.counted
    for name in ("logit_variance", "log_sum", "logit_mean"):
        ours, expected = vars(found.whole)[name].double(), vars(whole)[name]
        assert torch.allclose(ours[counted], expected[counted], rtol=1e-4, atol=1e-4), name
    own_mask = None if mask is None else mask.expand(*mask.shape[:-1], key.shape[2])[..., image]
    among = dense(query, key[:, :, image], own_mask, scale=scale, positions=positions)
    distances = found.whole.attention_distance.double()[among.counted]
    assert torch.allclose(distances, among.attention_distance[among.counted], atol=2e-4)
    assert torch.allclose(
        found.whole.means().attention_distance.double(), among.means().attention_distance, atol=2e-4, equal_nan=True
    )
    for part, columns in (
        (found.image, image),
        (found.text, [j for j in range(key.shape[2]) if j not in range(image.start, image.stop)]),
    ):
        part_mask = None if mask is None else mask.expand(*mask.shape[:-1], key.shape[2])[..., columns]
        alone = dense(query, key[:, :, columns], part_mask, scale=scale)
        for name in ("log_sum", "logit_mean"):
            assert torch.allclose(vars(part)[name].double(), vars(alone)[name], rtol=1e-4, atol=1e-4), name


@settings(max_examples=50, deadline=None)
@given(joint_calls())
def test_chain_rule_holds_for_means(call):
    query, key, image, mask = call
    found = parts(query, key, image, mask)
    means, entropy = found.means(), found.whole.means().entropy
    text = torch.where(means.image_mass == 1, 0.0, (1 - means.image_mass) * means.text_entropy)
    own = torch.where(means.image_mass == 0, 0.0, means.image_mass * means.image_entropy)
    assert torch.allclose(means.mass_entropy + own + text, entropy, atol=1e-5, equal_nan=True)


def test_equal_keys_get_mass_by_their_number():
    found = parts(torch.randn(1, 1, 6, 8), torch.zeros(1, 1, 40, 8), slice(10, 40))
    means = found.means()
    assert means.image_mass.item() == pytest.approx(0.75)
    assert means.image_entropy.item() == pytest.approx(math.log(30), abs=1e-5)
    assert means.text_entropy.item() == pytest.approx(math.log(10), abs=1e-5)


@pytest.mark.parametrize("shift", [0.0, 30.0, 100.0])
def test_shared_offset_of_keys_costs_no_precision(shift):
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 50, 16) + 1.0, torch.randn(1, 2, 60, 16) + shift
    found = parts(query, key, slice(10, 60))
    exact = dense(query, key)
    assert (exact.logit_mean.abs().max() > 500) == (shift == 100.0)
    # Large keys are rounded themselves, so the definition gets the rounded keys.
    assert (found.whole.entropy - exact.entropy).abs().max() <= 1e-5
    mass = (query.double() @ key.double().mT / 4).softmax(-1)[..., 10:].sum(-1)
    assert (found.image_mass - mass).abs().max() <= 1e-5


def test_tiny_mass_is_precise():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 20, 4), torch.randn(1, 1, 12, 4)
    query[..., 0], key[:, :, :4, 0], key[:, :, 4:, 0] = 4.0, -15.0, 15.0  # e^-60 of the mass is on the first four
    found = parts(query, key, slice(4, 12))
    attention = (query.double() @ key.double().mT / 2).softmax(-1)[..., :4]
    mass = attention.sum(-1, keepdim=True)
    within = torch.special.entr(attention / mass).sum(-1, keepdim=True)
    assert found.text_mass.flatten().tolist() == pytest.approx(mass.flatten().tolist(), rel=1e-4)
    assert found.means().text_entropy.item() == pytest.approx(((mass * within).sum() / mass.sum()).item(), abs=1e-4)


@pytest.mark.parametrize("image", [slice(0, 12), slice(4, 4)])
def test_rejects_calls_without_two_parts(image):
    with pytest.raises(ValueError, match="some of the 12 keys but not all"):
        parts(torch.randn(1, 1, 20, 4), torch.randn(1, 1, 12, 4), image)
