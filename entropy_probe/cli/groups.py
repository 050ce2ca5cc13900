"""Build Typer apps that suggest commands, accept other names of flags and show examples in the help text."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from entropy_probe.errors import InputError

RENAMED_FLAGS = {"multipliers": "scale-factors", "pictures": "image-count"}
"""Flags of version 0.1 and their present names, without dashes. The old names still work, with a warning."""

ALIASES = {"num-inference-steps": "steps", "images": "real-images", "law": "laws", "laws": "law"}
"""Other names of flags, without dashes. A command accepts them if it has the flag but none of the other name."""


class Command(TyperCommand):
    """A command that accepts the aliases of its flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace the aliases of flags, then parse."""
        known = {flag for parameter in self.params for flag in parameter.opts}
        return super().parse_args(ctx, [_known_flag(arg, known) for arg in args])

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as the help text shows them."""
        return _without_types_of_switches(super().get_params(ctx))


class App(typer.Typer):
    """A Typer app whose commands are of the class `Command`."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = Command, **settings: Any) -> Any:
        """Return the decorator of a command; see `typer.Typer.command`."""
        return super().command(name, cls=cls, **settings)


class CommandGroup(TyperGroup):
    """A group of commands that accepts renamed flags and lists its commands when the name is unknown."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as the help text shows them."""
        return _without_types_of_switches(super().get_params(ctx))

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
    return App(
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


def _known_flag(argument: str, known: Collection[str]) -> str:
    """Return an argument with its flag replaced by the flag of the command, if it is an alias."""
    flag, equals, value = argument.partition("=")
    name = ALIASES.get(flag.removeprefix("--")) if flag.startswith("--") and flag not in known else None
    return f"--{name}{equals}{value}" if f"--{name}" in known else argument


def _without_types_of_switches(parameters: list[Any]) -> list[Any]:
    """Return parameters whose help text shows no type if they take no value, such as --quiet and --help."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
