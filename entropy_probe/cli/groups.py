"""Build Typer apps that suggest commands, accept renamed flags and show examples in the help text."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from entropy_probe.errors import InputError

RENAMED_FLAGS = {"multipliers": "scale-factors", "pictures": "image-count"}
"""Flags of version 0.1 and their present names, without dashes. The old names still work, with a warning."""


class CommandGroup(TyperGroup):
    """A group of commands that accepts renamed flags and lists its commands when the name is unknown."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace the old names of flags, then parse."""
        return super().parse_args(ctx, [_present_flag(arg) for arg in args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` names.

        Raises:
            InputError: if the name is unknown and no command has a similar name. Click suggests similar names itself.
        """
        name, known = args[0], list(self.commands)
        unknown = name not in known and not name.startswith("-") and not difflib.get_close_matches(name, known)
        if unknown and not ctx.resilient_parsing:
            raise InputError(f"unknown command {name[:100]!r}: choose from {', '.join(known)}")
        return super().resolve_command(ctx, args)


def new_app(**settings: Any) -> typer.Typer:
    """Return a Typer app with the settings that all groups of this command line share."""
    return typer.Typer(
        cls=CommandGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def examples(*lines: str) -> str:
    """Return the end of a help text: commands to copy.

    >>> print(examples("entropy-probe info"))
    [bold]Examples[/bold]
    <BLANKLINE>
    [cyan]  entropy-probe info[/cyan]
    """
    return "\n\n".join(["[bold]Examples[/bold]", *(f"[cyan]  {line}[/cyan]" for line in lines)])


def warn_renamed(old: str, new: str, where: str = "") -> None:
    """Warn that a flag or a setting has a new name."""
    warnings.warn(f"{where}{old} is deprecated: use {new}", DeprecationWarning, stacklevel=1)


def _present_flag(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    present = RENAMED_FLAGS.get(flag.removeprefix("--")) if flag.startswith("--") else None
    if present is None:
        return argument
    warn_renamed(flag, f"--{present}")
    return f"--{present}{equals}{value}"
