"""A few of every fault that docs/reliability.md counts, for real, and what the command line says of lack of memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def faults(tiny_folder):
    command = ["-m", "benchmarks.faults", "--model", tiny_folder, "--kills", "10", "--times", "1", "--stride", "13"]
    command += ["--ray", "0", "--cells", "0"]
    told = subprocess.run([sys.executable, *command], cwd=ROOT, env=ALONE, stdout=subprocess.PIPE, check=True).stdout
    return {fault["name"]: fault for fault in json.loads(told)}


@pytest.mark.slow
def test_no_fault_costs_anything(faults):
    assert faults["`sweep` killed at a random moment"]["tried"] >= 10
    assert all(fault["tried"] > 0 for fault in faults.values())
    assert [name for name, fault in faults.items() if fault["lost"]] == []


@pytest.mark.slow
def test_the_page_is_of_these_faults(faults):
    rows = re.findall(r"^\| (.*?) \| (\d+) \| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert {name for name, _, _ in rows} >= faults.keys()


LITTLE_MEMORY = """
import resource, sys, torch
from entropy_probe.cli import main as cli
from entropy_probe.estimation import fit  # all that is needed is there before the memory is short
from entropy_probe.models import load
from entropy_probe.runs import sweep
torch.set_num_threads(1)
load(sys.argv[1], device="cpu")
size = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 100 * 2**20,) * 2)
sys.argv = ["entropy-probe", "sweep", "--model", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.slow
def test_too_little_memory_for_some_cells_is_exit_code_1(tiny_folder, tmp_path):
    options = ["--out", tmp_path / "run", "--sizes", "32,64,640", "--prompts", "2", "--seeds", "0", "--steps", "1"]
    command = [sys.executable, "-c", LITTLE_MEMORY, tiny_folder, *options, "--device", "cpu", "--quiet"]
    ended = subprocess.run([str(p) for p in command], env=ALONE, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "2 of 6 cells failed, the first out of memory at 640" in ended.stderr
    assert "the same command tries the failed ones again" in ended.stderr
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 4
    (reason, _) = sorted((tmp_path / "run" / "failed").iterdir())
    assert json.loads(reason.read_text())["reason"].startswith("out of memory at 640")
