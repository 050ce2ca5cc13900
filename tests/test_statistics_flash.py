"""`flash` and `curve`, compared with the dense definition, and their memory."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_probe.statistics import cpu, curve, dense, flash
from entropy_probe.statistics.torch_fused import fused

LIMIT = {torch.float32: 3e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
KINDS = ["none", "keys", "rows", "additive keys", "additive rows", "some rows empty", "all keys masked", "causal"]
KINDS += ["bias on keys", "bias on rows", "lowered keys"]  # additive masks that mask no key
KINDS += ["padding"]  # as diffusers writes it: -10,000


needs_kernel = pytest.mark.skipif(not cpu.COMPILED, reason="the kernel is not compiled: GCC is missing")


@st.composite
def calls(draw, kinds=KINDS):
    """Draw an attention call with any shape, sharpness and kind of mask."""
    batch, groups, kv_heads = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    queries, keys, width = draw(st.integers(1, 40)), draw(st.integers(1, 70)), draw(st.integers(1, 130))
    peak = draw(st.sampled_from([0.1, 1.0, 3.0, 10.0, 50.0]))
    dtype = draw(st.sampled_from(list(LIMIT)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    query = (peak * torch.randn(batch, groups * kv_heads, queries, width, generator=generator)).to(dtype)
    shift = draw(st.sampled_from([0.0, 3.0]))
    key = (torch.randn(batch, kv_heads, keys, width, generator=generator) + shift).to(dtype)
    kind = draw(st.sampled_from(kinds))
    keep = torch.rand(batch, 1, queries, keys, generator=generator) > 0.4
    bias = torch.randn(batch, 1, queries, keys, generator=generator)
    mask = {
        "none": None,
        "causal": None,
        "keys": keep[:, :, :1],
        "rows": keep,
        "additive keys": bias[:, :, :1].masked_fill(~keep[:, :, :1], -math.inf),
        "additive rows": bias.masked_fill(~keep, -math.inf),
        "bias on keys": bias[:, :, :1],
        "bias on rows": bias,
        "lowered keys": torch.where(keep[:, :, :1], 0.0, -1_000.0),
        "padding": torch.where(keep[:, :, :1], 0.0, -10_000.0),
        "some rows empty": keep & (torch.arange(queries) % 2 == 0)[:, None],
        "all keys masked": torch.zeros_like(keep[:, :, :1]),
    }[kind]
    scale = draw(st.sampled_from([None, 0.05, 1 / width]))
    return query, key, {"mask": mask, "is_causal": kind == "causal", "scale": scale, "enable_gqa": groups > 1}


IMPLEMENTATIONS = [pytest.param(True, marks=needs_kernel, id="kernel"), pytest.param(False, id="blocks")]


@pytest.mark.parametrize("compiled", IMPLEMENTATIONS)
@settings(max_examples=150, deadline=None)
@given(call=calls())
def test_flash_equals_definition(compiled, call):
    query, key, options = call
    positions = torch.rand(query.shape[2], 2), torch.rand(key.shape[2], 2)
    exact = dense(query, key, positions=positions, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "COMPILED", compiled)
        fast = flash(query, key, positions=positions, **options)
    assert torch.equal(exact.counted, fast.counted)
    assert (exact.entropy - fast.entropy).abs().max() <= LIMIT[query.dtype]
    assert torch.allclose(exact.logit_variance, fast.logit_variance.double(), rtol=1e-4, atol=1e-5)
    assert torch.allclose(exact.log_sum, fast.log_sum.double(), rtol=1e-5, atol=1e-4)
    assert torch.allclose(exact.logit_mean, fast.logit_mean.double(), rtol=1e-5, atol=1e-4)
    counted = exact.counted
    assert torch.allclose(
        exact.attention_distance[counted], fast.attention_distance.double()[counted], atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("compiled", IMPLEMENTATIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(call=calls(), scale_factors=st.lists(st.floats(0, 4), max_size=10))
def test_curve_equals_definition_at_every_scale_factor(compiled, call, scale_factors):
    query, key, options = call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "COMPILED", compiled)
        found = curve(query, key, scale_factors, **options)
    scale = options.pop("scale") or query.shape[-1] ** -0.5
    assert len(found) == len(scale_factors)
    for scale_factor, one in zip(scale_factors, found, strict=True):
        expected = dense(query, key, scale=scale_factor * scale, **options)
        assert (one.entropy - expected.entropy).abs().max() <= LIMIT[query.dtype]
        assert torch.equal(one.counted, expected.counted)
        assert torch.allclose(one.logit_variance.double(), expected.logit_variance, rtol=1e-3, atol=1e-5)
        assert torch.allclose(one.log_sum.double(), expected.log_sum, rtol=1e-5, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(calls(["none", "keys", "additive keys", "all keys masked", "bias on keys", "lowered keys"]))
def test_fused_call_equals_definition(call):
    query, key, options = call
    query, key = query.double(), key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = query.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
    positions = torch.rand(query.shape[2], 2).double(), torch.rand(key.shape[2], 2).double()
    exact = dense(query, key, options["mask"], scale=scale, positions=positions)
    result, _ = fused(query, key, options["mask"], scale, positions)
    assert torch.equal(exact.counted, result.counted)
    assert (exact.entropy - result.entropy).abs().max() <= 1e-8
    for name in ("logit_variance", "log_sum", "logit_mean"):
        assert torch.allclose(vars(exact)[name], vars(result)[name], rtol=1e-8, atol=1e-8), name
    counted = exact.counted
    assert torch.allclose(exact.attention_distance[counted], result.attention_distance[counted], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(calls())
def test_entropy_is_between_zero_and_ln_of_allowed_keys(call):
    query, key, options = call
    entropy = flash(query, key, **options).entropy
    allowed = torch.ones(*entropy.shape, key.shape[2], dtype=torch.bool)
    mask = options["mask"]
    if mask is not None:
        allowed = allowed & (mask if mask.dtype == torch.bool else mask != -math.inf)
    if options["is_causal"]:
        allowed = allowed.tril()
    assert (entropy >= 0).all()
    assert (entropy <= allowed.sum(-1).clamp_min(1).log() + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.3, 3.0))
def test_entropy_is_invariant_to_order_and_shift_of_keys(seed, scale_factor):
    torch.manual_seed(seed)
    query, key = torch.randn(1, 2, 20, 16), torch.randn(1, 2, 30, 16)
    entropy = flash(query, key).entropy
    assert torch.allclose(flash(query, key[:, :, torch.randperm(30)]).entropy, entropy, atol=1e-5)
    assert torch.allclose(flash(query, key + torch.randn(16)).entropy, entropy, atol=1e-5)
    scaled = flash(query, key, scale=scale_factor / 4).entropy
    assert torch.allclose(flash(scale_factor * query, key).entropy, scaled, atol=1e-5)


def test_inputs_can_be_non_contiguous():
    torch.manual_seed(0)
    query, key = torch.randn(2, 50, 4, 8).transpose(1, 2), torch.randn(2, 60, 4, 16)[..., ::2].transpose(1, 2)
    assert torch.allclose(flash(query, key).entropy.double(), dense(query, key).entropy, atol=1e-5)


@pytest.mark.parametrize("compiled", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 4096), (65, 1025), (700, 333)])
def test_flash_equals_definition_at_any_length(monkeypatch, compiled, dtype, queries, keys):
    monkeypatch.setattr(cpu, "COMPILED", compiled)
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, queries, 40).to(dtype), torch.randn(1, 2, keys, 40).to(dtype)
    assert (flash(query, key).entropy - dense(query, key).entropy).abs().max() <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mask_with_minimum_of_dtype_masks_its_keys(dtype):
    torch.manual_seed(0)
    query, key, keep = torch.randn(2, 2, 20, 16), torch.randn(2, 2, 30, 16), torch.rand(2, 1, 1, 30) > 0.4
    lowest = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(dtype).min)
    assert (flash(query, key, lowest).entropy - dense(query, key, keep).entropy).abs().max() <= 1e-5


def test_rejects_mask_with_is_causal():
    with pytest.raises(ValueError, match="cannot be combined, got both"):
        flash(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.ones(2, 2, dtype=torch.bool), is_causal=True)


PEAK = """
import resource, torch
from entropy_probe.statistics import flash
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
flash(torch.randn(1, 8, 64, 64), torch.randn(1, 8, 64, 64))
query, key = torch.randn(1, 8, {n}, 64), torch.randn(1, 8, {n}, 64)
if {causal}:
    query = query[:, :, :256]
