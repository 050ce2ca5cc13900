"""`report`: one object with three faces, an HTML page, files for programs, and a notebook view."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from entropy_probe.errors import InputError
from entropy_probe.escape import for_terminal
from entropy_probe.estimation import POOLED, Derivation, Fit
from entropy_probe.estimation import fit as fit_laws
from entropy_probe.evaluation import Outcome, Quality, in_order
from entropy_probe.laws import Kappa, Measured, ScalingLaw
from entropy_probe.models import format_size, short_name
from entropy_probe.plots import figures
from entropy_probe.plots.tables import (
    drift_table,
    entropy_table,
    error_by_rows,
    fit_table,
    image_table,
    kappa_of,
    kappa_of_laws,
    kappa_table,
    quality_against_kappa,
    quality_table,
    rival_table,
    rounds_table,
    span,
    summary,
)
from entropy_probe.reports import page
from entropy_probe.reports.images import chosen_prompts
from entropy_probe.reports.page import Shown
from entropy_probe.runs import Sweep, open_location, write_atomically
from entropy_probe.runs.entropy_maps import EntropyMap, entropy_maps, map_table
from entropy_probe.strict_json import from_strict_json, to_strict_json

PROMPTS_SHOWN = 4
"""Prompts whose images are on the page: half of them those on which the laws differ most, half least."""

LOSSES = {"g": "loss-g.json", "kappa": "loss-kappa.json"}
"""Where a run directory keeps the denoising loss against these, if it was measured."""

DEFECTS = ("incompleteness", "repetition")
"""Those of the metrics that are shown by themselves."""

PANELS_SHOWN = 20
"""Layers up to which the panel of each is shown; the panels of a bigger model are folded away."""


@dataclass(frozen=True)
class Report:
    """What a run found. `save` writes the page and the files beside it; a notebook shows it as it is.

    Attributes:
        sweep: the sampled grid of the original model.
        fit: the law of its entropy; None where the sweep has too few sizes for one.
        law: the scaling law that was derived, if any.
        outcome: what the laws did, if they were sampled.
        derivation: how the law was derived, if that is known.
        entropy_maps: see `report.maps`.
        losses: tables of `validation.loss.LossCurve`, by what the loss is against, `g` or `kappa`.
        command: the command line, if there was one.
    """

    sweep: Sweep
    fit: Fit | None = None
    law: ScalingLaw | None = None
    outcome: Outcome | None = None
    derivation: Derivation | None = None
    entropy_maps: tuple[EntropyMap, ...] = ()
    losses: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    command: str | None = None

    @classmethod
    def open(cls, path: str | Path, pipeline: Any = None, *, command: str | None = None) -> Report:
        """The report of what a run directory holds.

        Args:
            path: the run directory.
            pipeline: the model, for the entropy maps, which are sampled anew.
            command: the command line to quote.

        Raises:
            InputError: if the folder is no finished run, or a file in it is damaged.
        """
        return cls.of(Sweep.open(path, pipeline), command=command)

    @classmethod
    def of(cls, made: Sweep, *, command: str | None = None) -> Report:
        """The report of what the run directory of a sweep holds; see `open`."""

        def text(name: str) -> str | None:
            return made.run.read_text(name) if (made.run.path / name).exists() else None

        law, outcome = text("law.json"), text("outcome.json")
        derivation = Derivation.from_json(law) if law else None
        return report(
            made,
            outcome=Outcome.from_json(outcome, made) if outcome else None,
            derivation=derivation,
            entropy_maps=entropy_maps(made, derivation.law if derivation else None),
            losses={name: _loss_table(found, name) for name, file in LOSSES.items() if (found := text(file))},
            command=command,
        )

    def verdict(self) -> list[str]:
        """What was found, in sentences with their numbers."""
        return [
            *(_law_sentences(self.fit) if self.fit else []),
            *(_kappa_sentences(self.kappa) if self.kappa is not None else []),
            *(_round_sentences(self.derivation) if self.derivation and self.derivation.rounds else []),
            *(self.outcome.verdict() if self.outcome else []),
        ]

    def html(self) -> str:
        """The page: self-contained, no outside request."""
        absent = self._absent()
        return page.render(
            page.Content(
                title=f"Attention entropy of {for_terminal(self.sweep.manifest.model)}",
                verdict=self.verdict(),
                nothing="The sweep has one size only: there is nothing to compare yet.",
                shown=list(self._shown()),
                tables=self._tables(),
                facts=self.facts(),
                config=self.sweep.run.read_text("config.yaml")
                if (self.sweep.run.path / "config.yaml").exists()
                else "",
                remark=f"Not part of this run: {'; '.join(absent)}." if absent else "",
                beside="Saved beside this page: records.parquet (every measured call), summary.csv, report.json.",
            )
        )

    def _repr_html_(self) -> str:
        return page.frame(self.html())

    def save(self, path: str | Path) -> Path:
        """Write the page to `path`, and `records.parquet`, `summary.csv` and `report.json` beside it.

        Raises:
            InputError: if the folder cannot be written.
        """
        target = open_location(path)
        records = io.BytesIO()
        self.frame.to_parquet(records, index=False, compression="zstd")
        made = {  # all of it before the first is written: a figure that fails leaves no half of a report
            target.with_name("records.parquet"): records.getvalue(),
            target.with_name("summary.csv"): page.csv(summary(self.frame)).encode(),
            target.with_name("report.json"): self.to_json().encode(),
            target: self.html().encode(),
        }
        for file, content in made.items():
            write_atomically(file, content)
        return target

    def to_json(self) -> str:
        """Verdict, settings and all numbers, for programs; what is not known is null."""
        fields = {
            "verdict": self.verdict(),
            "settings": self._settings(),
            "fit": json.loads(self.fit.to_json()) if self.fit else None,
            "kappa": None if self.kappa is None else self.kappa.to_dict("records"),
            "derivation": json.loads(self.derivation.to_json()) if self.derivation else None,
            "outcome": json.loads(self.outcome.to_json()) if self.outcome else None,
            "losses": {name: table.to_dict("records") for name, table in self.losses.items()},
        }
        return to_strict_json(fields)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Every measured call, of all laws that were sampled."""
        return self.outcome.sweep.frame() if self.outcome else self.sweep.frame()

    @cached_property
    def kappa(self) -> pd.DataFrame | None:
        """kappa of every layer as `Derivation.kappa` has it, if a law was derived."""
        if self.derivation:
            return self.derivation.kappa
        return kappa_of(self.law, self.frame) if isinstance(self.law, Measured | Kappa) else None

    def _shown(self) -> Iterator[Shown]:
        frame, trained = self.frame, self.sweep.manifest.training_size
        if self.fit:
            yield Shown(
                "Entropy against the number of tokens",
                "Right: the form on which the round dots lie is the law of this model; they are means over prompts "
                "with 95 % intervals, errors are those on a size left out of the fit (σ² is measured, not fitted). "
                "Left: layers by depth, beneath the most entropy that N tokens can have.",
                partial(figures.entropy_over_layers, self.fit),
            )
            yield Shown(
                "Entropy against the number of tokens",
                "Layer by layer: a dot is the mean of one image; logits whose variance does not change with N climb "
                "with slope b = 1, beside the dotted bound.",
                partial(figures.entropy_against_tokens, self.fit),
                folded=len(self.fit.layers) - 1 > PANELS_SHOWN,
            )
        yield Shown(
            "Entropy over the sampling",
            "Under a law that works, every size follows the dashed line of the training size. Bands: 95 % intervals "
            "over prompts.",
            partial(figures.entropy_against_timestep, frame, trained),
        )
        original = frame[frame["law"] == "original"]
        if ((original["height"] == trained[0]) & (original["width"] == trained[1])).any():
            yield Shown(
                "Layers and heads",
                "Which heads attend widely at the training size, and which move most at the largest; layers from the "
                "input (top) to the output.",
                partial(figures.layers_and_heads, frame, trained),
            )
        if self.entropy_maps:
            one = self.entropy_maps[0]
            yield Shown(
                "Where attention is wide",
                f"Entropy of each token in layer {short_name(one.layer)} at step {one.step}, mean over heads, laid "
                "over a grey copy of the image: under a law that works, the colours are those of the training size.",
                partial(figures.entropy_maps, self.entropy_maps),
                numbers=partial(map_table, self.entropy_maps),
            )
        if self.kappa is not None:
            yield Shown(
                "The scaling factor",
                "The one number per layer that comes closest to keeping its entropy at all sizes (bars), beside the "
                "paper's (diamond). The interval is over prompts only: where the sizes by themselves (small dots) lie "
                "far apart, one number does not fit them all, and the measured law keeps a factor for each.",
                partial(figures.kappa_by_layer, self.kappa, self.law),
            )
        if self.outcome:
            yield Shown(
                "Drift",
                "How far the mean entropy of a layer is from that at the training size, and how much of that is gone "
                "under each law; 95 % bootstrap intervals over prompts and seeds.",
                partial(figures.drift_by_law, self.outcome),
            )
        if self.losses:
            yield Shown(
                "The denoising loss",
                "Which factor the model's own objective asks for: its loss on real images of each size, relative to "
                "that of the model as it is; same images, noise and timesteps, 95 % intervals over the images.",
                partial(figures.losses, self.losses),
            )
        if self.outcome and self.outcome.quality:
            yield from self._quality_shown(self.outcome, self.outcome.quality)
        yield from self._images_shown()

    def _quality_shown(self, outcome: Outcome, quality: Quality) -> Iterator[Shown]:
        section, measured = "Quality, alignment and defects", {c.metric for c in quality.comparisons}
        groups = {
            "Images under each law and of the original model (dashed)": measured - {*DEFECTS},
            "The two defects: shapes that are cut off, and shapes that repeat": measured & {*DEFECTS},
        }
        for caption, metrics in groups.items():
            if metrics:
                yield Shown(
                    section,
                    f"{caption}, same prompts and seeds. Bars are 95 % intervals of the difference from the original, "
                    "each by itself; the verdicts of the table are corrected for the number of comparisons.",
                    partial(figures.quality_by_law, quality, in_order(metrics)),
                )
        kappas = kappa_of_laws(outcome.sweep.grid.laws, self.frame)
        if len(outcome.sweep.grid.laws) > 2 and len(kappas):
            yield Shown(
                section,
                "The same against what the laws differ in: kappa, to which their g amounts at that size; the original "
                "is at 0. Bars are 95 % intervals of the difference from it.",
                partial(figures.quality_by_kappa, quality, kappas),
                numbers=partial(quality_against_kappa, quality, kappas),
            )

    def _images_shown(self) -> Iterator[Shown]:
        sampled = self.outcome.sweep if self.outcome else self.sweep
        seed, quality = sampled.grid.seeds[0], self.outcome.quality if self.outcome else None
        for prompt, difference in chosen_prompts(sampled, PROMPTS_SHOWN):
            place = f", whose pixels the laws move by {100 * difference:.1f} % on average" if difference else ""
            yield Shown(
                "CaptionedImages",
                f"“{_isolated(prompt)}”, seed {seed}{place}: rows are laws, columns sizes in pixels, at their true "
                "relative sizes. Look for cut-off shapes in the small and repeated ones in the large.",
                partial(figures.image_grid, sampled, prompt),
                numbers=partial(image_table, self.frame, prompt, seed, quality),
            )

    def _tables(self) -> dict[str, pd.DataFrame]:
        tables = {}
        if self.fit:
            tables["Law H = a + b ln N of every layer"] = fit_table(self.fit)
            tables["Rival forms: error in nats on a size left out of the fit"] = rival_table(self.fit)
        tables["Mean entropy ± standard error over prompts, nats; original model"] = entropy_table(self.frame)
        if self.kappa is not None:
            tables["Scaling factor of every layer"] = kappa_table(self.kappa, self.law)
        if self.derivation and self.derivation.rounds:
            tables["Rounds of the refinement"] = rounds_table(self.derivation)
        if self.outcome:
            tables["Drift, with 95 % intervals"] = drift_table(self.outcome)
            if self.outcome.quality:
                title = "Images under each law against the original, in pairs, with 95 % intervals"
                tables[title] = quality_table(self.outcome.quality)
        return {title: table for title, table in tables.items() if len(table)}

    def _settings(self) -> dict[str, Any]:
        manifest, sampled = self.sweep.manifest, self.outcome.sweep if self.outcome else self.sweep
        return {
            "command": self.command,
            "model": manifest.model,
            "pipeline": manifest.pipeline,
            "fingerprint": manifest.fingerprint,
            "training_size": manifest.training_size,
            "sizes": sampled.grid.sizes,
            "laws": [law.name for law in sampled.grid.laws],
            "prompts": sampled.grid.prompts,
            "seeds": sampled.grid.seeds,
            "steps": manifest.steps,
            "guidance_scale": manifest.guidance_scale,
            "rows": manifest.rows,
            "dtype": manifest.dtype,
            "versions": manifest.versions,
            "hardware": manifest.hardware,
        }

    def facts(self) -> dict[str, str]:
        """The settings as the page words them."""
        known = self._settings()
        return {
            "command": known["command"] or "called from Python",
            "model": f"{known['model']} ({known['pipeline']}, weights {known['fingerprint']})",
            "training size": f"{format_size(known['training_size'])} pixels",
            "sizes": ", ".join(map(format_size, known["sizes"])) + " pixels (height x width)",
            "laws": ", ".join(known["laws"]),
            "prompts": "; ".join(map(_isolated, known["prompts"])),
            "seeds": ", ".join(map(str, known["seeds"])),
            "steps": str(known["steps"]),
            "guidance scale": str(known["guidance_scale"]),
            "attention rows": f"{known['rows']}{_by_choice(self.frame)}",
            "dtype": known["dtype"],
            "versions": ", ".join(f"{name} {number}" for name, number in known["versions"].items()),
            "hardware": known["hardware"],
        }

    def _absent(self) -> list[str]:
        absent = []
        if self.fit is None:
            absent.append("no law was fitted (that takes two sizes)")
        if self.law is None and self.derivation is None:
            absent.append("no scaling law was derived (entropy-probe derive)")
        if self.outcome is None:
            absent.append("no law was sampled (entropy-probe validate)")
        elif self.outcome.quality is None:
            absent.append("the images were not judged (--metrics)")
        if not self.entropy_maps:
            absent.append("no entropy maps were drawn")
        return absent


