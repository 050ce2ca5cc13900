"""See, and scale, the attention calls of a denoiser while it runs.

A forward hook takes the place of `forward` on the denoiser and on each attention layer. It notes which layer runs and
what that layer received, and activates a `TorchFunctionMode` which sees every
`torch.nn.functional.scaled_dot_product_attention` with query and key as the model computed them. The hook leaves the
mode in a `finally` clause. Hooks made by `register_forward_hook` cannot do this: torch does not run them after a
KeyboardInterrupt, and gradient checkpointing, PEFT and DDP call layers past them (docs/decisions/0010).

All state of a running forward belongs to its thread. Removing the hooks leaves the model as it was.
"""

from __future__ import annotations

import copy
import inspect
import threading
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import _GeneratorContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from entropy_probe.attention.call import AttentionCall, Forward, four_dimensional, frames, plain_mask
from entropy_probe.attention.denoiser import attention_among, find_denoiser, refuse_compiled
from entropy_probe.attention.grid import TokenGrid
from entropy_probe.attention.joint import (
    CONCATENATIONS,
    ImageSource,
    Join,
    context_tokens,
    image_start,
    input_with_context,
    note_join,
    own_input,
)
from entropy_probe.attention.latents import Latents, find_latents, training_latents
from entropy_probe.attention.roles import Axes, role
from entropy_probe.errors import CaptureError

ScaleFactor = float | Float[Tensor, " heads"] | None
OnCall = Callable[[AttentionCall], ScaleFactor]
"""Sees a call and returns its scale factor: a number, one number per head, or None to leave the logits unchanged."""


@dataclass(eq=False)
class Observer:
    """One listener to the attention calls of a denoiser: a scaling law or a measurement.

    Attributes:
        on_call: see `OnCall`.
        after_scaling: it sees the calls after all scaling.
        one_thread: refuse a forward while another thread runs one.
        layers: names of the attention layers, see `attention_layers`.
        ran: names of the layers that have run.
        seen: names of the modules that have made an attention call.
        unlocated: names of the joint attentions whose image tokens could not be located.
        unread: calls that could not be read, by layer and reason.
    """

    on_call: OnCall
    after_scaling: bool
    one_thread: bool
    layers: list[str]
    ran: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    unlocated: set[str] = field(default_factory=set)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)


@contextmanager
def attention_calls(
    model: Any, on_call: OnCall, *, after_scaling: bool = False, one_thread: bool = False
) -> Iterator[Observer]:
    """Pass every attention call of a model to `on_call` until the context closes.

    Args:
        model: a diffusers pipeline, or the module whose forward runs attention.
        on_call: see `OnCall`.
        after_scaling: pass the calls as they are after all scaling, whichever context was opened first.
        one_thread: refuse a forward while another thread runs one.

    Raises:
        CaptureError: for a compiled model.
    """
    observer = None
    try:
        observer = observe(model, on_call, after_scaling=after_scaling, one_thread=one_thread)
        yield observer
    finally:
        if observer is not None:
            stop_observing(model, observer)


def observe(model: Any, on_call: OnCall, *, after_scaling: bool = False, one_thread: bool = False) -> Observer:
    """Start passing attention calls to `on_call`, until `stop_observing`; see `attention_calls`."""
    denoiser = find_denoiser(model)
    modules = dict(denoiser.named_modules())  # walked once: for a thousand modules this takes milliseconds
    refuse_compiled(modules)
    interception = interception_of(denoiser) or Interception(denoiser, modules)
    interception.learn_training_size(model)
    observer = Observer(on_call, after_scaling, one_thread, list(interception.layers))
    interception.add(observer)
    return observer


def stop_observing(model: Any, observer: Observer) -> None:
    """Stop what `observe` started. The last observer to leave takes the hooks with it."""
    interception = interception_of(find_denoiser(model))
    if interception is not None:
        interception.discard(observer)


def interception_of(denoiser: nn.Module) -> Interception | None:
    """Return the interception of a denoiser; None if it has none."""
    forward = denoiser.__dict__.get("forward")
    while forward is not None and not isinstance(forward, ForwardHook):  # accelerate may have wrapped ours
        forward = getattr(forward, "__wrapped__", None)
    return forward.interception if isinstance(forward, ForwardHook) and forward.active else None


