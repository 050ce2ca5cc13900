"""Ctrl-C: exit code 130 whenever it comes, the cells that are done are kept, and torch is left as it was."""

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

from entropy_probe.interruption import held_back
from entropy_probe.runs import Sweep, sweep
from entropy_probe.strict_json import from_strict_json

SETTINGS = dict(
    prompts=["noto red apple"], sizes=[(64, 64)], seeds=[0, 1], steps=3, guidance_scale=4.0, scale_factors=(),
    progress=False, batch=1,
)  # fmt: skip


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def reached(*deeds):
    """How many deeds, of a context that holds Ctrl-C back, are done before it comes."""
    done = []

    def work():
        with held_back() as let_through:
            for deed in deeds:
                (let_through if deed is None else deed)()
                done.append(deed)

    with pytest.raises(KeyboardInterrupt):
        work()
    return len(done)


def test_it_comes_when_it_is_let_through_or_at_the_end_or_when_there_is_a_second():
    before = signal.getsignal(signal.SIGINT)
    assert reached(None, interrupt, int, None, int) == 3
    assert reached(interrupt, int, int) == 3
    assert reached(interrupt, int, interrupt, int) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_it_is_not_lost_in_a_destructor():
    class Dying:
        def __del__(self):
            interrupt()

    with pytest.raises(KeyboardInterrupt), held_back():
        Dying()


def test_a_file_is_read_to_its_end_first():
    """Pydantic was seen to take the exception for a value of another type, and a whole manifest for a damaged one."""
    read = []

    def check(value):
        interrupt()
        read.append(value)
        return value

    with pytest.raises(KeyboardInterrupt):
        from_strict_json(Annotated[int, AfterValidator(check)], "3")
    assert read == [3]


def test_who_handles_it_otherwise_goes_on_doing_so():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with held_back() as let_through:
            interrupt()
            assert seen == []
            let_through()
            assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with held_back() as let_through:
            interrupt()
            let_through()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes():
    before, found = signal.getsignal(signal.SIGINT), []

    def look():
        with held_back() as let_through:
            let_through()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_an_interrupted_sweep_leaves_torch_as_it_was_and_goes_on(tiny_pipeline, tmp_path, part):
    """In the middle of a module, torch's own code and ours is on the stack."""
    whole = sweep(tiny_pipeline, store=tmp_path / "whole", **SETTINGS)
    module = list(getattr(tiny_pipeline, part).modules())[-1]
    hook = module.register_forward_pre_hook(lambda *_: interrupt())
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)
    finally:
        hook.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    made = sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)
    assert made.frame().equals(whole.frame())


@pytest.mark.slow
@pytest.mark.parametrize("cells", [None, 0, 2])
def test_the_command_line_ends_with_130_and_keeps_the_cells(tiny_folder, tmp_path, cells):
    options = ["--sizes", "64", "--prompts", "4", "--seeds", ",".join(map(str, range(100)))]
    options += ["--steps", "20", "--device", "cpu"]
    command = ["-m", "entropy_probe.cli", "sweep", "--model", tiny_folder, "--out", tmp_path / "run", *options]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    folder = tmp_path / "run" / "cells"
    if cells is None:
        time.sleep(3)  # while torch is imported, or the model is loaded
    else:
        while not folder.is_dir() or len(list(folder.glob("*.parquet"))) < cells:
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: finished samples are kept" in told
    assert "Traceback" not in told
    if cells:
        assert cells <= len(list(folder.glob("*.parquet"))) < 400
        assert not list((tmp_path / "run").rglob(".*.lock"))
        with pytest.raises(ValueError, match="of the 400 cells"):
            Sweep.open(tmp_path / "run")
