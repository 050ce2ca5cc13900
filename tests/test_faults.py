"""A few real trials of every fault in docs/reliability.md, and the exit code of a run without enough memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def faults(tiny_folder):
    command = ["-m", "benchmarks.faults", "--model", tiny_folder, "--kills", "10", "--times", "1", "--stride", "13"]
    command += ["--ray", "0", "--cells", "0"]
    output = subprocess.run([sys.executable, *command], cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, check=True)
    return {fault["name"]: fault for fault in json.loads(output.stdout)}


@pytest.mark.slow
def test_faults_lose_no_file(faults):
    assert faults["`sweep` killed at a random moment"]["tried"] >= 10
    assert all(fault["tried"] > 0 for fault in faults.values())
    assert [name for name, fault in faults.items() if fault["lost"]] == []


@pytest.mark.slow
def test_page_lists_every_fault(faults):
    rows = re.findall(r"^\| (.*?) \| (\d+) \| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert {name for name, _, _ in rows} >= faults.keys()


LITTLE_MEMORY = """
import resource, sys, torch
from entropy_probe.cli import main as cli
from entropy_probe.estimation import fit  # imported before the memory limit
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
def test_sweep_without_enough_memory_finishes_small_cells_and_has_exit_code_1(tiny_folder, tmp_path):
    options = ["--out", tmp_path / "run", "--sizes", "32,64,640", "--prompts", "2", "--seeds", "0", "--steps", "1"]
    command = [sys.executable, "-c", LITTLE_MEMORY, tiny_folder, *options, "--device", "cpu", "--quiet"]
    ended = subprocess.run([str(p) for p in command], env=ONE_THREAD, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "2 of 6 cells failed, the first with: out of memory at 640" in ended.stderr
    assert "rerun the same command with more memory to retry the failed cells" in ended.stderr
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 4
    (reason, _) = sorted((tmp_path / "run" / "failed").iterdir())
    assert json.loads(reason.read_text())["reason"].startswith("out of memory at 640")
