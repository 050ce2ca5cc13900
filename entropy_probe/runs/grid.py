"""The grid of a sweep: prompts x sizes x seeds x laws."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from entropy_probe.errors import InputError
from entropy_probe.laws import NEEDS_NOTHING, ScalingLaw, from_json, resolve, to_json
from entropy_probe.models import Size
from entropy_probe.strict_json import from_strict_json

LONGEST_PROMPT = 10_000
"""Characters; no text encoder reads a tenth of them."""

MOST_CELLS = 10**7
"""A run of more would take years, and its list of cells alone gigabytes: it is a mistake, or meant to harm."""

LARGEST_SEED = 2**63 - 1
"""That torch's generators take."""


@dataclass(frozen=True)
class Cell:
    """One image of the grid. `law_id` is the name of the law, with a hash of its numbers where it has any."""

    prompt: str
    size: Size
    seed: int
    law: str
    law_id: str

    @property
    def name(self) -> str:
        """A file name made of all that tells the cell from others of its run, the same in every run."""
        return f"{self.law_id}_{self.size[0]}x{self.size[1]}_{_hash(self.prompt)}_s{self.seed}"


@dataclass(frozen=True)
class Grid:
    """Every combination of prompts, sizes (height, width), seeds and scaling laws.

    Raises:
        InputError: if a list is empty or repeats itself, a seed is negative or too large, a prompt is blank, too long
            or no text, or the name of a law cannot be part of a file's name.
    """

    prompts: tuple[str, ...]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    laws: tuple[ScalingLaw, ...]

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        sizes: Sequence[Size],
        seeds: Sequence[int],
        laws: Iterable[ScalingLaw | str | Path],
    ) -> Grid:
        """The grid of what a caller gives, as `sweep` takes it.

        Raises:
            InputError: for one text in place of a list of them, a size that is no pair of numbers, an unknown law, and
                see `Grid`.
        """
        return cls(as_texts(prompts), as_sizes(sizes), tuple(seeds), tuple(resolve(law) for law in laws))

    def __post_init__(self) -> None:
        identities = tuple(law_id(law) for law in self.laws)
        for name, values in (
            ("prompts", self.prompts),
            ("sizes", self.sizes),
            ("seeds", self.seeds),
            ("laws", identities),
        ):
            if not values:
                raise InputError(f"the list of {name} is empty: give at least one")
            if len(set(values)) < len(values):
                twice = next(value for value, count in Counter(values).items() if count > 1)
                raise InputError(f"the list of {name} holds {twice!r} twice")
        names = [law.name for law in self.laws]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(
                f"two laws are both named {twice!r}: tables tell laws apart by name, sample them one by one"
            )
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,63}", name):
                raise InputError(f"a law cannot be named {name[:80]!r}: use at most 64 letters, digits and _.=+-")
        if len(self) > MOST_CELLS:
            raise InputError(f"the grid has {len(self):,} cells, at most {MOST_CELLS:,} are taken: split it into runs")
        if min(self.seeds) < 0:
            raise InputError(f"seeds must not be negative, but one is {min(self.seeds)}")
        if max(self.seeds) > LARGEST_SEED:
            raise InputError(f"seeds must be less than 2^63, but one is {max(self.seeds)}")
        for prompt in self.prompts:
            _check_prompt(prompt)

    def __len__(self) -> int:
        return len(self.prompts) * len(self.sizes) * len(self.seeds) * len(self.laws)

    def to_json(self) -> str:
        """The four lists."""
        laws = [json.loads(to_json(law)) for law in self.laws]
        fields = {"prompts": self.prompts, "sizes": self.sizes, "seeds": self.seeds, "laws": laws}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Grid:
        """The grid that `to_json` wrote.

        Raises:
            InputError: for text that is no grid.
        """
        try:
            fields = from_strict_json(_GridFile, text)
            laws = tuple(from_json(json.dumps(law)) for law in fields.laws)
            return cls(fields.prompts, fields.sizes, fields.seeds, laws)
        except InputError as error:
            raise InputError(f"this is no grid as entropy-probe writes them: {error}") from error

    def cells(self) -> Iterator[Cell]:
        """Small sizes first, so that the time left is soon known and the cheap half is soon safe."""
        sizes = sorted(self.sizes, key=lambda s: s[0] * s[1])
        laws = [(law.name, law_id(law)) for law in self.laws]
        for (law, identity), size, prompt, seed in itertools.product(laws, sizes, self.prompts, self.seeds):
            yield Cell(prompt, size, seed, law, identity)

    def cell(self, prompt: str, size: Size, seed: int, law: str) -> Cell:
        """One of the cells.

        Raises:
            InputError: if there is no such one.
        """
        named = next((own for own in self.laws if own.name == law), None)
        if named is None or prompt not in self.prompts or size not in self.sizes or seed not in self.seeds:
            where = f"{prompt!r}, {size[0]}x{size[1]}, seed {seed}, law {law!r}"
            raise InputError(f"the sweep has no cell {where}")
        return Cell(prompt, size, seed, law, law_id(named))


_Side = Annotated[int, Field(ge=1, le=2**20)]


@dataclass(frozen=True)
class _GridFile:
    """What `Grid.to_json` writes."""

    prompts: tuple[str, ...]
    sizes: tuple[tuple[_Side, _Side], ...]
    seeds: tuple[int, ...]
    laws: tuple[dict[str, Any], ...]


def law_id(law: ScalingLaw) -> str:
    """Name of a law, with a hash of its JSON where it carries numbers: two measured laws are two laws."""
    if law.name in NEEDS_NOTHING:
        return law.name
    fields = json.loads(to_json(law))
    if "points" in fields:  # kappa only sums the points up: the law that was refined is the law that is kept
        fields = {name: value for name, value in fields.items() if not name.startswith("kappa")}
    return f"{law.name}-{_hash(json.dumps(fields))}"


def batches(cells: Sequence[Cell], limit: int, training_size: Size) -> Iterator[list[Cell]]:
    """Runs of cells with the same law and size, at most `limit` of the training size's pixels each."""
    for (_, size), group in itertools.groupby(cells, key=lambda c: (c.law_id, c.size)):
        share = training_size[0] * training_size[1] / (size[0] * size[1])
        members, count = list(group), max(1, int(limit * share))
        yield from (members[start : start + count] for start in range(0, len(members), count))


def share(parts: Sequence[list[Cell]], number: int, count: int) -> list[list[Cell]]:
    """Every `count`-th batch from the `number`-th on, counted from 1: each has small and large sizes alike."""
    return list(parts[number - 1 :: count])


def as_texts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Prompts as they were given; a single text would be read letter by letter.

    Raises:
        InputError: for a single text.
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts is a list of texts: give [{prompts[:100]!r}]")
    return tuple(prompts)


def as_sizes(sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Sizes as they were given.

    Raises:
        InputError: for what is no list of pairs of whole numbers.
    """
    given = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
    for size in given:
        if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Integral) for side in size)):
            such = f"({size}, {size})" if isinstance(size, Integral) else "(64, 64)"
            raise InputError(f"a size is (height, width) in pixels, such as {such}, not {size!r:.100}")
    return tuple((int(height), int(width)) for height, width in given)


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("one of the prompts is blank")
    if len(prompt) > LONGEST_PROMPT:
        raise InputError(f"a prompt has {len(prompt):,} characters, at most {LONGEST_PROMPT:,} are taken")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a prompt is no text: {error.reason} at character {error.start}") from error


def _hash(text: str) -> str:
    """80 bits: among a million texts, two alike are a chance of one in a trillion."""
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
