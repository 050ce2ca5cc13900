"""How long one waits for nothing: `entropy-probe --help` and `import entropy_probe`, beside Python itself.

python -m benchmarks startup
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns

HEAVY = ("torch", "diffusers", "transformers", "pandas", "numpy", "scipy", "statsmodels", "matplotlib", "seaborn")

HELP = """
import sys
from entropy_probe.cli import main as cli
sys.argv = ["entropy-probe", "--help"]
try:
    cli.main()
except SystemExit:
    pass
"""

CAPTURE = """
import entropy_probe, torch
with entropy_probe.attention(torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()) as captured, torch.no_grad():
    pass
"""


def loaded(code: str) -> list[str]:
    """Which of the heavy libraries a process has imported when it has done something."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names: list[str] = json.loads(said.splitlines()[-1])
    return names


def run(quick: bool) -> dict[str, Any]:
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import entropy_probe": [sys.executable, "-c", "import entropy_probe"],
        "entropy-probe --help": [str(Path(sysconfig.get_path("scripts")) / "entropy-probe"), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "entropy_probe.attention": [sys.executable, "-c", "import entropy_probe; entropy_probe.attention"],
    }

    def started(command: list[str]) -> object:
        return subprocess.run(command, capture_output=True, check=True)

    ways = {name: lambda command=command: started(command) for name, command in commands.items()}
    codes = {"import entropy_probe": "import entropy_probe", "entropy-probe --help": HELP, "capture": CAPTURE}
    return {
        "seconds": in_turns(ways, 5 if quick else 60, most=21, clock=time.perf_counter),
        "loaded": {n: loaded(c) for n, c in codes.items()},
    }
