"""Seeing, and scaling, the attention calls of a denoiser while it runs.

Forward hooks say which module is running; a `TorchFunctionMode` sees every
`torch.nn.functional.scaled_dot_product_attention` with its query and key exactly as the model computed them. Hooks and
modes slow a model a little, so they are on the attention layers alone, and on every module only until a forward of that
size has shown that no other makes such a call. Nothing is replaced: no processor, no method. Removing the hooks leaves
the model as it was.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from entropy_probe.attention.denoiser import find_denoiser
from entropy_probe.attention.grid import TokenGrid
from entropy_probe.attention.latents import Latents, find_latents, training_latents
from entropy_probe.attention.roles import VISUAL, Axes, Kind, Role, role
from entropy_probe.errors import CaptureError
from entropy_probe.statistics.rows import default_scale


@dataclass(frozen=True)
class Forward:
    """One run of the denoiser.

    Attributes:
        number: since the hooks were set.
        timestep: as it was given.
        latents: what it ran on; None where that cannot be told.
        trained: the latents that it was trained on; None where that cannot be told.
        copies: whether its latents are there so many times, two or three, as guidance in one batch has it; without
            an entry where the batch cannot be divided by it.
        text: which text it was given: guidance by two forwards gives two to a step; None without.
        batch: items of its latents; None where that cannot be told.
    """

    number: int
    timestep: Tensor | float | None
    latents: Latents | None
    trained: Latents | None
    copies: Mapping[int, Tensor]
    text: int | None
    batch: int | None = None


@dataclass(frozen=True)
class Place:
    """Where the items of a call stand in the denoiser's batch: some layers attend for a few at a time.

    Attributes:
        first: the item of the layer's batch that the call begins with.
        share: items of the layer's batch to one of the denoiser's, the frames or places of a video; they lie in order.
    """

    first: int
    share: int


@dataclass(frozen=True)
class AttentionCall:
    """One call of `scaled_dot_product_attention`, as the kernel is about to see it.

    Attributes:
        forward: the run of the denoiser that makes it.
        layer: name of the attention layer.
        role: what it is.
        image: which keys of a joint attention are image tokens; None where that cannot be told, and elsewhere.
        place: where its batch stands in that of the denoiser.
        query: as the model computed it, or as autocast will round it.
        key: as `query`.
        mask: as the model gives it, or as autocast will round it.
        is_causal: as the model gives it.
        scale: of the logits.
        enable_gqa: as the model gives it.
    """

    forward: Forward
    layer: str
    role: Role
    image: slice | None
    place: Place
    query: Float[Tensor, "batch heads queries width"]
    key: Float[Tensor, "batch kv_heads keys width"]
    mask: Shaped[Tensor, "*#mask"] | None
    is_causal: bool
    scale: float
    enable_gqa: bool

    @property
    def kind(self) -> Kind:
        """Whose tokens attend to whose."""
        return self.role.kind

    @property
    def axes(self) -> Axes:
        """What the attention spans."""
        return self.role.axes

    @property
    def grid(self) -> TokenGrid | None:
        """How the image tokens among the queries lie on the image; None where that cannot be told."""
        return self.role.grid

    @property
    def visual(self) -> bool:
        """Whether its tokens grow with the image: what scaling laws act on."""
        return self.kind in VISUAL and self.axes != "temporal"

    @property
    def tokens(self) -> int:
        """N: the image tokens of a visual attention, in all its frames; without a grid, the queries."""
        return self.query.shape[2] if self.grid is None else self.grid.tokens * self._frames

    @property
    def image_queries(self) -> slice:
        """Which queries are image tokens, as far as can be told: all, unless some are known to be text."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        return self.image if self.image is not None and queries == keys else slice(0, queries)

    @property
    def positions(self) -> Float[Tensor, "tokens 2"] | None:
        """Where the image tokens of a spatial attention lie, among themselves; None where that cannot be told."""
        if self.grid is None or self.axes != "spatial" or not (self.kind == "self" or self.image is not None):
            return None
        return self.grid.positions(self.query.device)

    @property
    def training_tokens(self) -> int | None:
        """T: N at the training size, with as many frames; None where that cannot be told."""
        if not self.visual or self.grid is None or self.forward.trained is None:
            return None
        return self.grid.at(self.forward.trained).tokens * self._frames

    @property
    def _frames(self) -> int:
        return _frames(self.role, self.forward.latents)


