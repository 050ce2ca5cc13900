"""Provide the pytest fixture `entropy_baseline`: a test fails if the entropy profile of a model has changed.

    def test_profile(entropy_baseline):
        entropy_baseline.check(pipe)

The baseline of `test_profile` in `test_model.py` is the file `test_model/test_profile.json`. Keep it under version
control. Every pytest session loads this module, so heavy libraries are imported only when a test uses the fixture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from entropy_probe.baselines import ProfileComparison


@dataclass(frozen=True)
class EntropyBaseline:
    """The baseline of one test.

    Attributes:
        path: the JSON file.
        regenerate: write a new baseline instead of comparing.
        scratch: folder for the figure and the profile of a failure.
    """

    path: Path
    regenerate: bool
    scratch: Path

    def check(self, pipeline: Any, **settings: Any) -> None:
        """Fail the test if the profile of a pipeline has changed, or if the baseline does not exist yet.

        Args:
            pipeline: a diffusers text-to-image pipeline.
            **settings: prompts, sizes, seeds, steps, guidance_scale; see `entropy_probe.baselines.profile`. Steps and
                guidance scale default to those of the baseline.
        """
        __tracebackhide__ = True
        from entropy_probe.baselines import Profile, compare, profile
        from entropy_probe.errors import InputError
        from entropy_probe.escape import one_line

        try:
            baseline = None if self.regenerate or not self.path.exists() else Profile.open(self.path)
            if baseline is not None:
                saved = baseline.settings
                settings = {"steps": saved.steps, "guidance_scale": saved.guidance_scale, **settings}
            measured = profile(pipeline, **settings)
            if baseline is None:
                measured.save(self.path)
                if self.regenerate:
                    return
                pytest.fail(one_line(f"no baseline yet: wrote {self.path}, check it and commit it"), pytrace=False)
            comparison = compare(baseline, measured)
        except InputError as error:
            pytest.fail(one_line(f"{error} (--entropy-regen writes a new {self.path})"), pytrace=False)
        if not comparison.same:
            pytest.fail(self._describe(comparison), pytrace=False)

    def _describe(self, comparison: ProfileComparison) -> str:
        """Save the figure and the profile of a failure, and return its message."""
        from entropy_probe.baselines import text
        from entropy_probe.errors import MissingLibraryError
        from entropy_probe.escape import one_line

        image = self.scratch / f"{self.path.stem}.png"
        try:
            from entropy_probe.plots import profile_changes

            profile_changes(comparison)[0].savefig(image, dpi=100)
            figure = str(image)
        except MissingLibraryError as error:
            figure = f"none, {error}"
        measured = comparison.now.save(self.scratch / self.path.name)
        files = {"figure": figure, "profile": measured, "baseline": self.path}
        lines = "\n".join(one_line(f"{name}: {path}") for name, path in files.items())
        return f"{text(comparison)}\n\n{lines}\nIf the change is intended, write a new baseline with --entropy-regen."


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--entropy-regen`."""
    group = parser.getgroup("entropy-probe")
    group.addoption("--entropy-regen", action="store_true", help="Write new entropy baselines instead of comparing.")


@pytest.fixture
def entropy_baseline(request: pytest.FixtureRequest, tmp_path: Path) -> EntropyBaseline:
    """Return the entropy baseline of this test. Use it as `entropy_baseline.check(pipe)`."""
    name = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_")
    path = request.path.with_suffix("") / f"{name}.json"
    return EntropyBaseline(path, request.config.getoption("--entropy-regen"), tmp_path)
