"""Identify a model by a hash of its weights, its configuration and its tokenizers."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from entropy_probe.attention import find_denoiser
from entropy_probe.errors import InputError

FINGERPRINT_VERSION = 3
"""Version of the fingerprint. Version 1 ignored the tokenizers, and its texts have no prefix. Versions 1 and 2 differed
between versions of transformers."""

_LOADING_SETTINGS = ("dtype", "torch_dtype", "transformers_version", "architectures")
"""Settings of a configuration that depend on how a model was loaded or saved. They are not part of its fingerprint."""

_CLIP_PREFIX = "text_model."
"""Start of the names of the weights of a CLIP text encoder, before transformers 5.6."""

_ADAPTER_SETTINGS = ("active_adapters", "scaling", "disable_adapters")
"""Attributes of PEFT layers: which adapters are active, and how strongly."""


MAX_TOKENS = 2**24
"""Maximum size of a vocabulary: far above that of any text encoder."""

_PROBES = ("a photo of a cat", "Two RED apples, 3 pears!", "na\u00efve caf\u00e9 \u732b \U0001f34e")
"""Texts whose tokens are part of the fingerprint: tokenizers with the same vocabulary can split texts differently."""


def fingerprint(pipeline: Any, version: int = FINGERPRINT_VERSION) -> str:
    """Return a hash of the configuration, weights, buffers and tokenizers. It identifies the model of a run.

    All bits of the weights are included. One gigabyte of weights takes about a second.

    Args:
        pipeline: a diffusers pipeline, or a denoiser alone.
        version: version of the fingerprint; 1 for the files of entropy-probe 0.1.0, 2 for later ones. See
            `fingerprint_version`.

    Raises:
        InputError: if weights are offloaded to a place where they cannot be read, or a tokenizer is damaged.

    >>> import entropy_probe as ep
    >>> pipeline = ep.load("reference", device="cpu")
    >>> before = fingerprint(pipeline)
    >>> with torch.no_grad():
    ...     _ = pipeline.unet.conv_in.bias.add_(1)
    >>> fingerprint(pipeline) == before
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    components = getattr(pipeline, "components", None) or {"denoiser": find_denoiser(pipeline)}
    for name, component in sorted(components.items()):
        settings = _own_settings(component) if version > 2 else _all_settings(component)
        digest.update(f"{name} {type(component).__name__}".encode())
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        if isinstance(component, nn.Module):
            _hash_weights(digest, component, version)
        if isinstance(component, PreTrainedTokenizerBase) and version > 1:
            digest.update(json.dumps(_tokenizer(component, version), sort_keys=True, default=str).encode())
    return digest.hexdigest() if version == 1 else f"{version}:{digest.hexdigest()}"


def fingerprint_version(text: str) -> int:
    """Return the version of a fingerprint.

    >>> fingerprint_version("2:0123456789abcdef"), fingerprint_version("0123456789abcdef")
    (2, 1)
    """
    prefix, colon, _ = text.partition(":")
    return int(prefix) if colon and prefix.isascii() and prefix.isdecimal() and len(prefix) < 9 else 1


def _all_settings(component: Any) -> dict[str, Any]:
    """Return the settings of a configuration, as versions 1 and 2 hash them."""
    config: Any = getattr(component, "config", None)
    settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    return {
        key: v
        for key, v in settings.items()
        if not key.startswith("_") and key not in ("dtype", "transformers_version")
    }


def _own_settings(component: Any) -> dict[str, Any]:
    """Return the settings that are not the defaults of their class. Other versions have other defaults."""
    config: Any = getattr(component, "config", None)
    if hasattr(config, "to_diff_dict"):
        own: dict[str, Any] = config.to_diff_dict()
    else:
        known = inspect.signature(type(component).__init__).parameters
        own = {key: v for key, v in dict(config or {}).items() if key not in known or known[key].default != v}
    return {key: v for key, v in own.items() if not key.startswith("_") and key not in _LOADING_SETTINGS}


def _tokenizer(tokenizer: PreTrainedTokenizerBase, version: int) -> dict[str, Any]:
    """Return what determines the tokens of a text, in a form that all versions of transformers share."""
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values(), default=0) >= MAX_TOKENS:  # the tokenizers library would allocate memory for all ids
        raise InputError(
            f"a token of {type(tokenizer).__name__} has an id of {MAX_TOKENS} or more: correct the tokenizer"
        )
    return {
        "vocabulary": vocabulary,
        "merges": _merges(tokenizer, version),
        "max_length": tokenizer.model_max_length,
        "padding": (tokenizer.pad_token_id, tokenizer.padding_side),
        "tokens": _probe_tokens(tokenizer),
    }


def _merges(tokenizer: PreTrainedTokenizerBase, version: int) -> list[str]:
    """Return the merges of a byte-pair encoding in order. Slow tokenizers call them ranks; version 2 had none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        pairs = json.loads(backend.to_str())["model"].get("merges") or ()
    else:
        ranks: dict[tuple[str, str], int] = getattr(tokenizer, "bpe_ranks", {}) if version > 2 else {}
        pairs = sorted(ranks, key=ranks.__getitem__)
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def _probe_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    try:
        return [tokenizer(text, verbose=False).input_ids for text in _PROBES]
    except Exception as error:  # tokenizers raises the class itself, for example without its unknown token
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"{type(tokenizer).__name__} cannot split a text: {reason}. Correct the files of the tokenizer"
        ) from error


def _hash_weights(digest: hashlib.blake2b, component: nn.Module, version: int) -> None:
    """Add the weights, the buffers and the state of PEFT adapters to a hash."""
    weights = _weights(component)
    if version > 2:
        weights = dict(sorted((name.removeprefix(_CLIP_PREFIX), values) for name, values in weights.items()))
    for name, values in weights.items():
        if type(values).__module__.startswith("torchao."):  # these tensors have no bytes that can be viewed
            values = values.dequantize()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    for name, module in component.named_modules():
        if type(module).__module__.startswith("peft."):
            digest.update(f"{name} {[getattr(module, setting, None) for setting in _ADAPTER_SETTINGS]}".encode())


def _weights(component: nn.Module) -> Mapping[str, Tensor]:
    """Return the weights and buffers. Those that accelerate has offloaded are fetched."""
    weights = {name: values for name, values in component.state_dict().items() if isinstance(values, Tensor)}
    if any(values.is_meta for values in weights.values()):
        fetched: Mapping[str, Tensor] = get_state_dict_offloaded_model(component)
        weights = {name: fetched.get(name, values) for name, values in weights.items()}
    if missing := [name for name, values in weights.items() if values.is_meta]:
        raise InputError(
            f"the weights {missing[0]!r} of {type(component).__name__} are not in memory: load the model without "
            "offloading them"
        )
    return weights
