"""The answers while a model learns: `python -m benchmarks.checkpoints` writes docs/results-checkpoints.md.

The transformer reference is trained once more by its recipe, from nothing, and its averaged weights are kept on the
way. Of each is measured how peaked its attention is, how its entropy grows, and which g its loss asks for. Two hours on
one core; restarted, it goes on.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import seaborn as sns
import typer
from matplotlib.figure import Figure
from safetensors.torch import load_file
from scipy import stats

from benchmarks.ablations import ENDS
from benchmarks.study import SIZES, check_settings, kept, markdown, save, say
from entropy_probe.fitting import fit
from entropy_probe.pipelines import Pictures, format_size, load, quiet_libraries
from entropy_probe.reference import pictures, prompts
from entropy_probe.reference.train import SIZE
from entropy_probe.reference.train_dit import Recipe, examples, milestone, train
from entropy_probe.report import figures
from entropy_probe.sweep import sweep, write_atomically
from entropy_probe.validation.loss import LossCurve, loss_against_g

MODEL = "reference-dit"
MULTIPLIERS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.35, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.5, 9.0)
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the recipe's steps: when the weights are kept."""

PROMPTS, SEEDS = 8, (0, 1)
"""Whose pictures are drawn to measure the entropy."""


def train_again(work: Path, recipe: Recipe) -> list[int]:
    """Train by the recipe, unless that was done, and return the steps whose weights were kept.

    Raises:
        SystemExit: if there is a training that did not keep them.
    """
    steps = [round(share * sum(recipe.cycles)) for share in SHARES]
    if not all(milestone(work, step).exists() for step in steps):
        base, drawings = load("reference", device="cpu", dtype="float32"), pictures()
        pixels = drawings.at((SIZE, SIZE)).movedim(1, -1)
        train(work, *examples(base, pixels, list(drawings.captions)), recipe, milestones=steps)
    if gone := [step for step in steps if not milestone(work, step).exists()]:
        raise SystemExit(f"the training in {work} went past step {gone[0]} without keeping it: name another --work")
    return steps


def asked_for(curve: LossCurve) -> pd.DataFrame:
    """Where the loss is least at each size, and by how much it is lower at the best g that was tried."""
    tried = curve.table()
    lowest = tried.loc[tried.groupby("size", sort=False)["change"].idxmin()].set_index("size")
    changes = lowest[["change", "low", "high"]].add_prefix("change_").rename(columns={"change_change": "change"})
    return curve.best().join(changes, on="size")


def answer(pipeline: Any, true: Pictures, out: Path) -> pd.DataFrame:
    """What one checkpoint says: a row per size.

    Args:
        pipeline: with the weights of the checkpoint.
        true: pictures for the loss.
        out: folder of the pictures that are drawn.
    """
    drawn = sweep(
        pipeline, prompts=prompts()[:PROMPTS], sizes=SIZES, seeds=SEEDS, steps=8, guidance_scale=4.0, multipliers=(),
        store=out, model=MODEL,
    )  # fmt: skip
    fitted = fit(drawn)
    trained = fitted.points[(fitted.points["height"] == SIZE) & (fitted.points["width"] == SIZE)]
    peaked = (trained["entropy"] / np.log(trained["tokens"])).groupby(trained["prompt"]).mean()
    curve = loss_against_g(pipeline, true, ENDS, MULTIPLIERS)
    neutral = curve.losses[curve.losses["x"] == curve.neutral]
    by_picture = neutral.groupby(["size", "picture"])["loss"].mean()
    losses = {format_size(size): with_interval(own, "loss") for size, own in by_picture.groupby("size")}
    return (
        asked_for(curve)
        .join(pd.DataFrame(losses).T, on="size")
        .assign(
            **with_interval(peaked, "peaked"),
            slope=fitted.pooled.slope,
            slope_low=fitted.pooled.slope_low,
            slope_high=fitted.pooled.slope_high,
        )
    )


def ask(step: int, true: Pictures, work: Path) -> pd.DataFrame:
    """Load a checkpoint, and `answer`."""
    say(f"step {step}")
    pipeline = load(MODEL, device="auto")
    pipeline.transformer.load_state_dict(load_file(milestone(work, step)))
    return answer(pipeline, true, work / f"drawn-{step}")


