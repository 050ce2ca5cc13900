"""What the study's outcome depends on: `python -m research.ablations` writes docs/results-MODEL-ablations.md.

Some of the study's prompts under a grid of kappa, through single levels of the model, at other sizes and shapes, with
other guidance and steps. Fewer images for each, as these are many questions. What was sampled and judged is kept.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from entropy_probe.estimation import derive_measured
from entropy_probe.evaluation import Judge, Outcome, judge_for
from entropy_probe.laws import Kappa, Original, Paper, ScalingLaw, from_json
from entropy_probe.models import Size, fingerprint, format_size, load, quiet_libraries, training_tokens
from entropy_probe.plots import figures
from entropy_probe.plots.tables import in_order, kappa_of_laws, titled
from entropy_probe.reference import prompts
from entropy_probe.runs import Sweep, extend, sweep, write_atomically
from research.study import (
    JUDGES,
    ROWS,
    SIZES,
    check_settings,
    kept_law,
    kept_outcome,
    levels,
    markdown,
    percent,
    save,
    say,
)

ENDS: list[Size] = [(32, 32), (64, 64), (128, 128)]
"""Half, once and twice the training size."""

SHAPES: list[Size] = [(64, 64), (72, 96), (128, 64), (72, 128), (192, 192)]
KAPPAS = {(32, 32): (0.15, 0.3, 0.5, 0.65), (128, 128): (0.2, 0.5, 1.0, 2.0, 4.0)}
"""From none to beyond what keeps the entropy; at a quarter of the tokens, 0.72 would leave no attention at all."""

LEVEL_KAPPA = 0.5
"""Kappa of the layers of a level that is scaled by itself."""

SETTINGS = {
    "guidance 1": {"guidance_scale": 1.0},
    "guidance 7.5": {"guidance_scale": 7.5},
    "20 steps": {"steps": 20},
}
"""What is changed of the study's 8 steps and guidance of 4."""


@dataclass(frozen=True)
class Ablation:
    """One change, and what the images say.

    Attributes:
        section: the question that it belongs to.
        change: in a few words, where the laws and sizes do not say it.
        outcome: laws against the original.
    """

    section: str
    change: str | None
    outcome: Outcome


def sample_and_judge(
    pipeline: Any, drawn: Sweep, measured: ScalingLaw, judge: Judge, out: Path, *, progress: bool = True
) -> Iterator[Ablation]:
    """Every change in turn; what lies in `out` is taken up.

    Args:
        pipeline: of the model.
        drawn: images of the original model at `ENDS`, whose prompts, seeds and settings are taken over.
        measured: the law that keeps the entropy.
        judge: of the images.
        out: folder of the images and outcomes.
        progress: show how far it is.
    """
    base, trained = drawn.manifest, drawn.manifest.training_size
    shown = {"progress": progress}

    def answer(section: str, change: str | None, made: Sweep) -> Ablation:
        path = out / "outcomes" / f"{change or format_size(made.grid.sizes[0])}.json"
        path.parent.mkdir(exist_ok=True)
        return Ablation(section, change, kept_outcome(path, made, judge, **shown))

    for size, kappas in KAPPAS.items():
        grid = [Original(), *(Kappa({"*": kappa}) for kappa in kappas), measured]
        yield answer("kappa", None, extend(drawn, laws=grid, sizes=[size, trained], **shown))
    for name, globs in levels(pipeline).items():
        layers = training_tokens(pipeline)
        scaled = {layer: LEVEL_KAPPA if any(fnmatch(layer, glob) for glob in globs) else 0.0 for layer in layers}
        made = extend(drawn, laws=[Original(), Kappa(scaled)], sizes=ENDS, **shown)
        yield answer("levels", f"only {name}", made)
    usual: dict[str, Any] = {"steps": base.steps, "guidance_scale": base.guidance_scale}
    asked: dict[str, Any] = dict(
        prompts=drawn.grid.prompts, seeds=drawn.grid.seeds, laws=[Original(), Paper(), measured], rows=ROWS,
        scale_factors=(), model=base.model, **shown,
    )  # fmt: skip
    yield answer("shapes", None, sweep(pipeline, sizes=SHAPES, store=out / "shapes", **usual, **asked))
    for name, changed in SETTINGS.items():
        store = out / name.replace(" ", "-")
        made = sweep(pipeline, sizes=ENDS[1:], store=store, **{**usual, **changed}, **asked)
        yield answer("settings", name, made)


def table_of(found: Sequence[Ablation]) -> pd.DataFrame:
    """A row for each change, law and size: the drift that is gone, and the differences of every metric."""
    rows = []
    for ablation in found:
        assert ablation.outcome.quality is not None
        drift = ablation.outcome.table("layer").set_index(["law", "size"])
        compared = ablation.outcome.quality.table().set_index("metric")
        for (law, size), own in compared.groupby(["law", "size"], sort=False):
            told = {titled(metric): difference(own.loc[metric]) for metric in in_order(own.index)}
            change = {"change": ablation.change} if ablation.change else {}
            rows.append(
                {**change, "law": law, "size, px": size, "drift removed": percent(drift.loc[(law, size)]), **told}
            )
    return pd.DataFrame(rows)


