"""Measure what capturing costs, and write docs/performance.md.

python -m benchmarks                    all parts, then the page
python -m benchmarks calls startup      some parts
python -m benchmarks --quick            a smoke run, in a temporary folder
python -m benchmarks page               only the page, from stored results
python -m benchmarks gpu                everything that runs on a GPU, in eight minutes, then the page
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.measure import RESULTS, ROOT, restart_with_steady_memory, save

PARTS = ("startup", "calls", "sampling", "training", "peers", "growth")


def measure_part(part: str, quick: bool) -> dict[str, Any]:
    """Run one part and return its results."""
    from benchmarks import calls, growth, peers, sampling, startup, training

    modules = {
        "startup": startup,
        "calls": calls,
        "sampling": sampling,
        "training": training,
        "peers": peers,
        "growth": growth,
    }
    began = time.monotonic()
    results = modules[part].run(quick)
    return {"quick": quick, "minutes": round((time.monotonic() - began) / 60, 1), **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to run: {', '.join(PARTS)} or page (default: all)")
    parser.add_argument("--quick", action="store_true", help="smoke run: few and small cases, meaningless times")
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs/performance)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="for gpu: cpu tries the command")
    parser.add_argument("--minutes", type=float, default=8.0, help="for gpu: maximum time (default: 8)")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in (*PARTS, "page", "gpu")]
    if unknown:
        parser.error(f"part must be one of {', '.join(PARTS)}, page, gpu, got {unknown[0]!r}")
    if "gpu" in options.parts and len(options.parts) > 1:
        parser.error("gpu runs alone")
    restart_with_steady_memory()
    out = options.out or (Path(tempfile.mkdtemp(prefix="benchmarks-")) if options.quick else RESULTS)
    if options.parts == ["gpu"]:
        from benchmarks.gpu.command import run

        run(options.device, out, quick=options.quick, minutes=options.minutes)
    parts = [part for part in options.parts or PARTS if part not in ("page", "gpu")]
    if len(parts) > 1:  # a new process for each: the memory of one part must not affect the next
        for part in parts:
            quick = ["--quick"] if options.quick else []
            subprocess.run([sys.executable, "-m", "benchmarks", part, "--out", out, *quick], cwd=ROOT, check=True)
        return
    for part in parts:
        print(part, flush=True)
        save(part, out, measure_part(part, options.quick))
    target = ROOT / "docs" / "performance.md" if out.resolve() == RESULTS else out / "performance.md"
    target.write_text(page.page(out))
    print(target)


if __name__ == "__main__":
    main()
