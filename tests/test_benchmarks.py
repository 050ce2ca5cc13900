"""The harness of the benchmarks, and docs/performance.md as the page generated from its results."""

import json
import math
import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.command import PARTS
from benchmarks.gpu.command import run as run_on_gpu
from benchmarks.gpu.page import section as gpu_section
from benchmarks.measure import call_in_interpreter, ratio, time_in_rounds
from benchmarks.page import page as page_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "performance"


def test_contenders_run_in_rounds_after_a_warm_up_round():
    order = []
    contenders = {"short": lambda: order.append("short"), "long": lambda: (order.append("long"), time.sleep(0.01))}
    times = time_in_rounds(contenders, seconds=0, least=4, clock=time.perf_counter)
    assert [sorted(order[i : i + 2]) for i in range(0, 10, 2)] == [["long", "short"]] * 5
    assert len(order) == 10
    assert [len(runs) for runs in times.values()] == [4, 4]
    assert ratio(times, "long", "short") > 1
    assert ratio({"a": [1.0, 8.0, 4.0], "b": [2.0, 2.0, 9.0]}, "a", "b") == 2


def test_rounds_continue_until_the_maximum_within_the_time():
    times = time_in_rounds({"all": lambda: time.sleep(0.01)}, seconds=60, least=1, most=5)
    assert len(times["all"]) == 5


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc, on Linux"
)
def test_peak_memory_is_the_maximum_during_the_work():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.measure import peak_memory as peak
allocate = lambda mebibytes: len(b"x" * (mebibytes * 2**20))
print(peak(lambda: allocate(10)), peak(lambda: [allocate(200), allocate(50)]), peak(lambda: allocate(10)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    small, large, again = map(float, output.stdout.split())
    assert 9 < small < 15
    assert 199 < large < 205
    assert 9 < again < 15


def test_error_in_another_interpreter_is_raised_with_its_last_line():
    assert call_in_interpreter(math.hypot, 3, 4) == 5
    with pytest.raises(RuntimeError, match="ZeroDivisionError: "):
        call_in_interpreter(operator.truediv, 1, 0)


def case(tokens, **seconds):
    shape = {"heads": 8, "width": 64, "dtype": "float32", "device": "cpu"}
    times = {"attention": [1.0, 1.0, 9.0], "flash": [0.9, 0.9, 9.0], "softmax, then sum": [7.0, 8.0, 8.0], **seconds}
    return {"tokens": tokens, **shape, "seconds": times, "memory": {"attention": [1.0], "flash": [40.0]}}


def results(folder, *cases):
    machine = {
        "processor": "a processor", "cores": 2, "instructions": ["avx2"], "threads": 1, "gpu": None,
        "kernels": ["_cpu"], "versions": {"torch": "2"},
    }  # fmt: skip
    stored = {"command": "", "machine": machine, "quick": False, "minutes": 1.0, "cases": cases, "pieces": cases[:1]}
    (folder / "calls.json").write_text(json.dumps(stored))


def test_page_shows_reached_and_missed_goals(tmp_path):
    results(tmp_path, case(1024), case(16384, flash=[1.2, 1.2]))
    page = page_of(tmp_path)
    assert "| exact entropy / one attention call, N = 256 to 16,384 | ≤ 1.05 | 0.90 to 1.20 | **no** |" in page
    assert "| softmax, then sum / exact entropy, N from 256 | ≥ 5 | 6.67 to 8.89 | yes |" in page
    assert "| extra memory at N = 16,384, relative to q + k | ≤ 2 | 0.62 | yes |" in page
    assert "| growth of the ratio, N = 1,024 to 16,384 | ≤ 1.10 | 1.33 | **no** |" in page
    assert "a processor, 2 cores, torch with 1 threads, avx2; no GPU; compiled kernel; torch 2." in page
    assert "No GPU was available" in page
    assert "`python -m benchmarks peers` has not been run." in page


def test_page_has_a_column_for_every_measured_way_of_sampling(tmp_path):
    results(tmp_path, case(1024))
    stored = json.loads((tmp_path / "calls.json").read_text())
    part = {"opening": 0.0, "measuring": 0.5, "kernel": 0.25, "whole": 1.0}
    sampling = {
        "model": "reference", "size": 256, "tokens": 4096, "images": 1, "steps": 2, "profile": {"self": part},
        "memory": {"plain": [2.0], "self": [3.0], "all layers": [4.0]},
        "seconds": {"plain": [2.0], "self": [3.0], "self, 256 rows": [2.5]},
    }  # fmt: skip

    def page():
        (tmp_path / "sampling.json").write_text(json.dumps(stored | {"cases": [sampling]}))
        return page_of(tmp_path)

    assert "| plain | self | self, 256 rows | rounds |" in page()
    sampling["seconds"]["self, auto"] = [2.1]
    assert "| plain | self | self, 256 rows | self, auto | rounds |" in page()
    assert "| 2.00 s | 1.50x | 1.25x | 1.05x | 1 |" in page()
    assert "`auto`, the default, measures all rows up to 1,024 tokens" in page()


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """The results of the command for GPUs on the CPU, without the tests that it runs."""
    parts = {name: part for name, part in PARTS.items() if name != "tests"}
    path = run_on_gpu("cpu", tmp_path_factory.mktemp("gpu"), quick=True, minutes=5, parts=parts)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_gpu_command_measures_every_part(on_cpu):
    assert all(on_cpu[part]["left_out"] == 0 for part in ("accuracy", "images", "calls", "sampling"))
    cases = [case for part in ("accuracy", "images", "calls", "sampling") for case in on_cpu[part]["cases"]]
    assert [case for case in cases if "error" in case] == []
    assert all(case["entropy"] < 1e-5 for case in on_cpu["accuracy"]["cases"])
    assert all(case["identical under capture"] for case in on_cpu["images"]["cases"])
    for case in on_cpu["sampling"]["cases"]:
        assert case["identical"] == {"plain": True, "all layers": True, "all layers, auto": True, "scaled": False}


@pytest.mark.slow
def test_page_shows_every_gpu(on_cpu, tmp_path):
    results(tmp_path, case(1024))
    for name in ("cuda-one", "cuda-two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(on_cpu | {"machine": on_cpu["machine"] | {"gpu": name}}))
    page = page_of(tmp_path)
    assert page.index("### cuda-one") < page.index("### cuda-two")
    assert page.count("| sdxl | 128 px | 2 |") == 2


def test_gpu_command_stops_when_the_time_is_over(tmp_path):
    found = json.loads(
        run_on_gpu("cpu", tmp_path, quick=True, minutes=0, parts={"images": PARTS["images"]}).read_text()
    )
    assert found["images"]["cases"] == []
    assert found["images"]["left_out"] == 1
    assert "1 cases were left out" in gpu_section([found])


def test_gpu_command_keeps_the_results_of_a_failed_part(tmp_path):
    def failing(setting):
        raise ZeroDivisionError("of a part")

    found = json.loads(run_on_gpu("cpu", tmp_path, quick=True, parts={"calls": (failing, 1)}).read_text())
    assert "The part `calls` failed: `ZeroDivisionError: of a part`" in gpu_section([found])


def test_gpu_command_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="gpu needs a CUDA device"):
        run_on_gpu("cuda", tmp_path)


def test_page_in_docs_is_generated_from_the_stored_results():
    parts = {"calls", "growth", "peers", "sampling", "startup", "training"}
    assert {file.stem for file in RESULTS.glob("*.json")} == parts
    assert (ROOT / "docs" / "performance.md").read_text() == page_of(RESULTS)
