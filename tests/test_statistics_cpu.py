"""The compiled kernel: built where it can be, the same on any number of threads, honest about what it cannot hold."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from entropy_probe.statistics import cpu, dense
from entropy_probe.statistics.cpu import by_kernel

pytestmark = pytest.mark.skipif(not cpu.COMPILED, reason="the kernel is compiled where there is a C compiler")


def test_it_is_there_where_there_is_a_compiler():
    assert cpu.COMPILED or shutil.which("cc") is None


def test_closed_forms():
    key = torch.zeros(1, 1, 37, 8)
    uniform, exact = by_kernel(torch.randn(1, 1, 5, 8), key, None, 1.0, None, 40.0)
    assert exact
    assert torch.allclose(uniform.entropy, torch.tensor(37.0).log(), atol=1e-6)
    assert torch.equal(uniform.logit_variance, torch.zeros(1, 1, 5))


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 511, 512, 513, 1030])
@pytest.mark.parametrize("queries", [1, 7, 8, 9, 63, 64, 65])
def test_every_edge_of_its_tiles(queries, keys):
    torch.manual_seed(0)
    query, key, there = torch.randn(2, 1, queries, 5), torch.randn(2, 1, keys, 5), torch.rand(keys, 2)
    places = torch.rand(queries, 2), there
    found, exact = by_kernel(query, key, None, 0.5, places, 40.0)
    expected = dense(query, key, scale=0.5, positions=places)
    assert exact
    assert (found.entropy - expected.entropy).abs().max() <= 2e-6
    assert torch.allclose(found.logit_variance.double(), expected.logit_variance, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.attention_distance.double(), expected.attention_distance, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 15, 16, 100])
def test_its_means_are_those_of_its_rows(queries):
    torch.manual_seed(0)
    query, key, places = (
        torch.randn(3, 2, queries, 5),
        torch.randn(3, 2, 20, 5),
        (torch.rand(queries, 2), torch.rand(20, 2)),
    )
    allowed = torch.rand(3, 2, 20) > 0.3
    allowed[1] = False
    found, _ = by_kernel(query, key, (allowed, torch.zeros(3, 2, 20)), 0.5, places, 40.0)
    expected = replace(found, reduced=None).means()
    for name, values in vars(expected).items():
        assert torch.allclose(vars(found.means())[name], values, atol=1e-5, equal_nan=True), name
    assert found.means().entropy[1].isnan().all()


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 150, 24), torch.randn(2, 3, 90, 24)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(by_kernel(query, key, None, 0.2, None, 40.0)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(f.entropy, found[0].entropy) for f in found)
    assert all(torch.equal(f.logit_variance, found[0].logit_variance) for f in found)


@pytest.mark.parametrize("large", [45.0, 300.0, 1e30, math.inf, math.nan])
def test_what_float32_cannot_hold_is_said(large):
    query, key = torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 20, 2)
    query[0, 0, 4, 0], key[0, 0, 3, 0] = 1.0, large
    assert not by_kernel(query, key, None, 1.0, None, 40.0)[1]
