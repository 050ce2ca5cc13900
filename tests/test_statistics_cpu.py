"""The compiled CPU kernel: its build, its results on any number of threads, and its limits of precision."""

import math
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from entropy_probe.statistics import cpu, dense, flash
from entropy_probe.statistics.cpu import CURVE, by_kernel, curve_by_kernel


@pytest.fixture(params=["_cpu", "_cpu_amx"])
def kernel(request):
    if request.param not in cpu.KERNELS:
        pytest.skip("this machine cannot compile or run this build")
    return cpu.KERNELS[request.param]


def test_kernel_is_compiled_if_gcc_is_available():
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    assert cpu.COMPILED or not (sys.platform == "linux" and shutil.which("gcc") and headers.exists())


def test_equal_logits_have_entropy_ln_n(kernel):
    key = torch.zeros(1, 1, 37, 8)
    uniform, exact = by_kernel(torch.randn(1, 1, 5, 8), key, None, 1.0, None, 40.0, kernel)
    assert exact
    assert torch.allclose(uniform.entropy, torch.tensor(37.0).log(), atol=1e-6)
    assert torch.equal(uniform.logit_variance, torch.zeros(1, 1, 5))


@pytest.mark.parametrize("keys", [1, 7, 8, 9, 31, 32, 33, 127, 128, 129, 1030])
@pytest.mark.parametrize("queries", [1, 15, 16, 17, 127, 128, 161])
@pytest.mark.parametrize("width", [5, 16, 40])
def test_kernel_equals_definition_for_sizes_around_its_tiles(kernel, queries, keys, width):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, queries, width), torch.randn(2, 1, keys, width)
    positions = torch.rand(queries, 2), torch.rand(keys, 2)
    found, exact = by_kernel(query, key, None, width**-0.5, positions, 40.0, kernel)
    expected = dense(query, key, scale=width**-0.5, positions=positions)
    assert exact
    error = (found.entropy - expected.entropy).abs()
    assert error.max() <= 1e-5  # the guarantee of `flash`
    assert error.mean() <= 1e-6
    assert torch.allclose(found.logit_variance.double(), expected.logit_variance, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.attention_distance.double(), expected.attention_distance, atol=1e-4)
    assert torch.allclose(found.log_sum.double(), expected.log_sum, atol=1e-5)
    assert torch.allclose(found.logit_mean.double(), expected.logit_mean, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 15, 16, 100])
def test_means_equal_means_of_rows(kernel, queries):
    torch.manual_seed(0)
    query, key, positions = (
        torch.randn(3, 2, queries, 5),
        torch.randn(3, 2, 20, 5),
        (torch.rand(queries, 2), torch.rand(20, 2)),
    )
    allowed = torch.rand(3, 2, 20) > 0.3
    allowed[1] = False
    found, _ = by_kernel(query, key, (allowed, torch.zeros(3, 2, 20)), 0.5, positions, 40.0, kernel)
    expected = replace(found, reduced=None).means()
    for name, values in vars(expected).items():
        assert torch.allclose(vars(found.means())[name], values, atol=1e-5, equal_nan=True), name
    assert found.means().entropy[1].isnan().all()


def test_curve_equals_definition_and_is_bit_identical_at_scale_factor_one(kernel):
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 150, 24), torch.randn(2, 3, 90, 24)
    positions = torch.rand(150, 2), torch.rand(90, 2)
    scale_factors = (0.0, 0.5, 1.0, 1.7, 80.0)
    found = curve_by_kernel(query, key, None, 0.2, scale_factors, positions, 40.0, kernel)
    assert [exact for _, exact in found] == [True, True, True, True, False]
    for scale_factor, (one, _) in zip(scale_factors[:4], found, strict=False):
        expected = dense(query, key, scale=0.2 * scale_factor, positions=positions)
        for name in ("entropy", "logit_variance", "log_sum", "logit_mean", "attention_distance"):
            assert torch.allclose(getattr(one, name).double(), getattr(expected, name), rtol=1e-4, atol=1e-5), name
        for name, value in vars(replace(one, reduced=None).means()).items():
            assert torch.allclose(getattr(one.means(), name), value, rtol=1e-5, atol=1e-5), name
    single, _ = by_kernel(query, key, None, 0.2, positions, 40.0, kernel)
    assert all(torch.equal(getattr(found[2][0], name), getattr(single, name)) for name in ("entropy", "log_sum"))


