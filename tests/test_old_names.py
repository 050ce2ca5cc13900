"""Old names of 0.1.0 work for one release: each gives the new object and warns once, with the new name."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import entropy_probe as ep
from entropy_probe import reference
from entropy_probe.old_names import PACKAGES, RENAMED

PUBLIC = {
    "critic": "Critic load",
    "fitting": (
        "POOLED Calibration Derivation Fit LogLaw Round calibrate derive derive_gaussian derive_measured fit "
        "layer_means"
    ),
    "pipelines": (
        "REFERENCE REFERENCES Layer Objective PictureFolder Pictures Size check_guidance check_size check_steps draw "
        "encode encode_with fingerprint format_size layers load objective parse_size pixels_per_latent quiet_libraries "
        "short_name to_tensor training_size training_tokens"
    ),
    "regression": "LEVEL Comparison Profile Settings compare figure junit markdown profile text write_text",
    "validation": (
        "CRITIC NAMED WHITE Comparison Defects Drift Judge Outcome defects entropy_drift judge_for metric_and_network "
        "outcome_of quality validate validate_sweep"
    ),
}
"""The public names of the packages of 0.1.0, without `validation.HIGHER_IS_BETTER`, which CHANGELOG.md lists."""
NAMES = [(package, name) for package, names in PUBLIC.items() for name in names.split()]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=map(".".join, NAMES))
def test_old_name_is_the_new_object_and_warns_once(package, name):
    module, _, attribute = RENAMED.get(f"{package}.{name}", f"{PACKAGES[package]}.{name}").rpartition(".")
    new = getattr(import_module(f"entropy_probe.{module}"), attribute)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = getattr(import_module(f"entropy_probe.{package}"), name)
    assert old is new
    assert [(w.category, w.filename) for w in caught] == [(DeprecationWarning, __file__)]
    assert str(caught[0].message).endswith(f"is deprecated: use entropy_probe.{module}.{attribute}")


def test_tables_have_no_other_names():
    assert set(PUBLIC) == set(PACKAGES)
    assert set(RENAMED) <= {f"{package}.{name}" for package, name in NAMES}


def test_importing_an_old_name_warns_once_at_the_import():
    with pytest.warns(
        DeprecationWarning, match=r"pipelines\.draw is deprecated: use .*models\.sample_images"
    ) as caught:
        from entropy_probe.pipelines import draw
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert draw.__name__ == "sample_images"


def test_reference_pictures_warns():
    with pytest.warns(DeprecationWarning, match="reference.pictures is deprecated: use images"):
        assert reference.pictures is reference.images


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module 'entropy_probe.{package}' has no attribute 'nothing'"):
        import_module(f"entropy_probe.{package}").nothing  # noqa: B018


def test_every_public_name_at_the_root_exists():
    assert {"compare", "load", "loss", "save_law"} <= set(ep.__all__)
    assert not [name for name in ep.__all__ if getattr(ep, name, None) is None]
    assert dir(ep) == sorted(ep.__all__)


def test_package_does_not_use_its_old_names():
    code = "import warnings; warnings.simplefilter('error', DeprecationWarning); import entropy_probe.cli.main"
    subprocess.run([sys.executable, "-c", code], check=True)
