"""Load what a command needs: the pipeline, a run, the engine, the scoring networks, real images and scaling laws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_probe.cli.interrupts import raise_on_interrupt
from entropy_probe.cli.parsing import parse_names
from entropy_probe.cli.pipeline_kwargs import recorded_pipeline_kwargs, recorded_settings
from entropy_probe.errors import InputError
from entropy_probe.paths import exists

if TYPE_CHECKING:
    from entropy_probe.cli.output import Messages
    from entropy_probe.evaluation import Scorer
    from entropy_probe.laws import ScalingLaw
    from entropy_probe.models import ImageFolder, ModelSource
    from entropy_probe.reference.drawings import Drawings
    from entropy_probe.runs import Engine, Sweep

CALIBRATION_STRIDE = 6
"""Calibrate on every sixth drawing of the bundled dataset."""

LAW_FILES = {"measured": "law.json", "gaussian": "gaussian.json", "calibrated": "calibrated.json"}
"""Files of a run directory that hold the laws derived from the run."""


def law_file(method: str, level: str) -> str:
    """Return the file of a run directory for a derived law.

    >>> law_file("measured", "layer"), law_file("measured", "head")
    ('law.json', 'law-head.json')
    """
    return LAW_FILES[method] if level == "layer" else f"law-{level}.json"


@dataclass(frozen=True)
class EngineChoice:
    """Where cells are sampled, and how this process loads the model.

    Attributes:
        engine: samples the cells.
        device: device of the model in this process.
        dtype: precision of the model in this process.
    """

    engine: Engine
    device: str
    dtype: str


def load_pipeline(source: ModelSource, device: str, dtype: str) -> Any:
    """Load a pipeline without the messages of diffusers and transformers.

    Raises:
        InputError: if the model, the device or the precision is not available.
    """
    from entropy_probe.models import quiet_libraries

    quiet_libraries()
    pipeline = source.load(device=device, dtype=dtype)
    raise_on_interrupt()
    return pipeline


def open_run(out: str, model: str | None, device: str) -> Sweep:
    """Open a run directory with its model.

    Raises:
        InputError: if the folder is not a run, or its model cannot be loaded.
    """
    from entropy_probe.models import is_factory
    from entropy_probe.runs import RunDirectory, Sweep, locate_model, open_location

    run = RunDirectory(open_location(out))
    manifest = run.manifest()
    given = recorded_pipeline_kwargs(run.path) if manifest.pipeline_kwargs else {}
    name = model or locate_model(run.path, manifest)
    if model is None and is_factory(name):
        raise InputError(
            f"the model of {out} is the Python function {name!r}, which a run does not start: pass --model {name}"
        )
    pipeline = load_pipeline(_recorded_source(name, run.path), device, manifest.dtype)
    return Sweep.open(out, pipeline, pipeline_kwargs=given)


def _recorded_source(model: str, run: Path) -> ModelSource:
    """Return a model with the options to load it that the config.yaml of a run records."""
    from entropy_probe.cli.option_groups import LoadOptions

    recorded = recorded_settings(run)
    known = {name: recorded.get(name) for name in ("variant", "base", "lora", "offload")}
    return LoadOptions(**{name: str(value) for name, value in known.items() if value is not None}).source(model)


def open_for_report(out: str, model: str | None, device: str, messages: Messages) -> Sweep:
    """Open a run directory for a report, with its model if that is on this machine.

    A run directory from somebody else can name any model, so nothing is downloaded unless the user names the model.

    Raises:
        InputError: if the folder is not a run, or its model cannot be loaded.
    """
    from entropy_probe.models import REFERENCES
    from entropy_probe.runs import RunDirectory, Sweep, locate_model, open_location

    run = RunDirectory(open_location(out))
    name = locate_model(run.path, run.manifest())
    if model or name in REFERENCES or exists(name):
        return open_run(out, model, device)
    messages.print(f"no entropy maps: the model {name!r} is not on this machine; name it with --model to sample them")
    return Sweep.open(out)


def choose_engine(
    name: str, address: str | None, *, model: ModelSource, device: str, dtype: str, dry_run: bool, local_device: str
) -> EngineChoice:
    """Return the engine that samples the cells.

    Args:
        name: `local` or `ray`.
        address: address of the Ray cluster, or None.
        model: the model, which Ray workers load themselves.
        device: value of --device. With Ray it is the device of the workers.
        dtype: value of --dtype.
        dry_run: whether only the cost is estimated.
        local_device: device of the model in this process if the cells are sampled by Ray.

    Raises:
        InputError: for an unknown engine or options that do not fit together.
    """
    from entropy_probe.models import ModelSource
    from entropy_probe.runs import LocalEngine, RayEngine

    if name == "local":
        if address is not None:
            raise InputError(f"--address needs a Ray cluster, got {address!r} with --engine local: add --engine ray")
        return EngineChoice(LocalEngine(), device, dtype)
    if name != "ray":
        raise InputError(f"engine must be local or ray, got {name!r}")
    if dry_run:
        raise InputError("--dry-run measures in this process: run it without --engine ray, on the device of a worker")
    raise_on_interrupt()
    plain = model == ModelSource(model.model)
    engine = RayEngine.connect(address, model=model.model if plain else model, device=device)
    return EngineChoice(engine, local_device, dtype)


def choose_scorer(metrics: str, images: Path | None, model: str) -> Scorer | None:
    """Load the scoring networks that --metrics names, or return None for `none`.

    Raises:
        InputError: if the networks do not fit together or to the model, or real images are missing.
    """
    from entropy_probe.evaluation import CRITIC, WHITE, load_scorer
    from entropy_probe.models import REFERENCES, quiet_libraries
    from entropy_probe.reference import images as bundled_images

    quiet_libraries()
    bundled = model in REFERENCES
    automatic = CRITIC if bundled else "none"
    networks = [automatic if name == "auto" else name for name in parse_names(metrics)]
    if networks == ["none"]:
        return None
    if "none" in networks:
        raise InputError(
            f"metrics must be none alone or a list of networks, got {metrics!r} "
            "(auto is none unless the model is bundled)"
        )
    if CRITIC in networks and not bundled and images is None:
        raise InputError(
            "the critic was trained on the drawings of the bundled models only: pass --real-images, or name a CLIP "
            "model"
        )
    if bundled and images is None:
        return replace(load_scorer(networks, bundled_images()), background=WHITE)
    return load_scorer(networks, images)


def load_images(sampled: Sweep, images: Path | None) -> ImageFolder | Drawings:
    """Return the captioned real images on which the denoising loss is measured.

    Raises:
        InputError: if the model is not bundled and no folder is given.
    """
    from entropy_probe.models import REFERENCES, ImageFolder
    from entropy_probe.reference import images as bundled_images

    if images is not None:
        return ImageFolder.open(images)
    if sampled.manifest.model in REFERENCES:
        return bundled_images()[::CALIBRATION_STRIDE]
    raise InputError("the denoising loss needs real images with captions: pass a folder of them with --real-images")


def load_laws(sampled: Sweep, laws: str) -> list[ScalingLaw]:
    """Return scaling laws by name. `measured` and `calibrated` are read from the run, `gaussian` is derived from it.

    Raises:
        InputError: if the run has no such law yet, or a name is unknown.
    """
    from entropy_probe.estimation import Derivation, derive
    from entropy_probe.laws import from_json, resolve

    resolved: list[ScalingLaw] = []
    for name in parse_names(laws):
        if name == "gaussian":
            resolved.append(derive(sampled, "gaussian"))
        elif name in LAW_FILES:
            if not (sampled.run.path / LAW_FILES[name]).exists():
                raise InputError(
                    f"{sampled.run.path} has no {name} law: run entropy-probe derive --method {name} first"
                )
            text = sampled.run.read_text(LAW_FILES[name])
            try:
                resolved.append(Derivation.from_json(text))
            except InputError:  # the law alone, as version 0.1.0 wrote it
                resolved.append(from_json(text))
        else:
            resolved.append(resolve(name))
    return resolved
