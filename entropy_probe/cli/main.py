"""Run the command line `entropy-probe` and report errors as one line and an exit code."""

from __future__ import annotations

import signal
import sys
import warnings
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from entropy_probe.cli import baseline_commands, export_command, inspection, sampling_commands, stage_commands
from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.interrupts import INTERRUPTED, INTERRUPTED_MESSAGE, exit_on_interrupt
from entropy_probe.cli.output import print_line
from entropy_probe.errors import CaptureError, IncompleteError, InputError
from entropy_probe.version import __version__

app = new_app(
    help="Measure the attention entropy of a diffusion model, derive the scale factor for each image size, and "
    "validate it.",
    epilog=examples(
        "entropy-probe run",
        "entropy-probe run --model my-folder --sizes 512,768,1024 --out my-run",
        "entropy-probe run --config my-run/config.yaml --out rerun",
        "entropy-probe --install-completion",
    ),
)
for part in (sampling_commands, stage_commands, export_command, inspection):
    app.registered_commands += part.app.registered_commands  # `add_typer` without a name needs typer 0.15
app.add_typer(baseline_commands.app, name="baseline", rich_help_panel="Inspect and test a model")


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    DONE = 0
    FAILED = 1
    """A check failed, or some cells of the grid could not be sampled."""
    BAD_INPUT = 2
    INTERRUPTED = INTERRUPTED


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"entropy-probe {__version__}")
        raise typer.Exit


@app.callback()
def _top_level(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Declare the options that need no command."""


def main() -> None:
    """Run the command line and exit. Bad input prints one line on standard error and exits with code 2."""
    errors = Console(stderr=True, highlight=False)

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        print_line(errors, f"warning: {message}")

    handler = signal.getsignal(signal.SIGINT)
    exit_on_interrupt()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="entropy_probe")
    warnings.showwarning = show_warning
    try:
        code, message = _run()
    finally:
        signal.signal(signal.SIGINT, handler)
    if message:
        print_line(errors, message)
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Run the app. Return the exit code and the message for standard error."""
    try:
        code = app(standalone_mode=False) or ExitCode.DONE
        # Typer catches some interruptions itself and returns their exit code.
        return code, INTERRUPTED_MESSAGE if code == ExitCode.INTERRUPTED else ""
    except (InputError, CaptureError) as error:
        return ExitCode.BAD_INPUT, f"error: {error}"
    except IncompleteError as error:
        return ExitCode.FAILED, f"error: {error}"
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED, INTERRUPTED_MESSAGE
    except Exception as error:
        # Typer bundles a private copy of click, so its usage errors have no public class.
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message()  # empty if no command was named and the help text was printed
        return ExitCode.BAD_INPUT, f"error: {text}" if text else ""


if __name__ == "__main__":
    main()
