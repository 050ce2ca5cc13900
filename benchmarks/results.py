"""What the study finds, in sentences: `python -m benchmarks.results` writes docs/results.md.

The sentences are results.md.j2. Every number in them comes from the tables that `benchmarks.study`,
`benchmarks.ablations` and `benchmarks.checkpoints` kept, and their words stand beside claims that are checked against
those: a new run which does not bear one out stops the page.
"""

from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.study import UNET_LEVELS, Agreement, saved, say
from entropy_probe.fitting import POOLED
from entropy_probe.laws import Measured, Paper, from_json
from entropy_probe.strict_json import from_strict_json
from entropy_probe.sweep import write_atomically

TEMPLATE = "results.md.j2"
MODELS = {"unet": "reference", "dit": "reference-dit"}
TRAINED = 64
"""Height and width in pixels."""

MINUS = "−"


def number(value: float, digits: int = 2) -> str:
    """Significant digits, never as a power of ten."""
    return f"{Decimal(f'{value:.{digits}g}'):f}".replace("-", MINUS)


def fixed(value: float, places: int) -> str:
    """As many places after the point, and no negative zero."""
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", MINUS)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; as text, a difference with two significant digits.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def decimals(self, places: int) -> str:
        """With as many places after the point."""
        value, low, high = (fixed(x, places) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def percent(self, places: int = 1) -> str:
        """In percent."""
        value, low, high = (fixed(100 * x, places) for x in (self.value, self.low, self.high))
        return f"{value} % [{low}, {high}]"

    def less(self, places: int = 1) -> str:
        """By how much something falls, in percent."""
        return Interval(-self.value, -self.high, -self.low).percent(places)

    def holds(self, value: float) -> bool:
        """Whether the interval contains a value."""
        return self.low <= value <= self.high

    def meets(self, other: "Interval") -> bool:
        """Whether two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{'+' if self.value > 0 else ''}{number(self.value)} [{number(self.low)}, {number(self.high)}]"


@dataclass(frozen=True)
class Findings:
    """What was kept of one model.

    Sizes are written as the tables write them, `128` and `64x128`; metrics too, `text_score:critic`.

    Attributes:
        folder: of the tables.
    """

    folder: Path

    @cached_property
    def _fit(self) -> dict[str, Any]:
        return from_strict_json(dict[str, Any], (self.folder / "fit.json").read_text())

    @cached_property
    def compared(self) -> pd.DataFrame:
        """Every law, size and metric against the original."""
        return saved(self.folder / "quality.json")

    @cached_property
    def ablations(self) -> pd.DataFrame:
        """As `compared`, with `section`, `change` and what is gone of the drift."""
        return saved(self.folder / "ablations.json")

    @property
    def agreement(self) -> Agreement:
        """Of the two networks that judge."""
        return Agreement.of(self.compared)

    def slope(self, layer: str = POOLED) -> Interval:
        """Of H against ln N, in nats for every e-fold of tokens."""
        (own,) = (law for law in self._fit["layers"] if law["layer"] == layer)
        return Interval(own["slope"], own["slope_low"], own["slope_high"])

    def slopes(self, level: str) -> list[Interval]:
        """Of every layer of a level of the UNet: fine, coarse or middle."""
        globs = _globs(level)
        return [self.slope(name) for name in self._layers if any(fnmatch(name, glob) for glob in globs)]

    def error(self, form: str, layer: str = POOLED) -> float:
        """Of a form on a size that it was not fitted to, in nats: log, power, linear or gaussian."""
        (own,) = (rival for rival in self._fit["rivals"] if (rival["layer"], rival["form"]) == (layer, form))
        return float(own["error"])

    def ahead(self, form: str, other: str) -> str:
        """In how many of the layers a form errs less than another."""
        wins = sum(self.error(form, layer) < self.error(other, layer) for layer in self._layers)
        return f"{wins} of {len(self._layers)}"

    @property
    def _layers(self) -> list[str]:
        return [law["layer"] for law in self._fit["layers"] if law["layer"] != POOLED]

    def g(self, size: str, curve: str = "g") -> Interval:
        """The g of least loss."""
        best = saved(self.folder / f"loss-{curve}-best.json").set_index("size").loc[size]
        return Interval(best["g"], best["low"], best["high"])

    def tried(self, curve: str = "g") -> tuple[float, float]:
        """The least and the greatest g under which a loss was measured."""
        values = saved(self.folder / f"loss-{curve}.json")["g"]
        return float(values.min()), float(values.max())

    def loss(self, size: str, curve: str = "g", g: float | None = None) -> Interval:
        """Relative change of the loss under a g; under the best that was tried, if none is given."""
        tried = saved(self.folder / f"loss-{curve}.json")
        own = tried[tried["size"] == size]
        row = own.loc[own["change"].idxmin()] if g is None else own[own["g"] == g].iloc[0]
        return Interval(row["change"], row["low"], row["high"])

    def calibrated_layers(self, size: str) -> pd.Series:
        """The g that the gradient found for each layer, by name."""
        points = saved(self.folder / "calibrated-points.json")
        return points[points["size"] == size].set_index("layer")["g"]

    def held_out(self, size: str, *, per_layer: bool = False) -> Interval:
        """Relative change of the loss of pictures that the calibration did not see."""
        name = "calibrated" if per_layer else "calibrated-one"
        row = saved(self.folder / f"{name}-changes.json").set_index("size").loc[size]
        return Interval(row["change"], row["low"], row["high"])

    def paper(self, size: str, finest: int) -> float:
        """The paper's g in layers that have `finest` tokens at the training size."""
        return Paper().multiplier("", round(_ratio(size) * finest), finest)

    def keeping(self, size: str, level: str | None = None) -> np.ndarray:
        """The g that keeps the entropy, of every layer, or of those of a level of the UNet."""
        law = from_json((self.folder / "measured.json").read_text())
        assert isinstance(law, Measured)
        globs = _globs(level) if level else ("*",)
        layers = [name for name in law.points if any(fnmatch(name, glob) for glob in globs)]
        trained = TRAINED**2  # the law knows N/T only
        return np.array([law.multiplier(layer, round(_ratio(size) * trained), trained) for layer in layers])

    def median_keeping(self, size: str) -> float:
        """The same, in the median layer."""
        return float(np.median(self.keeping(size)))

    def removed(self, law: str, size: str) -> float:
        """Share of the drift that is gone, in percent."""
        drift = saved(self.folder / "drift.json").set_index(["law", "size"])
        return float(100 * drift.loc[(law, size), "removed"])

    def shown(self, verdict: str) -> list[str]:
        """What is shown to be better or worse: `law: metric at size`, sorted."""
        return _said(self.compared, verdict)

    def original(self, size: str, metric: str) -> float:
        """What the original model has."""
        own = self.compared[(self.compared["size"] == size) & (self.compared["metric"] == metric)].iloc[0]
        return float(own["value"] - own["difference"])

    def change(self, law: str, size: str, metric: str) -> Interval:
        """The difference that a law makes to the pictures."""
        own = self.compared.set_index(["law", "size", "metric"]).loc[(law, size, metric)]
        return Interval(own["difference"], own["low"], own["high"])

    def ablations_shown(self, verdict: str) -> list[str]:
        """The same of the ablations; where one has a change, it stands before the law."""
        return _said(self.ablations, verdict)

    def ablated(self, law: str, size: str, metric: str, change: str | None = None) -> Interval:
        """The difference that a law makes to the pictures of an ablation."""
        own = self._ablated(law, size, change).set_index("metric").loc[metric]
        return Interval(own["difference"], own["low"], own["high"])

    def ablated_drift(self, law: str, size: str, change: str | None = None) -> float:
        """Share of the drift that is gone, in percent, in an ablation."""
        return float(100 * self._ablated(law, size, change)["removed"].iloc[0])

    def _ablated(self, law: str, size: str, change: str | None) -> pd.DataFrame:
        table = self.ablations
        changed = table["change"].isna() if change is None else table["change"] == change
        return table[(table["law"] == law) & (table["size"] == size) & changed]


@dataclass(frozen=True)
class Learning:
    """What `benchmarks.checkpoints` kept of the transformer on its way.

    Attributes:
        path: of the table.
    """

    path: Path

    @cached_property
    def _table(self) -> pd.DataFrame:
        return saved(self.path).set_index(["step", "size"])

    @property
    def steps(self) -> list[int]:
        """When it was asked."""
        return sorted({int(step) for step in self._table.index.get_level_values("step")})

    def g(self, step: int, size: str) -> Interval:
        """The g of least loss."""
        own = self._table.loc[(step, size)]
        return Interval(own["g"], own["low"], own["high"])

    def change(self, step: int, size: str) -> Interval:
        """Relative change of the loss at the best g that was tried."""
        own = self._table.loc[(step, size)]
        return Interval(own["change"], own["change_low"], own["change_high"])

    def loss(self, step: int, size: str) -> float:
        """At g = 1."""
        return float(self._table.loc[(step, size), "loss"])

    def peaked(self, step: int) -> float:
        """Mean entropy at the training size, as a share of the greatest possible."""
        return float(self._table.loc[(step, str(TRAINED)), "peaked"])


def _globs(level: str) -> tuple[str, ...]:
    (globs,) = (globs for name, globs in UNET_LEVELS.items() if name.split()[0] == level)
    return globs


def _ratio(size: str) -> float:
    """N/T, by the pixels."""
    height, _, width = size.partition("x")
    return int(height) * int(width or height) / TRAINED**2


def _said(compared: pd.DataFrame, verdict: str) -> list[str]:
    own = compared[compared["verdict"] == verdict]
    changes = own["change"] if "change" in own else pd.Series(None, own.index, dtype=object)
    return sorted(
        f"{'' if pd.isna(change) else f'{change}, '}{row.law}: {row.metric} at {row.size}"
        for row, change in zip(own.itertuples(), changes, strict=True)
    )


def claim(holds: bool, what: str) -> None:
    """Check what the sentences beside it say in words.

    Raises:
        SystemExit: if it is not true of these results.
    """
    if not holds:
        raise SystemExit(f"these results do not bear out that {what}: write anew what {TEMPLATE} says there")


def render(results: Path) -> str:
    """The page, of what the folders in `results` keep.

    Raises:
        SystemExit: if they do not bear a claim out.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, extensions=["jinja2.ext.do"],
        trim_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["n"] = number
    findings = {name: Findings(results / model) for name, model in MODELS.items()}
    learning = Learning(results / "checkpoints.json")
    return environment.get_template(TEMPLATE).render(claim=claim, learning=learning, **findings)


def main(
    docs: Annotated[Path, typer.Option(help="Where the page is written, beside the folder results.")] = Path("docs"),
) -> None:
    """Write the page of what is kept."""
    write_atomically(docs / "results.md", render(docs / "results").encode())
    say(f"written to {docs / 'results.md'}")


if __name__ == "__main__":
    typer.run(main)
