"""`report`: one object with three faces, an HTML page, files for programs, and a notebook view."""

from __future__ import annotations

import html
import io
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd
import torch
from matplotlib.figure import Figure

from entropy_probe.fitting import POOLED, Derivation, Fit
from entropy_probe.fitting import fit as fit_laws
from entropy_probe.laws import ScalingLaw
from entropy_probe.pipelines import format_size
from entropy_probe.report import figures
from entropy_probe.report.maps import EntropyMap
from entropy_probe.report.tables import drift_table, fit_table, kappa_table, summary
from entropy_probe.sweep import Sweep, write_atomically
from entropy_probe.validation import Outcome

PROMPTS_SHOWN = 4


@dataclass(frozen=True)
class Report:
    """What a run found. `save` writes the page and the files beside it; a notebook shows it as it is.

    Attributes:
        sweep: the sampled grid of the original model.
        fit: the law of its entropy.
        law: the scaling law that was derived, if any.
        outcome: what the laws did, if they were sampled.
        derivation: how the law was derived, if that is known.
        entropy_maps: see `report.maps`.
        command: the command line, if there was one.
    """

    sweep: Sweep
    fit: Fit
    law: ScalingLaw | None = None
    outcome: Outcome | None = None
    derivation: Derivation | None = None
    entropy_maps: tuple[EntropyMap, ...] = ()
    command: str | None = None

    def verdict(self) -> list[str]:
        """What was found, in sentences with their numbers."""
        return [*_law_sentences(self.fit), *_kappa_sentences(self.derivation), *_drift_sentences(self.outcome)]

    def html(self) -> str:
        """The page: self-contained, no outside request."""
        loader = jinja2.FunctionLoader(lambda name: (files("entropy_probe.report") / name).read_text())
        page = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
        return page.render(
            model=self.sweep.manifest.model,
            verdict=self.verdict(),
            figures=[(n, title, caption, svg) for n, (title, caption, svg) in enumerate(self._figures(), 1)],
            tables=self._tables(),
            facts=self._facts(),
            absent=self._absent(),
            today=date.today().isoformat(),
        )

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html())}" width="100%" height="900" style="border:0"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page to `path`, and `records.parquet`, `summary.csv` and `report.json` beside it.

        Raises:
            InputError: if the folder cannot be written.
        """
        target = Path(path)
        records = self._frame()
        facts = {
            "verdict": self.verdict(),
            "facts": self._facts(),
            "fit": json.loads(self.fit.to_json()),
            "derivation": json.loads(self.derivation.to_json()) if self.derivation else None,
            "outcome": json.loads(self.outcome.to_json()) if self.outcome else None,
        }
        write_atomically(
            target.with_name("records.parquet"), lambda file: records.to_parquet(file, index=False, compression="zstd")
        )
        write_atomically(target.with_name("summary.csv"), lambda file: summary(records).to_csv(file, index=False))
        write_atomically(
            target.with_name("report.json"), lambda file: file.write((json.dumps(facts, indent=2) + "\n").encode())
        )
        page = self.html().encode()
        write_atomically(target, lambda file: file.write(page))
        return target

    def _frame(self) -> pd.DataFrame:
        return self.outcome.sweep.frame() if self.outcome else self.sweep.frame()

    def _figures(self) -> list[tuple[str, str, str]]:
        frame, trained = self._frame(), self.sweep.manifest.training_size
        sampled = self.outcome.sweep if self.outcome else self.sweep
        drawn: list[tuple[str, str, Callable[[], Figure]]] = [
            (
                "Entropy against the number of tokens",
                "A dot is the mean of one image; a layer whose attention keeps its shape climbs with slope 1.",
                lambda: figures.entropy_against_tokens(self.fit),
            ),
            (
                "Entropy over the sampling",
                "Under a law that works, every size follows the dashed line of the training size. Bands: 95 %.",
                lambda: figures.entropy_against_timestep(frame, trained),
            ),
            (
                "Layers and heads",
                "Which heads attend widely at the training size, and which move most at the largest.",
                lambda: figures.layers_and_heads(frame, trained),
            ),
        ]
        if self.entropy_maps:
            one = self.entropy_maps[0]
            drawn.append(
                (
                    "Where attention is wide",
                    f"Entropy of each token in layer {one.layer} at step {one.step}, mean over heads.",
                    lambda: figures.entropy_maps(self.entropy_maps),
                )
            )
        if self.derivation:
            kappa = self.derivation.kappa
            drawn.append(
                (
                    "The scaling factor",
                    "The one number per layer that keeps its entropy, with 95 % intervals, beside the paper's.",
                    lambda: figures.kappa_by_layer(kappa),
                )
            )
        if self.outcome:
            outcome = self.outcome
            drawn.append(
                (
                    "Drift",
                    "How far the entropy of a layer is from that at the training size, before and under each law; "
                    "95 % bootstrap intervals over prompts and seeds.",
                    lambda: figures.drift_by_law(outcome),
                )
            )
        caption = "The same prompt and seed everywhere; rows are laws, columns sizes in pixels."
        shown = sampled.grid.prompts[:PROMPTS_SHOWN]
        drawn += [(f"Pictures: {prompt}", caption, partial(figures.image_grid, sampled, prompt)) for prompt in shown]
        result = []
        with figures.theme():
            for number, (title, caption, draw) in enumerate(drawn):
                result.append((title, caption, _svg(draw(), f"f{number}-")))
        return result

    def _tables(self) -> list[tuple[str, str]]:
        tables = [("Fitted laws", fit_table(self.fit))]
        if self.derivation:
            tables.append(("Scaling factor per layer", kappa_table(self.derivation)))
        if self.outcome:
            tables.append(("Drift", drift_table(self.outcome)))
        return [(title, table.to_html(index=False, border=0, escape=True)) for title, table in tables]

    def _facts(self) -> dict[str, str]:
        manifest, grid = self.sweep.manifest, self.sweep.grid
        return {
            "command": self.command or "called from Python",
            "model": f"{manifest.model} ({manifest.pipeline}, weights {manifest.fingerprint})",
            "training size": format_size(manifest.training_size),
            "sizes": ", ".join(format_size(size) for size in grid.sizes),
            "prompts": "; ".join(grid.prompts),
            "seeds": ", ".join(map(str, grid.seeds)),
            "steps": str(manifest.steps),
            "guidance scale": str(manifest.guidance_scale),
            "attention rows": str(manifest.rows),
            "dtype": manifest.dtype,
            "versions": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
            "hardware": hardware(),
        }

    def _absent(self) -> list[str]:
        absent = []
        if self.derivation is None:
            absent.append("no scaling law was derived (entropy-probe derive)")
        if self.outcome is None:
            absent.append("no law was sampled (entropy-probe validate)")
        return absent


def report(
    sweep: Sweep,
    fit: Fit | None = None,
    law: ScalingLaw | None = None,
    outcome: Outcome | None = None,
    *,
    derivation: Derivation | None = None,
    entropy_maps: Sequence[EntropyMap] = (),
    command: str | None = None,
) -> Report:
    """Put together what is known about a sweep; what was not run is left out, and the page says so.

    Args:
        sweep: of the original model.
        fit: fitted anew if none is given.
        law: the derived law.
        outcome: of `validate`.
        derivation: of `fitting.derive_measured`; tells kappa and its intervals.
        entropy_maps: of `report.entropy_maps`.
        command: the command line to quote.
    """
    return Report(sweep, fit or fit_laws(sweep), law, outcome, derivation, tuple(entropy_maps), command)


def hardware() -> str:
    """The device that the figures were made on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _law_sentences(fit: Fit) -> list[str]:
    pooled = fit.pooled
    interval = f" (95 % interval {pooled.slope_low:.3f} to {pooled.slope_high:.3f}, {pooled.prompts} prompts)"
    known = pooled.slope_low == pooled.slope_low
    sentences = [
        f"Attention entropy grows by {pooled.slope:.3f} nats for every e-fold of tokens"
        + (interval if known else " (one prompt: no interval)")
        + f"; ln N explains {100 * pooled.r_squared:.1f} % of its variance."
    ]
    if known:
        inside = pooled.slope_low <= 1 <= pooled.slope_high
        sentences.append(
            "A slope of 1, as for logits whose variance does not change with N, is "
            f"{'inside' if inside else 'outside'} that interval."
        )
    ranked = fit.rivals[fit.rivals["layer"] == POOLED].dropna().sort_values("error")
    if len(ranked) > 1:
        errors = ", ".join(f"{row.form} {row.error:.3f}" for row in ranked.itertuples())
        sentences.append(f"Error on a size left out of the fit, nats: {errors}.")
    return sentences


