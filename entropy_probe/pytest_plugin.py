"""The pytest fixture `entropy_baseline`: a test fails when the entropy profile of a model has moved.

    def test_profile(entropy_baseline):
        entropy_baseline.check(pipe)

The baseline lies beside the test, `test_model/test_profile.json` for `test_profile` in `test_model.py`, and belongs
under version control. Every pytest session loads this file, so nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class EntropyBaseline:
    """The baseline of one test.

    Attributes:
        path: the JSON file.
        regenerate: write it anew instead of comparing.
        scratch: folder for the figure and the profile of a failure.
    """

    path: Path
    regenerate: bool
    scratch: Path

    def check(self, pipeline: Any, **settings: Any) -> None:
        """Fail if the profile of a pipeline has moved since its baseline, or has no baseline yet.

        Args:
            pipeline: a diffusers text-to-image pipeline.
            **settings: see `entropy_probe.baselines.profiles`: prompts, sizes, seeds, steps, guidance_scale.
        """
        __tracebackhide__ = True
        from entropy_probe.baselines import Profile, compare, profile, text
        from entropy_probe.errors import InputError
        from entropy_probe.plots.baselines import figure

        try:
            baseline = None if self.regenerate or not self.path.exists() else Profile.open(self.path)
            now = profile(pipeline, **settings)
            if baseline is None:
                now.save(self.path)
                if self.regenerate:
                    return
                pytest.fail(f"no baseline yet: {self.path} is written, look at it and commit it", pytrace=False)
            comparison = compare(baseline, now)
        except InputError as error:
            pytest.fail(f"{error} (--entropy-regen makes {self.path} anew)", pytrace=False)
        if not comparison.same:
            image = self.scratch / f"{self.path.stem}.png"
            figure(comparison).savefig(image, dpi=100)
            obtained = now.save(self.scratch / self.path.name)
            pytest.fail(
                f"{text(comparison)}\n\nfigure: {image}\nprofile: {obtained}\nbaseline: {self.path}\n"
                "If the change is meant, --entropy-regen makes the baseline anew.",
                pytrace=False,
            )


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option `--entropy-regen`."""
    group = parser.getgroup("entropy-probe")
    group.addoption("--entropy-regen", action="store_true", help="Write the entropy baselines anew.")


@pytest.fixture
def entropy_baseline(request: pytest.FixtureRequest, tmp_path: Path) -> EntropyBaseline:
    """The entropy baseline of this test: `entropy_baseline.check(pipe)`."""
    name = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_")
    path = request.path.with_suffix("") / f"{name}.json"
    return EntropyBaseline(path, request.config.getoption("--entropy-regen"), tmp_path)
