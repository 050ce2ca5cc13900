"""Find the model of a run again, also after the run, or the run and the model, were moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from entropy_probe.models import REFERENCES
from entropy_probe.paths import exists
from entropy_probe.runs.manifest import Manifest


def name_model(model: str | None, pipeline: Any) -> str:
    """Return the name to record for a model: the absolute path of a folder or file, otherwise the name itself.

    Args:
        model: the name that the user gave, or None.
        pipeline: its pipeline. Its `name_or_path` is the name if the user gave none.

    >>> from types import SimpleNamespace
    >>> name_model(None, SimpleNamespace(name_or_path="owner/model"))
    'owner/model'
    """
    name = model or str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)
    return str(Path(name).absolute()) if name not in REFERENCES and exists(name) else name


def path_from_run(model: str, run: Path) -> str:
    """Return the path of a model relative to a run directory; empty for other models and for runs in an object store.

    >>> path_from_run("owner/model", Path("my-run"))
    ''
    """
    if not isinstance(run, Path) or not Path(model).is_absolute() or not exists(model):
        return ""
    try:
        return os.path.relpath(model, run.absolute())
    except ValueError:  # another drive of Windows
        return ""


def locate_model(run: Path, manifest: Manifest) -> str:
    """Return a name that loads the model of a run.

    The model may be where it was, or at the same place relative to the run directory. Otherwise, return the recorded
    name: a hub id, or a folder that is no longer there.

    Args:
        run: the run directory.
        manifest: its manifest.

    >>> from types import SimpleNamespace
    >>> locate_model(Path("my-run"), SimpleNamespace(model="owner/model", model_from_run=""))
    'owner/model'
    """
    name = manifest.model
    if name in REFERENCES or (Path(name).is_absolute() and exists(name)) or not isinstance(run, Path):
        return name
    if manifest.model_from_run and exists(moved := (run / manifest.model_from_run).resolve()):
        return str(moved)
    return name