def test_rejects_too_many_scale_factors(kernel):
    query = torch.randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match=f"at most {CURVE}"):
        curve_by_kernel(query, query, None, 1.0, (1.0,) * (CURVE + 1), None, 40.0, kernel)


def test_results_are_bit_identical_on_any_number_of_threads(kernel):
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 150, 24), torch.randn(2, 3, 90, 24)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(by_kernel(query, key, None, 0.2, None, 40.0, kernel)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(f.entropy, found[0].entropy) for f in found)
    assert all(torch.equal(f.logit_variance, found[0].logit_variance) for f in found)


@pytest.mark.parametrize("large", [45.0, 300.0, 1e30, math.inf, math.nan])
def test_reports_logits_too_large_for_float32(kernel, large):
    query, key = torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 20, 2)
    query[0, 0, 4, 0], key[0, 0, 3, 0] = 1.0, large
    assert not by_kernel(query, key, None, 1.0, None, 40.0, kernel)[1]


@pytest.mark.parametrize("keys", [60, 64])
def test_mask_can_be_non_contiguous(kernel, keys):
    torch.manual_seed(0)
    query, key, allowed = torch.randn(2, 1, 9, 8), torch.randn(2, 1, keys, 8), (torch.rand(keys, 2) > 0.4).T[:, None]
    assert not allowed.is_contiguous()
    found, exact = by_kernel(query, key, (allowed, torch.zeros(allowed.shape)), 0.5, None, 40.0, kernel)
    expected = dense(query, key, allowed[:, :, None], scale=0.5)
    assert exact
    assert (found.entropy - expected.entropy).abs().max() <= 1e-5
    assert torch.allclose(found.logit_variance.double(), expected.logit_variance, rtol=1e-4)


def test_a_barred_key_weighs_nothing_however_large_its_logit(kernel):
    query, key = torch.ones(1, 1, 3, 1), torch.zeros(1, 1, 40, 1)
    key[0, 0, 7] = 1e5
    allowed = torch.ones(1, 1, 40, dtype=torch.bool)
    allowed[0, 0, 7] = False
    found, exact = by_kernel(query, key, (allowed, torch.zeros(1, 1, 40)), 1.0, None, 40.0, kernel)
    assert exact
    assert found.entropy.flatten().tolist() == pytest.approx([math.log(39)] * 3)
    assert torch.equal(found.logit_variance, torch.zeros(1, 1, 3))


def test_many_keys_with_much_in_common_keep_their_variance_and_entropy(kernel):
    torch.manual_seed(0)
    query, key = torch.ones(1, 1, 2, 1), 100.1 + 0.1 * torch.randn(1, 1, 65_536, 1)
    found, exact = by_kernel(query, key, None, 1.0, None, 40.0, kernel)
    expected = dense(query, key, scale=1.0)
    assert exact
    assert (found.entropy - expected.entropy).abs().max() <= 1e-5
    assert torch.allclose(found.logit_variance.double(), expected.logit_variance, rtol=1e-4)


def test_rejects_shapes_that_do_not_match(kernel):
    query, positions = torch.randn(4, 2, 9, 8), (torch.rand(9, 2), torch.rand(5, 2))
    for shape in [(1, 2, 9, 8), (4, 1, 9, 8), (4, 2, 9, 16)]:
        with pytest.raises((ValueError, TypeError), match=r"must have the shape|Type-check"):
            by_kernel(query, torch.randn(shape), None, 1.0, None, 40.0, kernel)
    with pytest.raises((ValueError, TypeError), match=r"positions must contain|Type-check"):
        by_kernel(query, torch.randn(4, 2, 9, 8), None, 1.0, positions, 40.0, kernel)


def test_empty_calls_return_empty_results():
    uniform = flash(torch.zeros(1, 1, 3, 0), torch.zeros(1, 1, 7, 0), scale=1.0)
    assert uniform.entropy.flatten().tolist() == pytest.approx([math.log(7)] * 3)
    assert flash(torch.randn(1, 1, 0, 4), torch.randn(1, 1, 7, 4)).entropy.shape == (1, 1, 0)
