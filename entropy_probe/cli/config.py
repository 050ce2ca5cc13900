"""Settings of the command line in a YAML file: read without trust, and written so that they make a run again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from entropy_probe.errors import InputError

MOST_BYTES = 2**20
"""A longer file is not read: a thousand prompts take a tenth of it."""


def read_config(
    path: str | Path, known: Collection[str], fault: Callable[[str, str], str] = lambda name, text: ""
) -> dict[str, str]:
    """The settings of a file, each as the text that its flag would be given.

    No value is interpreted here: `seeds: 010` is what `--seeds 010` is. A list is joined as its flag takes it, with
    commas, and prompts with line breaks. Only the syntax tree is looked at, so nothing in the file can make an object.

    Args:
        path: a YAML file with one setting a line, `guidance-scale: 4` or `guidance_scale: 4`.
        known: the names that may stand in it, as the flags spell them.
        fault: told a name and its text, what is wrong with it, such as "must be a number"; nothing if it is right.

    Returns:
        Texts by name, as the flags spell them.

    Raises:
        InputError: naming file, line and remedy, for a file that cannot be read, a name that is not known or stands
            there twice, or a value that is neither text, number nor a list of these, or has a fault.
    """
    root = _tree(Path(path) if isinstance(path, str) else path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path} holds no settings: write one a line, such as `steps: 20`")
    settings: dict[str, str] = {}
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        name = str(key.value).replace("_", "-") if isinstance(key, yaml.ScalarNode) else "?"
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)
            raise InputError(f"{where}: there is no setting {name[:100]!r}{near and f', the nearest is {near[0]!r}'}")
        if name in settings:
            raise InputError(f"{where}: {name} is set a second time")
        settings[name] = _text(name, value, where)
        if wrong := fault(name, settings[name]):
            raise InputError(f"{where}: {name} {wrong}, not {settings[name][:100]!r}")
    return settings


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Settings by name as YAML that `read_config` reads."""
    folded = "\x85\u2028\u2029"  # line breaks to YAML, which would come back as spaces
    plain = not any(mark in text for text in _texts(settings) for mark in folded)
    dumped: str = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=plain, width=120)
    return dumped


def _texts(settings: Mapping[str, Any]) -> list[str]:
    lists = (value if isinstance(value, list) else [value] for value in settings.values())
    return [str(one) for values in lists for one in values]


def _tree(path: Path) -> yaml.Node | None:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the config file {str(path)!r}: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise InputError(f"the config file {str(path)!r} is longer than {MOST_BYTES >> 20} MiB")
    try:
        return yaml.compose(content, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"the config file {str(path)!r} is no YAML: {' '.join(str(error).split())[:300]}") from error


def _text(name: str, value: yaml.Node, where: str) -> str:
    listed = isinstance(value, yaml.SequenceNode)
    nodes = value.value if listed else [value]
    if not nodes or not all(isinstance(one, yaml.ScalarNode) and one.value for one in nodes):
        raise InputError(f"{where}: give {name} a text, a number, or a list of these")
    texts = [str(one.value) for one in nodes]
    return "".join(f"{text}\n" for text in texts) if listed and name == "prompts" else ",".join(texts)