before = peak()
flash(query, key, is_causal={causal})
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "fraction"), [(False, 1 / 32), (True, 1 / 16)])
def test_memory_is_far_below_an_attention_map(causal, fraction):
    tokens = 16_384
    extra = int(subprocess.check_output([sys.executable, "-c", PEAK.format(n=tokens, causal=causal)], text=True))
    assert extra < 8 * tokens * tokens * 4 * fraction


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize("peak", [0.1, 3.0, 30.0])
def test_flash_equals_definition_on_cuda(dtype, peak):
    torch.manual_seed(0)
    query = (peak * torch.randn(2, 4, 333, 64, device="cuda")).to(dtype)
    key = torch.randn(2, 4, 257, 64, device="cuda").to(dtype)
    for mask in (None, torch.rand(2, 1, 1, 257, device="cuda") > 0.3):
        exact, fast = dense(query, key, mask), flash(query, key, mask)
        assert (exact.entropy - fast.entropy).abs().max() <= LIMIT[dtype]


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Send CPU tensors through the code for CUDA: Triton's interpreter, or torch's attention."""
    pytest.importorskip("triton")
    from entropy_probe.statistics import dispatch, triton

    if torch.cuda.is_available():
        pytest.skip("a GPU is available: test_statistics_triton.py runs the kernel on it")
    monkeypatch.setattr(dispatch, "runs_on_cuda", lambda query: True)
    monkeypatch.setattr(dispatch, "WITHOUT_TRITON", set())
    return triton


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls().filter(lambda call: call[0].dtype != torch.bfloat16))
def test_code_for_cuda_equals_definition(call, as_on_cuda):
    query, key, arguments = call
    found, expected = flash(query, key, **arguments), dense(query, key, **arguments)
    assert (found.entropy - expected.entropy).abs().max() <= LIMIT[query.dtype]
    assert torch.equal(found.counted, expected.counted)


def test_logits_too_large_for_float32_are_computed_in_float64(as_on_cuda):
    torch.manual_seed(0)
    query, key = 400 * torch.randn(1, 2, 30, 16), torch.randn(1, 2, 40, 16)
    assert (flash(query, key).entropy - dense(query, key).entropy).abs().max() <= 1e-6


@pytest.mark.parametrize("mask", [None, torch.arange(40) < 30, (torch.rand(1, 1, 30, 40) > 0.4)])
def test_torch_is_used_if_triton_has_no_compiler(as_on_cuda, monkeypatch, mask):
    def broken(*_):
        tries.append(1)
        raise RuntimeError("Failed to find C compiler")

    tries = []
    monkeypatch.setattr(as_on_cuda, "by_triton", broken)
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 30, 16), torch.randn(1, 2, 40, 16)
    positions = torch.rand(30, 2), torch.rand(40, 2)
    with pytest.warns(UserWarning, match="Failed to find C compiler"):
        found = flash(query, key, mask, positions=positions)
    again = flash(query, key, mask, positions=positions)
    assert tries == [1]
    expected = dense(query, key, mask, positions=positions)
    for result in (found, again):
        assert (result.entropy - expected.entropy).abs().max() <= 1e-5
        assert torch.allclose(result.attention_distance.double(), expected.attention_distance, atol=2e-4)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    """With the compiled kernel, and without it."""
    monkeypatch.setattr(cpu, "COMPILED", request.param)


def extreme(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, 20, 16, generator=generator), torch.randn(1, 2, 50, 16, generator=generator)


def compare(query, key, mask=None):
    exact, fast = dense(query, key, mask), flash(query, key, mask)
    assert (exact.entropy - fast.entropy).abs().max() <= 3e-5
    assert torch.allclose(exact.logit_variance, fast.logit_variance.double(), rtol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_huge_key_hides_no_other(sign, implementation):
    query, key = extreme()
    key[0, :, 7] = sign * 1e20
    compare(query, key)


@pytest.mark.parametrize("value", [1e6, 1e20, torch.inf, torch.nan])
@pytest.mark.parametrize("shape", [(1, 1, 20, 50), (1, 1, 1, 50), (50,), (20, 50), (1, 2, 20, 50)])
@pytest.mark.parametrize("additive", [False, True])
def test_masked_keys_may_contain_anything(value, shape, additive, implementation):
    query, key = extreme()
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.2
    allowed[..., 7] = False
    mask = torch.zeros(shape).masked_fill(~allowed, -torch.inf) if additive else allowed
    expected = dense(query, key, mask)
    key[0, :, 7, 3] = value
    found = flash(query, key, mask)
    assert (expected.entropy - found.entropy).abs().max() <= 3e-5
    assert torch.allclose(expected.logit_variance, found.logit_variance.double(), rtol=1e-4)


@pytest.mark.parametrize("offset", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("masked", [False, True])
def test_shared_offset_of_keys_changes_no_statistic(offset, masked, implementation):
    query, key = extreme()
    compare(query, key + offset, torch.arange(50) < 40 if masked else None)


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 64, 320, 1280])
def test_errors_of_rows_and_means_are_as_documented(width, implementation):
    generator = torch.Generator().manual_seed(0)
    for sharpness in (4, 6, 8, 10):
        query = sharpness * torch.randn(1, 2, 256, width, generator=generator)
        key = torch.randn(1, 2, 1024, width, generator=generator)
        error = flash(query, key).entropy.double() - dense(query, key).entropy
        assert error.abs().max() <= 3e-5
        assert error.mean(-1).abs().max() <= 1e-6
