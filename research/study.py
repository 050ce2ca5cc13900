"""The study: `python -m research.study` writes docs/results-MODEL.md and its figures from what it measures.

Every stage keeps what it found, so that a study that was stopped goes on: losses, laws and tables in
docs/results/MODEL/, with the settings that they are of, images in the study's folder. Nothing in the page is typed by
hand but the explanations. Hours on two cores at full size; `--count` and `--seeds` make it smaller.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import seaborn as sns
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from entropy_probe.estimation import calibrate, derive_gaussian, derive_measured, fit
from entropy_probe.evaluation import Judge, Outcome, judge_for, outcome_of
from entropy_probe.evaluation.loss_curves import LossCurve, loss_against_g, loss_against_kappa
from entropy_probe.laws import ScalingLaw, from_json, resolve, to_json
from entropy_probe.models import CaptionedImages, Size, fingerprint, format_size, load, quiet_libraries, training_tokens
from entropy_probe.plots import figures
from entropy_probe.plots.tables import quality_table
from entropy_probe.reference import images, prompts
from entropy_probe.runs import Sweep, extend, sweep, write_atomically

SIZES: list[Size] = [(32, 32), (64, 64), (96, 96), (128, 128), (64, 128)]
UNET_LEVELS = {
    "fine (16 x 16 latents)": ("down_blocks.0*", "up_blocks.1*"),
    "coarse (8 x 8 latents)": ("down_blocks.1*", "up_blocks.0*"),
    "middle": ("mid_block*",),
}

JUDGES = ("critic", "efficientnet-lite0")
"""The networks that look at the images: one that knows the domain, and one that others trained."""

ROWS = 64
"""Attention rows measured per call while the images are drawn: drift is a mean over them."""

say = Console(stderr=True, highlight=False).print


def save(path: Path, table: pd.DataFrame) -> None:
    """Write a table that `saved` reads."""
    write_atomically(path, table.to_json(orient="records", indent=1, double_precision=15).encode())


def saved(path: Path) -> pd.DataFrame:
    """A table that `save` wrote."""
    return pd.DataFrame(json.loads(path.read_text()))


def kept(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table, made once."""
    if not path.exists():
        save(path, make())
    return saved(path)


def kept_law(path: Path, make: Callable[[], ScalingLaw]) -> ScalingLaw:
    """A law, derived once."""
    if not path.exists():
        write_atomically(path, to_json(make()).encode())
    return from_json(path.read_text())


def kept_outcome(path: Path, made: Sweep, judge: Judge, *, progress: bool = True) -> Outcome:
    """The outcome of a sweep, judged once."""
    if path.exists() and (there := Outcome.from_json(made, path.read_text())).sweep.grid == made.grid:
        return there
    outcome = outcome_of(made, judge, progress=progress)
    write_atomically(path, outcome.to_json().encode())
    return outcome


def check_settings(results: Path, settings: dict[str, Any], name: str = "settings.json") -> None:
    """Results that are there are of these settings, which a file of that name keeps, or nothing is there yet.

    Raises:
        SystemExit: if they are of others.
    """
    path, text = results / name, json.dumps(settings, indent=1)
    if path.exists() and (there := json.loads(path.read_text())) != json.loads(text):
        raise SystemExit(f"{results} holds results of other settings, {there}: delete them, or name another folder")
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def curve(out: Path, name: str, make: Callable[[], LossCurve]) -> dict[str, pd.DataFrame]:
    """A loss curve: its table, where it is least, and the table by timestep."""
    made: list[LossCurve] = []

    def once() -> LossCurve:
        if not made:
            say(f"loss: {name}")
            made.append(make())
        return made[0]

    return {
        "table": kept(out / f"{name}.json", lambda: once().table()),
        "best": kept(out / f"{name}-best.json", lambda: once().best()),
        "by_timestep": kept(out / f"{name}-timesteps.json", lambda: once().table(by_timestep=True)),
    }