class ForwardHook:
    """Takes the place of `forward` on one module, as an attribute of the instance.

    Args:
        module: the module.
        name: its name in the denoiser.
        interception: runs the forward.
    """

    def __init__(self, module: nn.Module, name: str, interception: Interception) -> None:
        self.module, self.name, self.interception = module, name, interception
        self.active = False
        self.replaced = module.__dict__.get("forward")
        self.inner: Callable[..., Any] = module.forward
        self.__wrapped__ = self.inner  # for inspect.signature

    def install(self) -> None:
        """Put the hook in the place of `forward`."""
        self.active = True
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Restore `forward`. If another library has wrapped the hook since, it stays there and passes calls on."""
        self.active = False
        if self.module.__dict__.get("forward") is self:
            if self.replaced is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the module, observed if anything observes it."""
        if not self.active or not self.interception.observers:
            return self.inner(*args, **kwargs)
        return self.interception.run(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the forward, such as `__code__`, which torch.export reads."""
        if name == "inner":  # not set yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    # torch.compile leaves the graph here, so that a law acts on a model that is compiled after the law was applied.
    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the plain forward of the copied module: a copy is neither measured nor scaled."""
        self.interception.warn_of_copy()
        if self.replaced is not None:
            return copy.deepcopy(self.replaced, memo)
        return types.MethodType(type(self.module).forward, memo.get(id(self.module), self.module))

    def __reduce__(self) -> Any:
        if self.replaced is not None:
            return copy.copy, (self.replaced,)
        return types.MethodType, (type(self.module).forward, self.module)


@dataclass
class _Running:
    """A module whose forward runs, and the arguments that it received."""

    name: str
    is_attention: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: ImageSource


class _ThreadState(threading.local):
    """State of the forward that a thread runs."""

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.finished: Forward | None = None
        self.size: Latents | tuple[torch.Size, ...] = ()
        self.discovering = False
        self.running: list[_Running] = []
        self.joins: dict[int, Join] = {}
        self.items: Counter[str] = Counter()


class Interception:
    """The hooks on one denoiser, and the observers they serve.

    Attributes:
        layers: names of the attention layers.
        observers: scaling first, then what measures.
    """

    def __init__(self, denoiser: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self.layers = attention_among(modules)
        self.observers: tuple[Observer, ...] = ()
        self._denoiser = denoiser
        self._modules = modules
        self._signature = inspect.signature(types.MethodType(type(denoiser).forward, denoiser))
        self._attention = set(self.layers)
        self._trained: Latents | None = None
        self._hooks: list[ForwardHook] = []
        self._discovery_hooks: list[ForwardHook] = []
        self._known_sizes: set[Latents | tuple[torch.Size, ...]] = set()
        self._image_starts: dict[tuple[str, Latents | None], int | None] = {}
        self._past: dict[tuple[Any, ...], Forward] = {}
        self._threads: dict[int, bool] = {}
        self._count = 0
        self._state = _ThreadState()
        self._mode = _CallMode(self)

    @property
    def running(self) -> bool:
        """Whether this thread runs a hooked module."""
        return bool(self._state.running)

    def learn_training_size(self, model: Any) -> None:
        """Take the training size from the denoiser's configuration, or else from its pipeline."""
        self._trained = self._trained or training_latents(self._denoiser, model)

    def add(self, observer: Observer) -> None:
        """Add an observer; the first one brings the hooks."""
        if not self._hooks:
            try:
                for name in ("", *filter(None, self.layers)):
                    self._hook(name, self._hooks)
            except BaseException:
                self._remove_all()
                raise
        self.observers = tuple(sorted((*self.observers, observer), key=lambda one: one.after_scaling))

    def discard(self, observer: Observer) -> None:
        """Remove an observer; the last one takes the hooks."""
        self.observers = tuple(one for one in self.observers if one is not observer)
        if not self.observers:
            try:
                self._remove_all()
            finally:
                self._remove_all()

    def warn_of_copy(self) -> None:
        """Warn that a deep copy of a scaled model is not scaled."""
        if any(not one.after_scaling for one in self.observers):
            warnings.warn(
                "a scaling law is applied to the model being copied, and the copy does not carry it: apply the law to "
                "the copy",
                stacklevel=3,
            )

    def _hook(self, name: str, hooks: list[ForwardHook]) -> None:
        hook = ForwardHook(self._modules[name], name, self)
        hooks.append(hook)
        hook.install()

    def _remove_all(self) -> None:
        for hooks in (self._discovery_hooks, self._hooks):
            for hook in reversed(hooks):
                hook.remove()
            hooks.clear()

    def run(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the forward of a hooked module."""
        if hook.name == "" and self._state.forward is None:
            return self._run_denoiser(hook, args, kwargs)
        return self._run_layer(hook, args, kwargs)

    def _run_denoiser(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, depth = self._state, _mode_depth()
        try:
            self._begin(state, args, kwargs)
            if state.discovering:
                self._watch_every_module()
                _push_mode(self._mode)
            output = self._run_layer(hook, args, kwargs)
            self._known_sizes.add(state.size)  # a forward that failed has not shown all of its calls
            return output
        except KeyboardInterrupt as interruption:
            _finish_suspended_contexts(interruption.__traceback__)
            raise
        finally:
            try:
                self._end(state, depth)
            finally:  # a KeyboardInterrupt may fall into the first attempt
                self._end(state, depth)

    def _run_layer(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, depth = self._state, _mode_depth()
        height = len(state.running)
        try:
            is_attention = hook.name in self._attention
            outermost = is_attention and not any(running.is_attention for running in state.running)
            unlocated = outermost and self._unlocated(state, hook.name)
            source = ImageSource(input_with_context(args, kwargs) if unlocated else None)
            state.running.append(_Running(hook.name, is_attention, args, kwargs, source))
            if state.forward is not None:
                for observer in self.observers:
                    observer.ran.add(hook.name)
            if outermost and not state.discovering:
                _push_mode(self._mode)
            return hook.inner(*args, **kwargs)
        except KeyboardInterrupt as interruption:
            _finish_suspended_contexts(interruption.__traceback__)
            raise
        finally:
            try:
                _restore(state.running, height, depth)
            finally:
                _restore(state.running, height, depth)

    def _unlocated(self, state: _ThreadState, layer: str) -> bool:
        """Whether the image tokens of a layer have not been located yet at this size."""
        return state.forward is not None and (layer, state.forward.latents) not in self._image_starts

    def _begin(self, state: _ThreadState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._threads[threading.get_ident()] = True
        if len(self._threads) > 1 and any(observer.one_thread for observer in self.observers):
            raise CaptureError(
                "two threads run this model at the same time while it is being captured: capture in one thread, or "
                "give each thread its own copy of the model"
            )
        arguments = self._named(args, kwargs)
        timesteps = (arguments[name] for name in _TIMESTEPS if name in arguments)
        latents = find_latents(self._denoiser, arguments)
        state.forward = Forward(
            self._count, next(timesteps, None), latents, self._trained, _batch(arguments), arguments
        )
        state.finished = replace(state.forward, arguments={})
        self._count += 1
        state.size = latents or tuple(
            value.shape for value in arguments.values() if isinstance(value, Tensor) and not value.is_nested
        )
        state.discovering = state.size not in self._known_sizes

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the denoiser by name; those of `**kwargs` by the names they were passed with."""
        arguments = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(parameter.name, {}))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                rest = arguments.pop(parameter.name, ())
                arguments.update({f"{parameter.name}[{number}]": value for number, value in enumerate(rest)})
        return arguments

    def _end(self, state: _ThreadState, depth: int) -> None:
        state.forward = None
        state.joins.clear()
        state.items.clear()
        if state.discovering:
            for hook in reversed(self._discovery_hooks):
                hook.remove()
            self._discovery_hooks.clear()
            state.discovering = False
        hooked = {hook.name for hook in self._hooks}
        for name in self._attention - hooked:
            self._hook(name, self._hooks)
        self._threads.pop(threading.get_ident(), None)
        _restore(state.running, 0, depth)

    def _watch_every_module(self) -> None:
        """Hook every module with submodules, to learn which ones make attention calls outside attention layers."""
        hooked = {hook.name for hook in self._hooks}
        if not self._discovery_hooks:
            for name, module in self._modules.items():
                if name not in hooked and module._modules:
                    self._hook(name, self._discovery_hooks)

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note what may locate the image tokens of a joint attention: concatenations and projections."""
        state = self._state
        layer = next((running for running in state.running if running.is_attention), None)
        source = layer.source if layer is not None else ImageSource(None)
        if func in CONCATENATIONS:
            note_join(state.joins, source, args, kwargs)
        else:
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
        """Run `scaled_dot_product_attention`, whose parameters these are, and let the observers see and scale it."""
        with torch._C.DisableTorchFunction():  # other modes need not see the operations of the measurement
            call = self._read(query, key, attn_mask, is_causal, scale, enable_gqa)
            factors = [] if call is None else self._ask(call)
        for factor in factors:
            if isinstance(factor, Tensor):
                query = query * factor.to(query).view(-1, 1, 1)
            else:
                scale = (_default_scale(query) if scale is None else scale) * factor
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _ask(self, call: AttentionCall) -> list[float | Tensor]:
        """Ask every observer for its scale factor; those that measure see what the others have scaled."""
        state, factors = self._state, []
        for observer in self.observers:
            if observer.after_scaling and state.forward is None:
                continue  # a recomputation by gradient checkpointing: it has been measured already
            factor = observer.on_call(call)
            if isinstance(factor, Tensor):
                call = replace(call, query=call.query * factor.to(call.query).view(1, -1, 1, 1))
            elif factor is not None:
                call = replace(call, scale=call.scale * factor)
            factors += [] if factor is None else [factor]
        return factors

    def _read(
        self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool
    ) -> AttentionCall | None:
        """Return the call, or None for one that has no tokens to count."""
        state = self._state
        inner = state.running[-1]
        running = next((running for running in reversed(state.running) if running.is_attention), inner)
        if not running.is_attention:
            self._attention.add(running.name)  # hooked as an attention layer once this forward is over
        for observer in self.observers:
            observer.seen.add(running.name)
            if query.is_nested or key.is_nested:
                observer.unread[running.name, "nested tensors have no common number of tokens"] += 1
        if query.is_nested or key.is_nested or query.numel() == 0 or key.numel() == 0:
            return None
        mask, causal = plain_mask(mask, query, key)
        shape = query.shape
        query, key, mask = four_dimensional(query, key, mask, enable_gqa)
        forward = self._forward_of(state, running.name, shape, key.shape)
        queries, keys = query.shape[2], key.shape[2]
        context = context_tokens(running.args, running.kwargs)
        kind, axes, grid = role(running.name, queries, keys, context, forward.latents)
        located = kind == "joint" and grid is not None and state.forward is not None
        first_item, items_per_sample = self._items(state, running, query.shape, forward)
        return AttentionCall(
            forward=forward,
            layer=running.name,
            kind=kind,
            axes=axes,
            grid=grid,
            image_keys=self._image_keys(state, running.name, grid, axes, keys) if located and grid else None,
            first_item=first_item,
            items_per_sample=items_per_sample,
            query=query,
            key=key,
            mask=mask,
            is_causal=is_causal or causal,
            scale=_default_scale(query) if scale is None else scale,
            enable_gqa=enable_gqa,
        )

    def _forward_of(self, state: _ThreadState, layer: str, query: torch.Size, key: torch.Size) -> Forward:
        """Return the forward that a call belongs to.

        Gradient checkpointing calls a layer again after its forward is over, on tensors of the same shapes.
        """
        if state.forward is None:
            return self._past.get((layer, query, key), Forward(trained=self._trained))
        if state.finished is not None:
            self._past[layer, query, key] = state.finished
        return state.forward

    def _items(self, state: _ThreadState, running: _Running, query: torch.Size, forward: Forward) -> tuple[int, int]:
        """Return the call's first item in its layer's batch, and the items of that batch per sample."""
        given = own_input(running.args, running.kwargs)
        batch = query[0]
        whole = len(given) if isinstance(given, Tensor) and _in_parts(given.shape, query) else batch
        own = forward.batch or whole
        per_sample = whole // own if whole % own == 0 else 1
        begun = state.items[running.name]
        state.items[running.name] += batch
        return begun % (own * per_sample), per_sample

    def _image_keys(self, state: _ThreadState, layer: str, grid: TokenGrid, axes: Axes, keys: int) -> slice | None:
        """Return the keys of a joint attention that are image tokens; None if they cannot be located."""
        latents = state.forward.latents if state.forward is not None else None
        start = self._image_starts.setdefault((layer, latents), None)
        if latents is None:
            return None
        tokens = grid.tokens * frames(axes, latents)
        if keys in state.joins:
            lengths, image = state.joins[keys]
            found = image_start(lengths, tokens, latents.others, image)
            start = start if found is None else found
        # Counted from the end, the start also holds for a text of another length in a later forward.
        self._image_starts[layer, latents] = start
        first = -1 if start is None else start if start >= 0 else keys + start
        if not 0 <= first <= keys - tokens:
            for observer in self.observers:
                observer.unlocated.add(layer)
            return None
        return slice(first, first + tokens)


class _CallMode(TorchFunctionMode):
    """Puts the interception in the place of torch's attention."""

    def __init__(self, interception: Interception) -> None:
        super().__init__()
        self._interception = interception

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._interception.running:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._interception.attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in CONCATENATIONS or func is F.linear:
            self._interception.note(func, args, kwargs, result)
        return result


def _default_scale(query: Tensor) -> float:
    """Return the scale that `scaled_dot_product_attention` uses if none is given."""
    return float(query.shape[-1] ** -0.5)


def _mode_depth() -> int:
    return int(torch._C._len_torch_function_stack())


def _push_mode(mode: TorchFunctionMode) -> None:
    torch._C._push_on_torch_function_stack(mode)


def _finish_suspended_contexts(interrupted: types.TracebackType | None) -> None:
    """Run the exits that an interruption prevented, before the modes are restored.

    While torch's Python functions handle a mode, a generator-based context takes the mode from the stack. If the
    interruption falls between that generator and its `with` statement, the generator stays suspended, and would put the
    mode back whenever the traceback is deleted: long after this forward.
    """
    while interrupted is not None:
        frame, interrupted = interrupted.tb_frame, interrupted.tb_next
        if frame.f_code in _CONTEXT_CODE:
            frame.clear()


_CONTEXT_CODE = (_GeneratorContextManager.__enter__.__code__, _GeneratorContextManager.__exit__.__code__)


def _restore(running: list[_Running], height: int, depth: int) -> None:
    """Leave the modules and the modes that were entered above these levels; modes of others stay."""
    del running[height:]
    others = []
    while _mode_depth() > depth:
        mode = torch._C._pop_torch_function_stack()
        if not isinstance(mode, _CallMode):
            others.append(mode)
    for mode in reversed(others):
        _push_mode(mode)


def _in_parts(given: torch.Size, query: torch.Size) -> bool:
    """Whether a layer may have received more items than one call attends for, rather than tokens or heads first."""
    batch, heads, queries, width = query
    tokens_first = given[:2] == (queries, batch)
    heads_first = (given[0], given[-1]) == (batch * heads, width)
    return len(given) > 2 and given[0] > batch and not tokens_first and not heads_first


_TIMESTEPS = ("timestep", "timesteps", "timestep_ratio", "t")
"""Names that model families give the timestep."""


def _batch(arguments: Mapping[str, Any]) -> int | None:
    """Return the number of items of the latents: of a tensor, or of the list that some families pass."""
    return next(
        (
            len(value)
            for value in arguments.values()
            if (isinstance(value, Tensor) and value.ndim > 2)
            or (isinstance(value, list) and value and isinstance(value[0], Tensor))
        ),
        None,
    )
