"""Rewrite saved text encoders and tokenizers, so that old and new versions of transformers read them.

    python -m recipes.portable FOLDER ...

Versions 5.6 and newer save the weights of a CLIP text model without the prefix `text_model.`. All versions read the
prefix, and older ones need it. Versions before 5 read a CLIP tokenizer from `vocab.json` and `merges.txt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

PREFIX = "text_model."


def make_portable(folder: Path) -> None:
    """Rewrite the text encoders and tokenizers of a saved pipeline, or of the critic. Repeating it changes nothing."""
    for config in sorted(folder.rglob("config.json")):
        if json.loads(config.read_text()).get("model_type") == "clip_text_model":
            add_prefix(config.parent / "model.safetensors")
    for tokenizer in sorted(folder.rglob("tokenizer.json")):
        write_vocabulary(tokenizer)


def add_prefix(weights: Path) -> None:
    """Add the prefix to the names of the weights of a CLIP text model."""
    tensors = load_file(weights)
    if any(name.startswith(PREFIX) for name in tensors):
        return
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})


def write_vocabulary(tokenizer: Path) -> None:
    """Write `vocab.json` and `merges.txt` next to the `tokenizer.json` of a byte-pair tokenizer."""
    model = json.loads(tokenizer.read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (tokenizer.parent / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    (tokenizer.parent / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make_portable(Path(name))
