"""Interception in special cases: interruption, checkpointing, threads, wrappers, copies, unusual calls, compiling."""

import copy
import itertools
import math
import random
import signal
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import beartype
import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from diffusers.models.attention_processor import Attention as AttentionLayer
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils.checkpoint import checkpoint

import entropy_probe as ep
from entropy_probe.attention import attention_calls
from entropy_probe.errors import CaptureError
from entropy_probe.models import sample_images


class Attention(nn.Module):
    """Attention of its inputs."""

    def forward(self, query, key, value, mask=None, **kwargs):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **kwargs)


class SelfAttention(nn.Module):
    """A block with one attention layer."""

    def __init__(self):
        super().__init__()
        self.attention = AttentionLayer(query_dim=8, heads=2, dim_head=4)

    def forward(self, x):
        return x + self.attention(x)


class Blocks(nn.Module):
    """Two blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([SelfAttention(), SelfAttention()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Slow(nn.Module):
    """Makes an attention call outside attention layers, after a pause if `wait` is true."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Call())
        self.started, self.wait = threading.Event(), threading.Event()

    def forward(self, x, wait=False):
        if not wait:
            return x
        self.started.set()
        self.wait.wait()
        return self.inner(x)


class Call(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class Wrapper(nn.Module):
    """Passes its arguments on, as DistributedDataParallel and PEFT do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def modes():
    return len(torch.overrides._get_current_function_mode_stack())


def entropy_of(logits):
    return torch.special.entr(logits.double().softmax(-1)).sum(-1).mean(-1)


def inputs(size=16, batch=1):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 4, size, size, generator=generator),
        torch.tensor(500),
        torch.randn(batch, 16, 32, generator=generator),
    )


def attributes(module):
    return {name: dict(part.__dict__) for name, part in module.named_modules()}


@pytest.fixture
def unet(tiny_pipeline):
    return copy.deepcopy(tiny_pipeline.unet)


@pytest.mark.parametrize("context", ["scaled", "capture"])
def test_context_restores_every_attribute_of_the_model(unet, context):
    before = attributes(unet)
    with ep.scaled(unet, "paper") if context == "scaled" else ep.capture(unet), torch.no_grad():
        unet(*inputs(32))
    after = attributes(unet)
    assert before.keys() == after.keys()
    assert all(before[name].keys() == after[name].keys() for name in before)


@pytest.mark.parametrize("use", ["apply", "scaled", "capture"])
def test_interruption_at_any_time_leaves_no_mode_active_and_other_models_unchanged(unet, use):
    other = copy.deepcopy(unet)
    small, large = inputs(16), inputs(32)
    with torch.no_grad():
        expected, unscaled = other(*large).sample, unet(*small).sample
    choose = random.Random(0)
    interrupted = 0
    before = signal.signal(signal.SIGALRM, lambda *_: signal.default_int_handler(signal.SIGINT, None))
    try:
        for _ in range(60):
            try:
                if use == "apply":
                    ep.apply(unet, "paper")
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-4, 0.02))
                with torch.no_grad():
                    if use == "scaled":
                        with ep.scaled(unet, "paper"):
                            unet(*large)
                    elif use == "capture":
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            with ep.capture(unet, missing="warn"):
                                unet(*large)
                    else:
                        unet(*large)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                torch.set_grad_enabled(True)  # the test's own torch.no_grad may have been interrupted
            assert modes() == 0
            ep.remove(unet)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10
    with torch.no_grad():
        assert torch.equal(other(*large).sample, expected)
        assert torch.equal(unet(*small).sample, unscaled)


class Block(nn.Module):
    """An attention layer between functions that torch handles in Python, with the mode off the stack for a moment."""

    def __init__(self):
        super().__init__()
        self.attn1 = Attention()

    def forward(self, hidden_states):
        hidden_states = F.silu(F.group_norm(hidden_states, 2))
        tokens = hidden_states.flatten(2).transpose(1, 2)[:, None]
        tokens = F.dropout(self.attn1(tokens, tokens, tokens), 0.0)
        return F.silu(tokens)


SHAPE_CHECKS = tuple(str(Path(library.__file__).parent) for library in (jaxtyping, beartype))
"""Libraries that only the tests install around the package."""


class Interrupt:
    """Press Ctrl-C at the n-th place where Python handles signals: as a function starts, after a call."""

    def __init__(self, at):
        self.left = at

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_return") or frame.f_code.co_filename.startswith(SHAPE_CHECKS):
            return
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def use_autocast():
    """Enable autocast on the CPU, without a context, whose end an interruption could skip."""
    yield partial(torch.set_autocast_enabled, "cpu")
    torch.set_autocast_enabled("cpu", False)


@pytest.fixture
def no_shape_checks():
    """Run without the shape checks, which make 19 of 20 calls here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interruptions of generators at exit
@pytest.mark.parametrize("autocast", [False, True])
def test_interruption_at_every_call_leaves_no_trace(no_shape_checks, use_autocast, autocast):
    use_autocast(autocast)
    model, other = Block(), Block()
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, before, handler = other(latents), attributes(model), signal.getsignal(signal.SIGINT)
    law, trained = ep.laws.Constant(2.0), {}
    for at in itertools.count(1):
        interrupt = Interrupt(at)
        try:
            sys.setprofile(interrupt)
            with ep.scaled(model, law, training_tokens=trained), ep.capture(model, missing="warn"):
                model(latents)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert modes() == 0, f"after an interruption at event {at}"
        assert torch.is_grad_enabled(), f"after an interruption at event {at}"
        assert torch.is_autocast_enabled("cpu") == autocast, f"after an interruption at event {at}"
        assert attributes(model) == before, f"after an interruption at event {at}"
        assert signal.getsignal(signal.SIGINT) is handler, f"after an interruption at event {at}"
        if interrupt.left > 0:
            break
    assert at > 200
    assert torch.equal(other(latents), expected)


def gradients(model, law, latents):
    latents = latents.clone().requires_grad_(True)
    with ep.scaled(model, law):
        model(latents, torch.tensor(500), inputs()[2]).sample.square().sum().backward()
    trained = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return latents.grad, trained


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_checkpointing_does_not_change_gradients_of_a_scaled_model(unet, reentrant, lora):
    if lora:
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        unet.requires_grad_(False)
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    unet.train()
    latents = inputs(32)[0]
    plain, trained = gradients(unet, "paper", latents)
    unscaled, _ = gradients(unet, "original", latents)

    def recompute(function, *args, **kwargs):
        return checkpoint(function, *args, use_reentrant=reentrant, **kwargs)

    unet.enable_gradient_checkpointing(recompute)
    recomputed, trained_again = gradients(unet, "paper", latents)
    assert (recomputed - plain).norm() <= 1e-5 * plain.norm()
    assert (unscaled - plain).norm() > 1e-3 * plain.norm()  # the law matters here
    assert trained.keys() == trained_again.keys()
    for name, gradient in trained.items():
        assert (trained_again[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_checkpointed_layers_are_measured_once(unet):
    unet.train()
    latents = inputs()[0].requires_grad_(True)
    with ep.capture(unet) as plain:
        unet(latents, *inputs()[1:])
    unet.enable_gradient_checkpointing()
    with ep.capture(unet) as captured:
        unet(latents, *inputs()[1:]).sample.sum().backward()
    assert captured["entropy"].tolist() == plain["entropy"].tolist()


def in_threads(work, count=2):
    errors = []

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return errors


def test_two_threads_share_a_scaled_model(unet):
    sizes = (16, 32)
    results = {}
    with torch.no_grad(), ep.scaled(unet, "paper"):
        expected = [unet(*inputs(size)).sample for size in sizes]

        def work(number):
            with torch.no_grad():
                results[number] = [unet(*inputs(sizes[number])).sample for _ in range(5)]

        assert in_threads(work) == []
    assert all(torch.equal(one, expected[number]) for number in (0, 1) for one in results[number])
    assert modes() == 0


def test_capture_refuses_a_second_thread_before_it_runs(unet):
    inside, done = threading.Event(), threading.Event()
    ran = []

    def wait(*_):
        ran.append(threading.get_ident())
        inside.set()
        done.wait(20)

    unet.conv_in.register_forward_hook(wait)

    def work(number):
        with torch.no_grad():
            if number == 1:
                inside.wait(20)
            try:
                unet(*inputs())
            finally:
                done.set()

    with ep.capture(unet) as captured:
        errors = in_threads(work)
    assert [type(error) for error in errors] == [CaptureError]
    assert "two threads" in str(errors[0])
    assert len(ran) == 1
    assert len(captured.calls) > 0


def test_wrapped_denoiser_keeps_steps_tokens_and_layer_names(tiny_pipeline):
    pipeline = copy.deepcopy(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    with ep.capture(pipeline) as plain:
        expected = sample_images(pipeline, ["a"], (32, 48), [0], steps=3, guidance_scale=4.0)
    pipeline.unet = Wrapper(pipeline.unet)
    with ep.capture(pipeline) as captured:
        images = sample_images(pipeline, ["a"], (32, 48), [0], steps=3, guidance_scale=4.0)
    assert np.array_equal(np.asarray(images[0]), np.asarray(expected[0]))
    assert captured.frame().equals(plain.frame())
    assert sorted(captured["step"].unique()) == [0, 1, 2]
    assert captured[captured["kind"] == "self"]["training_tokens"].notna().all()


def test_models_in_peft_and_wrappers_are_scaled(unet):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(copy.deepcopy(unet), peft.LoraConfig(r=2, target_modules=["to_q"]))
    with torch.no_grad():
        with ep.scaled(unet, "paper"):
            expected = unet(*inputs(32)).sample
        with ep.scaled(wrapped, "paper"):
            assert torch.allclose(wrapped(*inputs(32)).sample, expected, atol=1e-6)
        with ep.scaled(Wrapper(unet), "paper"):
            assert torch.equal(unet(*inputs(32)).sample, expected)


def test_missing_timestep_raises_a_warning(tiny_pipeline):
    class Hiding(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.one, self.two = module, nn.Linear(1, 1)  # a wrapper that has other weights is not unwrapped
            self.config, self.dtype, self.device = module.config, module.dtype, module.device

        def forward(self, *args, **kwargs):
            return self.one(*args, **kwargs)

    pipeline = copy.deepcopy(tiny_pipeline)
    pipeline.unet = Hiding(pipeline.unet)
    hidden = r"no timestep among the arguments of Hiding\.forward"
    with pytest.warns(UserWarning, match=hidden), ep.capture(pipeline):
        sample_images(pipeline, ["a"], (32, 32), [0], steps=1, guidance_scale=1.0)
    with pytest.warns(UserWarning, match=hidden), ep.capture(pipeline.unet), torch.no_grad():
        pipeline.unet(*inputs())


def test_wrapper_with_another_attention_layer_is_not_unwrapped(unet):
    class Attending(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.model, self.after = module, SelfAttention()

        def forward(self, *args, **kwargs):
            return self.after(self.model(*args, **kwargs).sample.flatten(2).mT.repeat(1, 1, 2))

    model = Attending(unet)
    with pytest.warns(UserWarning, match="no timestep"), ep.capture(model) as captured, torch.no_grad():
        model(*inputs())
    assert "after.attention" in set(captured["layer"])


def test_copy_made_inside_a_capture_does_not_write_into_its_table(unet):
    with torch.no_grad(), ep.capture(unet) as captured:
        expected = unet(*inputs()).sample
        count = len(captured.calls)
        copied = copy.deepcopy(unet)
        assert torch.equal(copied(*inputs()).sample, expected)
        assert len(captured.calls) == count
    for parameter in copied.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        assert torch.equal(unet(*inputs()).sample, expected)  # the copy ran on its own weights
        assert not torch.equal(copied(*inputs()).sample, expected)


def test_copy_of_a_scaled_model_warns_that_it_is_not_scaled(unet):
    with torch.no_grad():
        plain = unet(*inputs(32)).sample
        with ep.scaled(unet, "paper"), warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            copied = copy.deepcopy(unet)
        (warning,) = raised
        assert "apply the law to the copy" in str(warning.message)
        assert torch.equal(copied(*inputs(32)).sample, plain)


def test_scaled_model_can_be_saved_whole(unet, tmp_path):
    with torch.no_grad():
        plain = unet(*inputs(32)).sample
        with ep.scaled(unet, "paper"):
            torch.save(unet, tmp_path / "unet.pt")
        loaded = torch.load(tmp_path / "unet.pt", weights_only=False)
        assert torch.equal(loaded(*inputs(32)).sample, plain)


@pytest.mark.parametrize("first", ["offload", "law"])
def test_law_and_capture_survive_the_offloading_of_a_pipeline(tiny_pipeline, first):
    """After every call, diffusers removes accelerate's wrapper from the denoiser and adds it again."""
    pipeline = copy.deepcopy(tiny_pipeline)

    def draw(size=(32, 48)):
        return np.asarray(sample_images(pipeline, ["a"], size, [0], steps=2, guidance_scale=1.0)[0])

    plain = draw()
    with ep.scaled(pipeline, "paper"):
        expected = {size: draw(size) for size in [(32, 48), (32, 32)]}
    if first == "offload":
        pipeline.enable_model_cpu_offload(device="cpu")
    with ep.scaled(pipeline, "paper"):
        if first == "law":
            pipeline.enable_model_cpu_offload(device="cpu")
        for size in [(32, 48), (32, 48), (32, 32)]:
            assert np.array_equal(draw(size), expected[size])
    assert ep.laws.applied(pipeline) is None
    assert np.array_equal(draw(), plain)
    with ep.capture(pipeline) as captured:
        draw()
        draw()
    assert captured["sampling"].nunique() == 2
    assert captured["step"].nunique() == 2
    count = len(captured.calls)
    draw()
    assert len(captured.calls) == count


def test_hooks_wrapped_by_another_library_pass_calls_on_after_removal(unet):
    with torch.no_grad():
        plain = unet(*inputs(32)).sample
        ep.apply(unet, "paper")
        attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
        hooked = attention.forward
        attention.forward = lambda *args, **kwargs: hooked(*args, **kwargs)
        assert not torch.equal(unet(*inputs(32)).sample, plain)
        ep.remove(unet)
        assert torch.equal(unet(*inputs(32)).sample, plain)


def r(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


SHAPES = {
    "2-D": (r(5, 4), r(7, 4)),
    "3-D": (r(2, 5, 4), r(2, 7, 4)),
    "4-D": (r(2, 3, 5, 4), r(2, 3, 7, 4)),
    "5-D": (r(2, 3, 2, 5, 4), r(2, 3, 2, 7, 4)),
    "one key head": (r(3, 2, 9, 8), r(3, 1, 9, 8)),
    "one key item": (r(3, 2, 9, 8), r(1, 2, 9, 8)),
    "one query item": (r(1, 2, 9, 8), r(3, 2, 9, 8)),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_calls_of_every_shape_are_measured_and_scaled(name, masked):
    query, key = SHAPES[name]
    mask = None
    if masked:
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        mask = r(*lead, query.shape[-2], key.shape[-2])
    model = Attention()
    plain = model(query, key, key, mask)
    logits = query.double() @ key.double().mT / math.sqrt(query.shape[-1])
    logits = logits if mask is None else logits + mask
    with ep.capture(model) as captured:
        assert torch.equal(model(query, key, key, mask), plain)
    assert captured["entropy"].to_numpy() == pytest.approx(entropy_of(logits).flatten().numpy(), abs=1e-5)
    half = torch.full((1,), 0.5)
    for factor in (0.5, half):
        with attention_calls(model, lambda call, factor=factor: factor):
            output = model(query, key, key, mask)
        scaled = query.double() @ key.double().mT * 0.5 / math.sqrt(query.shape[-1])
        scaled = scaled if mask is None else scaled + mask
        assert torch.allclose(output.double(), scaled.softmax(-1) @ key.double(), atol=1e-5)


@pytest.mark.parametrize("query", [r(1, 1, 0, 4), r(0, 2, 5, 4), r(0, 5, 4)])
def test_empty_calls_run(query):
    key = r(*query.shape[:-2], 5, 4)
    model = Attention()
    with ep.capture(model) as captured:
        assert model(query, key, key).shape == query.shape
    assert len(captured) == 0
    with ep.scaled(model, "paper", training_tokens={"": 4}):
        assert model(query, key, key).shape == query.shape


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_run_and_are_reported(layout):
    items = [r(2, 5, 8), r(2, 9, 8)]
    if layout is torch.jagged:
        nested = torch.nested.nested_tensor([item.transpose(0, 1) for item in items], layout=layout).transpose(1, 2)
    else:
        nested = torch.nested.nested_tensor(items, layout=layout)
    model = Attention()
    plain = model(nested, nested, nested)
    with pytest.warns(UserWarning, match="were not measured: nested tensors"), ep.capture(model) as captured:
        output = model(nested, nested, nested)
    assert all(torch.equal(a, b) for a, b in zip(output.unbind(), plain.unbind(), strict=True))
    assert [reason.split()[0] for _, reason in captured.unmeasured] == ["nested"]
    with pytest.warns(UserWarning, match="was not scaled: nested"), ep.scaled(model, "paper"):
        model(nested, nested, nested)


@pytest.mark.parametrize(("bias", "diagonal"), [(causal_lower_right, 4), (causal_upper_left, 0)])
def test_causal_bias_is_measured_like_the_equivalent_mask(bias, diagonal):
    query, key = r(1, 2, 5, 8), r(1, 2, 9, 8)
    model = Attention()
    plain = model(query, key, key, bias(5, 9))
    with ep.capture(model) as captured:
        assert torch.equal(model(query, key, key, bias(5, 9)), plain)
    allowed = torch.ones(5, 9, dtype=torch.bool).tril(diagonal)
    logits = (query.double() @ key.double().mT / math.sqrt(8)).masked_fill(~allowed, -math.inf)
    assert captured["entropy"].to_numpy() == pytest.approx(entropy_of(logits).flatten().numpy(), abs=1e-5)


def transformed(kind, model, query, key):
    if kind == "vmap":
        return torch.func.vmap(lambda q, k: model(q, k, k))(query, key)
    if kind == "grad":
        return torch.func.grad(lambda q: model(q, key, key).sum())(query)
    if kind == "meta":
        return model(*(tensor.to("meta") for tensor in (query, key, key)))
    exported = torch.export.export(model, (query, key, key), strict=False)
    return exported.module()(query, key, key)


@pytest.mark.parametrize("kind", ["vmap", "grad", "meta", "export"])
def test_transforms_run_and_are_reported_as_unmeasured(kind):
    query, key = r(3, 2, 5, 8), r(3, 2, 5, 8)
    model = Attention()
    plain = transformed(kind, model, query, key)
    with pytest.warns(UserWarning, match="were not measured: "), ep.capture(model) as captured:
        output = transformed(kind, model, query, key)
    assert output.shape == plain.shape
    assert kind == "meta" or torch.equal(output, plain)
    assert len(captured) == 0
    assert sum(captured.unmeasured.values()) > 0


@pytest.mark.parametrize("kind", ["vmap", "grad", "export"])
def test_transforms_of_a_scaled_model_are_scaled(kind):
    query, key = r(3, 2, 5, 8), r(3, 2, 5, 8)
    model = Attention()
    scale = math.sqrt(math.log(5) / math.log(4)) / math.sqrt(8)

    def scaled(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    expected = scaled(query, key, key) if kind == "export" else transformed(kind, scaled, query, key)
    with ep.scaled(model, "paper", training_tokens={"": 4}):
        assert torch.allclose(transformed(kind, model, query, key), expected, atol=1e-6)


@pytest.fixture
def fresh_compiler():
    """Reset torch.compile before and after the test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def dit():
    """A transformer with one layer, which torch.compile traces in a few seconds."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    attention = model.transformer_blocks[0].attn1
    for projection in (attention.to_q, attention.to_k):
        projection.weight.data *= 5  # random projections attend almost uniformly
    return model


@pytest.mark.parametrize("how", ["function", "in place"])
def test_law_scales_a_model_that_is_compiled_afterwards(dit, how, fresh_compiler):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    given, graphs = (*latents, torch.tensor([3])), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        plain = dit(*given).sample
        with ep.scaled(dit, "paper"):
            expected = dit(*given).sample
        ep.apply(dit, "paper")
        compiled = torch.compile(dit, backend=backend) if how == "function" else dit
        if how == "in place":
            dit.compile(backend=backend)
        for _ in range(3):
            assert torch.allclose(compiled(*given).sample, expected, atol=1e-5)
        assert graphs  # outside the attention layer
        assert not torch.allclose(expected, plain, atol=1e-4)
        ep.remove(dit)
        assert torch.allclose(compiled(*given).sample, plain, atol=1e-5)


def test_model_that_is_compiled_inside_a_capture_is_measured(dit, fresh_compiler):
    given = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.tensor([3])
    with torch.no_grad():
        with ep.capture(dit) as captured:
            expected = dit(*given).sample
        with ep.capture(dit) as again:
            compiled = torch.compile(dit, backend="eager")
            assert torch.allclose(compiled(*given).sample, expected, atol=1e-5)
    assert np.allclose(again["entropy"], captured["entropy"], atol=1e-5)
    assert again["layer"].tolist() == captured["layer"].tolist() != []


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 has set_stance")
@pytest.mark.parametrize("how", ["function", "in place", "forward", "layer"])
def test_compiled_model_is_measured_and_scaled_where_it_runs_uncompiled(dit, how, fresh_compiler):
    given, graphs = (torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.tensor([3])), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = dit
    with torch.no_grad():
        plain = dit(*given).sample
        with ep.scaled(dit, "paper"), ep.capture(dit) as expected:
            scaled = dit(*given).sample
        if how == "function":
            model = torch.compile(dit, backend=backend)
        elif how == "forward":
            dit.forward = torch.compile(dit.forward, backend=backend)
        else:
            (dit if how == "in place" else dit.transformer_blocks[0].attn1).compile(backend=backend)
        assert torch.allclose(model(*given).sample, plain, atol=1e-5)
        before, compiled = attributes(dit), len(graphs)
        with torch.compiler.set_stance("force_eager"), ep.scaled(model, "paper"), ep.capture(model) as captured:
            assert torch.equal(model(*given).sample, scaled)
        assert captured.frame().equals(expected.frame())
        assert torch.allclose(model(*given).sample, plain, atol=1e-5)
        assert attributes(dit) == before
        assert len(graphs) == compiled > 0  # the compiled code is used again


def test_law_of_a_pipeline_is_removed_after_its_denoiser_was_compiled(tiny_pipeline, unet, fresh_compiler):
    pipeline = copy.copy(tiny_pipeline)
    pipeline.unet = unet
    ep.apply(pipeline, "paper")
    pipeline.unet = torch.compile(unet, backend="eager")
    assert isinstance(ep.laws.applied(pipeline), ep.laws.Paper)
    ep.remove(pipeline)
    assert ep.laws.applied(pipeline) is None
    assert not any("forward" in part.__dict__ for part in unet.modules())


@pytest.mark.parametrize("use", ["scaled", "capture"])
def test_context_restores_a_denoiser_that_was_replaced_in_its_pipeline(tiny_pipeline, unet, use):
    pipeline = copy.copy(tiny_pipeline)
    pipeline.unet = unet
    before = attributes(unet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no attention call was seen
        with ep.scaled(pipeline, "paper") if use == "scaled" else ep.capture(pipeline, missing="warn"):
            pipeline.unet = copy.deepcopy(tiny_pipeline.unet)
    assert attributes(unet) == before


@pytest.mark.parametrize("first", ["whole", "part"])
@pytest.mark.parametrize("use", ["capture", "apply"])
def test_model_and_one_of_its_layers_are_not_observed_at_the_same_time(unet, first, use):
    part = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    one, other = (unet, part) if first == "whole" else (part, unet)
    before = attributes(unet)
    ep.apply(one, "paper", training_tokens={"": 64} if one is part else None)
    assert ep.laws.applied(other) is None
    with pytest.raises(CaptureError, match="share layers"):
        ep.apply(other, "paper") if use == "apply" else ep.capture(other).__enter__()
    ep.remove(other)
    assert isinstance(ep.laws.applied(one), ep.laws.Paper)
    ep.remove(one)
    assert attributes(unet) == before


def test_law_removed_by_another_thread_leaves_no_hooks(unet):
    before = attributes(unet)
    ep.apply(unet, "paper")

    def remove_in_a_thread(*_):
        thread = threading.Thread(target=ep.remove, args=[unet])
        thread.start()
        thread.join()

    handle = unet.mid_block.register_forward_hook(remove_in_a_thread)
    with torch.no_grad():
        unet(*inputs(32))
    handle.remove()
    assert attributes(unet) == before


@pytest.mark.parametrize("use", ["apply", "scaled"])
def test_first_forward_warns_of_a_layer_that_a_law_cannot_scale(use, recwarn):
    model = nn.MultiheadAttention(8, 2)
    tokens = torch.randn(5, 1, 8)
    context = ep.scaled(model, "paper", training_tokens={"": 4})
    if use == "scaled":
        context.__enter__()
    else:
        ep.apply(model, "paper", training_tokens={"": 4})
    with pytest.warns(UserWarning, match="no law was applied in 1 of 1 attention layers"):
        model(tokens, tokens, tokens)
    recwarn.clear()
    model(tokens, tokens, tokens)
    model(tokens[:3], tokens[:3], tokens[:3])
    if use == "scaled":
        context.__exit__(None, None, None)
    else:
        ep.remove(model)
    assert not recwarn.list


@pytest.mark.parametrize("change", ["replaced", "appended", "compiled"])
def test_modules_exchanged_after_the_first_forward_are_scaled_and_measured(change, fresh_compiler):
    model = Blocks()
    tokens = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    trained = {"blocks.0.attention": 4, "blocks.1.attention": 4}
    law = ep.laws.Constant(0.0)  # every query attends to all keys alike
    ep.apply(model, law, training_tokens=trained)
    with ep.capture(model) as captured:
        model(tokens)
        calls = len(captured.calls)
        if change == "replaced":
            model.blocks[1] = SelfAttention()
        elif change == "appended":
            model.blocks.append(SelfAttention())
        else:
            model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
        model(tokens)
        assert len(captured.calls) == 2 * calls + (change == "appended")
    frame = captured.frame()
    assert frame["entropy"].to_numpy() == pytest.approx(math.log(16))
    assert set(frame["layer"]) == {*trained, *(["blocks.2.attention"] if change == "appended" else [])}
    ep.remove(model)


def test_module_found_by_its_calls_is_followed_if_it_is_exchanged():
    model = nn.Sequential(nn.Sequential(Call()))
    tokens = torch.randn(1, 1, 16, 4)
    ep.apply(model, ep.laws.Constant(0.0))
    model(tokens)
    model[0] = nn.Sequential(Call())
    assert torch.allclose(model(tokens), tokens.mean(2, keepdim=True).expand_as(tokens), atol=1e-6)
    ep.remove(model)


def test_law_on_a_model_without_attention_warns():
    model = nn.Linear(4, 4)
    with ep.scaled(model, "paper"), pytest.warns(UserWarning, match="no law was applied: the model ran"):
        model(torch.zeros(1, 4))


def test_data_parallel_on_several_devices_is_refused(unet):
    model = nn.DataParallel(unet)
    model.device_ids = [0, 1]  # as on a machine with two GPUs
    with pytest.raises(CaptureError, match="use DistributedDataParallel"):
        ep.apply(model, "paper")


@pytest.mark.parametrize("compiled", ["script", "trace", "child"])
def test_torchscript_is_refused(compiled):
    tokens = torch.randn(1, 1, 16, 4)
    model = torch.jit.script(Call()) if compiled == "script" else torch.jit.trace(Call(), tokens)
    model = nn.Sequential(model) if compiled == "child" else model
    with pytest.raises(CaptureError, match="compiled by TorchScript"):
        ep.apply(model, "paper")


@pytest.mark.parametrize("old_torch", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_inside_an_attention_layer_is_refused(reentrant, old_torch, monkeypatch):
    if old_torch:  # torch 2.5 cannot return the hooks for saved tensors
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks", raising=False)

    class Inside(nn.Module):
        def forward(self, x):
            return checkpoint(Call(), x, use_reentrant=reentrant)

    model = nn.Sequential(Inside())
    tokens = torch.randn(1, 1, 16, 4, requires_grad=True)
    with ep.scaled(model, ep.laws.Constant(2.0)):
        with pytest.raises(CaptureError, match="gradient checkpoint"):
            model(tokens)
        with torch.no_grad():
            model(tokens)
    with ep.capture(model) as captured:  # a measurement has no gradient
        model(tokens).sum().backward()
    assert len(captured.calls) == 1


def test_forward_in_another_thread_does_not_hide_calls_outside_attention_layers():
    model = Slow()
    ep.apply(model, ep.laws.Constant(0.0), training_tokens={"inner": 4})  # every query attends to all keys alike
    tokens, results = torch.randn(1, 1, 16, 4), []
    thread = threading.Thread(target=lambda: results.append(model(tokens, wait=True)))
    thread.start()
    model.started.wait()
    model(tokens)
    model.wait.set()
    thread.join()
    assert torch.allclose(results[0], tokens.mean(2, keepdim=True).expand_as(tokens), atol=1e-6)
    ep.remove(model)


def test_forward_of_an_instance_may_have_other_parameters(unet):
    original = unet.forward
    unet.forward = lambda sample, timestep, states, extra=None: original(sample, timestep, states)
    with ep.capture(unet) as captured, torch.no_grad():
        unet(*inputs(16), extra=1)
    assert len(captured) > 0


@pytest.mark.parametrize("how", ["function", "in place", "forward", "block"])
@pytest.mark.parametrize("use", ["apply", "capture"])
def test_model_compiled_before_is_refused(unet, how, use, fresh_compiler):
    model = unet
    if how == "function":
        model = torch.compile(unet, backend="eager")
    elif how == "in place":
        unet.compile(backend="eager")
    elif how == "forward":
        unet.forward = torch.compile(unet.forward, backend="eager")
    else:
        unet.mid_block.compile(backend="eager")
    enter = (lambda: ep.apply(model, "paper")) if use == "apply" else ep.capture(model).__enter__
    with pytest.raises(CaptureError, match=r'compiled by torch\.compile.*set_stance\("force_eager"\).*--to weights'):
        enter()
