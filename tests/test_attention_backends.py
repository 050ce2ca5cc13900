"""`capture(attention_backend="native")` measures layers of other attention backends, and restores them."""

import copy
import inspect

import pytest
import torch
from diffusers.models import attention_processor as processors
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from families import FAMILIES

from entropy_probe import capture
from entropy_probe.attention import attention_layers
from entropy_probe.attention.backends import NATIVE_PROCESSORS
from entropy_probe.errors import CaptureError, InputError

UNAVAILABLE = ["flash", "_flash_3_hub", "sage", "sage_hub", "xformers"]
"""Backends that are not installed here: layers that select them cannot run."""


@pytest.fixture(scope="module")
def flux():
    family = next(family for family in FAMILIES if family.name == "Flux")
    denoiser = family.build()
    inputs = family.inputs(denoiser, 8, 8)
    return denoiser, lambda: denoiser(**inputs)[0]


@pytest.fixture(autouse=True)
def native(flux):
    """Start and end with the native backend."""
    yield
    flux[0].reset_attention_backend()
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def state(model):
    """Return what decides on the backend: of the process, and the attributes of every layer and processor."""
    layers = [
        (id(module.processor), dict(vars(module.processor)))
        for module in model.modules()
        if hasattr(module, "processor")
    ]
    return _AttentionBackendRegistry.get_active_backend()[0], layers


def measured(model, run, **arguments):
    with torch.no_grad(), capture(model, **arguments) as captured:
        output = run()
    return captured.frame(), output


@pytest.mark.parametrize("backend", ["_native_math", "_native_flash", "_native_efficient", "flex", *UNAVAILABLE])
@pytest.mark.parametrize("of", ["model", "process"])
def test_backends_are_measured_as_native(flux, backend, of):
    model, run = flux
    expected, plain = measured(model, run)
    name = AttentionBackendName(backend)
    if of == "process":
        _AttentionBackendRegistry.set_active_backend(name)
    else:
        for layer in (one for one in model.modules() if hasattr(one, "processor")):
            layer.processor._attention_backend = name
    before = state(model)
    found, output = measured(model, run, attention_backend="native")
    assert state(model) == before
    assert torch.equal(output, plain)
    assert found.equals(expected)


def test_output_of_flex_equals_native_up_to_rounding(flux):
    _, run = flux
    with torch.no_grad():
        plain = run()
        with attention_backend("flex"):
            assert torch.allclose(run(), plain, atol=1e-4)


def test_backend_of_a_single_layer_is_restored_after_an_error(flux):
    model, _ = flux
    layer = model.get_submodule(attention_layers(model)[0])
    layer.processor._attention_backend = AttentionBackendName.FLEX
    before = state(model)
    with pytest.raises(KeyboardInterrupt), capture(model, attention_backend="native"):
        raise KeyboardInterrupt if layer.processor._attention_backend == "native" else AssertionError
    assert state(model) == before


def test_other_backends_are_named_with_the_argument_by_default(flux):
    model, run = flux
    with attention_backend("flex"):
        with pytest.raises(CaptureError, match=r"ep.capture\(attention_backend='native'\) does this"):
            measured(model, run)
        assert len(measured(model, run, attention_backend="native")[0])


@pytest.mark.parametrize("name", ["AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"])
def test_processors_of_a_unet_are_measured_as_native(tiny_pipeline, name):
    model = copy.deepcopy(tiny_pipeline.unet)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([500]), torch.randn(2, 7, 32)

    def run():
        return model(*inputs).sample

    expected, plain = measured(model, run)
    processor = getattr(processors, name)(*([2] if name == "SlicedAttnProcessor" else []))
    model.set_attn_processor(processor)
    before = state(model)
    found, output = measured(model, run, attention_backend="native")
    assert state(model) == before
    assert model.mid_block.attentions[0].transformer_blocks[0].attn1.processor is processor
    assert torch.equal(output, plain)
    assert found.equals(expected)
    if name != "XFormersAttnProcessor":  # it cannot run here
        with torch.no_grad():
            assert torch.allclose(run(), plain, atol=1e-5)


def test_native_processors_exist_in_diffusers():
    for other, own in NATIVE_PROCESSORS.items():
        assert hasattr(processors, other), other
        assert hasattr(processors, own), own


def test_other_names_are_refused(flux):
    with pytest.raises(InputError, match="attention_backend must be 'native' or None, got 'flash'"):
        inspect.unwrap(capture)(flux[0], attention_backend="flash")


@pytest.mark.parametrize("special", [{"scale_qk": False}, {"qk_norm": "layer_norm"}])
def test_layer_that_other_processors_compute_differently_is_refused(special):
    """AttnProcessor ignores the norms of queries and keys; AttnProcessor2_0 ignores an own scale."""
    torch.manual_seed(0)
    layer = processors.Attention(32, heads=2, dim_head=16, processor=processors.AttnProcessor(), **special)
    x = torch.randn(1, 9, 32)
    before = layer(x)
    with (
        pytest.warns(UserWarning, match="did not call torch"),
        capture(layer, attention_backend="native", missing="warn"),
    ):
        assert torch.equal(layer(x), before)
