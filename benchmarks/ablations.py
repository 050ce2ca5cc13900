"""What the study's outcome depends on: `python -m benchmarks.ablations` writes docs/results-MODEL-ablations.md.

After `benchmarks.study`, whose measured law it takes up: some of its prompts under a grid of kappa, through single
levels of the model, at other sizes and shapes, with other guidance and steps. Fewer pictures for each, as these are
many questions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.study import JUDGES, ROWS, SIZES, kept_law, levels, markdown, say
from entropy_probe.fitting import derive_measured
from entropy_probe.laws import Kappa, Measured, Original, Paper
from entropy_probe.pipelines import Size, format_size, load, quiet_libraries, training_tokens
from entropy_probe.reference import prompts
from entropy_probe.report import figures
from entropy_probe.report.tables import in_order, kappa_of_laws, titled
from entropy_probe.sweep import Sweep, extend, sweep, write_atomically
from entropy_probe.validation import Judge, Outcome, judge_for, outcome_of

ENDS: list[Size] = [(32, 32), (64, 64), (128, 128)]
SHAPES: list[Size] = [(64, 64), (72, 96), (128, 64), (72, 128), (192, 192)]
KAPPAS = {(32, 32): (0.15, 0.3, 0.5, 0.65), (128, 128): (0.2, 0.5, 1.0, 2.0)}
"""From none to beyond the measured one; at a quarter of the tokens, 0.72 would leave no attention at all."""

LEVEL_KAPPA = 0.5
"""Of the layers of a level that is scaled by itself."""

SETTINGS = {
    "guidance 1": {"guidance_scale": 1.0},
    "guidance 7.5": {"guidance_scale": 7.5},
    "20 steps": {"steps": 20},
}
"""What is changed of the study's 8 steps and guidance of 4."""


@dataclass(frozen=True)
class Ablation:
    """One change, and what the pictures say.

    Attributes:
        section: the question that it belongs to.
        change: in a few words.
        outcome: laws against the original.
    """

    section: str
    change: str
    outcome: Outcome


def ablations(pipeline: Any, drawn: Sweep, measured: Measured, judge: Judge, out: Path) -> Iterator[Ablation]:
    """Every question's, one after the other; what was sampled before is taken up."""

    def judged(made: Sweep) -> Outcome:
        return outcome_of(made, judge, progress=True)

    trained = drawn.manifest.training_size
    for size, kappas in KAPPAS.items():
        grid = [Original(), *(Kappa({"*": kappa}) for kappa in kappas), Kappa(measured.kappa)]
        yield Ablation("kappa", "", judged(extend(drawn, laws=grid, sizes=[size, trained])))
    tokens = training_tokens(pipeline)
    for name, globs in levels(pipeline).items():
        scaled = {layer: LEVEL_KAPPA if any(fnmatch(layer, glob) for glob in globs) else 0.0 for layer in tokens}
        yield Ablation("levels", f"only {name}", judged(extend(drawn, laws=[Original(), Kappa(scaled)], sizes=ENDS)))
    usual = {"steps": drawn.manifest.steps, "guidance_scale": drawn.manifest.guidance_scale}
    asked: dict[str, Any] = dict(
        prompts=drawn.grid.prompts, seeds=drawn.grid.seeds, laws=[Original(), Paper(), measured], rows=ROWS,
        multipliers=(), model=drawn.manifest.model,
    )  # fmt: skip
    made = sweep(pipeline, sizes=SHAPES, store=out / "shapes", **usual, **asked)
    yield Ablation("shapes", "", judged(made))
    for name, changed in SETTINGS.items():
        store = out / name.replace(" ", "-")
        made = sweep(pipeline, sizes=ENDS[1:], store=store, **{**usual, **changed}, **asked)
        yield Ablation("settings", name, judged(made))


