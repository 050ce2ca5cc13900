"""Read and write the YAML files of command-line settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from entropy_probe.cli.groups import ALIASES, RENAMED_FLAGS, warn_renamed
from entropy_probe.errors import InputError

MAX_BYTES = 2**20
"""Larger files are refused. A thousand prompts need about a tenth of this."""


def read_config(
    path: str | Path,
    known: Collection[str],
    check: Callable[[str, str], str] = lambda name, text: "",
    own: Collection[str] = (),
) -> dict[str, str]:
    r"""Read the settings of a file. Return each value as the text that its flag would receive.

    Values are not interpreted: `seeds: 010` means `--seeds 010`. Items of a list are joined with commas, items of
    `prompts` with line breaks. Only the syntax tree is read, so a file cannot create Python objects.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "run.yaml").write_text("sizes: [32, 64]\nguidance_scale: 4\n")
    ...     read_config(Path(folder) / "run.yaml", {"sizes", "guidance-scale"})
    {'sizes': '32,64', 'guidance-scale': '4'}

    Args:
        path: YAML file with one setting per line, `guidance-scale: 4` or `guidance_scale: 4`.
        known: allowed names, as the flags spell them.
        check: returns what is wrong with a name and its text, such as "must be a number", or an empty string.
        own: the names of one command; the others are ignored later. For a command that knows only `sizes`, `size`
            without `sizes` is refused, because it is probably a mistake.

    Returns:
        Texts by name, as the flags spell them.

    Raises:
        InputError: with the file, the line and the fix, if the file cannot be read, a name is unknown or repeated, or
            a value is invalid. A value must be a text, a number or a list of these.
    """
    root = _syntax_tree(Path(path) if isinstance(path, str) else path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path} contains no settings: write one per line, such as `steps: 20`")
    settings: dict[str, str] = {}
    places: dict[str, str] = {}
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        name = _setting_name(key, known, where)
        if name in settings:
            raise InputError(f"{where}: {name} is set twice: remove one of the lines")
        settings[name], places[name] = _text(name, value, where), where
        if problem := check(name, settings[name]):
            raise InputError(f"{where}: {name} {problem}, got {settings[name][:100]!r}")
    for name, where in places.items():
        plural = f"{name}s"
        if name not in own and plural in own and plural not in settings:
            raise InputError(f"{where}: unknown setting {name!r}: did you mean {plural!r}?")
    return settings


def to_yaml(settings: Mapping[str, Any]) -> str:
    r"""Return settings by name as YAML that `read_config` can read.

    >>> to_yaml({"sizes": [32, 64], "steps": 8})
    'sizes:\n- 32\n- 64\nsteps: 8\n'
    """
    line_breaks = "\x85\u2028\u2029"  # YAML would read these back as spaces
    plain = not any(mark in text for text in _texts(settings) for mark in line_breaks)
    dumped: str = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=plain, width=120)
    return dumped


def _texts(settings: Mapping[str, Any]) -> list[str]:
    lists = (value if isinstance(value, list) else [value] for value in settings.values())
    return [str(item) for values in lists for item in values]


def _syntax_tree(path: Path) -> yaml.Node | None:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"the config file {str(path)!r} is not a regular file: save it as one")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the name contains NUL
        cause = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read the config file {str(path)!r:.200}: {cause}; give --config an existing YAML file"
        ) from error
    if len(content) > MAX_BYTES:
        raise InputError(f"the config file {str(path)!r} is longer than {MAX_BYTES >> 20} MiB")
    try:
        return yaml.compose(content, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"{error.problem} in line {error.problem_mark.line + 1}"
        else:
            reason = " ".join(str(error).split())[:300]
        raise InputError(f"the config file {str(path)!r} is not valid YAML: {reason}") from error


def _setting_name(key: yaml.Node, known: Collection[str], where: str) -> str:
    name = str(key.value).replace("_", "-") if isinstance(key, yaml.ScalarNode) else "?"
    present = RENAMED_FLAGS.get(name, name)
    if name not in known and present in known:
        warn_renamed(name, present, f"{where}: ")
        return present
    if name not in known and ALIASES.get(name) in known:
        return ALIASES[name]
    if name not in known:
        similar = difflib.get_close_matches(name, known, 1, 0)
        hint = f": did you mean {similar[0]!r}?" if similar else ""
        raise InputError(f"{where}: unknown setting {name[:100]!r}{hint}")
    return name


def _text(name: str, value: yaml.Node, where: str) -> str:
    is_list = isinstance(value, yaml.SequenceNode)
    nodes = value.value if is_list else [value]
    if not nodes or not all(isinstance(node, yaml.ScalarNode) and node.value for node in nodes):
        raise InputError(f"{where}: {name} must be a text, a number, or a list of these")
    texts = [str(node.value) for node in nodes]
    if sum(map(len, texts)) + len(texts) > MAX_BYTES:  # an alias repeats a long text without making the file longer
        raise InputError(f"{where}: {name} is longer than {MAX_BYTES >> 20} MiB: remove its aliases")
    return "".join(f"{text}\n" for text in texts) if is_list and name == "prompts" else ",".join(texts)
