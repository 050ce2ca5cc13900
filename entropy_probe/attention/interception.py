"""Run the forward passes of a denoiser, and let observers see and scale its attention calls.

A forward hook takes the place of `forward` on the denoiser and on each attention layer. It notes which layer runs and
what the layer received. Then it activates a function mode, which receives query and key of every
`torch.nn.functional.scaled_dot_product_attention` as the model computed them. A `finally` clause deactivates the mode.

Hooks made by `register_forward_hook` cannot do this. torch does not run them after a KeyboardInterrupt. Gradient
checkpointing, PEFT and DDP call layers without them (docs/decisions/0010).

All state of a running forward pass belongs to its thread. Removing the hooks leaves the model as it was.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropy_probe.attention.by_hand import ByHand
from entropy_probe.attention.call import AttentionCall, unpack_heads
from entropy_probe.attention.clip_length import training_token_frames
from entropy_probe.attention.compiling import Compiler, set_compiler
from entropy_probe.attention.denoiser import parts_of_denoiser
from entropy_probe.attention.fast_path import may_take_fast_path
from entropy_probe.attention.forwards import ForwardReader
from entropy_probe.attention.hooks import ForwardHook
from entropy_probe.attention.joint import CONCATENATIONS, ImageSource, input_with_context, note_join, own_input
from entropy_probe.attention.latents import training_latents
from entropy_probe.attention.modes import (
    TORCH_SDPA,
    CallMode,
    finish_contexts,
    is_active,
    mode_depth,
    push_mode,
    put_back,
    restore,
    take_out,
)
from entropy_probe.attention.module_tree import ModuleTree
from entropy_probe.attention.observer import Observer
from entropy_probe.attention.reading import CallReader
from entropy_probe.attention.thread_state import InputSize, Running, ThreadState, saved_tensor_hooks
from entropy_probe.errors import CaptureError
from entropy_probe.statistics import default_scale


class Interception:
    """The hooks on one denoiser, and its observers.

    Args:
        denoiser: the denoiser.

    Attributes:
        denoiser: the denoiser.
        tree: its modules.
        observers: all observers, those that scale before those that measure.
        by_hand: names of the modules that compute attention without a visible call.
        roots: the modules whose forward is a pass of the denoiser, by name: `""`, or several.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.by_hand: set[str] = set()
        self.denoiser = denoiser
        self.tree = ModuleTree(denoiser)
        self._attention = set(self.tree.layers)
        self._hooks: list[ForwardHook] = []
        self._discovery_hooks: list[ForwardHook] = []
        self._known_sizes: set[InputSize] = set()
        self._threads: set[int] = set()
        self._discovering: set[int] = set()
        self._lock = threading.RLock()
        self._state = ThreadState()
        self.roots = parts_of_denoiser(denoiser)
        numbers = itertools.count()
        self._forwards = {name: ForwardReader(root, numbers) for name, root in self.roots.items()}
        self._calls = CallReader(self._state)
        self._mode = CallMode(self._state, self.attend, self.note)

    def learn_training_size(self, model: Any, frames: int | None = None) -> None:
        """Read the training size from the denoiser's configuration, or else from its pipeline.

        Args:
            model: the pipeline, or the denoiser.
            frames: frames of the videos in training. By default, those that the pipeline samples by default.
        """
        self._calls.trained = self._calls.trained or training_latents(self.denoiser, model)
        if frames is not None or self._calls.trained_frames is None:
            self._calls.trained_frames = training_token_frames(self.denoiser, model, frames)

    def add(self, observer: Observer) -> None:
        """Add an observer. The first one installs the hooks."""
        self._known_sizes.clear()  # the next pass shows this observer what the model computes by hand
        self.observers = tuple(sorted((*self.observers, observer), key=lambda one: one.after_scaling))
        if not self._hooks:
            try:
                for name in dict.fromkeys((*self.roots, *self.tree.layers, *self.tree.fast_paths)):
                    self._hook(name, self._hooks)
            except BaseException:
                self.discard(observer)
                raise

    def discard(self, observer: Observer) -> None:
        """Remove an observer. The hooks are removed with the last one."""
        self.observers = tuple(one for one in self.observers if one is not observer)
        if not self.observers:
            try:
                self._remove_all()
            finally:  # a KeyboardInterrupt may interrupt the first attempt
                self._remove_all()

    def warn_of_copy(self) -> None:
        """Warn that a deep copy of a scaled model is not scaled."""
        if any(not one.after_scaling for one in self.observers):
            warnings.warn(
                "the copy of this model is not scaled, because a scaling law stays with the model that it was applied "
                "to: apply the law to the copy",
                stacklevel=3,
            )

    def _hook(self, name: str, hooks: list[ForwardHook]) -> None:
        hook = ForwardHook(self.tree.by_name[name], name, self)
        hooks.append(hook)
        hook.install()

    def _remove_all(self) -> None:
        for hooks in (self._discovery_hooks, self._hooks):
            for hook in reversed(hooks):
                hook.remove()
            hooks.clear()

    def run(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any], compiler: Compiler) -> Any:
        """Run the forward of a hooked module.

        Args:
            hook: the hook.
            args: positional arguments of the forward.
            kwargs: its keyword arguments.
            compiler: torch.compile's callback, disabled by the caller. It is enabled again where the function mode is
                not active.
        """
        if hook.name in self.roots and self._state.forward is None:
            return self._run_denoiser(hook, args, kwargs, compiler)
        return self._run_layer(hook, args, kwargs, compiler)

    def _run_denoiser(
        self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any], compiler: Compiler
    ) -> Any:
        state, depth = self._state, mode_depth()
        try:
            self._begin(state, hook.name, args, kwargs)
            if state.discovering:
                self._watch_every_module()
            output = self._run_layer(hook, args, kwargs, compiler)
            if state.discovering:
                self._calls.keep_joins()
                self._known_sizes.add(state.size)  # not after a failed pass, which may not have made all its calls
                for observer in self.observers:
                    observer.after_discovery(observer)
            return output
        except BaseException as interruption:  # any signal handler can raise, such as a timeout
            finish_contexts(interruption.__traceback__)
            raise
        finally:
            try:
                self._end(state, depth)
            finally:  # a KeyboardInterrupt may interrupt the first attempt
                self._end(state, depth)

    def _run_layer(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any], compiler: Compiler) -> Any:
        state, depth = self._state, mode_depth()
        height, level = len(state.running), None
        try:
            is_attention = hook.name in self._attention
            outermost = is_attention and not any(running.is_attention for running in state.running)
            unlocated = outermost and self._calls.is_unlocated(hook.name)
            source = ImageSource(input_with_context(args, kwargs) if unlocated else None)
            state.running.append(Running(hook.name, is_attention, args, kwargs, source, saved_tensor_hooks()))
            hidden = hook.name in self.tree.fast_paths and may_take_fast_path(hook.module)
            if hidden:
                level = take_out(self._mode)
            elif (is_attention or state.discovering) and not is_active(self._mode):
                push_mode(self._mode)
            if not is_attention and not state.discovering:
                set_compiler(compiler)
            output = hook.inner(*args, **kwargs)
            if state.forward is not None:  # not after a failed pass, which may not have made its calls
                for observer in self.observers:
                    observer.ran.update((hook.name, *(self.tree.fast_paths[hook.name] if hidden else ())))
            return output
        except BaseException as interruption:
            finish_contexts(interruption.__traceback__)
            raise
        finally:
            try:
                set_compiler(None)
                put_back(self._mode, level)
                restore(state.running, height, depth)
            finally:  # a KeyboardInterrupt may interrupt the first attempt
                put_back(self._mode, level)
                restore(state.running, height, depth)

    def _begin(self, state: ThreadState, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a forward pass of the denoiser in this thread.

        Raises:
            CaptureError: if another thread runs one, and an observer requires a single thread.
        """
        self._threads.add(threading.get_ident())
        if len(self._threads) > 1 and any(observer.one_thread for observer in self.observers):
            raise CaptureError(
                "two threads run this model at the same time while it is being captured: capture in one thread, or "
                "give each thread its own copy of the model"
            )
        if self.tree.changed():
            self._follow_changes()
        state.forward = self._forwards[root].read(args, kwargs, self._calls.trained, self._calls.trained_frames)
        state.finished = replace(state.forward, arguments={})
        shapes = (value.shape for value in state.forward.arguments.values() if _is_dense(value))
        state.size = root, state.forward.latents or tuple(shapes)
        state.discovering = state.size not in self._known_sizes
        for observer in self.observers:
            observer.on_forward(state.forward)
        state.by_hand = ByHand()
        if F.scaled_dot_product_attention is not TORCH_SDPA:
            for observer in self.observers:
                observer.replacement = F.scaled_dot_product_attention

    def _end(self, state: ThreadState, depth: int) -> None:
        """End a forward pass of the denoiser. This may run twice."""
        state.forward = None
        state.joins.clear()
        state.items.clear()
        state.left.clear()
        state.by_hand = ByHand()
        state.discovering = False
        with self._lock:
            self._discovering.discard(threading.get_ident())
            if not self._discovering:
                for hook in reversed(self._discovery_hooks):
                    hook.remove()
                self._discovery_hooks.clear()
        found = self._attention - {hook.name for hook in self._hooks}
        if found and self.observers:  # another thread may have removed the last one
            self.tree.watch(self._attention)
            for name in found:
                self._hook(name, self._hooks)
        self._threads.discard(threading.get_ident())
        restore(state.running, 0, depth)

    def _watch_every_module(self) -> None:
        """Hook every module with submodules, to learn which ones make attention calls outside attention layers."""
        with self._lock:
            self._discovering.add(threading.get_ident())
            hooked = {hook.name for hook in (*self._hooks, *self._discovery_hooks)}
            for name, module in self.tree.by_name.items():
                if name not in hooked and module._modules:
                    self._hook(name, self._discovery_hooks)

    def _follow_changes(self) -> None:
        """Move the hooks to the modules that the denoiser has now, and discover its calls again."""
        self.tree.update()
        modules = self.tree.by_name
        for hook in [hook for hook in self._hooks if modules.get(hook.name) is not hook.module]:
            hook.remove()
            self._hooks.remove(hook)
        self._attention = {*self.tree.layers, *(self._attention & modules.keys())}
        self.tree.watch(self._attention)
        for name in {*self._attention, *self.tree.fast_paths} - {hook.name for hook in self._hooks}:
            self._hook(name, self._hooks)
        self._known_sizes.clear()

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note a concatenation or a projection, which may locate the image tokens of a joint attention.

        During a discovery, also note the operations of attention by hand.
        """
        state = self._state
        if state.discovering:
            with torch._C.DisableTorchFunction():
                if state.by_hand.completes_attention(func, args, kwargs, result):
                    self.by_hand.add(state.caller().name)
        layer = next((running for running in state.running if running.is_attention), None)
        source = layer.source if layer is not None else ImageSource(None)
        if func in CONCATENATIONS:
            note_join(state.joins, source, args, kwargs)
        elif func is F.linear:
            source.projected(args[0] if args else kwargs.get("input"), result)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Run `scaled_dot_product_attention`, which has the same parameters, after the observers have scaled it."""
        with torch._C.DisableTorchFunction():  # hides the operations of the measurement from other modes
            call = self._read(query, key, attn_mask, is_causal, scale, enable_gqa)
            factors = [] if call is None else self._scale_factors(call)
            if factors:
                self._state.caller().refuse_checkpoint()
        for factor in factors:
            if isinstance(factor, Tensor):
                query = query * factor.to(query).view(_per_head(query, len(factor)))
            else:
                scale = (default_scale(query) if scale is None else scale) * factor
        return TORCH_SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def _read(
        self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool
    ) -> AttentionCall | None:
        """Return the call; None if it has no tokens, or if its tensors are nested."""
        caller, nested = self._state.caller(), query.is_nested or key.is_nested
        if not caller.is_attention:
            self._attention.add(caller.name)  # hooked as an attention layer after this pass
        for observer in self.observers:
            observer.seen.add(caller.name)
            if nested:
                observer.unread[caller.name, "nested tensors have no common number of tokens"] += 1
        if nested or query.numel() == 0 or key.numel() == 0:
            return None
        if groups := self._packed_heads(caller, query):
            query, mask = unpack_heads(query, mask, groups)
            enable_gqa = True
        call = self._calls.read(caller, query, key, mask, is_causal, scale, enable_gqa)
        located = call.image_keys is not None or self._state.forward is None
        if call.kind == "joint" and call.grid is not None and not located:
            for observer in self.observers:
                observer.unlocated.add(call.layer)
        if call.kind == "unknown":
            for observer in self.observers:
                observer.unknown.add(call.layer)
        return call

    def _packed_heads(self, caller: Running, query: Tensor) -> int:
        """Return the number of heads that transformers has packed into the queries of one token; 0 if it has not."""
        groups = getattr(self.tree.by_name.get(caller.name), "num_key_value_groups", 1)
        given = own_input(caller.args, caller.kwargs)
        packed = groups > 1 and query.ndim == 4 and query.shape[2] == groups
        return groups if packed and isinstance(given, Tensor) and given.ndim == 3 and given.shape[1] == 1 else 0

    def _scale_factors(self, call: AttentionCall) -> list[float | Tensor]:
        """Return the scale factors of all observers. Those that measure see the call as the others have scaled it."""
        state, factors = self._state, []
        for observer in self.observers:
            if observer.after_scaling and state.forward is None:
                continue  # gradient checkpointing runs the layer again, and its first call has been measured
            factor = observer.on_call(call)
            if isinstance(factor, Tensor):
                call = replace(call, query=call.query * factor.to(call.query).view(1, -1, 1, 1))
            elif factor is not None:
                call = replace(call, scale=call.scale * factor)
            factors += [] if factor is None else [factor]
        return factors


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_nested


def _per_head(query: Tensor, heads: int) -> tuple[int, ...]:
    """Return the shape in which one number per head multiplies a query. The heads may be packed as queries."""
    if query.ndim == 4 and query.shape[1] < heads == query.shape[1] * query.shape[2]:
        return heads // query.shape[2], query.shape[2], 1
    return -1, *(1,) * min(2, query.ndim - 1)  # 2-D: a single head
