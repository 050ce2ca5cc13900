"""Apply config files to commands, and record the settings of a run in its config.yaml."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from entropy_probe.cli.parsing import parse_names
from entropy_probe.cli.pipeline_kwargs import save_pipeline_kwargs
from entropy_probe.paths import is_file, is_folder

if TYPE_CHECKING:
    from entropy_probe.cli.option_groups import LoadOptions
    from entropy_probe.runs import Sweep

RELATIVE = {"pipeline-kwargs", "real-images"}
"""Settings with a path that may be next to the config file. A run directory with its files can then be moved."""


def apply_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use the values of a config file as the defaults of this command. A callback of the option --config.

    Settings that belong to other commands are ignored, so one file can serve all commands.

    Raises:
        InputError: for a file that cannot be read, an unknown setting, or a value that its flag refuses.
    """
    if path is None or context.resilient_parsing:
        return path
    from entropy_probe.cli.config import read_config

    parameters = _parameters(context.command)
    options = {option.name: option for option in context.command.params}

    def check(name: str, text: str) -> str:
        try:
            if name in parameters:
                options[parameters[name]].process_value(context, text)
        except typer.BadParameter as error:
            expected = error.message.removeprefix("Input should be ").partition(",")[0]
            return f"must be {expected}"
        return ""

    settings = read_config(path, _known_settings(context), check, own=parameters)
    for name in RELATIVE & settings.keys():
        if is_file(beside := path.parent / settings[name]) or is_folder(beside):
            settings[name] = str(beside)
    context.default_map = {parameters[name]: text for name, text in settings.items() if name in parameters}
    return path


def save_config(
    context: typer.Context, sampled: Sweep, load: LoadOptions | None = None, device: str = "auto", **settings: Any
) -> None:
    """Write config.yaml into a run directory. `entropy-probe run --config` repeats the run from it.

    The file holds the resolved grid, sampling settings and model, plus `settings`. Settings that an earlier command
    wrote are kept.

    Args:
        context: the command.
        sampled: the run.
        load: how the model was loaded, if this command sampled the run.
        device: the device, if `load` is not given.
        settings: further settings of the command.
    """
    from entropy_probe.cli.config import read_config, to_yaml
    from entropy_probe.evaluation import NAMED
    from entropy_probe.laws import LAWS
    from entropy_probe.models import REFERENCES, format_size
    from entropy_probe.runs import NO_PROMPT

    path = sampled.run.path / "config.yaml"
    earlier = read_config(path, _known_settings(context)) if path.exists() else {}
    resolved = {
        "model": _absolute(sampled.manifest.model, REFERENCES),
        "sizes": list(map(format_size, sampled.grid.sizes)),
        "prompts": None if sampled.grid.prompts == (NO_PROMPT,) else list(sampled.grid.prompts),
        "seeds": list(sampled.grid.seeds),
        "steps": sampled.manifest.steps,
        "guidance-scale": sampled.manifest.guidance_scale,
        "rows": sampled.manifest.rows,
        "device": load.device if load else device,
        "training-frames": sampled.manifest.training_frames,
        "dtype": sampled.manifest.dtype,
    }
    if load:
        lora = [_absolute_adapter(text) for text in parse_names(load.lora or "")]
        base = load.base and _absolute(load.base)
        resolved |= {"variant": load.variant, "base": base, "lora": lora or None, "offload": load.offload}
    if "laws" in settings:
        settings["laws"] = [_absolute(name, LAWS) for name in parse_names(settings["laws"])]
    if "metrics" in settings:
        names = parse_names(settings["metrics"])
        settings["metrics"] = ",".join(_absolute(name, (*NAMED, "auto", "none")) for name in names)
    if images := settings.pop("images", None):
        settings["real-images"] = _absolute(images)
    if sampled.pipeline_kwargs:
        settings["pipeline-kwargs"] = save_pipeline_kwargs(sampled.run.path, sampled.pipeline_kwargs)
    merged = {**earlier, **resolved, **settings}
    sampled.run.write(path.name, to_yaml({name: value for name, value in merged.items() if value is not None}))


def _absolute(name: str | Path, known: Collection[str] = ()) -> str:
    """Return a known name unchanged, and the path of a file or folder as an absolute path."""
    return str(Path(name).absolute()) if name not in known and (is_file(name) or is_folder(name)) else str(name)


def _absolute_adapter(text: str) -> str:
    """Return `FILE` or `FILE:SCALE` with the absolute path of the file."""
    from entropy_probe.models import parse_adapter

    adapter = parse_adapter(text)
    return f"{adapter.path.absolute()}:{adapter.scale:g}"


def _known_settings(context: typer.Context) -> set[str]:
    """Return the settings of all commands, as their flags spell them."""
    root = context.find_root().command
    return {name for command in _leaf_commands(root) for name in _parameters(command)}


def _leaf_commands(command: Any) -> Iterator[Any]:
    if not hasattr(command, "commands"):
        yield command
        return
    for part in command.commands.values():
        yield from _leaf_commands(part)


def _parameters(command: Any) -> dict[str, str]:
    """Map the settings that a config file may contain to the parameter names of a command."""
    flags = {flag[2:]: option.name for option in command.params for flag in option.opts if flag.startswith("--")}
    return {flag: name for flag, name in flags.items() if flag not in ("config", "help", "prompt")}