def report(
    sweep: Sweep,
    fit: Fit | None = None,
    law: ScalingLaw | None = None,
    outcome: Outcome | None = None,
    *,
    derivation: Derivation | None = None,
    entropy_maps: Sequence[EntropyMap] = (),
    losses: Mapping[str, pd.DataFrame] | None = None,
    command: str | None = None,
) -> Report:
    """Put together what is known about a sweep; what was not run is left out, and the page says so.

    Args:
        sweep: of the original model.
        fit: fitted anew if none is given and the sweep has sizes enough.
        law: the derived law; that of `derivation` if none is given.
        outcome: of `validate`.
        derivation: the result of `derive`, for kappa, its intervals and the rounds.
        entropy_maps: of `report.entropy_maps`.
        losses: tables of `validation.loss.LossCurve`, by what the loss is against: `{"g": curve.table()}`.
        command: the command line to quote.
    """
    if fit is None and len(sweep.grid.sizes) > 1:
        with suppress(InputError):  # two sizes of one token count: the page says that nothing was fitted
            fit = fit_laws(sweep)
    if isinstance(law, Derivation):
        derivation = derivation or law
        law = law.law
    if law is None and derivation is not None:
        law = derivation.law
    return Report(sweep, fit, law, outcome, derivation, tuple(entropy_maps), dict(losses or {}), command)