def _kappa_sentences(derivation: Derivation | None) -> list[str]:
    if derivation is None:
        return []
    kappa = derivation.kappa
    outside = int(((kappa["paper"] < kappa["low"]) | (kappa["paper"] > kappa["high"])).sum())
    first, last = derivation.rounds[0], min(derivation.rounds, key=lambda r: r.drift)
    sentences = [
        f"Keeping the entropy asks for kappa between {kappa['kappa'].min():.2f} and {kappa['kappa'].max():.2f} "
        f"(median {kappa['kappa'].median():.2f}) where the paper's is {kappa['paper'].min():.2f} to "
        f"{kappa['paper'].max():.2f}; in {outside} of {len(kappa)} layers the paper's lies outside the 95 % interval.",
        f"Refinement took {len(derivation.rounds) - 1} samplings: {first.drift:.3f} nats of drift before, "
        f"{last.drift:.3f} ± {last.drift_se:.3f} after.",
    ]
    if len(derivation.unreachable):
        sentences.append(
            f"{len(derivation.unreachable)} of the layer and size pairs ran into the bounds of g: there the entropy at "
            "the training size cannot be reached with so many tokens."
        )
    return sentences


def _drift_sentences(outcome: Outcome | None) -> list[str]:
    return outcome.verdict() if outcome else []


def _svg(figure: Figure, prefix: str) -> str:
    """A figure as inline SVG whose ids are its own, so that several stand on one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    return re.sub(r'href="#', f'href="#{prefix}', text)
