"""Has a model's entropy profile moved? A randomisation test over its images, with one false-alarm rate for all heads.

If nothing but chance tells two runs of a model apart, it does not matter which of the two an image came from. The test
exchanges images between the runs, in every way or in `RESAMPLES` random ones, and asks how often chance alone makes
the *largest* |z| of all heads and sizes as large as the one that was seen (the maximal statistic of Westfall and Young
1993; Nichols and Holmes 2002 have subjects for images and voxels for heads). That holds the probability of any false
alarm among hundreds of heads at the level. All entropies of an image change sides together, so the dependence between
heads and layers is the measured one, where Holm's correction assumes the worst. No distribution is assumed.

What is exchanged depends on the noise that there is:

- *The same seeds* make the same images, and the comparison is paired. On the same machine an unchanged model repeats
  itself to the bit, with differences of exactly 0. Another machine or library rounds otherwise; then the difference of
  an image is as likely to have either sign, independently of other images. Each image changes sides by itself.
- *New seeds* make new images of the same prompts, and the noise is that of sampling. A seed gives all of its prompts
  the same initial noise, so images of one seed are not independent. Seeds are the unit: each is averaged over its
  prompts, and changes sides with all of them.

Rounding may be biased too, by less than `RESOLUTION`: a mean difference that small counts as none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from entropy_probe.baselines.profiles import HEAD, Profile
from entropy_probe.errors import InputError
from entropy_probe.strict_json import to_strict_json

LEVEL = 0.01
"""Probability of any false alarm in one comparison."""

RESOLUTION = 1e-5
"""Accuracy of a measured entropy, nats: the kernels are held to it (docs/method.md)."""

RESAMPLES = 1999

_BATCH = 20_000_000
"""Numbers that the test holds in memory at once."""

Images = Float[np.ndarray, "*heads images"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What moved between a baseline and a profile taken now.

    Attributes:
        baseline: the profile that was kept.
        now: the profile that was compared with it.
        paired: whether both were sampled with the same seeds.
        level: probability that an unchanged model is said to have moved.
        heads: a row for every head and size of both, the largest |z| first: `layer`, `kind`, `head`, `height`, `width`,
            the mean entropies `baseline` and `now`, their `difference` and its standard error `se` in nats, `z`, the
            probability `p` that chance alone makes any |z| as large, and whether it `moved`: p <= level.
        vanished: layers and heads of the baseline alone.
        appeared: layers and heads of the present profile alone.
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
        """The rows of `heads` that moved."""
        return self.heads[self.heads["moved"]]

    @property
    def same(self) -> bool:
        """Whether the model has the same heads as before, and none of them moved."""
        return self.moved.empty and not self.vanished and not self.appeared

    def circumstances(self) -> list[str]:
        """What else differs between the two runs, in words: weights, precision, versions, hardware."""
        before, after = self.baseline, self.now
        pairs = {"pipeline": (before.pipeline, after.pipeline), "dtype": (before.dtype, after.dtype)}
        names = dict.fromkeys([*before.versions, *after.versions])
        pairs |= {name: (before.versions.get(name, "none"), after.versions.get(name, "none")) for name in names}
        pairs["hardware"] = (before.hardware, after.hardware)
        weights = [] if before.fingerprint == after.fingerprint else ["other weights or configuration"]
        return weights + [f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new]

    def to_json(self) -> str:
        """The verdict, what else differs, and every head."""
        told = {"same": self.same, "paired": self.paired, "level": self.level, "circumstances": self.circumstances()}
        lists = {"vanished": self.vanished, "appeared": self.appeared, "heads": self.heads.to_dict("records")}
        return to_strict_json({**told, **lists})


def compare(baseline: Profile, now: Profile, level: float = LEVEL) -> Comparison:
    """Compare two profiles of the same settings, sampled with the same seeds or with all new ones.

    Args:
        baseline: the profile that was kept.
        now: the profile taken now.
        level: probability of any false alarm, over all heads and sizes together.

    Raises:
        InputError: if the two were sampled with other settings, share some seeds but not all, have no head in common,
            or are of too few images to reach the level.
    """
    _check_settings(baseline, now)
    paired = set(baseline.settings.seeds) == set(now.settings.seeds)
    common = baseline.entropy.index[baseline.entropy.index.isin(now.entropy.index)]
    if common.empty:
        raise InputError("the two profiles have no attention head in common: they are of different architectures")
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
    vanished, appeared = _only(baseline, now), _only(now, baseline)
    return Comparison(baseline, now, paired, level, heads, vanished, appeared)


def _largest_z(
    x: Images, y: Images, error: Callable[[Images, Images, int], Images], paired: bool
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """z of every head, and the probability that chance alone makes the largest |z| of all heads as large."""

    def statistic(x: Images, y: Images, axis: int) -> Images:
        difference = y.mean(axis=axis) - x.mean(axis=axis)
        seen = np.where(np.abs(difference) > RESOLUTION, difference, 0.0)
        return np.asarray(seen / np.hypot(error(x, y, axis), RESOLUTION))

    test = stats.permutation_test(
        (x, y),
        statistic,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // (x.size + y.size)),
        axis=-1,
        rng=np.random.default_rng(0),
    )
    largest = np.sort(np.abs(test.null_distribution).max(axis=1))
    seen = np.abs(test.statistic) * (1 - 1e-9)  # the arrangement that was seen, summed in another order
    at_least = len(largest) - np.searchsorted(largest, seen)
    random = len(largest) == RESAMPLES  # else every arrangement is there, the one that was seen among them
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
                f"the baseline was sampled with other settings, {name} {before!r} instead of {after!r}: "
                "sample with those, or make the baseline anew"
            )
    shared = set(old.seeds) & set(new.seeds)
    if shared and set(old.seeds) != set(new.seeds):
        raise InputError(
            f"the baseline shares some seeds but not all ({', '.join(map(str, sorted(shared)))}): "
            "take the same seeds, or none of them"
        )


def _check_count(before: int, after: int, paired: bool, level: float) -> None:
    """Refuse a comparison in which nothing could ever be found: that never alarms, and looks like success."""
    if _ways(before, after, paired) * level >= 1:
        return
    enough = next(n for n in range(1, 999) if _ways(n, n, paired) * level >= 1)
    here, wanted = (f"{before} images", f"{enough} images (prompts x seeds)")
    if not paired:
        here, wanted = (f"{before} and {after} seeds", f"{enough} seeds each")
    raise InputError(f"{here} are too few to tell change from chance at a level of {level:g}: sample {wanted}")


def _ways(before: int, after: int, paired: bool) -> int:
    """Ways to exchange the units that differ in |z|: a mirrored exchange has the same."""
    return 2 ** (before - 1) if paired else math.comb(before + after, before) // (1 + (before == after))


def _only(one: Profile, other: Profile) -> tuple[str, ...]:
    """Heads that the other lacks, as `layer, kind, head`."""
    missing = one.entropy.index[~one.entropy.index.isin(other.entropy.index)].to_frame(index=False)
    names = [f"{layer}, {kind}, head {head}" for layer, kind, head in missing[HEAD[:3]].to_numpy()]
    return tuple(dict.fromkeys(names))
