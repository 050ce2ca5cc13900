"""torch's fused encoder layers: the output stays bit-identical, and their hidden attention is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import entropy_probe as ep
from entropy_probe.errors import CaptureError


class Fused(nn.Module):
    """A layer with a visible call."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Own(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.mha, self.need_weights = nn.MultiheadAttention(64, 4, batch_first=True), need_weights

    def forward(self, x, mask=None):
        return self.mha(x, x, x, key_padding_mask=mask, need_weights=self.need_weights)[0]


class Superclass(nn.TransformerEncoderLayer):
    """Calls torch's forward."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Model(nn.Module):
    """A visible call, then an encoder. The call in the model itself keeps the function mode active around both."""

    def __init__(self, encoder, inside):
        super().__init__()
        self.first, self.encoder, self.inside = Fused(), encoder, inside

    def forward(self, x, **kwargs):
        x = self.first(x)
        if self.inside:
            heads = x[:, None]
            x = x + F.scaled_dot_product_attention(heads, heads, heads)[:, 0]
        return self.encoder(x, **kwargs)


def layer(kind=nn.TransformerEncoderLayer):
    return kind(64, 4, 128, batch_first=True, dropout=0.0)


ENCODERS = {
    "layer": (layer, ["encoder.self_attn"]),
    "encoder": (lambda: nn.TransformerEncoder(layer(), 2), [f"encoder.layers.{n}.self_attn" for n in (0, 1)]),
    "subclass": (lambda: layer(Superclass), ["encoder.self_attn"]),
    "attention": (lambda: Own(False), ["encoder.mha"]),
    "attention with weights": (lambda: Own(True), ["encoder.mha"]),
}


def build(name, inside=False):
    torch.manual_seed(0)
    make, hidden = ENCODERS[name]
    return Model(make(), inside).eval(), torch.randn(2, 50, 64), hidden


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_output_is_bit_identical_and_hidden_attention_is_named(name, grad, inside):
    model, x, hidden = build(name, inside)
    with torch.set_grad_enabled(grad):
        plain = model(x)
        for missing in ("error", "warn"):
            outputs = []
            expected = pytest.raises(CaptureError, match=hidden[0])
            if missing == "warn":
                expected = pytest.warns(UserWarning, match=hidden[-1])
            with expected, ep.capture(model, missing=missing) as captured:
                outputs += [model(x) for _ in range(3)]
            assert len(outputs) == 3
            assert all(torch.equal(output, plain) for output in outputs)
            assert set(captured["layer"]) == {"first", *([""] if inside else [])}
        alarm = pytest.warns(UserWarning, match=f"in {len(hidden)} of {len(hidden) + 1 + inside} attention layers")
        with alarm, ep.scaled(model, "original") as scaling:
            assert all(torch.equal(model(x), plain) for _ in range(3))
        assert set(scaling.unscaled) == set(hidden)


READS = ("__get__", "__len__")
"""Reading shapes, as the capture does too."""


class Watch(TorchFunctionMode):
    """Another library's mode."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_fast_path_is_taken_here():
    model, x, _ = build("layer")
    with torch.no_grad():
        fast = model(x)
        with Watch():
            assert not torch.equal(model(x), fast)


@pytest.mark.parametrize("name", ["layer", "encoder", "attention"])
def test_padding_mask_gives_the_same_output(name):
    model, x, hidden = build(name)
    padding = torch.arange(50) >= torch.tensor([[50], [31]])
    given = {"mask" if name == "attention" else "src_key_padding_mask": padding}
    with torch.no_grad():
        plain = model(x, **given)
        with pytest.warns(UserWarning, match=hidden[0]), ep.capture(model, missing="warn"):
            outputs = [model(x, **given) for _ in range(2)]
    assert all(torch.equal(output, plain) for output in outputs)


def test_modes_of_other_libraries_stay_active_in_the_fast_path():
    class Inside(nn.Module):
        """Activates a mode of its own above the mode of the capture."""

        def __init__(self):
            super().__init__()
            self.encoder, self.own = layer(), Watch()

        def forward(self, x):
            x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
            with self.own:
                x = self.encoder(x)
                return torch.tanh(x)

    torch.manual_seed(0)
    model, x, outer = Inside().eval(), torch.randn(2, 9, 64), Watch()

    def run():
        model.own.seen.clear()
        outer.seen.clear()
        output = model(x)
        names = [[func.__name__ for func in mode.seen] for mode in (model.own, outer)]
        return output, *([name for name in seen if name not in READS] for seen in names)

    with torch.no_grad(), outer:
        plain = run()
        with pytest.warns(UserWarning, match="self_attn"), ep.capture(model, missing="warn") as captured:
            observed = run()
    assert torch.equal(observed[0], plain[0])
    assert observed[1:] == plain[1:]
    assert len(captured.calls) == 1
    assert not _get_current_function_mode_stack()


class Visible(nn.MultiheadAttention):
    """torch's layer with a forward that makes a visible call."""

    def forward(self, x):
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


class VisibleLayer(nn.TransformerEncoderLayer):
    """torch's layer with a visible call in its own forward."""

    def forward(self, src):
        heads = src[:, None]
        return F.scaled_dot_product_attention(heads, heads, heads)[:, 0]


@pytest.mark.parametrize("make", [lambda: Visible(64, 4, batch_first=True), lambda: layer(VisibleLayer)])
def test_forward_of_a_subclass_with_a_visible_call_is_measured(make):
    torch.manual_seed(0)
    model, x = nn.Sequential(make()).eval(), torch.randn(2, 9, 64)
    with torch.no_grad():
        plain = model(x)
        with ep.capture(model) as captured:
            assert torch.equal(model(x), plain)
    assert len(captured.calls) == 1
