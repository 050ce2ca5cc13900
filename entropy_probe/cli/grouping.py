"""Let commands share groups of options: a parameter that is a dataclass becomes one flag for each field."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters are the fields of the dataclasses among the parameters of a function.

    Args:
        command: the function. The fields of its dataclasses are annotated as options of Typer.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Grid:
    ...     steps: int = 8
    >>> @grouped
    ... def run(grid: Grid, quiet: bool = False) -> None:
    ...     print(grid, quiet)
    >>> list(inspect.signature(run).parameters)
    ['steps', 'quiet']
    >>> run(steps=2)
    Grid(steps=2) False
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        own = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=own[field.name]
            )
            for field in dataclasses.fields(groups[name])
        ]

    @functools.wraps(command)
    def call(**given: Any) -> None:
        made = {
            name: group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group) if f.name in given})
            for name, group in groups.items()
        }
        command(**given, **made)

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del call.__dict__["__wrapped__"]  # Typer would read the signature of the function inside
    return call
