"""The manifest of a run directory: the model and the settings that all its cells share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from entropy_probe.errors import InputError
from entropy_probe.runs.cells import FORMAT
from entropy_probe.runs.migration import OLD_FORMAT, upgrade_manifest
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Finite, Side, from_strict_json, to_strict_json
from entropy_probe.version import __version__

_Name = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True)
class Manifest:
    """Model and settings of a run directory.

    Attributes:
        model: name that the model can be loaded by again.
        fingerprint: hash of the configuration, weights and buffers of the pipeline.
        pipeline: class name of the pipeline.
        dtype: data type of the denoiser's weights.
        training_size: (height, width) in pixels.
        steps: number of sampling steps.
        guidance_scale: scale of classifier-free guidance.
        rows: query rows measured per attention call: a number, "all" or "auto".
        scale_factors: values of g of the measured curves H(g), in addition to 1.
        versions: versions of the libraries that the run was started with.
        hardware: device that the run was started on.
        pipeline_kwargs: description, with a hash, of each further argument of the pipeline's call.
        confounders: what else changes with the image size; see `models.confounders`.
        training_frames: for videos, frames of the clip that T counts; None for images.
        model_from_run: path of the model relative to the run directory; empty if it is not a local path.
        format: version of the layout.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    model: _Name
    fingerprint: _Name
    pipeline: _Name
    dtype: _Name
    training_size: tuple[Side, Side]
    steps: _Count
    guidance_scale: Finite
    rows: _Count | Literal["all", "auto"]
    scale_factors: Annotated[tuple[Finite, ...], Field(max_length=1000)]
    versions: Annotated[dict[_Name, _Name], Field(max_length=100)]
    hardware: _Name
    pipeline_kwargs: Annotated[dict[_Name, _Name], Field(max_length=100)] = field(default_factory=dict)
    confounders: Annotated[dict[_Name, _Name], Field(max_length=100)] = field(default_factory=dict)
    training_frames: _Count | None = None
    model_from_run: Annotated[str, Field(max_length=4096)] = ""
    format: int = FORMAT

    _IDENTITY = (
        "fingerprint",
        "dtype",
        "steps",
        "guidance_scale",
        "rows",
        "scale_factors",
        "pipeline_kwargs",
        "training_frames",
    )
    _OPTIONAL = ("pipeline_kwargs", "training_frames")
    """Fields that earlier versions did not have. If empty, they do not change the identity."""

    def identity(self) -> str:
        """Return a hash of the settings that cells depend on: two runs with the same one can share cells."""
        own = asdict(self)
        text = to_strict_json({name: own[name] for name in self._IDENTITY if name not in self._OPTIONAL or own[name]})
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def differences(self, other: Manifest) -> list[str]:
        """List the settings in which two manifests differ, if cells with them cannot share a run directory."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name} {mine[name]!r} instead of {others[name]!r}"
            for name in self._IDENTITY
            if mine[name] != others[name]
        ]

    def changes(self, now: Manifest) -> list[str]:
        """List the versions and hardware that changed. They influence only the last digits."""
        before = {**self.versions, "hardware": self.hardware}
        today = {**now.versions, "hardware": now.hardware}
        return [f"{name} {before[name]}, not {today.get(name)}" for name in before if before[name] != today.get(name)]

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return to_strict_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the text of `to_json`, or of the manifest of entropy-probe 0.1.0.

        Raises:
            InputError: if the text is not a manifest, or has a format that this version cannot read.
        """
        fields = _json_object(text)
        written = fields.get("format")
        if written == OLD_FORMAT:
            text = json.dumps(upgrade_manifest(fields))
        elif isinstance(written, int) and written != FORMAT:
            _reject_format(written, fields)
        try:
            return from_strict_json(cls, text)
        except InputError as error:
            raise InputError(f"the manifest is damaged: {error}") from error


def _json_object(text: str) -> dict[str, Any]:
    """Parse JSON without checking it. Other formats have other fields, so the format is read first."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _reject_format(written: int, fields: dict[str, Any]) -> None:
    """Raise an InputError that names the version to install."""
    if written < OLD_FORMAT:
        raise InputError(
            f"format {written} is older than entropy-probe 0.1.0 and cannot be read: run the sweep again in another "
            "folder"
        )
    versions = fields.get("versions")
    version = str(versions.get("entropy-probe"))[:40] if isinstance(versions, dict) else "unknown"
    raise InputError(
        f"entropy-probe {__version__} reads format {FORMAT}, got format {written}: install the version that wrote it, "
        f"{version!r}"
    )
