"""The grid of a sweep: prompts x sizes x seeds x laws."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from entropy_probe.errors import InputError
from entropy_probe.laws import NEEDS_NOTHING, ScalingLaw, from_json, parameters, resolve
from entropy_probe.models import Size
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Side, from_strict_json, to_strict_json

MAX_PROMPT_LENGTH = 10_000
"""Characters. Text encoders read less than a tenth of this."""

MAX_CELLS = 10**7
"""A larger grid would take years, and its list of cells alone gigabytes of memory."""

MAX_SEED = 2**63 - 1
"""Largest seed of torch's generators."""


@dataclass(frozen=True)
class Cell:
    """One image of the grid.

    Attributes:
        prompt: text.
        size: (height, width) in pixels.
        seed: seed of the initial noise.
        law: name of the scaling law.
        law_id: name of the law, followed by a hash of its parameters if it has any.
    """

    prompt: str
    size: Size
    seed: int
    law: str
    law_id: str

    @property
    def name(self) -> str:
        """File name that identifies the cell. It is the same in every run."""
        return f"{self.law_id}_{self.size[0]}x{self.size[1]}_{_hash(self.prompt)}_s{self.seed}"


@dataclass(frozen=True)
class Grid:
    """Every combination of prompts, sizes, seeds and scaling laws.

    Attributes:
        prompts: texts.
        sizes: (height, width) in pixels.
        seeds: seeds of the initial noise.
        laws: scaling laws.

    Raises:
        InputError: if a list is empty or has duplicates, a seed is out of range, a prompt is blank, too long or not
            valid Unicode, or a law has a name that is not usable in a file name.

    >>> grid = Grid.build(["a red apple"], [(64, 64), (128, 64)], [0, 1], ["original", "paper"])
    >>> len(grid)
    8
    """

    prompts: tuple[str, ...]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    laws: tuple[ScalingLaw, ...]

    @classmethod
    def build(
        cls,
        prompts: Sequence[str],
        sizes: Sequence[Size],
        seeds: Sequence[int],
        laws: Iterable[ScalingLaw | str | Path],
    ) -> Grid:
        """Build a grid from the arguments of `sweep`.

        Raises:
            InputError: if `prompts` is a single text, a size is not a pair of integers, or a law is unknown. See also
                `Grid`.
        """
        return cls(as_texts(prompts), as_sizes(sizes), as_seeds(seeds), tuple(resolve(law) for law in laws))

    def __post_init__(self) -> None:
        _check_list("prompts", self.prompts)
        _check_list("sizes", self.sizes)
        _check_list("seeds", self.seeds)
        names = [law.name for law in self.laws]
        _check_characters(names)
        _check_list("laws", [law_id(law) for law in self.laws])
        _check_law_names(names)
        if len(self) > MAX_CELLS:
            raise InputError(f"the grid has {len(self):,} cells, the maximum is {MAX_CELLS:,}: split it")
        if min(self.seeds) < 0:
            raise InputError(f"seeds must not be negative, got {min(self.seeds)}")
        if max(self.seeds) > MAX_SEED:
            raise InputError(f"seeds must be less than 2^63, got {max(self.seeds)}")
        as_texts(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts) * len(self.sizes) * len(self.seeds) * len(self.laws)

    def to_json(self) -> str:
        """Return the grid as JSON text."""
        laws = [_parameters(law) for law in self.laws]
        fields = {"prompts": self.prompts, "sizes": self.sizes, "seeds": self.seeds, "laws": laws}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Grid:
        """Parse the text of `to_json`.

        Raises:
            InputError: if the text is not a grid.
        """
        try:
            fields = from_strict_json(_GridFile, text)
            laws = tuple(from_json(json.dumps(law)) for law in fields.laws)
            return cls(fields.prompts, fields.sizes, fields.seeds, laws)
        except InputError as error:
            raise InputError(f"not a valid grid: {error}") from error

    def cells(self) -> Iterator[Cell]:
        """Iterate over the cells, small sizes first: the time left is known early, and cheap cells are saved early."""
        sizes = sorted(self.sizes, key=lambda s: s[0] * s[1])
        laws = [(law.name, law_id(law)) for law in self.laws]
        for (law, identity), size, prompt, seed in itertools.product(laws, sizes, self.prompts, self.seeds):
            yield Cell(prompt, size, seed, law, identity)

    def cell(self, prompt: str, size: Size, seed: int, law: str) -> Cell:
        """Return one cell.

        Raises:
            InputError: if the grid does not have it.
        """
        named = next((candidate for candidate in self.laws if candidate.name == law), None)
        if named is None or prompt not in self.prompts or size not in self.sizes or seed not in self.seeds:
            cell = f"{prompt!r}, {size[0]}x{size[1]}, seed {seed}, law {law!r}"
            raise InputError(f"the sweep has no cell {cell}")
        return Cell(prompt, size, seed, law, law_id(named))


