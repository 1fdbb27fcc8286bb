"""A module with a forward() of its own becomes populations: its graph is traced and read like a list of parts.

Its forward() says what one step of one sample goes through: parts applied to the input, currents added to each other,
flattening. Time is the neurons' business; forward() knows no axis for it.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn

from base.errors import UserError
from train.parts import KINDS, SumPool2d
from train.shapes import Shape
from train.wiring import INPUT, Place, Stage, finished, joined, read

PARTS = (*KINDS, SumPool2d)
ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
FLATTENINGS: tuple[Any, ...] = (torch.flatten, "flatten")


def trace(shape: Shape, module: nn.Module) -> tuple[OrderedDict[str, nn.Module], tuple[Stage, ...]]:
    """The module's parts by name (dots become underscores), and the populations they make of an input of that shape.

    A population is called like its synapse; where currents meet, like the first one's.
    Raises UserError for what forward() does that has no exact integer form, for parts that do not fit each other, and
    for parts with weights that are called twice.
    """
    try:
        traced = fx.GraphModule(module, _Tracer().trace(module))
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"forward() of {type(module).__name__} cannot be traced ({str(error).splitlines()[0]}); write what one "
            "step of one sample goes through, without loops over time or decisions that depend on values"
        ) from error
    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        raise UserError(f"forward() of {type(module).__name__} takes more than one input; give it the input alone")
    reader = _Reader(traced, type(module).__name__)
    end = reader.run(Place(INPUT, shape, shape))
    return reader.named, reader.stages(end)


class _Tracer(fx.Tracer):
    """Stops at the parts of a network, and looks into every other module that has a forward() of its own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PARTS) or super().is_leaf_module(m, module_qualified_name)


class _Reader(fx.Interpreter):
    """Runs a traced graph on places instead of tensors: what a node yields is where reading has come to there."""

    def __init__(self, traced: fx.GraphModule, name: str) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.what = f"forward() of {name}"
        self.named: OrderedDict[str, nn.Module] = OrderedDict()
        self.populations: list[Stage] = []

    def stages(self, end: Any) -> tuple[Stage, ...]:
        stages = finished(self._place(end), self.populations)
        read_by_others = {link.source for stage in stages for link in stage.links}
        idle = [stage.name for stage in stages if stage.name not in read_by_others and stage.name != end.source]
        if idle or end.before or end.source != stages[-1].name:
            what = f"computes {idle[0]}, which leads nowhere" if idle else "does not return what its last neurons emit"
            raise UserError(f"{self.what} {what}; return the spikes (or currents) of one last population")
        return stages

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        part = self.fetch_attr(target)
        assert isinstance(part, nn.Module)
        return self._through(str(target).replace(".", "_"), part, args[0])

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in ADDITIONS:
            return self._sum(*args)
        if target in FLATTENINGS:
            return self._through("flatten", nn.Flatten(), args[0])
        raise UserError(
            f"{self.what} uses {getattr(target, '__name__', target)}, which has no exact integer form; it may apply "
            "layers, add their currents and flatten"
        )

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        raise UserError(f"{self.what} computes with its tensor '{target}'; weights belong into layers")

    def _through(self, name: str, part: nn.Module, argument: Any) -> Place:
        if name in self.named and next(part.parameters(), None) is not None:
            raise UserError(f"layer {name} is called twice, and its weights are one layer's; make a second one")
        while name in self.named:
            name += "_"
        self.named[name] = part
        return read([(name, part)], self._place(argument), "", self.populations)

    def _sum(self, *arguments: Any) -> Place:
        first, second = (self._place(argument) for argument in arguments)
        for place in (first, second):
            if not place.links:
                raise UserError(
                    f"{self.what} adds spikes of {place.source}, and a sum of spikes is no spike; add currents, before "
                    "their neurons (a Skip makes spikes a current)"
                )
        return joined(first.name, first, second)

    def _place(self, argument: Any) -> Place:
        if not isinstance(argument, Place):
            given = argument if isinstance(argument, (int, float)) else f"something of type {type(argument).__name__}"
            raise UserError(f"{self.what} yields or uses {given}; it may use what its layers yield, and nothing else")
        return argument