def levels(pipeline: Any) -> dict[str, tuple[str, ...]]:
    """Three groups of layers, as globs: by grid in a UNet, by depth in a transformer."""
    if hasattr(pipeline, "unet"):
        return UNET_LEVELS
    blocks = len(pipeline.transformer.transformer_blocks)
    thirds = np.array_split(np.arange(blocks), 3)
    names = ("early blocks", "middle blocks", "late blocks")
    return {name: tuple(f"transformer_blocks.{b}.*" for b in third) for name, third in zip(names, thirds, strict=True)}


def measure_losses(
    pipeline: Any, true: CaptionedImages, scale_factors: Sequence[float], out: Path
) -> dict[str, dict[str, pd.DataFrame]]:
    """Loss against g, globally and by level, and against one kappa."""
    ends = [SIZES[0], SIZES[3]]
    found = {
        "g": curve(out, "loss-g", lambda: loss_against_g(pipeline, true, SIZES, scale_factors)),
        "kappa": curve(out, "loss-kappa", lambda: loss_against_kappa(pipeline, true, ends)),
    }
    for name, layers in levels(pipeline).items():
        word = name.split()[0]
        found[name] = curve(
            out,
            f"loss-g-{word}",
            lambda layers=layers: loss_against_g(pipeline, true, ends, scale_factors, layers=layers),  # type: ignore[misc]
        )
    return found


def calibrated(
    pipeline: Any, true: CaptionedImages, out: Path, *, per_layer: bool, steps: int, batch: int
) -> tuple[ScalingLaw, pd.DataFrame]:
    """The calibrated law, and what it changes on held-out images."""
    name = "calibrated" if per_layer else "calibrated-one"
    law_path, changes_path = out / f"{name}.json", out / f"{name}-changes.json"
    if not (law_path.exists() and changes_path.exists()):
        say(name)
        calibration = calibrate(pipeline, true, SIZES, per_layer=per_layer, steps=steps, batch=batch)
        points = calibration.points.assign(size=calibration.points["size"].map(format_size))
        kept(out / f"{name}-points.json", lambda: points)
        kept(changes_path, calibration.table)
        kept_law(law_path, lambda: calibration.law)
    return from_json(law_path.read_text()), saved(changes_path)


