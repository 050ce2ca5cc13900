"""Edit every value of every JSON file, and count what happens when it is read: `python -m benchmarks.json_edits`.

Each edit ends in a result, or in an InputError of one line. Every other exception is a fault of entropy-probe.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import entropy_probe as ep
from entropy_probe.baselines import Profile, ProfileComparison, compare, junit, markdown, profile, text
from entropy_probe.errors import InputError
from entropy_probe.estimation import Calibration, Derivation, Fit, calibrate
from entropy_probe.evaluation import LossCurve, Outcome, Scorer, loss, validate
from entropy_probe.evaluation.critic import load_critic
from entropy_probe.laws import factors, from_json
from entropy_probe.models import CaptionedImages, load
from entropy_probe.reports import Report
from entropy_probe.runs import Sweep, sweep
from entropy_probe.strict_json import to_strict_json

DEEP: Any = 0
for _ in range(100):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1e308, -1e308, 1e-308, 2**31, 2**63, 10**400, "", "0", "x", "*", "original",
    "a" * 300, "\x1b[2J\n\0", "/etc/passwd", [], [0], ["x"], [1, 2, 3], {}, {"x": 0}, DEEP,
)  # fmt: skip
"""A value is replaced by each of these."""

HEADING = "## Edited JSON files"
"""Heading of the section of docs/reliability.md."""

MAX_ITEMS = 3
"""Only the first items of a list are edited: the others have the same fields."""

Path_ = tuple[str | int, ...]


@dataclass
class Count:
    """What happened to the edits of a file.

    Attributes:
        name: the file.
        possible: number of possible edits.
        edits: number of edits that were tried.
        read: edits after which it was read and shown.
        refused: edits that ended in an InputError of one line.
        faults: every other exception, with its edit.
    """

    name: str
    possible: int = 0
    edits: int = 0
    read: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def edits(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield the edited documents, each with the name of its edit.

    Every value is deleted, replaced by each of `VALUES`, and put into a list and into an object. Items of lists are
    repeated, and objects get a further field.

    >>> [name for name, _ in edits({"a": 1})][-3:]
    ["('a',) deleted", "('a',) in a list", "('a',) in an object"]
    """
    for path in _paths(document, ()):
        own = _at(document, path)
        changed = [(f"= {value!r:.40}", value) for value in VALUES]
        if isinstance(own, dict):
            changed.append(("with another field", {**own, "another": 1}))
        if isinstance(own, list) and own:
            changed.append(("with an item twice", [*own, own[0]]))
            changed.append(("reversed", own[::-1]))
        for name, value in changed:
            yield f"{path} {name}", _replaced(document, path, value)
        if path:
            yield f"{path} deleted", _deleted(document, path)
            yield f"{path} in a list", _replaced(document, path, [own])
            yield f"{path} in an object", _replaced(document, path, {"x": own})


def _paths(value: Any, path: Path_) -> Iterator[Path_]:
    yield path
    items: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:MAX_ITEMS]))
    for key, item in items:
        yield from _paths(item, (*path, key))


def _at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


def _replaced(document: Any, path: Path_, value: Any) -> Any:
    if not path:
        return value
    edited = copy.deepcopy(document)
    _at(edited, path[:-1])[path[-1]] = value
    return edited


def _deleted(document: Any, path: Path_) -> Any:
    edited = copy.deepcopy(document)
    del _at(edited, path[:-1])[path[-1]]
    return edited


def count_edits(
    name: str, content: str, read: Callable[[str], object], limit: int | None = None, seed: int = 0
) -> Count:
    """Read a file after each edit.

    Args:
        name: name of the file.
        content: its text.
        read: reads the text, and uses everything in it.
        limit: use only so many edits, at random.
        seed: seed of the choice.
    """
    document = json.loads(content)
    read(content)  # it is valid without an edit
    every = list(edits(document))
    tried = every if limit is None or limit > len(every) else random.Random(seed).sample(every, limit)
    count = Count(name, len(every), len(tried))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for edit, edited in tried:
            try:
                read(json.dumps(edited))
                count.read += 1
            except InputError as error:  # noqa: PERF203 - each edit may fail
                count.refused += 1
                if "\n" in str(error):
                    count.faults.append(f"{edit}: an error of several lines: {error}")
            except Exception as error:
                count.faults.append(f"{edit}: {type(error).__name__}: {error}")
    return count


@dataclass(frozen=True)
class File:
    """A JSON file of entropy-probe.

    Attributes:
        name: name of the file, or of the result in it.
        content: its text.
        read: reads an edited text and uses everything in it.
    """

    name: str
    content: str
    read: Callable[[str], object]