def table_of(found: list[Ablation]) -> pd.DataFrame:
    """A row for each change, law and size: the drift that is gone, and the differences of every metric."""
    rows = []
    for ablation in found:
        assert ablation.outcome.quality is not None
        drift = ablation.outcome.table("layer").set_index(["law", "size"])["removed"]
        compared = ablation.outcome.quality.table()
        for (law, size), own in compared.groupby(["law", "size"], sort=False):
            marks = {"better": " **better**", "worse": " **worse**"}
            told = {
                titled(row.metric): f"{row.difference:+.3g} [{row.low:+.3g}, {row.high:+.3g}]"
                f"{marks.get(row.verdict, '')}"
                for row in own.set_index("metric").loc[in_order(own["metric"])].reset_index().itertuples()
            }
            named = {"change": ablation.change} if ablation.change else {}
            rows.append({**named, "law": law, "size, px": size, "drift removed": f"{drift[law, size]:.0%}", **told})
    return pd.DataFrame(rows)


PAGE = """# What the results on `{model}` depend on

Measured by this command, after [the study](results-{model}.md):

    {command}

{pairs} pairs of pictures for every law and size, 8 steps and guidance 4 where nothing else is said. Differences are
from the original model on the same prompts and seeds, with 95 % intervals, each by itself; **better** and **worse**
stand where one is shown after Holm's correction over all comparisons of its sweep. Networks that judge: {judges}.

## How much kappa?

g² = 1 + κ ln(N/T): one κ for all layers, and (`kappa`) the measured κ of each layer, at least g = 0.1.

{figures}

{kappa}

## Through which layers?

κ = {level:g} in the layers of one level, so g = {flat:.2f} at 32 px and {sharp:.2f} at 128 px; g = 1 in all others.

{levels}

## Other sizes and shapes

{shapes}

## Other guidance, more steps

{settings}
"""


def main(
    model: Annotated[str, typer.Option(help="A bundled model.")] = "reference",
    out: Annotated[Path, typer.Option(help="Folder of the pictures, the study's.")] = Path("study-run"),
    docs: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("docs"),
    count: Annotated[int, typer.Option(help="Prompts whose pictures are drawn.")] = 16,
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt, law and size.")] = 2,
) -> None:
    """Sample what is missing, and write the page."""
    quiet_libraries()
    judge = judge_for(JUDGES)  # first: it may not be installed
    out.mkdir(parents=True, exist_ok=True)
    pipeline = load(model, device="auto")
    settings: dict[str, Any] = {"steps": 8, "guidance_scale": 4.0, "model": model}
    measured = kept_law(
        docs / "results" / model / "measured.json",
        lambda: (
            derive_measured(
                sweep(pipeline, prompts=prompts()[:8], sizes=SIZES, seeds=[0, 1], store=out / "law", **settings)
            ).law
        ),
    )
    drawn = sweep(
        pipeline, prompts=prompts()[:count], sizes=ENDS, seeds=list(range(seeds)), store=out / "ablations",
        rows=ROWS, multipliers=(), **settings,
    )  # fmt: skip
    found = list(ablations(pipeline, drawn, measured, judge, out))
    shown = []
    with figures.theme():
        for outcome in (one.outcome for one in found if one.section == "kappa"):
            assert outcome.quality is not None
            size = format_size(outcome.sweep.grid.sizes[0])
            kappas = kappa_of_laws(outcome.sweep.grid.laws, outcome.sweep.frame())
            name = f"results-{model}-kappa-{size}.png"
            figures.quality_by_kappa(outcome.quality, kappas).savefig(docs / name, dpi=80)
            shown.append(f"![Quality against kappa at {size} px]({name})")
    sections = dict.fromkeys(ablation.section for ablation in found)
    tables = {name: markdown(table_of([one for one in found if one.section == name])) for name in sections}
    command = f"python -m benchmarks.ablations --model {model} --count {count} --seeds {seeds}"
    page = PAGE.format(
        model=model, command=command, pairs=count * seeds, judges=", ".join(JUDGES), level=LEVEL_KAPPA,
        flat=Kappa({"*": LEVEL_KAPPA}).multiplier("*", 1, 4), sharp=Kappa({"*": LEVEL_KAPPA}).multiplier("*", 4, 1),
        figures="\n\n".join(shown), **tables,
    )  # fmt: skip
    path = docs / f"results-{model}-ablations.md"
    write_atomically(path, page.encode())
    say(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