def with_interval(values: pd.Series, name: str) -> dict[str, float]:
    """Mean and 95 % interval (Student's t), as `name`, `name_low` and `name_high`."""
    mean = values.mean()
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def draw(found: pd.DataFrame) -> Figure:
    """The g of least loss against the step of the training, a line for each size."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for colour, (size, own) in zip(sns.color_palette("deep"), found.groupby("size", sort=False), strict=False):
        errors = np.stack([own["g"] - own["low"], own["high"] - own["g"]]).clip(0)
        axes.errorbar(own["step"], own["g"], yerr=errors, fmt="o-", color=colour, capsize=3, label=f"{size} px")
        end = at_end(own["g"])
        axes.plot(own["step"][end], own["g"][end], "^", color=colour, markersize=11)
    axes.plot([], [], "^", color="0.5", markersize=11, label="at the end of what was tried")
    axes.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="training step", ylabel="g of least denoising loss, 95 %")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def at_end(g: pd.Series) -> pd.Series:
    """Whether the least loss is at an end of what was tried, so that it may lie beyond."""
    return g.isin([min(MULTIPLIERS), max(MULTIPLIERS)])


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row per checkpoint, as it is read."""
    rows = []
    for step, own in found.assign(end=at_end(found["g"])).groupby("step"):
        by_size = own.set_index("size")
        first = own.iloc[0]
        trained = by_size.loc[str(SIZE)]
        told = {
            f"g at {size} px": f"{row.g:.2f} [{row.low:.2f}, {row.high:.2f}]{' (an end)' if row.end else ''}: "
            f"{row.change:+.1%} [{row.change_low:+.1%}, {row.change_high:+.1%}]"
            for size, row in by_size.iterrows()
        }
        rows.append(
            {
                "step": step,
                "loss at 64 px": f"{trained.loss:.3f} [{trained.loss_low:.3f}, {trained.loss_high:.3f}]",
                "H / ln T": f"{first.peaked:.3f} [{first.peaked_low:.3f}, {first.peaked_high:.3f}]",
                "b": f"{first.slope:.3f} [{first.slope_low:.3f}, {first.slope_high:.3f}]",
                **told,
            }
        )
    return pd.DataFrame(rows)


PAGE = """# While a model learns

Every number and the figure on this page was measured by this command:

    {command}

The transformer `reference-dit` was trained once more by its recipe, from nothing, with one seed, and its averaged
weights were kept on the way; the learning rate falls to zero over the last {decay:.0%} of the steps. Nothing beyond the
recipe's end was tried. {count} true pictures for the losses; {drawn} pictures of each size for the entropy. Intervals
are 95 %.

![The g of least loss while the model learns](results-checkpoints.png)

H / ln T is the mean entropy of the self-attention at the training size relative to that of uniform attention: how
peaked it is. b is the slope of H against ln N. g is where the loss is least, with its interval, and the change of the
loss at the best g that was tried; where that is an end of what was tried, the least may lie beyond.

{table}
"""


def main(
    work: Annotated[Path, typer.Option(help="Folder of the weights and pictures.")] = Path("checkpoints-run"),
    docs: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("docs"),
    true: Annotated[int, typer.Option(help="True pictures for the losses.")] = 48,
) -> None:
    """Train, measure what is missing, and write the page."""
    quiet_libraries()
    recipe = Recipe()
    of_answers = {"true": true, "multipliers": MULTIPLIERS, "prompts": PROMPTS, "seeds": SEEDS}
    check_settings(work, {"recipe": asdict(recipe), **of_answers})
    everything = pictures()
    drawings = everything[:: max(1, len(everything.captions) // true)]
    parts = []
    for step in train_again(work, recipe):
        own = kept(work / f"answer-{step}.json", partial(ask, step, drawings, work))
        parts.append(own.assign(step=step))
    found = pd.concat(parts, ignore_index=True)
    (docs / "results").mkdir(parents=True, exist_ok=True)
    save(docs / "results" / "checkpoints.json", found)
    with figures.theme():
        draw(found).savefig(docs / "results-checkpoints.png", dpi=110)
    page = PAGE.format(
        command=f"python -m benchmarks.checkpoints --true {true}",
        decay=recipe.decay,
        count=len(drawings.captions),
        drawn=PROMPTS * len(SEEDS),
        table=markdown(summary(found)),
    )
    write_atomically(docs / "results-checkpoints.md", page.encode())
    say(f"written to {docs / 'results-checkpoints.md'}")


if __name__ == "__main__":
    typer.run(main)
