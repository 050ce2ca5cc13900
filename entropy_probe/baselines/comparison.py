"""Test whether the entropy profile of a model has changed, with one false-alarm rate for all heads together.

The test is a permutation test. If the model is unchanged, it does not matter which of the two runs an image came from.
So the test exchanges images between the runs, in all possible ways or in `RESAMPLES` random ways. It counts how often
the *largest* |z| over all heads and sizes is at least the observed |z| (Westfall and Young 1993; Nichols and Holmes
2002 apply it to voxels instead of heads). This bounds the probability of any false alarm among hundreds of heads. All
entropies of an image are exchanged together, so the measured dependence between heads and layers is used, and no
distribution is assumed. Holm's correction would have to assume the worst dependence.

The source of the noise determines which units are exchanged:

- *Same seeds*: both runs sample the same images, and the comparison is paired. On the same machine an unchanged model
  is bit-identical, with differences of exactly 0. On another machine or with another library, rounding differs. The
  difference of an image then has either sign with equal probability, independently of other images. So each image is
  exchanged individually.
- *New seeds*: the runs sample different images of the same prompts. All prompts of a seed share their initial noise, so
  images with the same seed are not independent. So the seeds are exchanged, and each seed is averaged over its prompts.

Rounding can also be biased, by less than `RESOLUTION`. Mean differences up to this value count as zero.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import ConfigDict, Field
from scipy import stats

from entropy_probe.baselines.profiles import HEAD, Profile
from entropy_probe.errors import InputError
from entropy_probe.estimation.intervals import t_quantile
from entropy_probe.library_versions import rng_argument
from entropy_probe.models import fingerprint_version
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, Number, Side, from_strict_json, to_strict_json

LEVEL = 0.01
"""Probability of any false alarm in one comparison."""

RESOLUTION = 1e-5
"""Accuracy of a measured entropy in nats. The kernels are tested against it (docs/method.md)."""

RESAMPLES = 1999
"""Maximum number of exchanges that the test evaluates."""

_BATCH = 20_000_000
"""Maximum number of values in memory at once."""

NUMBERS = ["baseline", "now", "difference", "se", "z", "p"]
COLUMNS = [*HEAD, *NUMBERS, "moved"]
"""Columns of `ProfileComparison.heads`."""

Images = Float[np.ndarray, "*heads images"]


@dataclass(frozen=True)
class _Head:
    """A row of `ProfileComparison.heads`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    kind: str
    head: Count
    height: Side
    width: Side
    baseline: Number
    now: Number
    difference: Number
    se: Number
    z: Number
    p: Number
    moved: bool


