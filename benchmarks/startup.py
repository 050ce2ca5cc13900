"""Start-up time of the command line and the package, relative to Python itself: `python -m benchmarks startup`."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import time_in_rounds

HEAVY = ("torch", "diffusers", "transformers", "pandas", "numpy", "scipy", "statsmodels", "matplotlib", "seaborn")

HELP = """
import sys
from entropy_probe.cli.main import main
sys.argv = ["entropy-probe", "--help"]
try:
    main()
except SystemExit:
    pass
"""

CAPTURE = """
import entropy_probe, torch
with entropy_probe.capture(torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()) as captured, torch.no_grad():
    pass
"""


def imported_by(code: str) -> list[str]:
    """Return the heavy libraries that a process has imported after running `code`."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names: list[str] = json.loads(output.splitlines()[-1])
    return names


def run(quick: bool) -> dict[str, Any]:
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import entropy_probe": [sys.executable, "-c", "import entropy_probe"],
        "entropy-probe --help": [str(Path(sysconfig.get_path("scripts")) / "entropy-probe"), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "entropy_probe.capture": [sys.executable, "-c", "import entropy_probe; entropy_probe.capture"],
    }

    def run_command(command: list[str]) -> object:
        return subprocess.run(command, capture_output=True, check=True)

    ways = {name: lambda command=command: run_command(command) for name, command in commands.items()}
    codes = {"import entropy_probe": "import entropy_probe", "entropy-probe --help": HELP, "capture": CAPTURE}
    return {
        "seconds": time_in_rounds(ways, 5 if quick else 60, most=21, clock=time.perf_counter),
        "loaded": {name: imported_by(code) for name, code in codes.items()},
    }