def tidy(found: Sequence[Ablation]) -> pd.DataFrame:
    """A row for each change, law, size and metric: the comparison, and the drift that is gone."""
    parts = []
    for ablation in found:
        assert ablation.outcome.quality is not None
        drift = ablation.outcome.table("layer")[["law", "size", "removed", "removed_low", "removed_high"]]
        compared = ablation.outcome.quality.table().merge(drift, on=["law", "size"], how="left")
        parts.append(compared.assign(section=ablation.section, change=ablation.change))
    return pd.concat(parts, ignore_index=True)


def difference(compared: pd.Series) -> str:
    """A comparison in a cell of a table."""
    mark = f" **{compared['verdict']}**" if compared["verdict"] in ("better", "worse") else ""
    return f"{compared['difference']:+.3g} [{compared['low']:+.3g}, {compared['high']:+.3g}]{mark}"


PAGE = """# What the results on `{model}` depend on

Every number and figure on this page was measured by this command:

    {command}

(weights {fingerprint}). {pairs} pairs of images for every law and size, {steps} steps and guidance {guidance:g}
where nothing else is said. Differences are from the original model on the same prompts and seeds, with 95 % intervals,
each by itself; **better** and **worse** stand where one is shown after Holm's correction over what was judged together:
one grid of kappa, one level, all shapes, one setting. Networks that judge: {judges}.

## How much kappa?

g² = 1 + κ ln(N/T) with one κ for all layers, but at least g = {floor:g}; and the measured law, which keeps the
entropy, at the mean of its layers' κ.

{figures}

{kappa}

## Through which layers?

κ = {level:g} in the layers of one level, so g = {flat:.2f} at 32 px and {sharp:.2f} at 128 px; g = 1 in all others.

{levels}

## Other sizes and shapes

What the measured law was measured at ends at 32 and 128 px; beyond that it goes on as it ended.

{shapes}

## Other guidance, more steps

{settings}
"""


def page(found: Sequence[Ablation], drawn: Sweep, *, command: str, charts: Sequence[str]) -> str:
    """The page, of what was found; `charts` are files of figures."""
    one, manifest = Kappa({"*": LEVEL_KAPPA}), drawn.manifest
    sections = dict.fromkeys(ablation.section for ablation in found)
    tables = {name: markdown(table_of([each for each in found if each.section == name])) for name in sections}
    return PAGE.format(
        model=manifest.model,
        command=command,
        fingerprint=manifest.fingerprint,
        pairs=len(drawn.grid.prompts) * len(drawn.grid.seeds),
        steps=manifest.steps,
        guidance=manifest.guidance_scale,
        judges=", ".join(JUDGES),
        floor=one.floor,
        level=LEVEL_KAPPA,
        flat=one.scale_factor("*", 1, 4),
        sharp=one.scale_factor("*", 4, 1),
        figures="\n\n".join(f"![Quality against kappa]({chart})" for chart in charts),
        **tables,
    )


def law_of_study(results: Path, settings: dict[str, Any]) -> ScalingLaw | None:
    """The measured law that the study kept, if it kept one of the same model and settings.

    Raises:
        SystemExit: if it is of others.
    """
    if not (results / "settings.json").exists():
        return None
    there = json.loads((results / "settings.json").read_text())
    if any(there.get(name) != value for name, value in settings.items()):
        raise SystemExit(f"{results} holds results of other settings, {there}: run research.study again")
    return from_json((results / "measured.json").read_text())


def main(
    model: Annotated[str, typer.Option(help="A bundled model.")] = "reference",
    out: Annotated[Path, typer.Option(help="Folder of the images.")] = Path("ablations-run"),
    docs: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("docs"),
    count: Annotated[int, typer.Option(help="Prompts whose images are drawn, at most those bundled.")] = 16,
    seeds: Annotated[int, typer.Option(help="CaptionedImages of each prompt, law and size.")] = 2,
) -> None:
    """Sample what is missing, and write the page."""
    quiet_libraries()
    judge = judge_for(JUDGES)  # first: it may not be installed
    out.mkdir(parents=True, exist_ok=True)
    pipeline = load(model, device="auto")
    settings: dict[str, Any] = {"steps": 8, "guidance_scale": 4.0, "model": model}
    results = docs / "results" / model
    check_settings(results, {"count": count, "seeds": seeds}, "ablated.json")
    measured = law_of_study(results, {**settings, "fingerprint": fingerprint(pipeline)})
    if measured is None:
        first = sweep(pipeline, prompts=prompts()[:8], sizes=SIZES, seeds=[0, 1], store=out / "law", **settings)
        measured = kept_law(out / "measured.json", lambda: derive_measured(first).law)
    drawn = sweep(
        pipeline, prompts=prompts()[:count], sizes=ENDS, seeds=list(range(seeds)), store=out / "ablations",
        rows=ROWS, scale_factors=(), **settings,
    )  # fmt: skip
    found = list(sample_and_judge(pipeline, drawn, measured, judge, out))
    save(results / "ablations.json", tidy(found))
    charts = []
    with figures.theme():
        for outcome in (one.outcome for one in found if one.section == "kappa"):
            assert outcome.quality is not None
            charts.append(f"results-{model}-kappa-{format_size(outcome.sweep.grid.sizes[0])}.png")
            kappas = kappa_of_laws(outcome.sweep.grid.laws, outcome.sweep.frame())
            figures.quality_by_kappa(outcome.quality, kappas).savefig(docs / charts[-1], dpi=80)
    command = f"python -m research.ablations --model {model} --count {count} --seeds {seeds}"
    path = docs / f"results-{model}-ablations.md"
    write_atomically(path, page(found, drawn, command=command, charts=charts).encode())
    say(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