def _loss_table(text: str, name: str) -> pd.DataFrame:
    """A table of `LossCurve` as records in JSON.

    Raises:
        InputError: for another text.
    """
    try:
        table = pd.DataFrame(from_strict_json(list[dict[str, str | float | None]], text))
        return table.astype(dict.fromkeys((name, "change", "low", "high"), float)).astype({"size": str})
    except (InputError, KeyError, ValueError) as error:
        raise InputError(f"{LOSSES[name]} is no table of losses as entropy-probe makes them: {error}") from error


def _by_choice(frame: pd.DataFrame) -> str:
    """What the choice of rows adds to the errors; nothing where all were measured."""
    if not frame["entropy_se"].any():
        return ""
    error = error_by_rows(frame)
    return f", which adds a standard error of at most {math.ceil(1e4 * error) / 1e4:g} nats to the mean of a layer"


def _isolated(text: str) -> str:
    """A text from elsewhere, which may run from right to left, in a sentence that does not."""
    return f"\u2068{for_terminal(text)}\u2069"


def _law_sentences(fit: Fit) -> list[str]:
    pooled = fit.pooled
    interval = f" (95 % interval {pooled.slope_low:.3f} to {pooled.slope_high:.3f}, {pooled.prompts} prompts)"
    known = not math.isnan(pooled.slope_low)
    sentences = [
        f"Attention entropy grows by {pooled.slope:.3f} nats for every e-fold of tokens"
        + (interval if known else " (one prompt: no interval)")
        + f"; ln N and the layer explain {100 * pooled.r_squared:.1f} % of its variance."
    ]
    if known:
        inside = pooled.slope_low <= 1 <= pooled.slope_high
        sentences.append(
            "A slope of 1, as Gaussian theory expects of logits whose variance does not change with N, is "
            f"{'inside' if inside else 'outside'} that interval."
        )
    ranked = fit.rivals[fit.rivals["layer"] == POOLED].dropna().sort_values("error")
    if len(ranked) > 1:
        errors = ", ".join(f"{row.form} {row.error:.3f}" for row in ranked.itertuples())
        sentences.append(
            f"Of the forms tried, {ranked.iloc[0]['form']} predicts a size left out of its fit best; errors in nats: "
            f"{errors}."
        )
    return sentences


