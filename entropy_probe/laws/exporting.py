"""Export a law: a Python file for diffusers, a node for ComfyUI, or scaled weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from entropy_probe.attention import Denoisers, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.laws import comfyui_node, portable
from entropy_probe.laws.factor_table import LayerFactor, factors_of_model, factors_of_origin, origin_of_model
from entropy_probe.laws.json_format import to_json
from entropy_probe.laws.origin import Origin, origin_of
from entropy_probe.laws.resolving import resolve
from entropy_probe.laws.scaled_weights import write_scaled_weights
from entropy_probe.laws.scaling import Tokens, check_tokens
from entropy_probe.laws.site import ScalingLaw, changes_with_noise
from entropy_probe.models import Size
from entropy_probe.paths import is_folder

Target = Literal["diffusers", "comfyui", "weights"]


def export(
    law: ScalingLaw | str | Path,
    to: Target,
    out: str | Path,
    *,
    size: Size | None = None,
    model: Any = None,
    tokens: Tokens = "image",
) -> Path:
    """Write a law in a form that works without this package.

    - `diffusers`: a Python file that needs only torch. Its `scaled(pipeline)` gives the same image as `scaled` here.
    - `comfyui`: a folder for ComfyUI's `custom_nodes`, for UNets such as SD 1.5 and SDXL, and for Flux. Its factors
      follow the image size.
    - `weights`: the weights of the denoiser with scaled queries, as a safetensors file. They need no code, and work
      with `torch.compile` and with all attention backends.

    Args:
        law: a scaling law, a derivation, the name of a law, or the path of its JSON file.
        to: see above.
        out: the file or folder to write. An existing file is overwritten.
        size: (height, width) in pixels. `comfyui` does not need it.
        model: the pipeline. Only a derived law can be exported without it, and not to `weights`.
        tokens: what N and T count in joint attention: `image` tokens only, or `all` tokens; see `scaled`. `all` counts
            the text tokens of a prompt of the pipeline's default length, needs the model, and not `comfyui`.

    Returns:
        The path of the file or folder.

    Raises:
        InputError: if the target is unknown, the size or the model is missing, or the law cannot be exported.

    >>> from tempfile import TemporaryDirectory
    >>> import entropy_probe as ep
    >>> with TemporaryDirectory() as folder:
    ...     file = export("paper", "diffusers", f"{folder}/paper.py", size=(128, 96), model=ep.reference.load())
    ...     "scaled_dot_product_attention" in file.read_text()
    True
    """
    _check_arguments(to, model, tokens)
    resolved, target = resolve(law), Path(out)
    origin = origin_of(resolved)
    if changes_with_noise(resolved):
        raise InputError(
            f"the {resolved.name} law changes with the noise level, so it is not one number per layer and cannot be "
            "exported: apply it with entropy_probe.scaled"
        )
    if to == "comfyui":
        return _write_node(resolved, _origin(resolved, model), target)
    if size is None:
        raise InputError(f"--to {to} needs the image size: give --size HEIGHTxWIDTH, or size=(height, width)")
    if model is not None:
        factors = factors_of_model(resolved, model, size, tokens)
        if to == "weights":
            write_scaled_weights(resolved, factors, model, size, target, tokens)
            return target
        return _write_module(resolved, factors, _model_name(model), size, target)
    if to == "weights" or origin is None:
        raise InputError(f"--to {to} needs the model for the {resolved.name} law: give --model, or model=")
    return _write_module(resolved, factors_of_origin(resolved, origin, size), origin.model, size, target)


def _check_arguments(to: object, model: Any, tokens: object) -> None:
    """Check the target, that a model has one denoiser, and that all tokens can be counted.

    Raises:
        InputError: naming the argument and the fix.
    """
    if to not in get_args(Target):
        raise InputError(f"to must be {', '.join(get_args(Target))}, got {to!r:.100}")
    check_tokens(tokens)
    if tokens == "all" and (to == "comfyui" or model is None):
        raise InputError(
            "tokens='all' needs the model, and cannot be exported to comfyui, whose node counts image tokens: give "
            "--model, or use --tokens image"
        )
    if model is not None and isinstance(find_denoiser(model), Denoisers):
        raise InputError(
            f"{type(model).__name__} has two denoisers, and export writes the factors of one: use "
            "entropy_probe.scaled, which scales both"
        )


def _origin(law: ScalingLaw, model: Any) -> Origin:
    """Return the model that a law belongs to."""
    origin = origin_of(law)
    if origin is None and model is None:
        raise InputError(f"the {law.name} law is not derived on a model: give --model, or model=")
    return origin if origin is not None else origin_of_model(model, _model_name(model))


def _model_name(model: Any) -> str:
    """Return the hub id, or the name of the folder: its path has no meaning on another machine."""
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return Path(name).name if is_folder(name) else name


def _write_module(law: ScalingLaw, factors: Sequence[LayerFactor], model: str, size: Size, out: Path) -> Path:
    """Write the module `portable` with its constants."""
    names = [factor.layer for factor in factors]
    if nested := [name for name in names if any(name.startswith(f"{other}.") for other in names if other)]:
        raise InputError(f"layer {nested[0]!r} is inside another attention layer: apply the law with this package")
    rows = "".join(f"    {f.layer!r}: ({f.tokens}, {f.joint}, {f.scale_factor!r}),\n" for f in factors)
    text = inspect.getsource(portable)
    for line, value in (
        ('LAW = ""\n', f"LAW = {law.name!r}\n"),
        ('MODEL = ""\n', f"MODEL = {model!r}\n"),
        ("SIZE = (0, 0)\n", f"SIZE = {tuple(size)!r}\n"),
        ("]] = {}\n", f"]] = {{\n{rows}}}\n"),
    ):
        text = text.replace(line, value, 1)
    _write(out, text)
    return out


def _write_node(law: ScalingLaw, origin: Origin, out: Path) -> Path:
    """Write the folder of a ComfyUI node."""
    text = to_json(law, origin=origin)
    if json.loads(text)["law"] not in comfyui_node.LAWS:
        raise InputError(f"cannot export the {law.name} law to ComfyUI, whose node has one factor per layer")
    try:
        comfyui_node.sites(list(origin.training_tokens))
    except ValueError as error:
        raise InputError(f"cannot export to ComfyUI: {error}") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    _write(out / "law.json", text)
    _write(out / "__init__.py", inspect.getsource(comfyui_node))
    return out


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
