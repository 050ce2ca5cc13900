"""The harness of the benchmarks, and docs/performance.md as what its results make of it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "performance"


@pytest.fixture
def suite(monkeypatch):
    """The benchmarks are no part of what is installed: they are imported from the clone."""
    monkeypatch.syspath_prepend(ROOT)
    import benchmarks.measure
    import benchmarks.page

    return benchmarks


def test_contenders_take_turns_after_a_round_that_does_not_count(suite):
    order = []
    contenders = {"short": lambda: order.append("short"), "long": lambda: (order.append("long"), time.sleep(0.01))}
    times = suite.measure.in_turns(contenders, seconds=0, least=4, clock=time.perf_counter)
    assert [sorted(order[i : i + 2]) for i in range(0, 10, 2)] == [["long", "short"]] * 5
    assert len(order) == 10
    assert [len(runs) for runs in times.values()] == [4, 4]
    assert suite.measure.ratio(times, "long", "short") > 1
    assert suite.measure.ratio({"a": [1.0, 8.0, 4.0], "b": [2.0, 2.0, 9.0]}, "a", "b") == 2


def test_more_rounds_while_there_is_time(suite):
    times = suite.measure.in_turns({"all": lambda: time.sleep(0.01)}, seconds=60, least=1, most=5)
    assert len(times["all"]) == 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is Linux's to tell")
def test_the_peak_of_work_is_what_it_held_at_most():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.measure import peak
held = lambda mebibytes: len(b"x" * (mebibytes * 2**20))
print(peak(lambda: held(10)), peak(lambda: [held(200), held(50)]), peak(lambda: held(10)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    small, large, again = map(float, said.stdout.split())
    assert 9 < small < 15
    assert 199 < large < 205
    assert 9 < again < 15


def test_an_error_elsewhere_is_told_in_its_last_line(suite):
    assert suite.measure.elsewhere("math:hypot", 3, 4) == 5
    with pytest.raises(RuntimeError, match="ZeroDivisionError: "):
        suite.measure.elsewhere("operator:truediv", 1, 0)


def case(tokens, **seconds):
    shape = {"heads": 8, "width": 64, "dtype": "float32", "device": "cpu"}
    times = {"attention": [1.0, 1.0, 9.0], "flash": [0.9, 0.9, 9.0], "softmax, then sum": [7.0, 8.0, 8.0], **seconds}
    return {"tokens": tokens, **shape, "seconds": times, "memory": {"attention": [1.0], "flash": [40.0]}}


def results(folder, *cases):
    machine = {
        "processor": "a processor", "cores": 2, "instructions": ["avx2"], "threads": 1, "gpu": None,
        "kernels": ["_cpu"], "versions": {"torch": "2"},
    }  # fmt: skip
    kept = {"command": "", "machine": machine, "quick": False, "minutes": 1.0, "cases": cases, "pieces": cases[:1]}
    (folder / "calls.json").write_text(json.dumps(kept))


def test_the_page_tells_goals_reached_and_missed(suite, tmp_path):
    results(tmp_path, case(1024), case(16384, flash=[1.2, 1.2]))
    page = suite.page.page(tmp_path)
    assert "| exact entropy / one attention call, N = 256 to 16,384 | ≤ 1.05 | 0.90 to 1.20 | **no** |" in page
    assert "| softmax, then sum / exact entropy, N from 256 | ≥ 5 | 6.67 to 8.89 | yes |" in page
    assert "| extra memory at N = 16,384, of q + k | ≤ 2 | 0.62 | yes |" in page
    assert "| growth of the ratio, N = 1,024 to 16,384 | ≤ 1.10 | 1.33 | **no** |" in page
    assert "a processor, 2 cores, torch on 1 threads, avx2; no GPU; _cpu; torch 2." in page
    assert "No GPU was at hand" in page
    assert "`python -m benchmarks peers` has not been run." in page


def test_the_page_shows_the_ways_of_sampling_that_its_results_have(suite, tmp_path):
    results(tmp_path, case(1024))
    kept = json.loads((tmp_path / "calls.json").read_text())
    part = {"opening": 0.0, "measuring": 0.5, "kernel": 0.25, "whole": 1.0}
    sampling = {
        "model": "reference", "size": 256, "tokens": 4096, "images": 1, "steps": 2, "profile": {"self": part},
        "memory": {"plain": [2.0], "self": [3.0], "all layers": [4.0]},
        "seconds": {"plain": [2.0], "self": [3.0], "self, 256 rows": [2.5]},
    }  # fmt: skip

    def shown():
        (tmp_path / "sampling.json").write_text(json.dumps(kept | {"cases": [sampling]}))
        return suite.page.page(tmp_path)

    assert "| plain | self | self, 256 rows | rounds |" in shown()
    sampling["seconds"]["self, auto"] = [2.1]
    assert "| plain | self | self, 256 rows | self, auto | rounds |" in shown()
    assert "| 2.00 s | 1.50x | 1.25x | 1.05x | 1 |" in shown()
    assert "`auto`, the default, measures all rows up to 1,024 tokens" in shown()


def test_the_page_in_docs_is_made_of_the_results_beside_it(suite):
    assert {file.stem for file in RESULTS.glob("*.json")} == {"calls", "growth", "peers", "sampling", "startup"}
    assert (ROOT / "docs" / "performance.md").read_text() == suite.page.page(RESULTS)