def draw_losses(found: dict[str, dict[str, pd.DataFrame]]) -> Figure:
    """Loss against g at every size, and by level at the smallest and the largest."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    _curves(panels[0, 0], found["g"]["table"], "g", "all self-attention")
    _curves(panels[0, 1], found["kappa"]["table"], "kappa", "all, g² = 1 + κ ln(N/T)")
    by_time = found["g"]["by_timestep"]
    _curves(panels[0, 2], by_time[by_time["size"] == format_size(SIZES[3])], "g", "128 px, by timestep", "timestep")
    for axes, name in zip(panels[1], [name for name in found if name not in ("g", "kappa")], strict=True):
        _curves(axes, found[name]["table"], "g", f"only {name}")
    return figure


def _curves(axes: Axes, table: pd.DataFrame, x: str, title: str, hue: str = "size") -> None:
    named = table.assign(**{hue: [f"{value} px" if hue == "size" else f"t = {value}" for value in table[hue]]})
    figures.draw_loss(axes, named, x, hue)
    axes.set(title=title, xlabel=x)
    axes.legend(frameon=False, fontsize=7)


def draw_factors(
    best: pd.DataFrame, highest: float, measured: ScalingLaw, trained: dict[str, int], model: str
) -> Figure:
    """The g that the loss asks for, of those up to `highest`, the paper's, and those that keep the entropy."""
    ratios = {format_size(size): size[0] * size[1] / 64**2 for size in SIZES}
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    x = np.geomspace(0.22, 4.6, 50)
    kept = np.array([[measured.scale_factor(layer, round(t * r), t) for r in x] for layer, t in trained.items()])
    colours = sns.color_palette("deep")
    axes.plot(
        x, np.median(kept, 0), color=colours[1], label="keeps the entropy (`measured`): median and range of layers"
    )
    axes.fill_between(x, kept.min(0), kept.max(0), color=colours[1], alpha=0.15, linewidth=0)
    finest = max(trained.values())
    axes.plot(x, [np.sqrt(np.log(r * finest) / np.log(finest)) for r in x], "--", color="0.35", label="the paper's")
    at = best["size"].map(ratios)
    errors = np.stack([best["g"] - best["low"], best["high"] - best["g"]]).clip(0)
    axes.errorbar(at, best["g"], yerr=errors, fmt="o", color=colours[0], capsize=3, label="least denoising loss, 95 %")
    end = best["g"] >= highest
    if end.any():
        label = "least denoising loss, at the end of what was tried"
        axes.plot(at[end], best["g"][end], "^", color=colours[0], markersize=11, label=label)
    axes.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xscale="log", title=f"{model}: which factor does a size need?")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tokens relative to training, N/T", ylabel="factor g of the self-attention logits")
    axes.set_xticks([0.25, 1, 2.25, 4], ["1/4", "1", "2.25", "4"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    return figure


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def best_table(found: dict[str, dict[str, pd.DataFrame]], tokens: int) -> pd.DataFrame:
    """The g of least loss with its interval, beside the paper's and full invariance's at the finest level."""
    best = found["g"]["best"]
    trained = next(size for size in SIZES if size == (64, 64))
    rows = []
    for row, size in zip(best.itertuples(), SIZES, strict=True):
        own = found["g"]["table"]
        lowest = own[own["size"] == row.size].sort_values("change").iloc[0]
        ratio = size[0] * size[1] / (trained[0] * trained[1])
        rows.append(
            {
                "size, px": row.size,
                "N/T": f"{ratio:.3g}",
                "g of least loss": f"{row.g:.2f} [{row.low:.2f}, {row.high:.2f}]",
                "change at the best g tried": f"{lowest.change:+.2%} [{lowest.low:+.2%}, {lowest.high:+.2%}]",
                "paper's g": f"{np.sqrt(np.log(ratio * tokens) / np.log(tokens)):.2f}",
                "`log`'s g": f"{np.log(ratio * tokens) / np.log(tokens):.2f}",
            }
        )
    return pd.DataFrame(rows)


def changes_table(changes: pd.DataFrame) -> pd.DataFrame:
    """Held-out change of a calibrated law."""
    return pd.DataFrame(
        {
            "size, px": changes["size"],
            "held-out change of the loss": [
                f"{c:+.2%} [{low:+.2%}, {high:+.2%}]"
                for c, low, high in zip(changes["change"], changes["low"], changes["high"], strict=True)
            ],
            "images": changes["images"],
        }
    )


def percent(drift: pd.Series) -> str:
    """The share of a drift that is gone."""
    share, low, high = (round(100 * drift[name]) for name in ("removed", "removed_low", "removed_high"))
    return f"{share} % [{low}, {high}]"


def drift_summary(outcome: Any) -> pd.DataFrame:
    """Share of the drift removed, per law and size."""
    table = outcome.table("layer")
    table = table[table["law"] != "original"]
    wide = table.assign(text=[percent(row) for _, row in table.iterrows()]).pivot(
        index="law", columns="size", values="text"
    )
    return wide[list(dict.fromkeys(table["size"]))].reset_index()


def opinions(compared: pd.DataFrame) -> pd.DataFrame:
    """What either network says of the kernel distance under every law, side by side; see `Quality.table`."""
    rows = []
    distances = compared[compared["metric"].str.startswith("kernel_distance")]
    for (law, size), own in distances.groupby(["law", "size"], sort=False):
        by_network = own.set_index("metric")
        said = {network: by_network.loc[f"kernel_distance:{network}"] for network in JUDGES}
        told = {
            network: f"{row['difference']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"
            for network, row in said.items()
        }
        shown = {network: row["verdict"] for network, row in said.items() if row["verdict"] in ("better", "worse")}
        rows.append({"law": law, "size, px": size, **told, "shown": summed_up(shown)})
    return pd.DataFrame(rows)


def summed_up(shown: dict[str, str]) -> str:
    """What the networks that show a difference say, in a few words."""
    if not shown:
        return "by neither"
    verdicts = set(shown.values())
    if len(shown) < len(JUDGES):
        return ", ".join(f"{verdict} by {network} alone" for network, verdict in shown.items())
    return f"{verdicts.pop()} by both" if len(verdicts) == 1 else "opposed"


@dataclass(frozen=True)
class Agreement:
    """How alike two networks judge.

    Attributes:
        changed: laws and sizes where anything changes.
        rank: correlation (Spearman) of the changes of the kernel distance that the two see there.
        either: differences that at least one network shows.
        both: those that both show, in the same direction.
        opposed: those of which one shows the contrary of the other.
    """

    changed: int
    rank: float
    either: int
    both: int
    opposed: int

    @classmethod
    def of(cls, compared: pd.DataFrame) -> "Agreement":
        """Read off the comparisons of a study; see `Quality.table`."""
        distances = compared[compared["metric"].str.startswith("kernel_distance")]
        wide = distances.pivot(index=["law", "size"], columns="metric", values="difference")
        changed = wide[(wide != 0).any(axis=1)]
        rank = stats.spearmanr(*(changed[f"kernel_distance:{network}"] for network in JUDGES)).statistic
        verdicts = distances.pivot(index=["law", "size"], columns="metric", values="verdict")
        shown = verdicts.isin(["better", "worse"])
        alike = verdicts.nunique(axis=1) == 1
        both = shown.all(axis=1)
        return cls(
            len(changed),
            float(rank),
            int(shown.any(axis=1).sum()),
            int((both & alike).sum()),
            int((both & ~alike).sum()),
        )

    def __str__(self) -> str:
        return (
            f"Over the {self.changed} laws and sizes where anything changes, the changes that the two see are "
            f"correlated by {self.rank:+.2f} (Spearman); of {self.either} differences that either shows, "
            f"{self.both} are shown by both."
        )


PAGE = """# Results on `{model}`

Every number and figure on this page was measured by this command:

    {command}

(weights {fingerprint}). Intervals are 95 %. {count} images for the losses; {drawn} images for every law
and size, the same prompts and seeds for all.

## Does entropy follow ln N?

{law}

## Which g does the model's own loss ask for?

The denoising loss on true drawings of each size, relative to g = 1; same images, noise and timesteps for every g
(t = 0 is the clean image). The g of least loss is the vertex of a parabola, so it may lie between those tried.

![The factor that each size needs](results-{model}-factors.png)

![Loss against g](results-{model}-loss.png)

{best}

One g for every layer, by gradient, judged on images it was not fitted to. At 64 px, where the model was trained,
nothing should be gained:

{one}

One g for each layer:

{layers}

## Which law keeps the entropy?

Share of the drift that is gone, `layer` level:

{drift}

## Are the images better?

{verdict}

The bars are the interval of the difference from the original model. `yarn` leaves small sizes alone, so that nothing
differs there.

![Quality against size](results-{model}-quality.png)

Intervals, and the number of pairs that would show such a difference with a power of 80 %, are each by itself; p is
after Holm's correction over all {comparisons} comparisons, which asks for more.

{quality}

## Do two networks agree?

Change of the kernel distance as the critic sees it, which was made for these drawings, and as EfficientNet-Lite0 sees
it, which others trained on the photographs of ImageNet. {agreement}

{opinions}
"""


def main(
    model: Annotated[str, typer.Option(help="A bundled model.")] = "reference",
    out: Annotated[Path, typer.Option(help="Folder of the images.")] = Path("study-run"),
    results: Annotated[Path | None, typer.Option(help="Of losses and laws; docs/results/MODEL if none.")] = None,
    docs: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("docs"),
    count: Annotated[int, typer.Option(help="Prompts whose images are drawn, at most those bundled.")] = 64,
    seeds: Annotated[int, typer.Option(help="CaptionedImages of each prompt, law and size.")] = 4,
    true: Annotated[int, typer.Option(help="Real images for the losses.")] = 48,
    laws: Annotated[str, typer.Option(help="Laws whose images are drawn.")] = (
        "original,paper,log,yarn,gaussian,measured,calibrated"
    ),
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 8,
    scale_factors: Annotated[str, typer.Option(help="Values of g at which the loss is measured.")] = (
        "0.5,0.7,0.85,1.0,1.15,1.35,1.6,2.0"
    ),
    fit_steps: Annotated[int, typer.Option(help="Gradient steps of a calibration.")] = 24,
    fit_batch: Annotated[int, typer.Option(help="CaptionedImages in each.")] = 8,
) -> None:
    """Measure what is missing, and write the page."""
    quiet_libraries()
    judge = judge_for(JUDGES)  # first: it may not be installed
    out.mkdir(parents=True, exist_ok=True)
    results = results or docs / "results" / model
    pipeline = load(model, device="auto")
    everything = images()
    drawings = everything[:: max(1, len(everything.captions) // true)]
    fitting = {"steps": fit_steps, "batch": fit_batch}
    tried = [float(g) for g in scale_factors.split(",")]
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": 4.0, "model": model}
    of_losses = {"true": true, "scale_factors": tried, "fit_steps": fit_steps, "fit_batch": fit_batch}
    check_settings(results, {**settings, **of_losses, "fingerprint": fingerprint(pipeline)})
    check_settings(results, {"count": count, "seeds": seeds, "laws": laws}, "images.json")
    losses = measure_losses(pipeline, drawings, tried, results)
    _, changes_one = calibrated(pipeline, drawings, results, per_layer=False, **fitting)
    by_loss, changes_layers = calibrated(pipeline, drawings, results, per_layer=True, **fitting)

    first = sweep(pipeline, prompts=prompts()[:8], sizes=SIZES, seeds=[0, 1], store=out / "law", **settings)
    known = {
        "measured": lambda: kept_law(results / "measured.json", lambda: derive_measured(first).law),
        "gaussian": lambda: kept_law(results / "gaussian.json", lambda: derive_gaussian(first)),
        "calibrated": lambda: by_loss,
    }
    chosen = [known[name]() if name in known else resolve(name) for name in laws.split(",")]
    drawn: Sweep = sweep(
        pipeline, prompts=prompts()[:count], sizes=SIZES, seeds=list(range(seeds)), laws=["original"],
        store=out / "images", rows=ROWS, scale_factors=(), **settings,
    )  # fmt: skip
    outcome = kept_outcome(out / "outcome.json", extend(drawn, laws=chosen), judge)
    assert outcome.quality is not None
    law_in_n, compared = fit(first), outcome.quality.table()
    write_atomically(results / "fit.json", law_in_n.to_json().encode())
    save(results / "drift.json", outcome.table("layer"))
    save(results / "quality.json", compared)

    with figures.theme():
        factors = draw_factors(losses["g"]["best"], max(tried), known["measured"](), training_tokens(pipeline), model)
        factors.savefig(docs / f"results-{model}-factors.png", dpi=110)
        draw_losses(losses).savefig(docs / f"results-{model}-loss.png", dpi=80)
        figures.quality_by_law(outcome.quality).savefig(docs / f"results-{model}-quality.png", dpi=80)
    page = PAGE.format(
        model=model,
        command=f"python -m research.study --model {model} --count {count} --seeds {seeds} --true {true} "
        f"--steps {steps} --laws {laws} --scale-factors {scale_factors} --fit-steps {fit_steps} "
        f"--fit-batch {fit_batch}",
        fingerprint=first.manifest.fingerprint,
        count=len(drawings.captions),
        drawn=len(drawn.grid.prompts) * len(drawn.grid.seeds),
        law=str(law_in_n),
        best=markdown(best_table(losses, max(training_tokens(pipeline).values()))),
        one=markdown(changes_table(changes_one)),
        layers=markdown(changes_table(changes_layers)),
        drift=markdown(drift_summary(outcome)),
        verdict="\n".join(f"- {sentence}" for sentence in outcome.quality.verdict()),
        quality=markdown(quality_table(outcome.quality)),
        comparisons=len(outcome.quality.comparisons),
        agreement=Agreement.of(compared),
        opinions=markdown(opinions(compared)),
    )
    path = docs / f"results-{model}.md"
    path.write_text(page)
    say(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
