"""Measure how the results of the study depend on its settings: `python -m research.ablations`.

It samples some of the study's prompts with a grid of kappa, with single groups of layers scaled, at other sizes and
shapes, and with other guidance and steps, and writes docs/results-MODEL-ablations.md. Each condition has fewer images
than in the study. Rerun the same command to resume.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from entropy_probe import plots
from entropy_probe.estimation import derive
from entropy_probe.evaluation import Outcome, Scorer, in_order, load_scorer
from entropy_probe.laws import Kappa, Original, Paper, ScalingLaw, from_json
from entropy_probe.models import Size, format_size, load, quiet_libraries, training_tokens
from entropy_probe.plots.tables import kappa_of_laws, metric_label
from entropy_probe.reference import prompts
from entropy_probe.runs import Sweep, extend, sweep, write_atomically
from research.agreement import JUDGES, SHOWN
from research.losses import SIZES, layer_groups
from research.storage import (
    check_settings,
    fingerprint_as_stored,
    log,
    markdown,
    stored_law,
    stored_outcome,
    write_table,
)
from research.study import LAW_PROMPTS, LAW_SEEDS, ROWS
from research.study_page import percent_removed

ENDS: list[Size] = [(32, 32), (64, 64), (128, 128)]
"""Half the training size, the training size and twice the training size."""

SHAPES: list[Size] = [(64, 64), (72, 96), (128, 64), (72, 128), (192, 192)]
KAPPAS = {(32, 32): (0.15, 0.3, 0.5, 0.65), (128, 128): (0.2, 0.5, 1.0, 2.0, 4.0)}
"""Up to values beyond constant entropy. At a quarter of the tokens g is zero for kappa = 0.72."""

GROUP_KAPPA = 0.5
"""Kappa of the group of layers that is scaled alone."""

SETTINGS = {
    "guidance 1": {"guidance_scale": 1.0},
    "guidance 7.5": {"guidance_scale": 7.5},
    "20 steps": {"steps": 20},
}
"""Changes of the sampling settings of the study, 8 steps and guidance scale 4."""


@dataclass(frozen=True)
class Ablation:
    """One changed condition and its outcome.

    Attributes:
        section: section of the page.
        change: the condition, if the laws and sizes do not show it.
        outcome: of several laws, relative to the original model.
    """

    section: str
    change: str | None
    outcome: Outcome


def sample_and_judge(
    pipeline: Any, original: Sweep, measured: ScalingLaw, scorer: Scorer, out: Path, *, progress: bool = True
) -> Iterator[Ablation]:
    """Yield every ablation; sample and evaluate what `out` does not hold yet.

    Args:
        pipeline: the model.
        original: images of the original model at `ENDS`; its prompts, seeds and settings are used for all ablations.
        measured: the law that keeps the entropy.
        scorer: evaluates the images.
        out: folder of images and outcomes.
        progress: show progress bars.
    """
    base, trained = original.manifest, original.manifest.training_size

    def ablation(section: str, change: str | None, made: Sweep) -> Ablation:
        path = out / "outcomes" / f"{change or format_size(made.grid.sizes[0])}.json"
        path.parent.mkdir(exist_ok=True)
        return Ablation(section, change, stored_outcome(path, made, scorer, progress=progress))

    for size, kappas in KAPPAS.items():
        laws = [Original(), *(Kappa({"*": kappa}) for kappa in kappas), measured]
        yield ablation("kappa", None, extend(original, laws=laws, sizes=[size, trained], progress=progress))
    layers = training_tokens(pipeline)
    for name, globs in layer_groups(pipeline).items():
        kappa = {layer: GROUP_KAPPA if any(fnmatch(layer, glob) for glob in globs) else 0.0 for layer in layers}
        made = extend(original, laws=[Original(), Kappa(kappa)], sizes=ENDS, progress=progress)
        yield ablation("groups", f"only {name}", made)
    usual: dict[str, Any] = {"steps": base.steps, "guidance_scale": base.guidance_scale}
    common: dict[str, Any] = dict(
        prompts=original.grid.prompts, seeds=original.grid.seeds, laws=[Original(), Paper(), measured], rows=ROWS,
        scale_factors=(), model=base.model, progress=progress,
    )  # fmt: skip
    yield ablation("shapes", None, sweep(pipeline, sizes=SHAPES, store=out / "shapes", **usual, **common))
    for name, changed in SETTINGS.items():
        store = out / name.replace(" ", "-")
        made = sweep(pipeline, sizes=ENDS[1:], store=store, **{**usual, **changed}, **common)
        yield ablation("settings", name, made)


def page_table(ablations: Sequence[Ablation]) -> pd.DataFrame:
    """Tabulate the drift removed and the difference of every metric, one row by change, law and size."""
    rows = []
    for ablation in ablations:
        assert ablation.outcome.quality is not None
        drift = ablation.outcome.table("layer").set_index(["law", "size"])
        compared = ablation.outcome.quality.table().set_index("metric")
        for (law, size), group in compared.groupby(["law", "size"], sort=False):
            differences = {metric_label(metric): difference(group.loc[metric]) for metric in in_order(group.index)}
            change = {"change": ablation.change} if ablation.change else {}
            removed = percent_removed(drift.loc[(law, size)])
            rows.append({**change, "law": law, "size, px": size, "drift removed": removed, **differences})
    return pd.DataFrame(rows)


def long_table(ablations: Sequence[Ablation]) -> pd.DataFrame:
    """Return the comparisons and the drift removed, one row by change, law, size and metric."""
    parts = []
    for ablation in ablations:
        assert ablation.outcome.quality is not None
        drift = ablation.outcome.table("layer")[["law", "size", "removed", "removed_low", "removed_high"]]
        compared = ablation.outcome.quality.table().merge(drift, on=["law", "size"], how="left")
        parts.append(compared.assign(section=ablation.section, change=ablation.change))
    return pd.concat(parts, ignore_index=True)


def difference(compared: pd.Series) -> str:
    """Format a comparison as a cell of a table: the difference, its interval and a significant verdict."""
    mark = f" **{compared['verdict']}**" if compared["verdict"] in SHOWN else ""
    return f"{compared['difference']:+.3g} [{compared['low']:+.3g}, {compared['high']:+.3g}]{mark}"


PAGE = """# Ablations on `{model}`