def files(pipeline: Any, images: CaptionedImages, folder: Path, pages: bool = False) -> list[File]:
    """Measure a model, and return every kind of JSON file.

    Args:
        pipeline: the model.
        images: at least eight captioned images.
        folder: an empty folder.
        pages: also draw the report of every file of a run that is read. It takes seconds.
    """
    sampled = sweep(
        pipeline, prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 32)], seeds=[0, 1],
        steps=1, store=folder / "run", progress=False,
    )  # fmt: skip
    derivation = ep.derive(sampled, rounds=0, progress=False)
    scorer = Scorer({"critic": load_critic()}, images)
    outcome = validate(sampled, ["paper", derivation], scorer=scorer, progress=False)
    curve = loss(pipeline, images, [(32, 32)], [2.0], progress=False)
    calibration = calibrate(pipeline, images, [(32, 32)], steps=1, batch=4, rate=1e-3, progress=False)
    before = profile(pipeline, prompts=["noto red apple"], sizes=[(32, 32)], seeds=range(8), steps=1)
    after = profile(pipeline, prompts=["noto red apple"], sizes=[(32, 32)], seeds=range(8, 16), steps=1)
    comparison = compare(before, after, level=0.5)
    results = {
        "fit.json": ep.fit(sampled).to_json(),
        "law.json": derivation.to_json(),
        "outcome.json": outcome.to_json(),
        "loss-g.json": to_strict_json(curve.table().to_dict("records")),
    }
    for name, content in results.items():
        sampled.run.write(name, content)
    in_run = {name: (sampled.run.path / name).read_text() for name in ("manifest.json", "grid.json", *results)}
    return [
        *(File(name, content, partial(_report, sampled, name, pages)) for name, content in in_run.items()),
        File("a baseline", before.to_json(), partial(_baseline, before)),
        File("a comparison of baselines", comparison.to_json(), partial(_comparison, comparison)),
        File("a calibration", calibration.to_json(), lambda t: _shown(Calibration.from_json(t))),
        File("a loss curve", curve.to_json(), lambda t: (_shown(c := LossCurve.from_json(t)), c.best())),
        File("calibrated.json", Derivation(calibration.law, calibration=calibration).to_json(), _law),
        File("a gaussian law", ep.derive(sampled, "gaussian").to_json(), _law),
        File("a kappa law", '{"law": "kappa", "kappa": {"a": 0.1, "b": -0.2}, "floor": 0.1}', _law),
        File("a constant law", '{"law": "constant", "value": 1.5, "layers": ["a*"]}', _law),
    ]  # fmt: skip


def _shown(result: Any) -> None:
    result.to_json()
    result.table()


def _report(sampled: Sweep, name: str, pages: bool, content: str) -> None:
    """Read a file of a run as `report` does, and everything that is in it."""
    path = sampled.run.path / name
    before = path.read_text()
    path.write_text(content)
    try:
        if name == "fit.json":
            made = Fit.from_json(content)
            _shown(made)
            str(made)
            return
        if name == "law.json":
            _law(content)
        if name == "outcome.json":  # most edits end here, without the time for a report
            opened = Outcome.from_json(content, sampled)
            _shown(opened)
            opened.verdict()
        page = Report.open(sampled.run.path)
        page.to_json()
        if pages:
            page.html()
    finally:
        path.write_text(before)


def _law(content: str) -> None:
    law = from_json(content)
    factors(law)
    if "derivation" in json.loads(content):
        Derivation.from_json(content).to_json()


def _baseline(before: Profile, content: str) -> None:
    opened = Profile.from_json(content)
    _shown(opened)
    made = compare(before, opened, level=0.5)
    for show in (text, markdown, junit, ProfileComparison.to_json):
        show(made)


def _comparison(comparison: ProfileComparison, content: str) -> None:
    opened = ProfileComparison.from_json(content, comparison.baseline, comparison.now)
    for show in (text, markdown, junit, ProfileComparison.to_json):
        show(opened)


def section(counts: Sequence[Count], command: str, minutes: float) -> str:
    """Return the section of docs/reliability.md."""
    rows = "\n".join(
        f"| {c.name} | {c.possible:,} | {c.edits:,} | {c.read:,} | {c.refused:,} | {len(c.faults):,} |" for c in counts
    )
    return f"""{HEADING}

Every value of every file is deleted, replaced by each of {len(VALUES)} values, and put into a list and into an object.
Items are repeated, lists are reversed, and objects get a further field. Of a list, the first {MAX_ITEMS} items are
edited. Each edited file is then read, and everything in it is shown; a file of a run is read by `report`. "Fault" is
any exception other than an `InputError` of one line. Measured by `{command}` in
{minutes:.0f} minutes. Without `--limit`, it tries every possible edit.

| file | possible edits | tried | read | refused | faults |
|---|---|---|---|---|---|
{rows}
"""


def measure(folder: Path, limit: int | None = None, pages: bool = False) -> list[Count]:
    """Count the edits of every file of the bundled model."""
    made = files(load("reference", device="cpu"), ep.reference.images()[::60], folder, pages)
    return [count_edits(file.name, file.content, file.read, limit) for file in made]


def _command(options: argparse.Namespace) -> str:
    limit = "" if options.limit is None else f" --limit {options.limit}"
    return f"python -m benchmarks.json_edits{limit}{' --pages' if options.pages else ''}"


def main() -> None:
    """Print the section of docs/reliability.md, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="use only so many edits of each file, at random")
    parser.add_argument("--pages", action="store_true", help="also draw the page of every run that is read")
    parser.add_argument("--json", action="store_true", help="print JSON with every fault")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        counts = measure(Path(name), options.limit, options.pages)
    print(
        json.dumps([asdict(count) for count in counts], indent=1)
        if options.json
        else section(counts, _command(options), (time.monotonic() - began) / 60)
    )


if __name__ == "__main__":
    main()
