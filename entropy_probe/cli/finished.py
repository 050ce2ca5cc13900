"""Recognise a run that the same command has finished, without loading torch or the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_probe.bundled import bundled
from entropy_probe.errors import InputError
from entropy_probe.paths import exists, is_file, is_folder
from entropy_probe.version import __version__

FILE = "finished.json"
"""File of a run directory with the settings, the inputs and the files of a finished run, and what it printed."""

MAX_FILES = 20_000
"""Runs and models with more files are not recognised: looking at each would take seconds."""

MAX_BYTES = 2**25
"""Maximum size of `FILE`."""

DISPLAY = frozenset({"as_json", "quiet", "config", "dry_run", "out"})
"""Options that change no result."""

State = dict[str, list[int]]
"""Size in bytes and time of the last change, ns, by path."""


def finished_messages(folder: str | Path, model: str, settings: Mapping[str, Any]) -> list[str] | None:
    """Return what a run printed at its end; None if it has to run.

    It has to run if it did not finish, or if a setting, the version, a file of the model, a file that an option names,
    or a file of the run has changed since. Runs in object stores, and models whose files are not on this machine, are
    not recognised.

    Args:
        folder: the run directory.
        model: name of the model.
        settings: the options of the command, by name.
    """
    path = Path(folder) / FILE
    try:
        if "://" in str(folder) or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        stored = json.loads(path.read_text())
        messages = stored.pop("messages")
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError):  # damaged: run again
        return None
    current = _state(Path(folder), model, settings)
    known = isinstance(messages, list) and all(isinstance(message, str) for message in messages)
    return messages if known and current is not None and stored == current else None


def mark_finished(folder: str | Path, model: str, settings: Mapping[str, Any], messages: Sequence[str]) -> None:
    """Write `FILE`, after all other files of a run. The arguments are those of `finished_messages`."""
    from entropy_probe.runs.files import write_atomically  # imports torch, which a finished run need not load

    state = None if "://" in str(folder) else _state(Path(folder), model, settings)
    if state is not None:
        write_atomically(Path(folder) / FILE, json.dumps(state | {"messages": list(messages)}, indent=1).encode())


def _state(folder: Path, model: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return everything that the results depend on; None if it cannot be found."""
    chosen = {name: value for name, value in settings.items() if name not in DISPLAY | {"model"}}
    folders = [_model_folder(name) for name in (model, chosen.get("base")) if name]
    if None in folders:
        return None
    named = [Path(text) for value in chosen.values() for text in _texts(value) if exists(text)]
    if arguments := chosen.get("pipeline_kwargs"):
        named += _named_beside(Path(arguments))
    inputs = [folder for folder in (*folders, *named) if folder is not None]
    states = [_files(path) for path in inputs]
    own = _files(folder)
    if own is None or None in states:
        return None
    return {
        "version": __version__,
        "model": model,
        "settings": {name: str(value) for name, value in chosen.items()},
        "inputs": states,
        "files": {name: state for name, state in own.items() if name != FILE and not name.endswith(".lock")},
    }


def _model_folder(model: str) -> Path | None:
    """Return the folder of a model: bundled, on this machine, or in the cache of the hub; None for others."""
    if is_folder(model):
        return Path(model)
    try:
        folder = bundled(model)
    except InputError:  # the bundled models are not installed
        return _in_cache(model)
    return folder if is_folder(folder) else _in_cache(model)


def _in_cache(model: str) -> Path | None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of an option that may name a file: also in a list, and of LoRA files without their scale."""
    for one in value if isinstance(value, list | tuple) else [value]:
        parts = [str(one), *str(one).split(",")] if isinstance(one, str | Path) else []
        yield from dict.fromkeys(text for part in parts for text in (part, part.rpartition(":")[0]) if text)


def _named_beside(arguments: Path) -> list[Path]:
    """Return the files that a file of arguments may name: its words, if they are files here or next to it."""
    content = arguments.read_text(errors="replace") if is_file(arguments) else ""
    words = re.split(r"[\s,:'\"\[\]{}]+", content)
    values = [line.partition(":")[2].strip(" '\"") for line in content.splitlines()]  # a name may contain spaces
    places = [folder / text for text in {*words, *values} - {""} for folder in (Path(), arguments.parent)]
    return sorted(place for place in places if is_file(place))


def _files(path: Path) -> State | None:
    """Return the state of a file, or of the files in a folder; None if there are too many or one vanishes."""
    found: State = {}
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                facts = file.stat()
                found[file.relative_to(path).as_posix()] = [facts.st_size, facts.st_mtime_ns]
            if len(found) > MAX_FILES:
                return None
    except OSError:
        return None
    return found
