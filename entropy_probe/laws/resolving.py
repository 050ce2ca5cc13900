"""Find the law that a user names: by the law itself, its name, or its JSON file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from entropy_probe.errors import InputError
from entropy_probe.laws.catalogue import DERIVED, LAWS, NEEDS_NOTHING, WITH_NUMBER, law_by_name, own_law
from entropy_probe.laws.json_format import load_law
from entropy_probe.laws.site import ScalingLaw
from entropy_probe.paths import is_file


class _RenamedMethod:
    """A user law that still has the method `multiplier` of version 0.1.0."""

    def __init__(self, law: Any) -> None:
        self._law = law
        self.name: str = law.name

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        """Return the g of the user's law."""
        return float(self._law.multiplier(layer, tokens, training_tokens))


def resolve(law: ScalingLaw | str | Path, *, also: Sequence[str] = ()) -> ScalingLaw:
    """Return a law, given the law itself, its name, or its JSON file.

    Args:
        law: the law.
        also: further names that the caller accepts, to be listed in error messages.

    Raises:
        InputError: for an unknown name, a law that must be derived first, a file that does not exist or does not
            contain a law, or any other type.

    >>> resolve("paper")
    Paper()
    >>> resolve("papr")
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: unknown law 'papr': give original, paper, log, yarn, yarn-side, time_yarn,
    log_power=NUMBER, pippo=NUMBER, kappa=NUMBER, or the JSON file of a law
    """
    if isinstance(law, ScalingLaw):
        return own_law(law)
    if isinstance(law, str | Path):
        return law_by_name(str(law)) or (_refused(str(law)) if str(law) in LAWS else _by_file(law, also))
    if hasattr(law, "multiplier") and hasattr(law, "name"):
        warnings.warn(
            f"{type(law).__name__}.multiplier() is deprecated: rename it to scale_factor()",
            DeprecationWarning,
            stacklevel=2,
        )
        return _RenamedMethod(law)
    raise InputError(f"a law must be a name, a JSON file or an object with name and scale_factor(), got {law!r:.100}")


def _refused(name: str) -> NoReturn:
    """Raise the error of a law that a name alone does not describe."""
    if name in DERIVED:
        raise InputError(
            f"law {name!r} is measured on a model: derive it first (entropy-probe derive --method {name}) and pass its "
            "JSON file"
        )
    example = f", or a name such as {name}=1.5" if name in WITH_NUMBER else ""
    raise InputError(f"law {name!r} needs numbers: pass the JSON file that contains them{example}")


def _by_file(law: str | Path, also: Sequence[str]) -> ScalingLaw:
    path = Path(law)
    if is_file(path):
        return load_law(path)
    is_path = isinstance(law, Path) or path.suffix or len(path.parts) > 1
    cause = f"there is no file {str(law)!r:.200}" if is_path else f"unknown law {str(law)!r:.200}"
    numbers = [f"{name}=NUMBER" for name in WITH_NUMBER]
    raise InputError(f"{cause}: give {', '.join([*NEEDS_NOTHING, *also, *numbers])}, or the JSON file of a law")