@dataclass(frozen=True)
class _GridFile:
    """Fields of the file that `Grid.to_json` writes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    prompts: tuple[str, ...]
    sizes: tuple[tuple[Side, Side], ...]
    seeds: tuple[int, ...]
    laws: tuple[dict[str, Any], ...]


def law_id(law: ScalingLaw) -> str:
    """Return the name of a law, followed by a hash of its JSON if it has parameters.

    The hash distinguishes, for example, two measured laws.

    >>> law_id(resolve("paper"))
    'paper'
    """
    if law.name in NEEDS_NOTHING:
        return law.name
    fields = _parameters(law)
    if "points" in fields:  # kappa is only a summary of the points: the same points are the same law
        fields = {name: value for name, value in fields.items() if not name.startswith("kappa")}
    return f"{law.name}-{_hash(json.dumps(fields))}"


def _parameters(law: ScalingLaw) -> dict[str, Any]:
    """Return the parameters of a law as JSON values, without the model that it was derived on."""
    fields: dict[str, Any] = json.loads(to_strict_json(parameters(law)))
    return fields


def batches(cells: Sequence[Cell], limit: int, training_size: Size) -> Iterator[list[Cell]]:
    """Group consecutive cells of the same law and size into batches.

    Args:
        cells: the cells.
        limit: number of cells per batch at the training size. Larger sizes get proportionally smaller batches.
        training_size: (height, width) in pixels.
    """
    for (_, size), group in itertools.groupby(cells, key=lambda c: (c.law_id, c.size)):
        ratio = training_size[0] * training_size[1] / (size[0] * size[1])
        members, count = list(group), max(1, int(limit * ratio))
        yield from (members[start : start + count] for start in range(0, len(members), count))


def select_shard(parts: Sequence[list[Cell]], number: int, count: int) -> list[list[Cell]]:
    """Return every `count`-th batch, starting with the `number`-th, counted from 1: all shards get all sizes."""
    return list(parts[number - 1 :: count])


def as_texts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return prompts as a tuple.

    Raises:
        InputError: if `prompts` is a single text, which Python would iterate letter by letter, or a prompt is blank,
            too long or not valid Unicode.

    >>> as_texts(["a red apple"])
    ('a red apple',)
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts must be a list of texts: use [{prompts[:100]!r}]")
    for prompt in prompts:
        _check_prompt(prompt)
    return tuple(prompts)


def as_sizes(sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Return sizes as a tuple of (height, width).

    Raises:
        InputError: if `sizes` is not a list of pairs of integers.

    >>> as_sizes([[64, 128]])
    ((64, 128),)
    """
    given = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
    for size in given:
        if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Integral) for side in size)):
            example = f"({size}, {size})" if isinstance(size, Integral) else "(64, 64)"
            raise InputError(f"a size must be (height, width) in pixels, such as {example}, got {size!r:.100}")
    return tuple((int(height), int(width)) for height, width in given)


def as_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return seeds as a tuple of Python integers.

    Raises:
        InputError: if `seeds` is not a list of integers.

    >>> as_seeds(range(2))
    (0, 1)
    """
    try:
        return tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise InputError(f"seeds must be a list of integers, such as [0, 1], got {seeds!r:.100}") from None


def _check_list(name: str, values: Sequence[object]) -> None:
    if not values:
        raise InputError(f"the list of {name} is empty: give at least one")
    if len(set(values)) < len(values):
        duplicate = next(value for value, count in Counter(values).items() if count > 1)
        raise InputError(f"the list of {name} contains {duplicate!r} twice")


def _check_law_names(names: list[str]) -> None:
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"two laws have the same name {duplicate!r}: tables identify laws by name, so use separate sweeps"
        )


def _check_characters(names: list[str]) -> None:
    """Refuse names of laws that are not safe in file names."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,63}", name):
            raise InputError(f"the name of a law must have 1 to 64 letters, digits or _.=+-, got {name[:80]!r}")


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("a prompt is blank: remove it")
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InputError(f"a prompt has {len(prompt):,} characters, the maximum is {MAX_PROMPT_LENGTH:,}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a prompt is not valid Unicode: {error.reason} at character {error.start}") from error


def _hash(text: str) -> str:
    """Return 80 bits of BLAKE2b: among a million texts, a collision has a probability of one in a trillion."""
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
