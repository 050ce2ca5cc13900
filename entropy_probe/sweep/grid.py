"""The grid of a sweep: prompts x sizes x seeds x laws."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from entropy_probe.errors import InputError
from entropy_probe.laws import NEEDS_NOTHING, ScalingLaw, from_json, to_json
from entropy_probe.pipelines import Size


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
        """A file name, the same in every run for the same cell."""
        prompt = hashlib.sha1(self.prompt.encode()).hexdigest()[:10]
        return f"{self.law_id}_{self.size[0]}x{self.size[1]}_{prompt}_s{self.seed}"


@dataclass(frozen=True)
class Grid:
    """Every combination of prompts, sizes (height, width), seeds and scaling laws.

    Raises:
        InputError: if a list is empty or repeats itself, or a seed is negative.
    """

    prompts: tuple[str, ...]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    laws: tuple[ScalingLaw, ...]

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
                twice = next(v for v in values if values.count(v) > 1)
                raise InputError(f"the list of {name} holds {twice!r} twice")
        names = [law.name for law in self.laws]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(
                f"two laws are both named {twice!r}: tables tell laws apart by name, sample them one by one"
            )
        if min(self.seeds) < 0:
            raise InputError(f"seeds must not be negative, but one is {min(self.seeds)}")
        if any(not prompt.strip() for prompt in self.prompts):
            raise InputError("one of the prompts is blank")

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
            fields = json.loads(text)
            sizes = tuple((int(h), int(w)) for h, w in fields["sizes"])
            laws = tuple(from_json(json.dumps(law)) for law in fields["laws"])
            return cls(tuple(fields["prompts"]), sizes, tuple(fields["seeds"]), laws)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"this is no grid as entropy-probe writes them: {error!r}") from error

    def cells(self) -> Iterator[Cell]:
        """Small sizes first, so that the time left is soon known and the cheap half is soon safe."""
        sizes = sorted(self.sizes, key=lambda s: s[0] * s[1])
        for law, size, prompt, seed in itertools.product(self.laws, sizes, self.prompts, self.seeds):
            yield Cell(prompt, size, seed, law.name, law_id(law))


def law_id(law: ScalingLaw) -> str:
    """Name of a law, with a hash of its JSON where it carries numbers: two measured laws are two laws."""
    if law.name in NEEDS_NOTHING:
        return law.name
    fields = json.loads(to_json(law))
    if "points" in fields:  # kappa only sums the points up: the law that was refined is the law that is kept
        fields = {name: value for name, value in fields.items() if not name.startswith("kappa")}
    return f"{law.name}-{hashlib.sha1(json.dumps(fields).encode()).hexdigest()[:8]}"


def batches(cells: Sequence[Cell], limit: int, training_size: Size) -> Iterator[list[Cell]]:
    """Runs of cells with the same law and size, at most `limit` of the training size's pixels each."""
    for (_, size), group in itertools.groupby(cells, key=lambda c: (c.law_id, c.size)):
        share = training_size[0] * training_size[1] / (size[0] * size[1])
        members, count = list(group), max(1, int(limit * share))
        yield from (members[start : start + count] for start in range(0, len(members), count))
