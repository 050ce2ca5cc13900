"""The tests marked gpu, in a new process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.gpu.setting import Setting
from benchmarks.measure import ROOT


def run(setting: Setting) -> dict[str, Any]:
    """Return the last line of pytest, the failed tests, and the exit code; None if the time was over."""
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "-rf", *files]
    code: int | None
    try:
        done = subprocess.run(
            command, cwd=ROOT, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=setting.seconds_left,
        )  # fmt: skip
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode(errors="replace"), None
    print(output[-6_000:], flush=True)
    lines = output.strip().splitlines() or [""]
    return {"code": code, "summary": lines[-1], "failed": [line for line in lines if line.startswith("FAILED ")]}
