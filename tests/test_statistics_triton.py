"""The Triton kernel: compared with the definition, in the interpreter if no GPU is available, and compiled for GPUs."""

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from entropy_probe.statistics import dense
from entropy_probe.statistics.triton import CONFIGS, by_triton, fitting, rows_kernel

pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # conftest.py selects Triton's interpreter


@pytest.fixture(autouse=True)
def one_configuration(monkeypatch):
    """Compile the kernel once for each kind of call; the autotuner would compile it with every configuration."""
    monkeypatch.setattr(rows_kernel, "configs", [min(CONFIGS, key=lambda config: config.kwargs["KEYS"])])


def check(query, key, mask=None, is_causal=False, positions=None, tolerance=1e-5):
    query, key = query.to(DEVICE), key.to(DEVICE)
    mask = None if mask is None else mask.to(DEVICE)
    scale = query.shape[-1] ** -0.5
    found = by_triton(query, key, mask, is_causal, scale, positions)
    wide = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    expected = dense(query, wide, mask, is_causal, scale, positions=positions)
    assert (found.entropy - expected.entropy).abs().max() <= tolerance
    assert torch.equal(found.counted, expected.counted)
    for name in ("logit_variance", "log_sum", "logit_mean"):
        ours, theirs = vars(found)[name].double(), vars(expected)[name]
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4), name
    if positions is not None:
        assert torch.allclose(found.attention_distance.double(), expected.attention_distance, atol=2e-4)
    return found


@pytest.mark.parametrize("width", [1, 32, 40, 128, 256])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 77), (64, 64), (65, 130)])
def test_kernel_equals_definition_for_sizes_around_its_blocks(width, queries, keys):
    torch.manual_seed(0)
    positions = torch.rand(queries, 2).to(DEVICE), torch.rand(keys, 2).to(DEVICE)
    check(torch.randn(2, 2, queries, width), torch.randn(2, 2, keys, width), positions=positions)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_kernel_equals_definition_in_every_configuration(config, dtype, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(rows_kernel, "configs", [config])
    positions = torch.rand(150, 2).to(DEVICE), torch.rand(300, 2).to(DEVICE)
    check(torch.randn(1, 2, 150, 64).to(dtype), torch.randn(1, 2, 300, 64).to(dtype), positions=positions)


needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter treats bfloat16 as integers")


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_gpu), torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    torch.manual_seed(0)
    check(torch.randn(1, 2, 50, 32).to(dtype), torch.randn(1, 2, 70, 32).to(dtype))


@pytest.mark.parametrize("shape", [(2, 4, 30, 150), (2, 1, 1, 150), (1, 1, 30, 150), (30, 150), (150,)])
@pytest.mark.parametrize("additive", [False, True])
def test_kernel_equals_definition_for_masks_of_every_shape(shape, additive):
    torch.manual_seed(0)
    allowed = torch.rand(shape) > 0.4
    allowed[..., :100] = False  # whole blocks of keys
    if len(shape) > 1 and shape[-2] > 1:
        allowed[..., 0, :] = False  # a row without allowed keys
    mask = torch.randn(shape).masked_fill(~allowed, -torch.inf) if additive else allowed
    check(torch.randn(2, 4, 30, 16), torch.randn(2, 4, 150, 16), mask)


def test_mask_that_shifts_the_mean_costs_little_precision():
    torch.manual_seed(0)
    mask = torch.where(torch.rand(1, 1, 30, 150) > 0.4, 1_000.0, -torch.inf) + torch.rand(1, 1, 30, 150)
    check(torch.randn(2, 4, 30, 16), torch.randn(2, 4, 150, 16), mask, tolerance=2e-4)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_query_and_key_can_have_different_dtypes(dtypes):
    torch.manual_seed(0)
    check(torch.randn(1, 2, 20, 16).to(dtypes[0]), torch.randn(1, 2, 30, 16).to(dtypes[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [16, 64, 128, 256])
def test_configurations_that_exceed_shared_memory_or_registers_are_skipped(dtype, depth):
    chosen = fitting(CONFIGS, {"query": torch.empty(0, dtype=dtype)}, DEPTH=depth)
    assert chosen
    assert (len(chosen) == len(CONFIGS)) == (depth <= 64)


def test_causal_grouped_strided_call_equals_definition():
    torch.manual_seed(0)
    query = torch.randn(2, 33, 4, 24).transpose(1, 2)
    key = torch.randn(2, 33, 2, 24).transpose(1, 2)
    check(query, key, is_causal=True)


@pytest.mark.parametrize("sharpness", [5.0, 30.0])
def test_sharp_rows_and_keys_with_shared_offset_equal_definition(sharpness):
    torch.manual_seed(0)
    query = sharpness * torch.randn(1, 2, 40, 16)
    found = check(query, 2.0 + torch.randn(1, 2, 90, 16), tolerance=1e-4)
    assert found.entropy.min() >= 0


def test_equal_logits_and_one_hot_attention_have_known_entropy():
    alike = check(torch.randn(1, 1, 5, 16), torch.zeros(1, 1, 100, 16))
    assert alike.entropy.flatten().tolist() == pytest.approx([math.log(100)] * 5, abs=1e-6)
    key = torch.zeros(1, 1, 100, 16)
    key[0, 0, 42, 0] = 1e3
    assert check(torch.ones(1, 1, 1, 16), key).entropy.item() == 0.0


COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from entropy_probe.statistics.triton import CONFIGS, fitting, rows_kernel

kernel = rows_kernel.fn
tensors = (
    "query key mean_key mask query_positions key_positions "
    "entropy variance log_sum logit_mean distance counted"
).split()
for dtype, depth, kind, causal, positions in [
    ("bf16", 64, 0, False, True), ("fp32", 64, 0, True, False),
    ("fp16", 128, 1, False, True), ("bf16", 256, 2, False, False),
]:
    types = {name: "*fp32" for name in tensors} | {"query": f"*{dtype}", "key": f"*{dtype}", "counted": "*i8"}
    types["mask"] = "*fp32" if kind == 2 else "*i8"
    query = torch.empty(0, dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype])
    config = max(fitting(CONFIGS, {"query": query}, DEPTH=depth), key=lambda c: c.num_stages * c.kwargs["KEYS"])
    fixed = dict(WIDTH=depth, DEPTH=depth, CENTRED=dtype == "fp32", MASK=kind, CAUSAL=causal, POSITIONS=positions)
    fixed |= config.kwargs
    signature = {
        name: "constexpr" if name in fixed else types.get(name, "fp32" if name in ("scale", "masked_bias") else "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, fixed)
    options = dict(num_warps=config.num_warps, num_stages=config.num_stages)
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert "mma" in made.asm["ptx"] or dtype == "fp32"
    assert len(made.asm["cubin"]) > 1000
    print(dtype, depth, kind, made.metadata.shared)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton supports only Linux")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_compiles_for_gpus_of_capability(capability):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shared = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(shared) == 4
    assert max(shared) <= {80: 163, 90: 227}[capability] * 1024  # shared memory of a block