ScaleFactor = float | Float[Tensor, " heads"] | None
OnCall = Callable[[AttentionCall], ScaleFactor]
"""Sees a call and returns what to multiply the logits by: a number, one per head, or None to leave them alone."""


@contextmanager
def attention_calls(model: Any, on_call: OnCall, *, after_scaling: bool = False) -> Iterator[AttentionHooks]:
    """Show every attention call of a model to `on_call` until the context closes.

    Args:
        model: a diffusers pipeline, or the module whose forward runs attention.
        on_call: see `OnCall`.
        after_scaling: see the calls as they are after all scaling, whichever context was opened first.
    """
    hooks = AttentionHooks(model, on_call, after_scaling=after_scaling)
    try:
        yield hooks
    finally:
        hooks.remove()


class AttentionHooks:
    """The hooks behind `attention_calls`, for those who cannot use a context.

    Attributes:
        layers: names of the attention layers, see `attention_layers`.
        ran: names of the modules that have run.
        seen: names of the modules that have made an attention call.
        untold: names of the joint attentions of which the model has not told where the image stands.

    Raises:
        CaptureError: for a compiled model: its graphs hold no calls that could be seen.
    """

    def __init__(self, model: Any, on_call: OnCall, *, after_scaling: bool = False) -> None:
        denoiser = find_denoiser(model)
        modules = dict(denoiser.named_modules())  # walked once: in a model of a thousand modules it takes milliseconds
        _refuse_compiled(modules.values())
        self.layers = _attention_among(modules)
        self.ran: set[str] = set()
        self.seen: set[str] = set()
        self.untold: set[str] = set()
        self._on_call = on_call
        self._after_scaling = after_scaling
        self._attention = frozenset(self.layers)
        self._others = {
            name: module for name, module in modules.items() if name and name not in self._attention and module._modules
        }
        self._signature = inspect.signature(denoiser.forward)
        self._denoiser = denoiser
        self._trained = training_latents(denoiser, model)
        self._stack: list[_Running] = []
        self._modes: list[TorchFunctionMode] = []
        self._forward = Forward(-1, None, None, None, {}, None)
        self._stray = False
        self._known_sizes: set[Latents | tuple[torch.Size, ...]] = set()
        self._size: Latents | tuple[torch.Size, ...] = ()
        self._joins: dict[int, _Join] = {}
        self._items: Counter[str] = Counter()
        self._image_starts: dict[tuple[str, Latents | None], int | None] = {}
        # The mode that is entered first is asked last: a prepended hook sees what all others have made of a call.
        self._handles: list[RemovableHandle] = [
            denoiser.register_forward_pre_hook(self._begin, prepend=after_scaling, with_kwargs=True),
            denoiser.register_forward_hook(self._end, always_call=True),
        ]
        self._other_handles: list[RemovableHandle] = []
        for name in filter(None, self._attention):
            self._handles += self._watch(name, modules[name])

    def _watch(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        enter = partial(self._enter, name)
        return [
            module.register_forward_pre_hook(enter, prepend=self._after_scaling, with_kwargs=True),
            module.register_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        """Take every hook off the model."""
        while self._handles:
            self._handles.pop().remove()
        self._leave_others()
        self._leave_modes()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        timesteps = (arguments[name] for name in _TIMESTEPS if name in arguments)
        text = arguments.get("encoder_hidden_states")
        self._forward = Forward(
            number=self._forward.number + 1,
            timestep=next(timesteps, None),
            latents=find_latents(self._denoiser, arguments),
            trained=self._trained,
            copies=_copies(arguments),
            text=text.data_ptr() if isinstance(text, Tensor) else None,
            batch=_batch(arguments),
        )
        self._size = self._forward.latents or tuple(v.shape for v in arguments.values() if isinstance(v, Tensor))
        self._stack.clear()
        self._joins.clear()
        self._items.clear()
        self._leave_modes()
        if self._stray or self._size not in self._known_sizes:
            self._watch_others()
            self._enter_mode(self._stray_call)
        self._push("", args, kwargs)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if output is not None:  # a forward that failed has not shown all of its calls
            self._known_sizes.add(self._size)
            if not self._stray:
                self._leave_others()
        self._stack.clear()
        self._leave_modes()

    def _watch_others(self) -> None:
        if not self._other_handles:
            for name, module in self._others.items():
                self._other_handles += self._watch(name, module)

    def _leave_others(self) -> None:
        while self._other_handles:
            self._other_handles.pop().remove()

    def _enter_mode(self, intercept: Callable[..., Tensor], image: Tensor | None = None) -> None:
        mode = _CallMode(intercept, self._joins, image)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)

    def _leave_modes(self) -> None:
        # Also called where a forward was left without its hooks: torch runs none of them on a KeyboardInterrupt.
        while self._modes:
            self._modes.pop().__exit__(None, None, None)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._stack:  # a module may also be called by itself, outside a forward of the denoiser
            self._push(name, args, kwargs)

    def _push(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_attention = name in self._attention
        opens = is_attention and not any(running.is_attention for running in self._stack)
        self._stack.append(_Running(name, is_attention, opens, args, kwargs))
        self.ran.add(name)
        if opens:
            told = (name, self._forward.latents) in self._image_starts
            self._enter_mode(self._intercept, None if told else _beside_context(args, kwargs))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack and self._stack.pop().opens_mode and self._modes:
            self._modes.pop().__exit__(None, None, None)

    def _stray_call(self, *args: Any, **kwargs: Any) -> Tensor:
        """A call that the mode of the whole forward sees: one of an attention layer has been dealt with already."""
        if any(running.is_attention for running in self._stack):
            return F.scaled_dot_product_attention(*args, **kwargs)
        self._stray = True
        return self._intercept(*args, **kwargs)

    def _calling(self) -> _Running:
        """The attention layer that is running: a processor inside it may be a module of its own."""
        inner = self._stack[-1] if self._stack else _Running("", False, False, (), {})
        return next((running for running in reversed(self._stack) if running.is_attention), inner)

    def _intercept(
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
        """Stands for `scaled_dot_product_attention`, whose parameters these are."""
        with torch._C.DisableTorchFunction():  # modes that are on would look at every operation of the measuring
            call = self._call(query, key, attn_mask, is_causal, scale, enable_gqa)
            scale_factor = self._on_call(call)
        if isinstance(scale_factor, Tensor):
            query = query * scale_factor.to(query).view(1, -1, 1, 1)
        elif scale_factor is not None:
            scale = call.scale * scale_factor
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _call(
        self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool
    ) -> AttentionCall:
        running = self._calling()
        self.seen.add(running.name)
        batch, _, queries, _ = query.shape
        keys = key.shape[2]
        context = _context(running.args, running.kwargs)
        own_role = role(running.name, queries, keys, context, self._forward.latents)
        return AttentionCall(
            forward=self._forward,
            layer=running.name,
            role=own_role,
            image=self._image_keys(running.name, own_role, keys),
            place=self._place(running, query.shape),
            query=_as_cast(query),
            key=_as_cast(key if key.shape[0] == batch else key.expand(batch, *key.shape[1:])),
            mask=mask if mask is None else _as_cast(mask),
            is_causal=is_causal,
            scale=default_scale(query) if scale is None else scale,
            enable_gqa=enable_gqa,
        )

    def _place(self, running: _Running, of_query: torch.Size) -> Place:
        given = running.kwargs.get("hidden_states", running.args[0] if running.args else None)
        batch = of_query[0]
        whole = len(given) if isinstance(given, Tensor) and _in_parts(given.shape, of_query) else batch
        own = self._forward.batch or whole
        share = whole // own if whole % own == 0 else 1
        begun = self._items[running.name]
        self._items[running.name] += batch
        return Place(begun % (own * share), share)

    def _image_keys(self, layer: str, its_role: Role, keys: int) -> slice | None:
        """Where the image tokens stand in a joint attention: the model has told by what it joined to that length."""
        latents = self._forward.latents
        start = self._image_starts.setdefault((layer, latents), None)
        if its_role.kind != "joint" or its_role.grid is None or latents is None:
            return None
        tokens = its_role.grid.tokens * _frames(its_role, latents)
        if keys in self._joins:
            lengths, image = self._joins[keys]
            found = image_start(lengths, tokens, latents.others, image)
            start = start if found is None else found
        # From the end, it holds for a text of another length in a forward that does not tell.
        self._image_starts[layer, latents] = start
        first = -1 if start is None else start if start >= 0 else keys + start
        if not 0 <= first <= keys - tokens:
            self.untold.add(layer)
            return None
        return slice(first, first + tokens)


def _in_parts(given: torch.Size, query: torch.Size) -> bool:
    """Whether a layer may have been given more items than one call attends for, and not tokens or heads in front."""
    batch, heads, queries, width = query
    tokens_first = given[:2] == (queries, batch)
    heads_first = (given[0], given[-1]) == (batch * heads, width)
    return len(given) > 2 and given[0] > batch and not tokens_first and not heads_first


def _as_cast(given: Tensor) -> Tensor:
    """What autocast makes of an argument of attention: norms leave float32, which the kernel does not get to see."""
    device = given.device.type
    if not torch.is_autocast_enabled(device) or given.dtype not in _CAST:
        return given
    return given.to(torch.get_autocast_dtype(device))


_CAST = (torch.float32, torch.float16, torch.bfloat16)


class _Running(NamedTuple):
    """A module whose forward runs, and what it was given."""

    name: str
    is_attention: bool
    opens_mode: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Join(NamedTuple):
    """Lengths of the parts that were joined, and which of them is the image, where equal lengths leave that open."""

    lengths: tuple[int, ...]
    image: int | None


class _CallMode(TorchFunctionMode):
    """Puts `intercept` in the place of torch's attention, and notes what is joined to which length.

    Of parts equally long, that which comes from `image`, directly or by one projection, is the image.
    """

    def __init__(self, intercept: Callable[..., Tensor], joins: dict[int, _Join], image: Tensor | None) -> None:
        super().__init__()
        self._intercept = intercept
        self._joins = joins
        self._image = image
        self._projections: list[Tensor] = []  # kept alive, so that nothing else comes to lie in their storage

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            func = self._intercept
        result = func(*args, **kwargs) if kwargs else func(*args)
        if func in _JOINING:
            self._note(*args, **(kwargs or {}))
        elif func is F.linear and self._image is not None and args[0] is self._image:
            self._projections.append(result)
        return result

    def _note(self, tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None, **_: Any) -> None:
        along = dim if axis is None else axis
        first = tensors[0]
        if along in (-1, first.ndim - 1):  # features, not tokens
            return
        lengths = tuple(0 if tensor.shape == (0,) else tensor.shape[along] for tensor in tensors)
        image = None
        if self._image is not None and len(set(lengths)) < len(lengths):
            own = [i for i, tensor in enumerate(tensors) if self._is_image(tensor)]
            image = own[0] if len(own) == 1 else None
        known = self._joins.get(sum(lengths))
        if image is not None or known is None or known.lengths != lengths:
            self._joins[sum(lengths)] = _Join(lengths, image)

    def _is_image(self, part: Tensor) -> bool:
        if self._image is not None and part.data_ptr() == self._image.data_ptr():
            return True
        storage = part.untyped_storage().data_ptr()
        return any(storage == projection.untyped_storage().data_ptr() for projection in self._projections)


_JOINING = frozenset((torch.cat, torch.concat, torch.concatenate))


def _frames(its_role: Role, latents: Latents | None) -> int:
    """Frames that one attention spans."""
    return latents.frames if latents and its_role.axes == "spatio-temporal" else 1


def image_start(lengths: Sequence[int], tokens: int, others: int = 0, image: int | None = None) -> int | None:
    """Where the image tokens begin among the keys of a joint attention: from the start, or, negative, from the end.

    Of the parts that were joined, the image is the one of its length, with the other images behind it or alone; else
    the one that alone is long enough, at its beginning: images are padded behind.

    Args:
        lengths: of the parts whose concatenation the keys are.
        tokens: how many image tokens there are.
        others: how many tokens of other images follow them.
        image: which part is the image, where that is known.

    Returns:
        None where the lengths do not tell.
    """
    for length in (tokens + others, tokens):
        fitting = [i for i, part in enumerate(lengths) if part == length]
        if image in fitting:
            fitting = [image]
        if fitting:
            break
    else:
        fitting = [i for i, part in enumerate(lengths) if part > tokens + others]
    if len(fitting) != 1 or len(lengths) < 2:
        return None
    return -sum(lengths[fitting[0] :]) if fitting[0] else 0


_TIMESTEPS = ("timestep", "timesteps", "timestep_ratio", "t")
"""What families call it."""


def _copies(arguments: Mapping[str, Any]) -> dict[int, Tensor]:
    latents = next((value for value in arguments.values() if isinstance(value, Tensor) and value.ndim > 2), None)
    if latents is None:
        return {}
    parts = {count: latents.detach().chunk(count) for count in (2, 3) if len(latents) % count == 0}
    return {count: torch.stack([(own[0] == other).all() for other in own[1:]]).all() for count, own in parts.items()}


def _batch(arguments: Mapping[str, Any]) -> int | None:
    """Items of the latents: of a tensor, or of the list that some families give."""
    return next(
        (
            len(value)
            for value in arguments.values()
            if (isinstance(value, Tensor) and value.ndim > 2)
            or (isinstance(value, list) and value and isinstance(value[0], Tensor))
        ),
        None,
    )


def _refuse_compiled(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            name = type(getattr(module, "_orig_mod", module)).__name__
            raise CaptureError(
                f"{name} is compiled by torch.compile, and a compiled graph makes no calls that could be seen or "
                "scaled: load the pipeline again and leave the compilation out"
            )


def attention_layers(denoiser: nn.Module) -> list[str]:
    """Names of the modules that are attention by make: diffusers' attention classes and `nn.MultiheadAttention`."""
    return _attention_among(dict(denoiser.named_modules()))


def _attention_among(modules: Mapping[str, nn.Module]) -> list[str]:
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.MultiheadAttention)
        or ("Attention" in type(module).__name__ and hasattr(module, "processor"))
    ]


def _beside_context(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What an attention layer attends from, where it was given a text beside it."""
    own = kwargs.get("hidden_states", args[0] if args else None)
    return own if isinstance(own, Tensor) and _context(args, kwargs) is not None else None


def _context(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Tokens of what an attention layer was given beside its own."""
    own = kwargs.get("hidden_states", args[0] if args else None)
    context = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    if not isinstance(context, Tensor) or context.ndim != 3 or context is own:  # Lumina gives its own twice
        return None
    return int(context.shape[1]) - _own_tokens(own, context)


def _own_tokens(own: Any, context: Tensor) -> int:
    """How many of a layer's own tokens its context begins with: Stable Cascade puts them before the text."""
    if not isinstance(own, Tensor) or own.ndim not in (3, 4):
        return 0
    tokens = own.flatten(2).mT if own.ndim == 4 else own
    count = tokens.shape[1]
    may = context.shape[1] > count and context.shape[2] == tokens.shape[2]
    return count if may and torch.equal(context[:, 0], tokens[:, 0]) else 0
