"""The modules of a denoiser by name, and whether some of them were exchanged."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from entropy_probe.attention.denoiser import attention_among
from entropy_probe.attention.fast_path import has_fast_path


class ModuleTree:
    """The modules of a denoiser by name.

    Args:
        denoiser: the denoiser. It is not compiled.

    Attributes:
        by_name: the modules, as `named_modules` returns them.
        layers: names of the attention layers. `update` changes this list in place.
        fast_paths: names of the modules with a fast path of torch, and of the attention layers inside them.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self.layers: list[str] = []
        self.update()

    def changed(self) -> bool:
        """Return whether a module that contains watched ones has other children than before.

        Only these modules are compared, because this runs in every forward.
        """
        return any(module._modules != children for module, children in self._containers)

    def update(self) -> None:
        """Walk the modules again. A module that was compiled in the meantime keeps its name.

        >>> model = nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> tree = ModuleTree(model)
        >>> model.append(nn.MultiheadAttention(4, 2)) is model, tree.changed()
        (True, True)
        >>> tree.update()
        >>> tree.layers
        ['0', '1']
        """
        self.by_name = {
            ".".join(part for part in name.split(".") if part != "_orig_mod"): module
            for name, module in self._denoiser.named_modules()
            if "_orig_mod" not in module._modules
        }
        self.layers[:] = attention_among(self.by_name)
        self.fast_paths = {
            name: [layer for layer in self.layers if layer.startswith(f"{name}." if name else "")]
            for name, module in self.by_name.items()
            if has_fast_path(module)
        }
        self.watch(self.layers)

    def watch(self, names: Iterable[str]) -> None:
        """Let `changed` look at the modules that contain these ones."""
        paths = [name.split(".") for name in names]
        containers = sorted({".".join(path[:depth]) for path in paths for depth in range(len(path))})
        self._containers = [(self.by_name[name], dict(self.by_name[name]._modules)) for name in containers]
