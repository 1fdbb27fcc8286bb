"""From a watched module to a SpikingNetwork whose spikes are proven equal to the module's on the data it was shown."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn

from base.differences import Difference
from base.errors import UserError
from train.frameworks.watching import Origin, Watched, Ways, watch
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import NORMS, Readout, Recurrent, running_affine
from train.wiring import Norm


@dataclass
class Translation:
    """Neurons as ours. rows: (what, theirs, ours, consequence). recurrent: weights [N, N], or one or [N] where each
    hears itself alone; with them arrives a bias [N]."""

    lif: LIF
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    recurrent: Tensor | None = None
    recurrent_bias: Tensor | None = None


@dataclass(frozen=True)
class Framework:
    """neurons: how those of each class become ours; a class raises UserError for options it cannot translate. kinds:
    classes of all its neurons, the unknown ones included. layers: its own layers that do what torch's do."""

    name: str
    kinds: tuple[type[nn.Module], ...]
    neurons: Mapping[type[nn.Module], Callable[..., Translation]]
    layers: Mapping[type[nn.Module], type[nn.Module]]
    ways: Ways


TORCH_LAYERS = (
    *(nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Dropout),
)

OWN_PROCESS = "exact, on this project's process in Lava"

SILENT = ("spikes", "none on these inputs", "none", "equal, but on silence alone: show inputs that make it fire")


def fixed_row(what: str) -> tuple[str, str, str, str]:
    """What it means that something they learned is a constant here."""
    return (what, "learned", "a constant", "exact; training further leaves it as it is")


def reset_rows(theirs: str, lif: LIF) -> list[tuple[str, str, str, str]]:
    """What the neurons' reset means for where they run."""
    return [] if lif.reset == "hard" else [("reset", theirs, lif.reset, OWN_PROCESS)]


def imported(
    module: nn.Module, inputs: Tensor | np.ndarray, framework: Framework, payload_bits: int = 1
) -> tuple[SpikingNetwork, list[Difference]]:
    """The network that a trained module is in evaluation mode, and how its neurons differ from ours.

    inputs: real ones, integers [T, B, *input_shape] below 2**payload_bits; the module is shown them divided by
    2**payload_bits - 1. Both run in float64, where sums in another order do not move a spike, and every population's
    spikes are compared. The module's own states are cleared, nothing else of it changes.
    Raises UserError for whatever of it has no exact form here, and where the spikes differ all the same.
    """
    inputs = torch.as_tensor(inputs)
    _check_inputs(inputs, payload_bits)
    precision = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    module = _prepared(module, framework)
    neurons, layers = _parts(module, framework)
    translations = {name: _translated(name, neuron, framework) for name, neuron in neurons.items()}
    watched = watch(module, _shown(inputs, payload_bits), neurons, layers, framework.ways)
    graph = _graph(watched, translations, {name: _plain(part, framework) for name, part in layers.items()})
    network = SpikingNetwork(tuple(inputs.shape[2:]), graph, payload_bits).double().eval()
    stages = {name: stage for stage in network.stages for name, t in translations.items() if stage.neuron is t.lif}
    for name, stage in stages.items():
        _check_bias(stage.name, translations[name].lif, stage.links)
    differences = [Difference(stage.name, *row) for name, stage in stages.items() for row in translations[name].rows]
    _prove(framework.name, network, inputs, {stage.name: watched.rasters[name] for name, stage in stages.items()})
    silent = [stage.name for name, stage in stages.items() if not watched.rasters[name].any()]
    differences += [Difference(name, *SILENT) for name in silent]
    return network.to(precision), differences


def emitted(module: nn.Module, inputs: Tensor, framework: Framework, payload_bits: int = 1) -> list[Tensor]:
    """What the module emits where `imported` makes populations with neurons, or a readout, of it: spikes, or currents,
    [T, B, ...] each, in the order of those populations. Inputs, float64 and what is refused are those of `imported`."""
    module = _prepared(module, framework)
    watched = watch(module, _shown(inputs, payload_bits), *_parts(module, framework), framework.ways)
    return list(watched.rasters.values())


def _prepared(module: nn.Module, framework: Framework) -> nn.Module:
    """A copy of the module without states, in evaluation mode and float64."""
    framework.ways.clear(module)
    return copy.deepcopy(module).cpu().double().eval()


def _shown(inputs: Tensor, payload_bits: int) -> Tensor:
    """Inputs as the module is shown them."""
    return inputs.double() / (2**payload_bits - 1)


def _check_inputs(inputs: Tensor, payload_bits: int) -> None:
    if inputs.dim() < 3 or len(inputs) < 2:
        raise UserError(
            f"inputs have shape {list(inputs.shape)}; they are [T, B, *input_shape], of at least 2 steps, to show "
            "what neurons keep from one to the next"
        )
    limit = 2**payload_bits - 1
    broken = inputs[(inputs != inputs.round()) | (inputs < 0) | (inputs > limit)]
    if len(broken):
        raise UserError(
            f"inputs hold {broken[0].item():g}; they are whole numbers from 0 to {limit} at {payload_bits} payload "
            f"bits, of which the module is shown 1/{limit}"
        )


