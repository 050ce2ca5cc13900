"""Load models of diffusers and transformers, and refuse those with missing weights.

The libraries fill weights that a file does not contain with random numbers, and only log it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


def load_models(
    folder: Path, dtype: torch.dtype, variant: str | None = None, skip: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Load the models of a saved pipeline that are classes of diffusers or transformers.

    Args:
        folder: folder written by `save_pretrained` of a pipeline.
        dtype: dtype of the weights.
        variant: variant of the weights, such as "fp16", for the components that have it.
        skip: names of components that are not loaded.

    Returns:
        The models by the name of the component.

    Raises:
        InputError: if weights of a model are missing, no component has the variant, or the folder contains code of a
            component.

    >>> from entropy_probe.bundled import bundled
    >>> sorted(load_models(bundled("reference"), torch.float32))
    ['text_encoder', 'unet', 'vae']
    """
    models: dict[str, nn.Module] = {}
    if variant is not None:
        _check_variant(folder, variant)
    for name, component in read_fields(folder / "model_index.json").items():
        _refuse_code(folder if name == "_class_name" else folder / name, component)
        if not (isinstance(component, list) and len(component) == 2) or name in skip:
            continue
        library, class_name = map(str, component)
        # Some text encoders, such as that of Kolors, are classes of a folder of diffusers' pipelines.
        module = _LIBRARIES.get(library) or getattr(diffusers.pipelines, library, None)
        model_class = getattr(module, class_name, None)
        # Placeholders for missing libraries are not modules. diffusers reports them.
        if isinstance(model_class, type) and issubclass(model_class, nn.Module) and (folder / name).is_dir():
            root = "transformers" if issubclass(model_class, transformers.PreTrainedModel) else "diffusers"
            own = {"variant": variant} if variant and _has_variant(folder / name, variant) else {}
            models[name] = load_complete(model_class, folder / name, **dtype_argument(root, dtype), **own)
    return models


def _check_variant(folder: Path, variant: str) -> None:
    """Refuse a variant that no component has. diffusers would load other weights."""
    if not any(_has_variant(part, variant) for part in folder.iterdir() if part.is_dir()):
        files = [file.name.split(".") for file in folder.glob("*/*.safetensors")]
        known = sorted({parts[1].partition("-0")[0] for parts in files if len(parts) > 2})
        raise InputError(
            f"{folder} has no weights of the variant {variant!r:.100}: "
            f"{'its variants are ' + ', '.join(known) if known else 'it has no variants, leave it out'}"
        )


def _has_variant(folder: Path, variant: str) -> bool:
    return any(
        file.name.split(".")[1].partition("-0")[0] == variant
        for file in folder.glob("*.safetensors")
        if file.name.count(".") > 1
    )


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
    refuse_missing(model, Path(source), sorted(info["missing_keys"]))
    return model


def refuse_missing(model: nn.Module, source: Path, missing: Sequence[str]) -> None:
    """Refuse a model with missing weights.

    Args:
        model: the model.
        source: where it was loaded from.
        missing: names of its missing weights.

    Raises:
        InputError: with the names, if there are any.

    >>> refuse_missing(nn.Linear(1, 1), Path("model"), ["bias"])
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: model lacks 1 weights of Linear, which would be random: bias. Save the complete ...
    """
    if missing:
        names = ", ".join(missing[:_NAMES]) + (f" and {len(missing) - _NAMES} more" if len(missing) > _NAMES else "")
        raise InputError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__}, which would be random: {names}. "
            f"{_how_to_fix(model, source)}"
        )


def _how_to_fix(model: Any, folder: Path) -> str:
    library = type(model).__module__.split(".")[0]
    config = folder / "config.json"
    saved_by = read_fields(config).get(_SAVED_BY.get(library, "")) if config.is_file() else None
    if saved_by in (None, version(library)):
        return "Save the complete model again"
    return f"Install {library} {saved_by}, which saved it, instead of {version(library)}; or save the model again"
