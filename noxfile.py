"""Test the package with the lowest, two years old and the newest versions of the libraries, and the core alone.

`nox -s lowest two_years newest core`. All use PyPI through uv. On Linux, PyPI has only CUDA builds of torch (5 GB); see
CONTRIBUTING.md for the CPU builds. Paths after `--` replace the smoke tests.
"""

from datetime import datetime, timedelta, timezone

import nox

SMOKE = (
    "tests/test_library_versions.py",
    "tests/test_complete_weights.py",
    "tests/test_strict_json.py",
    "tests/test_capture.py",
    "tests/test_laws.py",
    "tests/test_store.py",
    "tests/test_regression.py",
    "tests/test_report.py",
    "tests/test_critic.py",
)
"""Files that use every library. Others need the newest diffusers or torchmetrics, or libraries that only tests use."""

TOOLS = ("pytest", "pytest-xdist", "hypothesis", "beartype", "duckdb", "polars", "psutil")
"""What `SMOKE` needs in addition."""

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

nox.options.sessions = ["lowest"]
nox.options.default_venv_backend = "uv"


def smoke(session: nox.Session, *constraints: str) -> None:
    """Install what `run` needs under constraints on the versions, and run the smoke tests and the quick run."""
    session.install(*constraints, "-r", "setup.cfg", "--extra", "report", "--extra", "validate")
    session.install(*TOOLS)
    session.install("--no-deps", ".", "./data")
    session.run("pytest", "-p", "no:cacheprovider", "-m", "not slow", *(session.posargs or SMOKE))
    session.run("entropy-probe", "run", "--quick", "--out", session.create_tmp() + "/run")


@nox.session(python=PYTHONS[:2])
def lowest(session: nox.Session) -> None:
    """Run the smoke tests and the quick run with the lowest versions that setup.cfg allows.

    These have no wheels for Python 3.13 and newer.
    """
    # typer declares no upper bound for click, and before 0.15.4 it needs click 8.1.
    smoke(session, "--resolution", "lowest-direct", "click<8.2")


@nox.session(python=PYTHONS[:3])
def two_years(session: nox.Session) -> None:
    """Run the smoke tests and the quick run with the versions that were the newest two years ago."""
    day = datetime.now(timezone.utc) - timedelta(days=730)
    # setuptools builds the package. Before 0.2.6, resvg-py ignores the size and the background of a drawing.
    newer = [option for name in ("setuptools", "resvg-py") for option in ("--exclude-newer-package", f"{name}=false")]
    smoke(session, "--exclude-newer", day.date().isoformat(), *newer)


@nox.session(python=PYTHONS[1:])
def newest(session: nox.Session) -> None:
    """Run all tests with the newest versions. The newest hypothesis needs Python 3.11."""
    session.install("./data", ".[test]")
    session.run("pytest", "-n", "auto", "-m", "", *session.posargs)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Sample and fit with the core and the models, without any extra. Check that the report names its extra."""
    session.install(".", "./data")
    out = session.create_tmp() + "/run"
    session.run("entropy-probe", "sweep", "--quick", "--out", out)
    session.run("entropy-probe", "fit", "--out", out)
    session.run("entropy-probe", "report", "--out", out, success_codes=[2])
