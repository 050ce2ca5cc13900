"""Load models of diffusers and transformers, and refuse those with missing weights.

The libraries fill weights that a file does not contain with random numbers, and only log it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from entropy_probe.errors import InputError
from entropy_probe.library_versions import dtype_argument
from entropy_probe.models.weight_files import read_fields

_NAMES = 100
"""Maximum number of weights that an error names."""

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}

_SAVED_BY = {"diffusers": "_diffusers_version", "transformers": "transformers_version"}
"""The field of a configuration that contains the version of the library that saved it."""


def load_models(folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Load the models of a saved pipeline that are classes of diffusers or transformers.

    Args:
        folder: folder written by `save_pretrained` of a pipeline.
        dtype: dtype of the weights.

    Returns:
        The models by the name of the component.

    Raises:
        InputError: if weights of a model are missing, or the folder contains code of a component.

    >>> from entropy_probe.bundled import bundled
    >>> sorted(load_models(bundled("reference"), torch.float32))
    ['text_encoder', 'unet', 'vae']
    """
    models: dict[str, nn.Module] = {}
    for name, component in read_fields(folder / "model_index.json").items():
        _refuse_code(folder if name == "_class_name" else folder / name, component)
        if not (isinstance(component, list) and len(component) == 2 and component[0] in _LIBRARIES):
            continue
        library, class_name = component
        model_class = getattr(_LIBRARIES[library], str(class_name), None)
        # Placeholders for missing libraries are not modules. diffusers reports them.
        if isinstance(model_class, type) and issubclass(model_class, nn.Module) and (folder / name).is_dir():
            models[name] = load_complete(model_class, folder / name, **dtype_argument(library, dtype))
    return models


_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
"""Files of which a tokenizer needs one. Without them, transformers makes an empty tokenizer."""


def check_components(folder: Path) -> None:
    """Refuse a pipeline without the files of a component. transformers would replace some of them by defaults.

    Raises:
        InputError: naming the missing folder or file.

    >>> from entropy_probe.bundled import bundled
    >>> check_components(bundled("reference"))
    """
    for name, component in read_fields(folder / "model_index.json").items():
        is_named = isinstance(component, list) and len(component) == 2 and all(isinstance(n, str) for n in component)
        if name.startswith("_") or not is_named:
            continue
        class_name, own = str(component[1]), folder / name
        if not own.is_dir():
            raise InputError(f"{folder} lacks the component {name!r:.100}: save the complete pipeline again")
        needed: tuple[tuple[str, ...], ...] = ()
        if "Tokenizer" in class_name:
            has_words = getattr(getattr(transformers, class_name, None), "vocab_files_names", None) != {}  # ByT5: bytes
            needed = (("tokenizer_config.json",), *((_VOCABULARIES,) if has_words else ()))
        elif component[0] == "transformers" and isinstance(getattr(transformers, class_name, None), type):
            is_model = issubclass(getattr(transformers, class_name), nn.Module)
            needed = (("config.json",),) if is_model else ()
        for names in needed:
            if not any(path.is_file() for pattern in names for path in own.glob(pattern)):
                raise InputError(f"{own} lacks {' or '.join(names)}: save the complete pipeline again")


def _refuse_code(folder: Path, component: Any) -> None:
    """Refuse a component whose class is in a file of the model. diffusers 0.31 would run it without asking.

    Raises:
        InputError: naming the file.
    """
    if isinstance(component, list) and component and (code := folder / f"{component[0]}.py").exists():
        raise InputError(f"{code} is code of the model, which is not run: use classes of diffusers or transformers")


def load_complete(model_class: Any, source: str | Path, **settings: Any) -> Any:
    """Load a model from safetensors with `from_pretrained`.

    Args:
        model_class: a model class of diffusers or transformers.
        source: folder or hub id.
        settings: arguments of `from_pretrained`.

    Raises:
        InputError: with the names of the weights, if some are missing or have the wrong shape.

    >>> from diffusers import UNet2DConditionModel
    >>> from entropy_probe.bundled import bundled
    >>> unet = load_complete(UNet2DConditionModel, bundled("reference") / "unet")
    >>> unet.config.sample_size
    16
    """
    if model_class.__module__.startswith("transformers."):  # otherwise its error names no weight
        settings = {"ignore_mismatched_sizes": True, **settings}
    model, info = model_class.from_pretrained(source, output_loading_info=True, use_safetensors=True, **settings)
    if mismatched := sorted(info.get("mismatched_keys") or ()):
        name, found, expected = mismatched[0]
        raise InputError(
            f"{source} has {len(mismatched)} weights of another shape than its config.json says, the first is {name} "
            f"with {tuple(found)} instead of {tuple(expected)}: save the complete model again"
        )
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:_NAMES]) + (f" and {len(missing) - _NAMES} more" if len(missing) > _NAMES else "")
        raise InputError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__}, which would be random: {names}. "
            f"{_how_to_fix(model, Path(source))}"
        )
    return model


def _how_to_fix(model: Any, folder: Path) -> str:
    library = type(model).__module__.split(".")[0]
    config = folder / "config.json"
    saved_by = read_fields(config).get(_SAVED_BY.get(library, "")) if config.is_file() else None
    if saved_by in (None, version(library)):
        return "Save the complete model again"
    return f"Install {library} {saved_by}, which saved it, instead of {version(library)}; or save the model again"