Every number and figure on this page was measured by this command (weights {fingerprint}):

    {command}

There are {pairs} pairs of images for every law and size, sampled in {steps} steps with guidance {guidance:g} unless the
table says otherwise. Differences are from the original model with the same prompts and seeds, with individual 95 %
intervals. **Better** and **worse** mark differences that are significant after Holm's correction over one family of
comparisons: one grid of kappa, one group of layers, all shapes, or one setting. Networks that judge: {judges}.

## How large should kappa be?

g² = 1 + κ ln(N/T) with one κ for all layers, and at least g = {floor:g}. The measured law, which keeps the entropy, is
shown at the mean κ of its layers.

{figures}

{kappa}

## Which layers matter?

κ = {group_kappa:g} in one group of layers, which gives g = {flat:.2f} at 32 px and {sharp:.2f} at 128 px. All other
layers keep g = 1.

{groups}

## Other sizes and shapes

The measured law was derived from sizes between 32 and 128 px; beyond them it is extrapolated.

{shapes}

## Other guidance, more steps

{settings}
"""


def page(ablations: Sequence[Ablation], original: Sweep, *, command: str, charts: Sequence[str]) -> str:
    """Return the page as Markdown.

    Args:
        ablations: every ablation.
        original: images of the original model.
        command: the command that measured them.
        charts: paths of the figures of the kappa grids.
    """
    law, manifest = Kappa({"*": GROUP_KAPPA}), original.manifest
    sections = dict.fromkeys(ablation.section for ablation in ablations)
    tables = {name: markdown(page_table([each for each in ablations if each.section == name])) for name in sections}
    return PAGE.format(
        model=manifest.model,
        command=command,
        fingerprint=manifest.fingerprint,
        pairs=len(original.grid.prompts) * len(original.grid.seeds),
        steps=manifest.steps,
        guidance=manifest.guidance_scale,
        judges=", ".join(JUDGES),
        floor=law.floor,
        group_kappa=GROUP_KAPPA,
        flat=law.scale_factor("*", 1, 4),
        sharp=law.scale_factor("*", 4, 1),
        figures="\n\n".join(f"![Quality against kappa]({chart})" for chart in charts),
        **tables,
    )


def law_of_study(results: Path, settings: dict[str, Any]) -> ScalingLaw | None:
    """Return the measured law that the study stored for the same model and settings, None without a study.

    Raises:
        SystemExit: if the study has other settings.
    """
    if not (results / "settings.json").exists():
        return None
    stored = json.loads((results / "settings.json").read_text())
    if any(stored.get(name) != value for name, value in settings.items()):
        raise SystemExit(f"{results} holds results of other settings, {stored}: run research.study again")
    return from_json((results / "measured.json").read_text())


def write_figures(ablations: Sequence[Ablation], model: str, docs: Path) -> list[str]:
    """Save the figures of the kappa grids and return their file names."""
    names = []
    with plots.theme():
        for outcome in (ablation.outcome for ablation in ablations if ablation.section == "kappa"):
            assert outcome.quality is not None
            names.append(f"results-{model}-kappa-{format_size(outcome.sweep.grid.sizes[0])}.png")
            kappas = kappa_of_laws(outcome.sweep.grid.laws, outcome.sweep.frame())
            figure, _ = plots.quality_by_kappa(outcome.quality, kappas)
            figure.savefig(docs / names[-1], dpi=80)
    return names


def main(
    model: Annotated[str, typer.Option(help="Name of a bundled model.")] = "reference",
    out: Annotated[Path, typer.Option(help="Folder of the sampled images.")] = Path("ablations-run"),
    docs: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs"),
    count: Annotated[int, typer.Option("--prompts", help="Number of prompts to sample.")] = 16,
    seeds: Annotated[int, typer.Option(help="Images of each prompt, law and size.")] = 2,
    steps: Annotated[int, typer.Option(help="Sampling steps, the same as in the study.")] = 8,
) -> None:
    """Measure how the results of the study depend on its settings, and write the page of ablations."""
    quiet_libraries()
    scorer = load_scorer(JUDGES)  # fails at once if a network is not installed
    out.mkdir(parents=True, exist_ok=True)
    pipeline = load(model, device="auto")
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": 4.0, "model": model}
    results = docs / "results" / model
    check_settings(results, {"prompts": count, "seeds": seeds, "steps": steps}, "ablations-settings.json")
    measured = law_of_study(results, {**settings, "fingerprint": fingerprint_as_stored(results, pipeline)})
    if measured is None:
        first = sweep(
            pipeline, prompts=prompts()[:LAW_PROMPTS], sizes=SIZES, seeds=LAW_SEEDS, store=out / "law", **settings
        )
        measured = stored_law(out / "measured.json", lambda: derive(first).law)
    original = sweep(
        pipeline, prompts=prompts()[:count], sizes=ENDS, seeds=range(seeds), store=out / "original",
        rows=ROWS, scale_factors=(), **settings,
    )  # fmt: skip
    ablations = list(sample_and_judge(pipeline, original, measured, scorer, out))
    write_table(results / "ablations.json", long_table(ablations))
    charts = write_figures(ablations, model, docs)
    command = f"python -m research.ablations --model {model} --prompts {count} --seeds {seeds} --steps {steps}"
    path = docs / f"results-{model}-ablations.md"
    write_atomically(path, page(ablations, original, command=command, charts=charts).encode())
    log(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
