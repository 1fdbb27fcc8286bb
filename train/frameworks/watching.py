"""A module of any framework is run on real input and watched: which part feeds which, and what its neurons emit.

Watching needs no knowledge of how forward() is written: loops over time, states passed by hand and lists of results
just run. A part is a layer or the neurons of a population; whatever else computes with tensors is noted by its name,
and matters only where its result reaches a part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from base.errors import UserError

ADDITIONS: tuple[Any, ...] = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
RESHAPES: tuple[Any, ...] = (
    *(torch.flatten, torch.reshape, torch.unflatten),
    *(Tensor.flatten, Tensor.reshape, Tensor.unflatten, Tensor.view),
)

# Where a value comes from: ("input",), ("part", name, number of its call), ("add", a, b), ("flatten", a), or
# ("unknown", what computed it).
Origin = tuple[Any, ...]
INPUT: Origin = ("input",)


@dataclass
class Watched:
    """arguments: by part, in the order in which they run, what it is applied to, its step left out. rasters: what the
    neurons emit, and the part that runs last, [T, B, *shape] (or [T * B, *shape]) by name, in that order."""

    arguments: dict[str, Origin] = field(default_factory=dict)
    rasters: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Ways:
    """How a framework's modules are run. clear: puts all states back to those of the start. steps: runs a module that
    does one step for each of inputs [T, B, ...]. sees_all_steps: whether neurons take all steps in one call."""

    clear: Callable[[nn.Module], None]
    steps: Callable[[nn.Module, Tensor], None]
    sees_all_steps: Callable[[nn.Module], bool]


def watch(
    module: nn.Module, shown: Tensor, neurons: Mapping[str, nn.Module], layers: Mapping[str, nn.Module], ways: Ways
) -> Watched:
    """Run a module in float64 on input [T, B, ...], T at least 2. Its forward() takes all steps, or one, or, where the
    input does not change, one that it shows itself T times.

    Raises UserError for a module that cannot be run so, and for parts that do not do the same at every step.
    """
    attempts: list[Callable[[], Any]] = [lambda: module(shown), lambda: ways.steps(module, shown)]
    if (shown == shown[:1]).all():
        attempts.append(lambda: module(shown[0]))
    failures = []
    for attempt in attempts:
        ways.clear(module)
        recorder = _Recorder(shown, neurons, layers, ways.sees_all_steps)
        try:
            with torch.no_grad(), _Hooks(recorder), recorder:
                attempt()
        except UserError:
            raise
        except _OtherInput as error:
            failures.append(str(error))
        except Exception as error:  # a user's module may raise anything when it is shown what it is not made for
            failures.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
        else:
            if recorder.complete:
                return recorder.watched()
            failures.append(recorder.calls_in_words)
    raise UserError(
        f"{type(module).__name__} was shown all {len(shown)} steps at once ({failures[0]}) and one after the other "
        f"({failures[1]}); its forward() must take the input of all steps, [T, B, ...], or of one, and nothing else"
    )


class _Recorder(TorchFunctionMode):
    """Notes where tensors come from while a module runs, and through `_Hooks` which parts they reach."""

    def __init__(
        self,
        shown: Tensor,
        neurons: Mapping[str, nn.Module],
        layers: Mapping[str, nn.Module],
        sees_all_steps: Callable[[nn.Module], bool],
    ) -> None:
        super().__init__()
        self.shown, self.neurons, self.parts = shown, neurons, {**layers, **neurons}
        self.at_once = any(sees_all_steps(neuron) for neuron in neurons.values())
        self.calls = 1 if self.at_once else len(shown)
        self.origins: dict[int, tuple[Tensor, Origin]] = {}  # the tensor is held, so that no other gets its id
        self.arguments: dict[str, list[Origin]] = defaultdict(list)
        self.emitted: dict[str, list[Tensor]] = defaultdict(list)
        self.inside = 0
        self._note(shown, INPUT)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            given = _tensors((args, kwargs or {}))
            sources = [origin for origin in map(self._origin, given) if origin is not None]
            if sources:
                for tensor in _tensors(result):
                    self._note(tensor, self._computed(func, given, sources, tensor, bool(kwargs)))
        return result

    def _computed(
        self, func: Any, given: list[Tensor], sources: list[Origin], result: Tensor, with_options: bool
    ) -> Origin:
        if all(source == INPUT for source in sources):
            return INPUT
        if func in ADDITIONS and len(sources) == len(given) == 2 and not with_options:
            return ("add", *sources)
        if func in RESHAPES:
            before, after = self._sample_shape(given[0]), self._sample_shape(result)
            if after is not None and after == before:
                return sources[0]
            if after is not None and len(after) == 1:
                return ("flatten", sources[0])
        return ("unknown", (resolve_name(func) or str(func)).split(".")[-1])

    def entered(self, name: str, argument: Tensor) -> None:
        call = len(self.arguments[name])
        origin = self._at_step(self._origin(argument) or ("unknown", "something of its own"), name, call)
        if origin == INPUT:
            origin = self._as_input(argument, name, call)
        if self.arguments[name] and self.arguments[name][0] != origin:
            raise UserError(f"layer {name} is applied to something else at step {call} than at step 0")
        self.arguments[name].append(origin)

    def left(self, name: str, result: Any) -> None:
        output = result[0] if isinstance(result, tuple) else result
        self._note(output, ("part", name, len(self.arguments[name]) - 1))
        self.emitted[name].append(output)

    def _at_step(self, origin: Origin, name: str, call: int) -> Origin:
        match origin:
            case ("part", source, step):
                if step != call:
                    raise UserError(
                        f"layer {name} reads at step {call} what {source} yields at step {step}; only a recurrent "
                        "population hears an earlier step, through neurons that are recurrent themselves"
                    )
                return ("part", source)
            case ("unknown", what):
                raise UserError(
                    f"layer {name} is applied to what '{what}' computes, which has no exact integer form; forward() "
                    "may apply layers, add their currents and flatten"
                )
            case ("input",):
                return INPUT
        return (origin[0], *(self._at_step(source, name, call) for source in origin[1:]))

    def _as_input(self, argument: Tensor, name: str, call: int) -> Origin:
        """The input of the step, or of all, perhaps flattened: compared by value, however forward() has taken it."""
        expected, shape = (
            self.shown if self.at_once else self.shown[call % len(self.shown)],
            self._sample_shape(argument),
        )
        if (
            shape is None
            or argument.numel() != expected.numel()
            or not torch.equal(argument.reshape_as(expected), expected)
        ):
            raise _OtherInput(f"at its call {call}, layer {name} does not read the input of that step")
        return INPUT if shape == self.shown.shape[2:] else ("flatten", INPUT)

    def _sample_shape(self, values: Tensor) -> tuple[int, ...] | None:
        """The shape of one sample at one step: in [B, ...], or, of all steps at once, [T, B, ...] or [T * B, ...]."""
        steps, samples = self.shown.shape[:2]
        leading = ((steps, samples), (steps * samples,)) if self.at_once else ((samples,),)
        return next((values.shape[len(axes) :] for axes in leading if values.shape[: len(axes)] == axes), None)

    @property
    def complete(self) -> bool:
        fired = any(name in self.neurons for name in self.arguments)
        return fired and all(len(calls) == self.calls for calls in self.arguments.values())

    @property
    def calls_in_words(self) -> str:
        return ", ".join(f"{name} ran {len(calls)} times" for name, calls in self.arguments.items()) or "no part ran"

    def watched(self) -> Watched:
        wanted = [name for name in self.arguments if name in self.neurons or name == next(reversed(self.arguments))]
        rasters = {name: self.emitted[name][0] if self.at_once else torch.stack(self.emitted[name]) for name in wanted}
        return Watched({name: calls[0] for name, calls in self.arguments.items()}, rasters)

    def _origin(self, tensor: Any) -> Origin | None:
        return self.origins[id(tensor)][1] if id(tensor) in self.origins else None

    def _note(self, tensor: Tensor, origin: Origin) -> None:
        self.origins[id(tensor)] = (tensor, origin)


class _OtherInput(Exception):
    """The way in which the module was run is not the one that it is made for."""


class _Hooks:
    """On every part: what it is applied to, and what it yields. Everything is brought to float64, which some neurons
    leave."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        self.handles = []
        for name, part in self.recorder.parts.items():
            for inner in part.modules():
                if inner is not part:
                    self.handles.append(inner.register_forward_pre_hook(lambda inner, args: _double(args)))
            self.handles.append(part.register_forward_pre_hook(self._entering(name)))
            self.handles.append(part.register_forward_hook(self._leaving(name)))

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[..., Any]:
        def hook(part: nn.Module, args: tuple[Any, ...]) -> Any:
            self.recorder.inside += 1
            self.recorder.entered(name, args[0])
            return _double(args)

        return hook

    def _leaving(self, name: str) -> Callable[..., Any]:
        def hook(part: nn.Module, args: Any, result: Any) -> Any:
            result = _double(result)
            self.recorder.left(name, result)
            self.recorder.inside -= 1
            return result

        return hook


def _double(values: Any) -> Any:
    """The tensors in float64; of a tuple the first, whose others are states."""
    if isinstance(values, tuple):
        return (_double(values[0]), *values[1:])
    return values.double() if isinstance(values, Tensor) else values


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = tuple(values.values())
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (tuple, list)) else []
