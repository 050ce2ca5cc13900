"""Measure losses, laws, drift and image quality of a bundled model: `python -m research.study`.

It writes docs/results-MODEL.md and its figures. Rerun the same command to resume: losses, laws and tables are stored in
docs/results/MODEL/ with their settings, images in the folder of the study. Hours on two cores at full size; lower
`--prompts` and `--seeds` for a smaller study.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_probe import plots
from entropy_probe.estimation import derive, fit
from entropy_probe.evaluation import Outcome, load_scorer
from entropy_probe.laws import ScalingLaw, resolve
from entropy_probe.models import load, quiet_libraries, training_tokens
from entropy_probe.plots.tables import quality_table
from entropy_probe.reference import images, prompts
from entropy_probe.runs import Sweep, extend, sweep, write_atomically
from research.agreement import JUDGES, Agreement, judge_table
from research.losses import SIZES, Tables, calibrated_law, factors_figure, losses_figure, measure_losses
from research.storage import (
    check_settings,
    fingerprint_as_stored,
    log,
    markdown,
    stored_law,
    stored_outcome,
    write_table,
)
from research.study_page import PAGE, best_table, changes_table, drift_table

ROWS = 64
"""Query rows measured per call while the images are sampled: drift is a mean over them."""

LAW_PROMPTS, LAW_SEEDS = 8, (0, 1)
"""The sweep from which laws are derived."""


@dataclass(frozen=True)
class Settings:
    """Settings of a study; the names are the options of the command line."""

    model: str
    prompts: int
    seeds: int
    real_images: int
    laws: str
    steps: int
    scale_factors: str
    fit_steps: int
    fit_batch: int
    guidance_scale: float = 4.0

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of every sampling run."""
        return {"steps": self.steps, "guidance_scale": self.guidance_scale, "model": self.model}

    @property
    def command(self) -> str:
        """The command that runs this study."""
        options = {name: value for name, value in asdict(self).items() if name != "guidance_scale"}
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
        return f"python -m research.study {words}"

    def check(self, results: Path, weights: str) -> None:
        """Record the settings in a folder of results, or check that they match the recorded ones."""
        keys = ("real_images", "scale_factors", "fit_steps", "fit_batch")
        losses = {name: value for name, value in asdict(self).items() if name in keys}
        check_settings(results, {**self.sampling, **losses, "fingerprint": weights})
        sampled = {"prompts": self.prompts, "seeds": self.seeds, "laws": self.laws}
        check_settings(results, sampled, "images.json")


@dataclass(frozen=True)
class Results:
    """Everything that the page shows.

    Attributes:
        losses: tables of loss against g, by group of layers.
        one, layers: held-out change of the loss by one calibrated g, and by one per layer.
        measured: the law that keeps the entropy.
        first: the sweep from which laws are derived.
        outcome: of every law, on the sampled images.
    """

    losses: dict[str, Tables]
    one: Any
    layers: Any
    measured: ScalingLaw
    first: Sweep
    outcome: Outcome


