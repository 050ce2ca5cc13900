"""The training callback: it logs the entropy of each layer, warns of collapse, and leaves the training as it was."""

import copy
import math
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn

import entropy_probe as ep
from entropy_probe.callbacks.destinations import log_function
from entropy_probe.errors import InputError


class Attention(nn.Module):
    """Self-attention with dropout of its weights and of its output."""

    def __init__(self, width=16):
        super().__init__()
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Dropout(0.1)

    def heads(self, x):
        return self.to_qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        dropout = 0.2 if self.training else 0.0
        attended = F.scaled_dot_product_attention(*self.heads(x), dropout_p=dropout)
        return x + self.out(attended.transpose(1, 2).flatten(2))


def network():
    torch.manual_seed(0)
    return nn.Sequential(Attention(), nn.Linear(16, 16), Attention())


def batch(number):
    return torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(number))


def train(model, monitor=None, steps=4, loss=lambda model, number: model(batch(number)).square().mean()):
    """Train for some steps; return the weights, the gradients of the last step, and the next random number."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for number in range(steps):
        optimizer.zero_grad()
        with nullcontext() if monitor is None else monitor.step(number):
            loss(model, number).backward()
        optimizer.step()
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.rand(1)]


def test_monitor_measures_what_autocast_computes():
    """Norms return float32 under autocast; the attention is computed in half precision."""

    class Own(nn.Module):
        def forward(self, x):
            x = F.layer_norm(x, x.shape[-1:])
            return F.scaled_dot_product_attention(x, x, x)

    model, x = Own(), batch(0)[:, None]
    monitor = ep.EntropyMonitor(model, rows=9)
    with torch.autocast("cpu", torch.bfloat16):
        with ep.capture(model, rows="all") as captured:
            model(x)
        with monitor.step(0):
            model(x)
    assert monitor.frame()["entropy"].item() == pytest.approx(captured["entropy"].mean(), abs=1e-6)
    with ep.capture(model, rows="all") as captured:
        model(x)
    assert monitor.frame()["entropy"].item() != pytest.approx(captured["entropy"].mean(), abs=1e-6)


def test_mask_with_one_key_is_no_collapse():
    class Masked(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, attn_mask=(torch.arange(9) == 0).expand(9, 9))

    monitor = ep.EntropyMonitor(Masked())
    with monitor.step(0):
        monitor._model(batch(0)[:, None])
    assert monitor.frame()[["entropy", "collapsed"]].values.tolist() == [[0.0, False]]


def test_layers_of_compiled_blocks_have_their_names():
    model = network()
    model[0] = torch.compile(model[0], backend="eager")
    monitor = ep.EntropyMonitor(model, layers=["0"])
    with monitor.step(0):
        model(batch(0))
    assert monitor.frame()["layer"].tolist() == ["0"]


def test_failed_step_is_measured_when_it_is_repeated():
    model = network()
    monitor = ep.EntropyMonitor(model)
    with pytest.raises(ZeroDivisionError), monitor.step(0):
        raise ZeroDivisionError
    with monitor.step(0):
        model(batch(0))
    assert monitor.frame()["layer"].tolist() == ["0", "2"]


def assert_identical(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_training_is_bit_identical_with_dropout():
    expected = train(network())
    model = network()
    assert_identical(train(model, ep.EntropyMonitor(model, every=1)), expected)
    assert all("forward" not in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_of_a_unet_is_bit_identical(tiny_pipeline, checkpointing):
    def loss(unet, number):
        latents = torch.randn(2, 4, 16, 16)
        return unet(latents, torch.tensor([500, 20]), torch.randn(2, 7, 32)).sample.square().mean()

    def unet():
        own = copy.deepcopy(tiny_pipeline.unet).train()
        for part in own.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.1
        if checkpointing:
            own.enable_gradient_checkpointing()
        return own

    expected = train(unet(), steps=2, loss=loss)
    model = unet()
    monitor = ep.EntropyMonitor(model, every=1)
    assert_identical(train(model, monitor, steps=2, loss=loss), expected)
    assert len(monitor.frame()) == 2 * 14


def entropy(attention, x):
    """Return the mean entropy by its definition, in float64."""
    q, k, _ = attention.double().heads(x.double())
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.special.entr(weights).sum(-1).mean().item()


def test_logged_entropy_equals_the_definition():
    model, logged = network().eval(), {}
    monitor = ep.EntropyMonitor(model, lambda values, step: logged.update({step: values}), every=2)
    for number in range(4):
        with monitor.step(number):
            model(batch(number))
    assert list(logged) == [0, 2]
    reference = copy.deepcopy(model)
    for number, values in logged.items():
        first = entropy(copy.deepcopy(reference[0]), batch(number))
        last = entropy(copy.deepcopy(reference[2]), model[1](model[0](batch(number))).detach())
        assert values["entropy/0"] == pytest.approx(first, abs=3e-5)
        assert values["entropy/2"] == pytest.approx(last, abs=3e-5)
        assert values["entropy/mean"] == pytest.approx((first + last) / 2, abs=3e-5)
        assert values["entropy/collapsed_layers"] == 0
    assert monitor.frame()["max_entropy"].tolist() == [math.log(9)] * 4


def test_only_measured_steps_have_hooks():
    model = network()
    monitor = ep.EntropyMonitor(model, every=3)
    hooked = []
    for number in range(7):
        with monitor.step(number):
            hooked.append("forward" in model.__dict__)
            model(batch(number))
    assert hooked == [True, False, False, True, False, False, True]


def test_accumulated_batches_of_a_step_are_measured_once():
    model = network()
    monitor = ep.EntropyMonitor(model)
    for number in (0, 0, 1, 1):
        with monitor.step(number):
            model(batch(number))
    assert monitor.frame()["step"].tolist() == [0, 0]  # two layers


def test_collapse_is_logged_and_warned_of_once_per_layer():
    model, logged = network().eval(), []
    monitor = ep.EntropyMonitor(model, lambda values, step: logged.append(values), every=1)

    def run(*numbers):
        for number in numbers:
            with monitor.step(number):
                model(batch(number))

    run(0)
    model[2].to_qkv.weight.data *= 1000  # nearly all attention is on one key
    with pytest.warns(UserWarning, match="has collapsed") as warned:
        run(1, 2)
    (message,) = [str(one.message) for one in warned]
    assert message.startswith("the attention of 2 has collapsed at step 1: its entropy is ")
    assert "below 5 % of the maximum, 2.2 nats" in message
    assert [values["entropy/collapsed_layers"] for values in logged] == [0, 1, 1]
    assert monitor.frame()["collapsed"].tolist() == [False, False, False, True, False, True]
    model[0].to_qkv.weight.data *= torch.nan
    with pytest.warns(UserWarning, match="the entropy of 0 is NaN at step 3: the training has diverged"):
        run(3)


def test_step_that_fails_is_not_logged_and_leaves_no_hooks():
    model = network()
    monitor = ep.EntropyMonitor(model)
    with pytest.raises(ZeroDivisionError), monitor.step(0):
        (model(batch(0)), 1 / 0)
    assert monitor.frame().empty
    assert "forward" not in model.__dict__


def test_csv_is_continued_by_a_resumed_training(tmp_path):
    model, path = network(), tmp_path / "entropy.csv"
    for start in (0, 200):
        monitor = ep.EntropyMonitor(model, csv=path)
        for number in (start, start + 50, start + 100):
            with monitor.step(number):
                model(batch(0))
    read = pd.read_csv(path, dtype={"layer": str})
    assert read["step"].tolist() == [0, 0, 100, 100, 200, 200, 300, 300]
    pd.testing.assert_frame_equal(read.iloc[4:].reset_index(drop=True), monitor.frame(), check_dtype=False)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n")
    with pytest.raises(InputError, match="csv must be a new file or a file with the columns step,layer"):
        ep.EntropyMonitor(model, csv=other)
    with pytest.raises(InputError, match="cannot write"):
        ep.EntropyMonitor(model, csv=tmp_path)


def test_accelerate_trains_and_logs_as_without_the_monitor(tmp_path):
    rows = []

    class Tracker:
        def log(self, values, step):
            rows.append((step, values))

    def run(monitored):
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model = network()
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        monitor = ep.EntropyMonitor(model, Tracker(), every=1) if monitored else None
        torch.manual_seed(1)
        for number in range(2):
            with monitor.step(number) if monitor else nullcontext(), accelerator.accumulate(model):
                accelerator.backward(model(batch(number)).square().mean())
                optimizer.step()
                optimizer.zero_grad()
        return [*model.state_dict().values(), torch.rand(1)]

    assert_identical(run(True), run(False))
    assert [step for step, _ in rows] == [0, 1]
    assert rows[0][1].keys() == {"entropy/0", "entropy/2", "entropy/mean", "entropy/collapsed_layers"}


@pytest.mark.parametrize("how", ["function", "in place", "block"])
def test_compiled_model_is_measured_uncompiled_and_is_not_compiled_again(how):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = network().eval()
    run = torch.compile(model, backend=backend) if how == "function" else model
    if how != "function":
        (model if how == "in place" else model[2]).compile(backend=backend)
    plain = run(batch(0))
    compiled = len(graphs)
    monitor = ep.EntropyMonitor(run, layers="*2")
    with monitor.step(0):
        assert torch.allclose(run(batch(0)), plain, atol=1e-6)
    assert torch.equal(run(batch(0)), plain)
    assert len(graphs) == compiled > 0
    assert monitor.frame()["layer"].tolist() == ["2"]
    torch._dynamo.reset()


def test_layers_without_a_visible_call_are_named_once():
    model = nn.TransformerEncoderLayer(8, 2)
    monitor = ep.EntropyMonitor(model, every=1)

    def run(*numbers):
        for number in numbers:
            with monitor.step(number):
                model(torch.randn(5, 2, 8))

    with pytest.warns(UserWarning, match="nn.MultiheadAttention hides its call") as warned:
        run(0, 1)
    (message,) = [str(one.message) for one in warned]
    assert "1 of 1 attention layers are not measured" in message


def test_step_without_attention_is_named():
    monitor = ep.EntropyMonitor(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="no attention of Linear ran in step 0"), monitor.step(0):
        pass


VALUES = {"entropy/down.0.attn1": 1.5, "entropy/mean": 2.5}


def to_tensorboard(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:
        log_function(writer)(VALUES, 7)
    events = EventAccumulator(str(folder)).Reload()
    return {name: (event.step, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)}


def to_accelerate(folder):
    rows = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory = "rows", False
        tracker = None

        def store_init_configuration(self, values):
            pass

        def log(self, values, step, **_):
            rows.append((values, step))

    accelerator = Accelerator(cpu=True, log_with=Tracker())
    accelerator.init_trackers("training")
    log_function(accelerator)(VALUES, 7)
    ((values, step),) = rows
    return {name: (step, value) for name, value in values.items()}


def to_log_metrics(folder):
    """The interface of mlflow and of the loggers of Lightning."""
    rows = {}

    class Logger:
        def log_metrics(self, metrics, step=None):
            rows.update({name: (step, value) for name, value in metrics.items()})

    log_function(Logger())(VALUES, 7)
    return rows


def to_function(folder):
    rows = []
    log_function(lambda values, step: rows.append((values, step)))(VALUES, 7)
    ((values, step),) = rows
    return {name: (step, value) for name, value in values.items()}


@pytest.mark.parametrize("log", [to_tensorboard, to_accelerate, to_log_metrics, to_function])
def test_numbers_reach_the_destination(log, tmp_path):
    assert log(tmp_path) == {name: (7, value) for name, value in VALUES.items()}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"log": 3}, "log must be a SummaryWriter, mlflow, a W&B run, an Accelerator or a function"),
        ({"every": 0}, "every must be a positive integer, got 0"),
        ({"rows": "all"}, "rows must be a positive integer, got 'all'"),
        ({"collapse": 1.5}, "collapse must be a fraction of ln K from 0 to below 1, got 1.5"),
        ({"layers": "attn1"}, "no attention layer matches 'attn1'"),
    ],
)
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(InputError, match=message):
        ep.EntropyMonitor(network(), **argument)