def _kappa_sentences(kappa: pd.DataFrame) -> list[str]:
    least, most = kappa.loc[kappa["kappa"].idxmin()], kappa.loc[kappa["kappa"].idxmax()]
    sentence = (
        f"Keeping the entropy asks for kappa between {least['kappa']:.2f} ({short_name(least['layer'])}) and "
        f"{most['kappa']:.2f} ({short_name(most['layer'])}), median {kappa['kappa'].median():.2f}, where the paper's "
        f"is {span(kappa['paper'])}"
    )
    bounded = kappa.dropna(subset=["low", "high", "paper"])
    if len(bounded):
        outside = int(((bounded["paper"] < bounded["low"]) | (bounded["paper"] > bounded["high"])).sum())
        sentence += f"; in {outside} of {len(bounded)} layers the paper's lies outside the 95 % interval"
    return [sentence + "."]


def _pairs(law: ScalingLaw) -> int:
    """Return the number of pairs of layer and size of a measured law."""
    return sum(map(len, law.points.values())) if isinstance(law, Measured) else 0


def _round_sentences(derivation: Derivation) -> list[str]:
    first, refined = derivation.rounds[0], derivation.rounds[1:]
    count = len(refined)
    if count:
        last = min(refined, key=lambda r: r.drift)
        error = "" if math.isnan(last.drift_se) else f" ± {last.drift_se:.3f}"
        times = "one more sampling" if count == 1 else f"{count} more samplings"
        sentences = [f"Refinement took {times}: {first.drift:.3f} nats of drift before, {last.drift:.3f}{error} after."]
    else:
        sentences = [f"The law was not refined by sampling again; before it, {first.drift:.3f} nats of drift."]
    bound = derivation.unreachable
    if len(bound):
        names = list(dict.fromkeys(map(short_name, bound["layer"])))
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        sentences.append(
            f"In {len(bound)} of {_pairs(derivation.law)} pairs of layer and size g ran into "
            "its bounds, and the entropy of the training size cannot be reached with the tokens there are: "
            f"{', '.join(names[:4])}{more}."
        )
    return sentences
