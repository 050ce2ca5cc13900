"""Report a run: one object with an HTML page, files for programs, and a notebook view."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_probe.errors import InputError
from entropy_probe.escape import one_line
from entropy_probe.estimation import Calibration, Derivation, Fit
from entropy_probe.estimation import fit as fit_laws
from entropy_probe.evaluation import Outcome
from entropy_probe.laws import ScalingLaw, from_json
from entropy_probe.plots import Format, Width
from entropy_probe.plots.tables import summary as summary_table
from entropy_probe.reports import page
from entropy_probe.reports.alerts import alerts
from entropy_probe.reports.gallery import gallery
from entropy_probe.reports.publication import save_figures
from entropy_probe.reports.results import RunResults, read_losses
from entropy_probe.reports.run_details import missing_parts, run_facts, run_settings, run_tables
from entropy_probe.reports.run_figures import run_figures
from entropy_probe.reports.saved_files import PAGE_MARK, SavedFile, write_files
from entropy_probe.reports.sentences import run_verdict
from entropy_probe.reports.summary import OVERVIEW_NOTE, PAPER, TERMS, overview, summary
from entropy_probe.runs import Sweep, open_location
from entropy_probe.runs.entropy_maps import EntropyMap, entropy_maps
from entropy_probe.strict_json import to_strict_json

RECORDS_MARK, JSON_MARK = b"entropy_probe.records", b'"generator": "entropy-probe"'
"""Parts of each file that a report writes; see `saved_files`."""


@dataclass(frozen=True)
class Report(RunResults):
    """The report of a run. `save` writes the page, and the data files on request; a notebook shows the page."""

    @classmethod
    def open(cls, path: str | Path, pipeline: Any = None, *, command: str | None = None) -> Report:
        """Build the report of a run directory.

        Args:
            path: the run directory.
            pipeline: the model. With it, entropy maps are sampled and added to the report.
            command: the command line to show.

        Raises:
            InputError: if the folder is not a finished run, or a file in it is damaged.
        """
        return cls.of(Sweep.open(path, pipeline), command=command)

    @classmethod
    def of(cls, made: Sweep, *, command: str | None = None) -> Report:
        """Build the report of the run directory of a sweep; see `open`."""

        def text(name: str) -> str | None:
            return made.run.read_text(name) if (made.run.path / name).exists() else None

        law, outcome, calibrated = map(text, ("law.json", "outcome.json", "calibrated.json"))
        derivation = Derivation.from_json(law) if law else None
        return report(
            made,
            outcome=Outcome.from_json(outcome, made) if outcome else None,
            derivation=derivation,
            entropy_maps=entropy_maps(made, derivation.law if derivation else None),
            losses=read_losses(made),
            calibration=_calibration(calibrated) if calibrated else None,
            command=command,
        )

    def verdict(self) -> list[str]:
        """Return the results as sentences with their numbers."""
        return [
            *run_verdict(self.fit, self.law, self.derivation, self.frame),
            *(self.outcome.verdict() if self.outcome else []),
        ]

    def facts(self) -> dict[str, str]:
        """Return the settings as text for the page."""
        return run_facts(self)

    def html(self) -> str:
        """Return the page. It is self-contained and makes no requests."""
        return page.render(
            page.Content(
                title=f"Attention entropy of {one_line(self.sweep.manifest.model)}",
                summary=summary(self),
                alerts=alerts(self),
                overview=overview(self),
                overview_note=OVERVIEW_NOTE,
                gallery=gallery(self),
                terms=TERMS,
                citation=PAPER,
                verdict=self.verdict(),
                nothing="This sweep has one size. A comparison needs at least two sizes with different token counts.",
                shown=list(run_figures(self)),
                tables=run_tables(self),
                facts=self.facts(),
                config=self.sweep.run.read_text("config.yaml")
                if (self.sweep.run.path / "config.yaml").exists()
                else "",
                remark=missing_parts(self),
                files="entropy-probe report, or save(path, data=True), writes records.parquet (every measurement), "
                "summary.csv and report.json.",
            )
        )

    def _repr_html_(self) -> str:
        return page.frame(self.html())

    def save(self, path: str | Path, *, data: bool = False) -> Path:
        """Write the page to one file.

        Args:
            path: the file. A report that is there is replaced; another file is not.
            data: also write `records.parquet`, `summary.csv` and `report.json` to the same folder.

        Raises:
            InputError: if the folder cannot be written, or a file that is not of a report has one of the names.
        """
        target = open_location(path)
        files = self._data_files(target) if data else {}
        # Everything is made before the first file is written: a failure leaves no incomplete report.
        files[target] = SavedFile(self.html().encode(), PAGE_MARK)
        write_files(files, own_folder=self.sweep.run.path)
        return target

    def save_figures(self, folder: str | Path, format: Format = "pdf", width: Width = "single") -> list[Path]:
        """Write every figure and table for a paper to a folder; see `publication.save_figures`.

        Args:
            folder: the folder. It is created. Other files in it are not replaced.
            format: `pdf`, `png` (600 dots per inch) or `svg`.
            width: `single` column (3.3 inches) or `double` column (6.9 inches).

        Returns:
            The paths of the files.

        Raises:
            InputError: if the format or the width is unknown, or the folder cannot be written.
        """
        inside = open_location(folder).parent == self.sweep.run.path
        return save_figures(self, folder, format, width, own_folder=inside)

    def _data_files(self, target: Path) -> dict[Path, SavedFile]:
        """Return the files next to the page."""
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        table = table.replace_schema_metadata({**table.schema.metadata, RECORDS_MARK: b"1"})
        records = io.BytesIO()
        pq.write_table(table, records, compression="zstd")
        summarised = page.csv(summary_table(self.frame)).encode()
        return {
            target.with_name("records.parquet"): SavedFile(records.getvalue(), RECORDS_MARK),
            target.with_name("summary.csv"): SavedFile(summarised, summarised.partition(b"\n")[0]),
            target.with_name("report.json"): SavedFile(self.to_json().encode(), JSON_MARK),
        }

    def to_json(self) -> str:
        """Return the verdict, the settings and all numbers as JSON text. Unknown values are null."""
        fields = {
            "generator": "entropy-probe",
            "summary": list(summary(self).values()),
            "alerts": alerts(self),
            "verdict": self.verdict(),
            "settings": run_settings(self),
            "fit": json.loads(self.fit.to_json()) if self.fit else None,
            "factors": None if self.factors is None else self.factors.to_dict("records"),
            "derivation": json.loads(self.derivation.to_json()) if self.derivation else None,
            "outcome": json.loads(self.outcome.to_json()) if self.outcome else None,
            "losses": {name: table.to_dict("records") for name, table in self.losses.items()},
        }
        return to_strict_json(fields)


def _calibration(text: str) -> Calibration | None:
    """Return the calibration in a law file; None if the file has only the law, as earlier versions wrote it.

    Raises:
        InputError: if it is no law either.
    """
    try:
        return Derivation.from_json(text).calibration
    except InputError:
        from_json(text)
        return None


def report(
    sweep: Sweep,
    fit: Fit | None = None,
    law: ScalingLaw | None = None,
    outcome: Outcome | None = None,
    *,
    derivation: Derivation | None = None,
    entropy_maps: Sequence[EntropyMap] = (),
    losses: Mapping[str, pd.DataFrame] | None = None,
    calibration: Calibration | None = None,
    command: str | None = None,
) -> Report:
    """Build a report of the results of a sweep. Missing results are left out, and the page names them.

    Args:
        sweep: a sweep of the original model.
        fit: the fitted entropy law. By default, it is fitted if the sweep has enough sizes.
        law: the derived law or derivation. By default, the law of `derivation`.
        outcome: the result of `validate`.
        derivation: the result of `derive`, for the intervals of the factors and the rounds of refinement.
        entropy_maps: see `runs.entropy_maps.entropy_maps`.
        losses: tables of `LossCurve`, by the name of the number: `{"g": curve.table()}`.
        calibration: a calibrated law with its losses. By default, the calibration of `derivation`.
        command: the command line to show.

    Examples:
        >>> sweep = ep.sweep(pipeline, prompts=["cat"], sizes=[(64, 64), (128, 128)])  # doctest: +SKIP
        >>> report(sweep, law=ep.derive(sweep)).save("report.html")  # doctest: +SKIP
    """
    if fit is None and len(sweep.grid.sizes) > 1:
        with suppress(InputError):  # sizes with the same token count: the page says that nothing was fitted
            fit = fit_laws(sweep)
    if isinstance(law, Derivation):
        derivation = derivation or law
        law = law.law
    if law is None and derivation is not None:
        law = derivation.law
    if calibration is None and derivation is not None:
        calibration = derivation.calibration
    return Report(sweep, fit, law, outcome, derivation, tuple(entropy_maps), dict(losses or {}), calibration, command)
