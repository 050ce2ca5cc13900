"""Two networks that judge the images: how far they agree on the change of the kernel distance."""

from dataclasses import dataclass

import pandas as pd
from scipy import stats

JUDGES = ("critic", "efficientnet-lite0")
"""The networks: the bundled critic was trained on these drawings, the other one on ImageNet."""

SHOWN = ("better", "worse")
"""Verdicts of a significant difference."""


def judge_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the change of the kernel distance by law and size, one column per network; see `Quality.table`."""
    rows = []
    distances = compared[compared["metric"].str.startswith("kernel_distance")]
    for (law, size), group in distances.groupby(["law", "size"], sort=False):
        by_metric = group.set_index("metric")
        by_network = {network: by_metric.loc[f"kernel_distance:{network}"] for network in JUDGES}
        changes = {
            network: f"{row['difference']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"
            for network, row in by_network.items()
        }
        verdicts = {network: row["verdict"] for network, row in by_network.items() if row["verdict"] in SHOWN}
        rows.append({"law": law, "size, px": size, **changes, "shown": summarize(verdicts)})
    return pd.DataFrame(rows)


def summarize(verdicts: dict[str, str]) -> str:
    """Summarize the significant verdicts, by network, in a few words.

    >>> summarize({"critic": "worse"})
    'worse by critic alone'
    """
    if not verdicts:
        return "by neither"
    if len(verdicts) < len(JUDGES):
        return ", ".join(f"{verdict} by {network} alone" for network, verdict in verdicts.items())
    distinct = set(verdicts.values())
    return f"{distinct.pop()} by both" if len(distinct) == 1 else "opposed"


@dataclass(frozen=True)
class Agreement:
    """The agreement of two networks over laws and sizes.

    Attributes:
        changed: pairs of law and size at which any kernel distance changes.
        rank: Spearman correlation of the two networks' changes over these pairs.
        either: pairs with a significant difference by at least one network.
        both: pairs with a significant difference by both, in the same direction.
        opposed: pairs with a significant difference by both, in opposite directions.
    """

    changed: int
    rank: float
    either: int
    both: int
    opposed: int

    @classmethod
    def of(cls, compared: pd.DataFrame) -> "Agreement":
        """Compute the agreement from the comparisons of a study; see `Quality.table`."""
        distances = compared[compared["metric"].str.startswith("kernel_distance")]
        wide = distances.pivot(index=["law", "size"], columns="metric", values="difference")
        changed = wide[(wide != 0).any(axis=1)]
        rank = stats.spearmanr(*(changed[f"kernel_distance:{network}"] for network in JUDGES)).statistic
        verdicts = distances.pivot(index=["law", "size"], columns="metric", values="verdict")
        shown = verdicts.isin(SHOWN)
        same = verdicts.nunique(axis=1) == 1
        both = shown.all(axis=1)
        return cls(
            len(changed),
            float(rank),
            int(shown.any(axis=1).sum()),
            int((both & same).sum()),
            int((both & ~same).sum()),
        )

    def __str__(self) -> str:
        return (
            f"Over the {self.changed} pairs of law and size at which anything changes, the changes of the two networks "
            f"have a rank correlation (Spearman) of {self.rank:+.2f}. Of {self.either} pairs with a significant "
            f"difference by either network, {self.both} have one by both."
        )
