"""Ctrl-C: exit code 130, finished cells are kept, and torch stays usable."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Annotated

import pytest
import torch
from pydantic import AfterValidator

from entropy_probe.cli import main as cli
from entropy_probe.interruption import delay_interrupt
from entropy_probe.runs import Sweep, sweep
from entropy_probe.strict_json import from_strict_json

SETTINGS = dict(
    prompts=["noto red apple"], sizes=[(64, 64)], seeds=[0, 1], steps=3, guidance_scale=4.0, scale_factors=(),
    progress=False, batch=1,
)  # fmt: skip


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def steps_before_interrupt(*steps):
    """Run steps while Ctrl-C is delayed; None delivers it. Return the number of steps that finished."""
    done = []

    def work():
        with delay_interrupt() as deliver:
            for step in steps:
                (deliver if step is None else step)()
                done.append(step)

    with pytest.raises(KeyboardInterrupt):
        work()
    return len(done)


def test_interrupt_is_delivered_on_request_at_the_end_or_when_pressed_twice():
    before = signal.getsignal(signal.SIGINT)
    assert steps_before_interrupt(None, interrupt, int, None, int) == 3
    assert steps_before_interrupt(interrupt, int, int) == 3
    assert steps_before_interrupt(interrupt, int, interrupt, int) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_in_destructor_is_not_lost():
    class Dying:
        def __del__(self):
            interrupt()

    with pytest.raises(KeyboardInterrupt), delay_interrupt():
        Dying()


def test_json_is_parsed_before_interrupt_is_delivered():
    """Pydantic reports a KeyboardInterrupt as a value of the wrong type, so an intact manifest looked damaged."""
    read = []

    def check(value):
        interrupt()
        read.append(value)
        return value

    with pytest.raises(KeyboardInterrupt):
        from_strict_json(Annotated[int, AfterValidator(check)], "3")
    assert read == [3]


def test_existing_signal_handler_is_called_and_restored():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with delay_interrupt() as deliver:
            interrupt()
            assert seen == []
            deliver()
            assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with delay_interrupt() as deliver:
            interrupt()
            deliver()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_handler_is_unchanged_in_other_threads():
    before, handlers = signal.getsignal(signal.SIGINT), []

    def check():
        with delay_interrupt() as deliver:
            deliver()
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_interrupted_sweep_leaves_no_function_mode_and_resumes(tiny_pipeline, tmp_path, part):
    """The interrupt comes inside a module, with frames of torch and of entropy-probe on the stack."""
    uninterrupted = sweep(tiny_pipeline, store=tmp_path / "uninterrupted", **SETTINGS)
    module = list(getattr(tiny_pipeline, part).modules())[-1]
    hook = module.register_forward_pre_hook(lambda *_: interrupt())
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)
    finally:
        hook.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    made = sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)
    assert made.frame().equals(uninterrupted.frame())


@pytest.mark.slow
@pytest.mark.parametrize("cells", [None, 0, 1])
def test_command_line_exits_with_130_keeps_cells_and_resumes(tiny_folder, tmp_path, monkeypatch, cells):
    options = ["--sizes", "64", "--prompts", "4", "--seeds", "0,1,2,3,4,5,6,7", "--steps", "3", "--device", "cpu"]
    command = list(map(str, ["sweep", "--model", tiny_folder, "--out", tmp_path / "run", *options]))
    process = subprocess.Popen(
        [sys.executable, "-m", "entropy_probe.cli", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    folder = tmp_path / "run" / "cells"
    if cells is None:
        time.sleep(3)  # torch is imported or the model is loaded
    else:
        while not folder.is_dir() or len(list(folder.glob("*.parquet"))) < cells:
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: finished samples are kept" in stderr
    assert "Traceback" not in stderr
    if cells:
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
        assert cells <= len(kept) < 32
        assert not list((tmp_path / "run").rglob(".*.lock"))
        with pytest.raises(ValueError, match="of the 32 cells"):
            Sweep.open(tmp_path / "run")
        monkeypatch.setattr(sys, "argv", ["entropy-probe", *command, "--quiet"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        assert len(list(folder.glob("*.parquet"))) == 32
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
