"""The suite that docs/performance.md is made of.

python -m benchmarks                    all parts, then the page
python -m benchmarks calls startup      some of them
python -m benchmarks --quick            a smoke run, kept apart
python -m benchmarks page               the page alone, from the results that are there
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import page
from benchmarks.measure import RESULTS, ROOT, save, steady

PARTS = ("startup", "calls", "sampling", "peers", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; or page")
    parser.add_argument("--quick", action="store_true", help="small and few: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, help="folder of the results; docs/performance if none")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in (*PARTS, "page")]
    if unknown:
        parser.error(f"there is no part {unknown[0]}: choose of {', '.join(PARTS)}, page")
    steady()
    out = options.out or (Path(tempfile.mkdtemp(prefix="benchmarks-")) if options.quick else RESULTS)
    parts = [part for part in options.parts or PARTS if part != "page"]
    if len(parts) > 1:  # each in a process that no other has filled
        for part in parts:
            quick = ["--quick"] if options.quick else []
            subprocess.run([sys.executable, "-m", "benchmarks", part, "--out", out, *quick], cwd=ROOT, check=True)
        return
    for part in parts:
        print(part, flush=True)
        began = time.monotonic()
        found = importlib.import_module(f"benchmarks.{part}").run(options.quick)
        save(part, out, {"quick": options.quick, "minutes": round((time.monotonic() - began) / 60, 1), **found})
    text = page.page(out)
    target = ROOT / "docs" / "performance.md" if out.resolve() == RESULTS else out / "performance.md"
    target.write_text(text)
    print(target)


if __name__ == "__main__":
    main()
