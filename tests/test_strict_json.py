"""Unknown fields are errors in every type of file, with every version of pydantic."""

import pytest
from pydantic import TypeAdapter

from entropy_probe.baselines.comparison import _ComparisonFile
from entropy_probe.baselines.profiles import _ProfileFile
from entropy_probe.estimation.calibration import _CalibrationFile
from entropy_probe.estimation.derivation_record import DerivationRecord
from entropy_probe.estimation.regression import _FitFile
from entropy_probe.evaluation.loss_curves import _CurveFile
from entropy_probe.evaluation.quality_summary import _QualityFile
from entropy_probe.evaluation.validation import _OutcomeFile
from entropy_probe.laws.json_format import _LawFile
from entropy_probe.models import SamplingSettings
from entropy_probe.reports.results import _ByFactor, _ByKappa
from entropy_probe.runs.grid import _GridFile
from entropy_probe.runs.holders import _Holder
from entropy_probe.runs.manifest import Manifest


def classes_in(schema):
    """Yield the schema of every dataclass and model within a schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("dataclass", "model"):
            yield schema
        for value in schema.values():
            yield from classes_in(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from classes_in(value)


KINDS = [
    _ProfileFile, _ComparisonFile, _LawFile, DerivationRecord, _CalibrationFile, _FitFile, _OutcomeFile, _QualityFile,
    _CurveFile, _ByFactor, _ByKappa, SamplingSettings, _GridFile, Manifest, _Holder,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_of_a_file_forbids_unknown_fields(kind):
    found = list(classes_in(TypeAdapter(kind).core_schema))
    assert found
    for schema in found:
        assert schema["config"]["extra_fields_behavior"] == "forbid", schema["cls"]