@dataclass(frozen=True)
class _ComparisonFile:
    """The fields that `ProfileComparison.to_json` writes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    same: bool
    paired: bool
    level: Annotated[float, Field(gt=0, lt=1)]
    circumstances: list[str]
    vanished: tuple[str, ...]
    appeared: tuple[str, ...]
    heads: list[_Head]


@dataclass(frozen=True, eq=False)
class ProfileComparison:
    """The heads whose entropy differs between a baseline and a current profile.

    Attributes:
        baseline: the saved profile.
        now: the current profile.
        paired: whether both profiles have the same seeds.
        level: false-alarm rate: maximum probability of reporting a change if the model is unchanged.
        heads: one row per head and size in both profiles, sorted by decreasing |z|. Columns: `layer`, `kind`, `head`,
            `height`, `width`, the mean entropies `baseline` and `now` (nats), their `difference` (nats) and its
            standard error `se` (nats), `z`, the corrected p-value `p`, and `moved`, which is p <= level.
        vanished: layers and heads that only the baseline has.
        appeared: layers and heads that only the current profile has.
    """

    baseline: Profile
    now: Profile
    paired: bool
    level: float
    heads: pd.DataFrame
    vanished: tuple[str, ...]
    appeared: tuple[str, ...]

    @property
    def moved(self) -> pd.DataFrame:
        """Return the rows of `heads` with a significant difference."""
        return self.heads[self.heads["moved"]]

    def half_width(self) -> pd.Series:
        """Return the half-width of the 95 % interval of each difference in `heads`, nats, by Student's t."""
        counts = [p.entropy.shape[1] if self.paired else len(p.settings.seeds) for p in (self.baseline, self.now)]
        degrees = counts[0] - 1 if self.paired else sum(counts) - 2
        return self.heads["se"] * t_quantile(degrees)

    @property
    def same(self) -> bool:
        """Return whether both profiles have the same heads and no head has a significant difference."""
        return self.moved.empty and not self.vanished and not self.appeared

    def other_differences(self) -> list[str]:
        """Return other differences between the two runs: weights, precision, versions, hardware."""
        before, after = self.baseline, self.now
        pairs = {"pipeline": (before.pipeline, after.pipeline), "dtype": (before.dtype, after.dtype)}
        names = dict.fromkeys([*before.versions, *after.versions])
        pairs |= {name: (before.versions.get(name, "none"), after.versions.get(name, "none")) for name in names}
        pairs["hardware"] = (before.hardware, after.hardware)
        versions = fingerprint_version(before.fingerprint), fingerprint_version(after.fingerprint)
        if before.fingerprint == after.fingerprint:
            weights = []
        elif versions[0] != versions[1]:
            weights = [f"weights not compared: their fingerprints have the versions {versions[0]} and {versions[1]}"]
        else:
            weights = ["different weights, configuration or tokenizer"]
        return weights + [f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new]

    def circumstances(self) -> list[str]:
        """Call `other_differences`, the present name of this method."""
        warnings.warn("circumstances() is deprecated: use other_differences()", DeprecationWarning, stacklevel=2)
        return self.other_differences()

    def to_json(self) -> str:
        """Return the verdict, the other differences and all heads as JSON text."""
        verdict = {"same": self.same, "paired": self.paired, "level": self.level}
        differences = {"circumstances": self.other_differences(), "vanished": self.vanished, "appeared": self.appeared}
        return to_strict_json({**verdict, **differences, "heads": self.heads.to_dict("records")})

    @classmethod
    def from_json(cls, text: str, baseline: Profile, now: Profile) -> ProfileComparison:
        """Parse the text of `to_json`.

        Args:
            text: the text.
            baseline: the saved profile; the text does not contain it.
            now: the current profile; the text does not contain it.

        Raises:
            InputError: if the text is not a comparison, or compares other heads than the heads of these profiles.
        """
        try:
            file = from_strict_json(_ComparisonFile, text)
        except InputError as error:
            raise InputError(f"not a valid comparison of profiles: {error}") from error
        heads = pd.DataFrame([vars(head) for head in file.heads], columns=COLUMNS)
        heads = heads.astype({**dict.fromkeys(NUMBERS, float), "moved": bool})
        result = cls(baseline, now, file.paired, file.level, heads, file.vanished, file.appeared)
        compared = pd.MultiIndex.from_frame(heads[HEAD])
        common = baseline.entropy.index.intersection(now.entropy.index)
        if len(compared) != len(common) or set(compared) != set(common):
            raise InputError("the comparison has other heads than the two profiles: give the compared profiles")
        return result


