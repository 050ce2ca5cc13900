"""Test the package with the lowest and the newest versions of the libraries: `nox -s lowest`, `nox -s newest`.

Both use PyPI. On Linux it has only the CUDA build of old torch versions, which takes 5 GB; see CONTRIBUTING.md.
"""

from configparser import ConfigParser
from pathlib import Path

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
    "tests/test_fidelity.py",
)
"""Files that use every library. The other files need the newest diffusers, or libraries that only the tests use."""

TOOLS = ("pytest", "hypothesis", "beartype", "duckdb", "polars", "psutil")
"""What `SMOKE` needs in addition."""

nox.options.sessions = ["lowest"]


def floors() -> list[str]:
    """Return the requirements of the package in their lowest versions."""
    setup = ConfigParser()
    setup.read(Path(__file__).with_name("setup.cfg"))
    return setup["options"]["install_requires"].replace(">=", "==").split()


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Run the smoke tests and the quick run with the lowest versions that setup.cfg allows."""
    session.install("-e", ".", *floors(), *TOOLS)
    session.run("pytest", "-m", "not slow", *(session.posargs or SMOKE))
    session.run("entropy-probe", "run", "--quick", "--out", session.create_tmp() + "/run")


@nox.session(python="3.11")
def newest(session: nox.Session) -> None:
    """Run all tests with the newest versions."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)