def _parts(module: nn.Module, framework: Framework) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The module's neurons and layers by name, none of them inside another."""
    neurons: dict[str, nn.Module] = {}
    layers: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if any(name.startswith(f"{outer}.") for outer in neurons):
            continue
        if isinstance(part, framework.kinds):
            if type(part) not in framework.neurons:
                known = ", ".join(sorted(kind.__name__ for kind in framework.neurons))
                raise UserError(
                    f"layer {name or 'itself'} is {framework.name}'s {type(part).__name__}, which no neuron here can "
                    f"say; these can be imported: {known}"
                )
            neurons[name] = part
        elif type(part) in TORCH_LAYERS or type(part) in framework.layers:
            layers[name] = part
    if not neurons:
        raise UserError(f"{type(module).__name__} has no neurons of {framework.name}; is it one of another framework?")
    return neurons, layers


def _plain(part: nn.Module, framework: Framework) -> nn.Module:
    """A copy that is torch's own layer; the framework's class only adds how it is applied to many steps."""
    plain = copy.deepcopy(part)
    plain.__class__ = framework.layers.get(type(part), type(part))
    return plain


def _translated(name: str, neuron: nn.Module, framework: Framework) -> Translation:
    try:
        return framework.neurons[type(neuron)](neuron)
    except UserError as error:
        raise UserError(f"layer {name}, {framework.name}'s {type(neuron).__name__}: {error}") from error


def _graph(
    watched: Watched, translations: Mapping[str, Translation], layers: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """The watched step as a module of our parts, which a SpikingNetwork reads like any other."""
    root, graph = nn.Module(), fx.Graph()
    image = graph.placeholder("image")
    made: dict[str, fx.Node] = {}

    def node(origin: Origin) -> fx.Node:
        match origin:
            case ("part", name):
                return made[name]
            case ("add", first, second):
                return graph.call_function(operator.add, (node(first), node(second)))
            case ("flatten", source):
                return graph.call_function(torch.flatten, (node(source), 1))
        return image

    def apply(name: str, part: nn.Module, argument: fx.Node) -> fx.Node:
        root.add_module(name, part)
        return graph.call_module(name, (argument,))

    for name, origin in watched.arguments.items():
        own = _own_name(name)
        if name in translations:
            if translations[name].recurrent is not None:
                _make_recurrent(name, root, origin, translations[name])
            made[name] = apply(own, translations[name].lif, node(origin))
        else:
            made[name] = apply(own, layers[name], node(origin))
    last = next(reversed(watched.arguments))
    if isinstance(layers.get(last), (nn.Linear, nn.Conv2d, *NORMS)):
        made[last] = apply("readout", Readout(), made[last])
    graph.output(made[last])
    return fx.GraphModule(root, graph)


def _own_name(name: str) -> str:
    """A part's name without dots, and of the parts of an nn.Sequential without a digit in front."""
    own = name.replace(".", "_")
    return f"layer{own}" if own[:1].isdigit() else own


def _make_recurrent(name: str, root: nn.Module, origin: Origin, translation: Translation) -> None:
    """Put the neurons' recurrent weights where they are here: into the one dense layer in front."""
    own = _own_name(origin[1]) if origin[0] == "part" else ""
    dense = getattr(root, own, None)
    recurrent = translation.recurrent
    assert recurrent is not None
    if not isinstance(dense, nn.Linear):
        raise UserError(f"layer {name} is recurrent, which needs one Linear directly in front of it")
    combined = Recurrent(dense.in_features, dense.out_features).double()
    bias = dense.weight.new_zeros(dense.out_features) if dense.bias is None else dense.bias.detach()
    with torch.no_grad():
        combined.weight.copy_(dense.weight)
        combined.recurrent.copy_(recurrent if recurrent.dim() == 2 else torch.diag(recurrent.expand(len(bias))))
        combined.bias.copy_(bias if translation.recurrent_bias is None else bias + translation.recurrent_bias)
    root.add_module(own, combined)


def _check_bias(name: str, neuron: LIF, links: Iterable) -> None:
    """Raises UserError for a bias that a synaptic current would keep a share of: here it goes past that."""
    if not torch.as_tensor(neuron.alpha).any():
        return
    for link in links:
        bias = running_affine(link.norm)[1] if isinstance(link.norm, Norm) else getattr(link.synapse, "bias", None)
        if bias is not None and bias.any():
            raise UserError(
                f"layer {name}: its bias enters the synaptic current there, where it grows to bias / (1 - alpha), and "
                "the voltage directly here; train with bias=False in front of neurons with a synaptic current"
            )


def _prove(framework: str, network: SpikingNetwork, inputs: Tensor, expected: Mapping[str, Tensor]) -> None:
    rasters = network.rasters(inputs)
    for name, theirs in expected.items():
        different = (rasters[name] != theirs.reshape(rasters[name].shape)).transpose(0, 1)  # samples first
        if different.any():
            sample, step, *neuron = (int(index) for index in different.nonzero()[0])
            fires = "fires" if theirs.reshape(rasters[name].shape)[(step, sample, *neuron)] else "does not fire"
            raise UserError(
                f"population {name}: {int(different.sum())} of {different.numel()} spikes differ from {framework}'s, "
                f"first in sample {sample} at step {step}, neuron {tuple(neuron)}, which {fires} there; the import is "
                "refused, since it would not be the network that was trained"
            )
