"""Declaration of every image metric: name, title, direction, unit and formula.

Tables, plots, reports and the command line read this declaration, and no other file repeats it. The functions that
compute the metrics are in `image_metrics` and `defect_scores`.

Our names and the usual names:

- `frechet_distance` is FID (Fréchet inception distance) if the network is `inception`.
- `kernel_distance` is KID (kernel inception distance) if the network is `inception`.
- `text_score` is CLIPScore (CLIP score, torchmetrics' `CLIPScore`) if the network is a CLIP model.
- `caption_found` is R-precision (top-1 retrieval accuracy) among the captions of the sampled and the real images.

With another network, such as the bundled critic, the formula is the same, but the values are on another scale. Compare
them only with values from the same network and the same real images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from entropy_probe.errors import InputError


@dataclass(frozen=True)
class Metric:
    """An image metric.

    Attributes:
        name: name in tables and files.
        title: name on pages and in figures.
        common_name: name under which the metric is known; empty if there is none.
        higher_is_better: True if a higher value is better.
        unit: unit of the value; 1 if it has none.
        margin: two laws whose true values differ by less are equivalent. In the unit of the value, or, if `relative`,
            as a fraction of the value of the original model.
        relative: see `margin`.
        formula: how the value is computed.
    """

    name: str
    title: str
    common_name: str
    higher_is_better: bool
    unit: str
    margin: float
    formula: str
    relative: bool = False

    def label(self, network: str = "") -> str:
        """Return the title with the direction and, if given, the network that computed the value.

        Examples:
            >>> METRICS["kernel_distance"].label("critic")
            'kernel distance by critic (lower is better)'
        """
        better = "higher" if self.higher_is_better else "lower"
        return f"{self.title}{f' by {network}' if network else ''} ({better} is better)"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("text_score", "text score", "CLIPScore", True, "0 to 100", 1.0, "100 max(cos(image, caption), 0)"),
        Metric(
            "caption_found",
            "caption retrieved",
            "R-precision, top-1 retrieval",
            True,
            "fraction of the images",
            0.05,
            "1 if no other caption is closer to the image than its own, else 0",
        ),
        Metric("incompleteness", "incompleteness", "", False, "0 to 1", 0.05, "1 - (1 - cut_off) (1 - off_centre)"),
        Metric(
            "repetition",
            "repetition",
            "",
            False,
            "0 to 1",
            0.05,
            "highest peak of the autocorrelation away from the origin, minus the minimum between peak and origin",
        ),
        Metric(
            "kernel_distance",
            "kernel distance",
            "KID, kernel inception distance",
            False,
            "1",
            0.1,
            "squared maximum mean discrepancy, cubic polynomial kernel",
            relative=True,
        ),
        Metric(
            "frechet_distance",
            "Fréchet distance",
            "FID, Fréchet inception distance",
            False,
            "1",
            0.1,
            "|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))",
            relative=True,
        ),
    )
}
"""The image metrics by name, in the order in which tables and pages show them."""


def metric_and_network(column: str) -> tuple[Metric, str]:
    """Split the name of a column, such as `kernel_distance:critic`, into the metric and the network.

    The network is empty if only one network computed metrics.

    Examples:
        >>> metric, network = metric_and_network("kernel_distance:critic")
        >>> metric.title, network
        ('kernel distance', 'critic')
    """
    name, _, network = column.partition(":")
    return METRICS[name], network


def _check_name(column: str) -> str:
    if column.partition(":")[0] not in METRICS:
        raise InputError(f"unknown metric {column!r:.100}: the metrics are {', '.join(METRICS)}")
    return column


MetricName = Annotated[str, AfterValidator(_check_name)]
"""The name of a metric in a file; see `metric_and_network`."""


def in_order(columns: Iterable[str]) -> list[str]:
    """Sort metric columns in the order of `METRICS`; the networks of a metric are next to each other.

    Examples:
        >>> in_order(["repetition", "text_score:b", "text_score:a"])
        ['text_score:a', 'text_score:b', 'repetition']
    """
    return sorted(columns, key=lambda column: (list(METRICS).index(column.partition(":")[0]), column))
