"""The record of a derivation in the file of a law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from entropy_probe.estimation.refinement import Round
from entropy_probe.estimation.regression import Tokens
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Number


@dataclass(frozen=True)
class KappaRow:
    """A row of `Derivation.kappa`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    kappa: Number
    kappa_se: Number
    low: Number
    high: Number
    paper: Number


@dataclass(frozen=True)
class BoundRow:
    """A row of `Derivation.unreachable`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    tokens: Tokens
    g: Number


@dataclass(frozen=True)
class EntropyRow:
    """A row of `Derivation.entropies`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    tokens: Tokens
    training_tokens: Tokens | Number
    target: Number
    original: Number
    scaled: Number


@dataclass(frozen=True)
class FactorRow:
    """A row of `Derivation.factors`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    tokens: Tokens
    training_tokens: Tokens | Number
    scale_factor: Number
    low: Number
    high: Number
    bound: Literal["at most", "at least", ""]


@dataclass(frozen=True)
class DerivationRecord:
    """The record of a derivation in the file of a law. Version 0.1.0 wrote the first three fields."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    kappa: list[KappaRow]
    rounds: tuple[Round, ...]
    unreachable: list[BoundRow]
    entropies: list[EntropyRow] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    factors: list[FactorRow] = field(default_factory=list)