def measure(pipeline: Any, settings: Settings, out: Path, results: Path) -> Results:
    """Return the stored results; measure the missing ones."""
    scorer = load_scorer(JUDGES)
    drawings = images()
    drawings = drawings[:: max(1, len(drawings.captions) // settings.real_images)]
    scale_factors = [float(g) for g in settings.scale_factors.split(",")]
    losses = measure_losses(pipeline, drawings, scale_factors, results)
    calibrate = partial(calibrated_law, pipeline, drawings, results, steps=settings.fit_steps, batch=settings.fit_batch)
    _, one = calibrate(per_layer=False)
    calibrated, layers = calibrate(per_layer=True)
    first = sweep(
        pipeline, prompts=prompts()[:LAW_PROMPTS], sizes=SIZES, seeds=LAW_SEEDS, store=out / "law", **settings.sampling
    )
    derived = {
        "measured": stored_law(results / "measured.json", lambda: derive(first).law),
        "gaussian": stored_law(results / "gaussian.json", lambda: derive(first, "gaussian").law),
        "calibrated": calibrated,
    }
    laws = [derived[name] if name in derived else resolve(name) for name in settings.laws.split(",")]
    original: Sweep = sweep(
        pipeline, prompts=prompts()[: settings.prompts], sizes=SIZES, seeds=range(settings.seeds), laws=["original"],
        store=out / "images", rows=ROWS, scale_factors=(), **settings.sampling,
    )  # fmt: skip
    outcome = stored_outcome(out / "outcome.json", extend(original, laws=laws), scorer)
    return Results(losses, one, layers, derived["measured"], first, outcome)


def write_page(found: Results, settings: Settings, tokens: dict[str, int], docs: Path) -> Path:
    """Write the page and its figures, and return its path."""
    quality, grid, model = found.outcome.quality, found.outcome.sweep.grid, settings.model
    assert quality is not None
    highest = max(float(g) for g in settings.scale_factors.split(","))
    with plots.theme():
        factors = factors_figure(found.losses["g"]["best"], highest, found.measured, tokens, model)
        factors.savefig(docs / f"results-{model}-factors.png", dpi=110)
        losses_figure(found.losses).savefig(docs / f"results-{model}-loss.png", dpi=80)
        figure, _ = plots.quality_by_law(quality)
        figure.savefig(docs / f"results-{model}-quality.png", dpi=80)
    compared = quality.table()
    page = PAGE.format(
        model=model,
        command=settings.command,
        fingerprint=found.first.manifest.fingerprint,
        real_images=settings.real_images,
        pairs=len(grid.prompts) * len(grid.seeds),
        law=str(fit(found.first)),
        best=markdown(best_table(found.losses["g"], max(tokens.values()))),
        one=markdown(changes_table(found.one)),
        layers=markdown(changes_table(found.layers)),
        drift=markdown(drift_table(found.outcome)),
        verdict="\n".join(f"- {sentence}" for sentence in quality.verdict()),
        quality=markdown(quality_table(quality)),
        comparisons=len(quality.comparisons),
        agreement=Agreement.of(compared),
        judges=markdown(judge_table(compared)),
    )
    path = docs / f"results-{model}.md"
    write_atomically(path, page.encode())
    return path


def main(
    model: Annotated[str, typer.Option(help="Name of a bundled model.")] = "reference",
    out: Annotated[Path, typer.Option(help="Folder of the sampled images.")] = Path("study-run"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of losses and laws.", show_default="docs/results/MODEL")
    ] = None,
    docs: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs"),
    count: Annotated[int, typer.Option("--prompts", help="Number of prompts to sample.")] = 64,
    seeds: Annotated[int, typer.Option(help="Images of each prompt, law and size.")] = 4,
    real_images: Annotated[int, typer.Option(help="Real images for the losses.")] = 48,
    laws: Annotated[str, typer.Option(help="Laws to sample.")] = "original,paper,log,yarn,gaussian,measured,calibrated",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 8,
    scale_factors: Annotated[
        str, typer.Option(help="Values of g at which the loss is measured.")
    ] = "0.5,0.7,0.85,1.0,1.15,1.35,1.6,2.0",
    fit_steps: Annotated[int, typer.Option(help="Gradient steps of a calibration.")] = 24,
    fit_batch: Annotated[int, typer.Option(help="Images in each gradient step.")] = 8,
) -> None:
    """Measure losses, laws, drift and image quality of a model, and write the results page."""
    quiet_libraries()
    load_scorer(JUDGES)  # fails at once if a network is not installed
    settings = Settings(model, count, seeds, real_images, laws, steps, scale_factors, fit_steps, fit_batch)
    results = results or docs / "results" / model
    out.mkdir(parents=True, exist_ok=True)
    pipeline = load(model, device="auto")
    settings.check(results, fingerprint_as_stored(results, pipeline))
    found = measure(pipeline, settings, out, results)
    assert found.outcome.quality is not None
    write_atomically(results / "fit.json", fit(found.first).to_json().encode())
    write_table(results / "drift.json", found.outcome.table("layer"))
    write_table(results / "quality.json", found.outcome.quality.table())
    log(f"written to {write_page(found, settings, training_tokens(pipeline), docs)}")


if __name__ == "__main__":
    typer.run(main)
