"""A network that was trained elsewhere, found by the name that a configuration gives it: `my_module:net`.

The module is the user's own code, imported because he names it. No file with weights is read here: what reads one is
his code too.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import os
import sys
import traceback
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from base.differences import Difference
from base.errors import UserError, nearest
from train.frameworks.importing import Framework, emitted, imported
from train.network import SpikingNetwork

FRAMEWORKS = ("snntorch", "spikingjelly", "norse")  # the packages that their classes come from


@dataclass(frozen=True)
class Found:
    """module: as it was found; framework: None for one that is a SpikingNetwork already, which `network` then is."""

    module: nn.Module
    framework: Framework | None
    network: SpikingNetwork
    differences: list[Difference] = field(default_factory=list)

    @torch.no_grad()
    def rasters(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the module itself emits in float64, by population of `network`, max pooling left out: spikes, uint8
        [T, B, *shape] (a readout: its currents, float), of inputs [T, B, *input_shape]."""
        stages = [stage for stage in self.network.stages if stage.neuron is not None]
        if self.framework is None:
            ran = copy.deepcopy(self.network).double().eval().rasters(inputs)
            return {stage.name: ran[stage.name] for stage in stages}
        rasters = emitted(self.module, inputs, self.framework, self.network.payload_bits)
        return {
            stage.name: raster.reshape(*inputs.shape[:2], *stage.output_shape).to(
                torch.uint8 if stage.spiking else raster.dtype
            )
            for stage, raster in zip(stages, rasters, strict=True)
        }


@functools.cache
def find(name: str) -> nn.Module:
    """The torch module called `my_module:net`: `net` of `my_module`, or what it returns when it is called.

    `my_module` is looked for in the current folder first, then wherever Python looks. Found once, it stays the same.
    Raises UserError for a name of another form, and for what cannot be found, imported or called.
    """
    what = f"network.model = '{name}'"
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{what}: is not of the form my_module:net, a Python module and what it calls the network")
    if os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())
    try:
        holder = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own code raises
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            raise UserError(
                f"{what}: there is no module '{module_name}' in {os.getcwd()} or where Python looks; run this where "
                f"{module_name}.py is, or set PYTHONPATH"
            ) from error
        raise UserError(f"{what}: importing '{module_name}' ended with {_told(error)}; mend it there") from error
    if not hasattr(holder, attribute):
        known = [known for known in vars(holder) if not known.startswith("_")]
        raise UserError(f"{what}: {holder} has no '{attribute}'; {nearest(attribute, known)}")
    found = getattr(holder, attribute)
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:  # likewise
            raise UserError(f"{what}: calling {attribute}() ended with {_told(error)}; mend it there") from error
    if not isinstance(found, nn.Module):
        raise UserError(
            f"{what}: is a {type(found).__name__}; it must be a torch module, or a function without arguments that "
            "returns one"
        )
    return found


def take(module: nn.Module, inputs: Tensor, payload_bits: int = 1) -> Found:
    """The network that a trained module is, whichever framework its neurons are of; `imported` tells of the inputs.

    Raises UserError for a module of no known framework, and for what the import refuses.
    """
    if isinstance(module, SpikingNetwork):
        if (module.input_shape, module.payload_bits) != (tuple(inputs.shape[2:]), payload_bits):
            raise UserError(
                f"the network takes {module.payload_bits}-bit input of shape {list(module.input_shape)}, and is given "
                f"{payload_bits}-bit input of shape {list(inputs.shape[2:])}; choose the data that it was trained on"
            )
        return Found(module, None, module)
    framework = framework_of(module)
    return Found(module, framework, *imported(module, inputs, framework, payload_bits))


def framework_of(module: nn.Module) -> Framework:
    """The framework that a class in the module comes from, or is derived from. Raises UserError where there is none."""
    for part in module.modules():
        for kind in type(part).__mro__:
            package = kind.__module__.split(".")[0]
            if package in FRAMEWORKS:
                framework: Framework = importlib.import_module(f"train.frameworks.{package}").FRAMEWORK
                return framework
    raise UserError(
        f"{type(module).__name__} has no neurons of snnTorch, SpikingJelly or Norse, nor is it a SpikingNetwork; only "
        "networks of these can be taken over"
    )


def identity(network: SpikingNetwork) -> str:
    """One hash of what the network computes: its parts, what they read, and its weights."""
    wiring = [(stage.name, [(link.source, link.before) for link in stage.links]) for stage in network.stages]
    digest = hashlib.sha256(f"{network}\n{wiring}\n{network.payload_bits} {network.input_is_bias}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype}".encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _told(error: Exception) -> str:
    """An exception of the user's code in words, with the line that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{' '.join(f'{type(error).__name__}: {error}'.split())} ({where.filename}, line {where.lineno})"