def compare(baseline: Profile, now: Profile, level: float = LEVEL) -> ProfileComparison:
    """Compare two profiles with the same settings, and with either the same seeds or no common seed.

    Args:
        baseline: the saved profile.
        now: the current profile.
        level: maximum probability of any false alarm, over all heads and sizes together.

    Raises:
        InputError: if the settings differ, only some seeds are shared, no head is in both profiles, or the images are
            too few for this level.

    Examples:
        >>> from dataclasses import replace
        >>> from entropy_probe.baselines import Settings
        >>> settings = Settings(("cat", "dog"), ((64, 64),), (0, 1, 2, 3), steps=8, guidance_scale=4.0)
        >>> heads = pd.MultiIndex.from_tuples([("mid", "self", 0, 64, 64), ("mid", "self", 1, 64, 64)], names=HEAD)
        >>> images = pd.MultiIndex.from_product([settings.prompts, settings.seeds], names=["prompt", "seed"])
        >>> entropy = pd.DataFrame(3.0, heads, images)
        >>> before = Profile("m", "abc", "Pipeline", "float32", "cpu", {}, settings, entropy)
        >>> after = replace(before, entropy=entropy.add([0.5, 0.0], axis=0))
        >>> compare(before, before).same
        True
        >>> compare(before, after).moved[["layer", "head", "difference"]].to_numpy().tolist()
        [['mid', 0, 0.5]]
    """
    _check_settings(baseline, now)
    paired = set(baseline.settings.seeds) == set(now.settings.seeds)
    common = baseline.entropy.index[baseline.entropy.index.isin(now.entropy.index)]
    if common.empty:
        raise InputError("the profiles have no attention head in common: compare models of the same architecture")
    before, after = baseline.entropy.loc[common], now.entropy.loc[common]
    after = after[before.columns] if paired else after
    if not paired:
        before, after = (table.T.groupby(level="seed").mean().T for table in (before, after))
    x, y = before.to_numpy(), after.to_numpy()
    _check_count(x.shape[1], y.shape[1], paired, level)
    error = _paired_error if paired else _independent_error
    z, p = _largest_z(x, y, error, paired)
    heads = common.to_frame(index=False).assign(
        baseline=x.mean(axis=1),
        now=y.mean(axis=1),
        difference=y.mean(axis=1) - x.mean(axis=1),
        se=error(x, y, -1),
        z=z,
        p=p,
        moved=p <= level,
    )
    heads = heads.sort_values("z", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    vanished, appeared = _only_in(baseline, now), _only_in(now, baseline)
    return ProfileComparison(baseline, now, paired, level, heads, vanished, appeared)


def _largest_z(
    x: Images, y: Images, error: Callable[[Images, Images, int], Images], paired: bool
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Return z of every head, and the probability that the largest |z| of all heads is as large by chance."""

    def statistic(x: Images, y: Images, axis: int) -> Images:
        difference = y.mean(axis=axis) - x.mean(axis=axis)
        resolved = np.where(np.abs(difference) > RESOLUTION, difference, 0.0)
        return np.asarray(resolved / np.hypot(error(x, y, axis), RESOLUTION))

    test = stats.permutation_test(
        (x, y),
        statistic,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // (x.size + y.size)),
        axis=-1,
        **rng_argument(stats.permutation_test, np.random.default_rng(0)),
    )
    largest = np.sort(np.abs(test.null_distribution).max(axis=1))
    observed = np.abs(test.statistic) * (1 - 1e-9)  # the test sums the observed arrangement in another order
    at_least = len(largest) - np.searchsorted(largest, observed)
    random = len(largest) == RESAMPLES  # otherwise the distribution is exact and contains the observed arrangement
    return test.statistic, (at_least + random) / (len(largest) + random)


def _paired_error(x: Images, y: Images, axis: int) -> Images:
    return np.asarray(stats.sem(y - x, axis=axis))


def _independent_error(x: Images, y: Images, axis: int) -> Images:
    return np.asarray(np.hypot(stats.sem(x, axis=axis), stats.sem(y, axis=axis)))


def _check_settings(baseline: Profile, now: Profile) -> None:
    old, new = baseline.settings, now.settings
    for name in ("prompts", "sizes", "steps", "guidance_scale"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after and not (isinstance(before, tuple) and set(before) == set(after)):
            raise InputError(
                f"{name} must be {before!r}, as in the baseline, got {after!r}: "
                "use the settings of the baseline, or save a new baseline"
            )
    shared = set(old.seeds) & set(new.seeds)
    if shared and set(old.seeds) != set(new.seeds):
        raise InputError(
            f"seeds must be all shared or all new, but only some are shared ({', '.join(map(str, sorted(shared)))}): "
            "use the seeds of the baseline, or none of them"
        )


def _check_count(before: int, after: int, paired: bool, level: float) -> None:
    """Raise InputError if there are too few images to ever detect a change: such a comparison would always pass."""
    if _exchanges(before, after, paired) * level >= 1:
        return
    needed = next(n for n in range(1, 999) if _exchanges(n, n, paired) * level >= 1)
    given, fix = (f"{before} images", f"{needed} images (prompts x seeds)")
    if not paired:
        given, fix = (f"{before} and {after} seeds", f"{needed} seeds each")
    raise InputError(f"{given} are too few to detect a change at a level of {level:g}: sample {fix}")


def _exchanges(before: int, after: int, paired: bool) -> int:
    """Return the number of exchanges with different |z|. Exchanging all units instead of none gives the same |z|."""
    return 2 ** (before - 1) if paired else math.comb(before + after, before) // (1 + (before == after))


def _only_in(first: Profile, second: Profile) -> tuple[str, ...]:
    """Return the heads that only the first profile has, as `layer, kind, head`."""
    missing = first.entropy.index[~first.entropy.index.isin(second.entropy.index)].to_frame(index=False)
    names = [f"{layer}, {kind}, head {head}" for layer, kind, head in missing[HEAD[:3]].to_numpy()]
    return tuple(dict.fromkeys(names))
