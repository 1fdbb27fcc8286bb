"""What a training step costs beside its matrix products alone, here and in snnTorch, SpikingJelly and Norse.

    OMP_NUM_THREADS=1 uv run --group peers python -m benchmarks.training

rewrites docs/results/speed/training.json and training.md, in about two minutes. All train the same layers on the same
spikes with the same loss and optimiser; rounds are interleaved and ratios taken within a round. Of one processor that
other work shares, times are the processor's. SpikingJelly and Norse need Python 3.11.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from base.files import write_text
from benchmarks.online_memory import peak_bytes
from benchmarks.timing import Ratio, interleaved, ratio, write
from train.architecture import build
from train.network import SpikingNetwork
from train.neurons import LIF
from train.objectives import loss
from train.training import Training
from train.updates import by_backpropagation, by_recomputation, optimizer_of

COMMAND = "OMP_NUM_THREADS=1 uv run --group peers python -m benchmarks.training"
FOLDER = Path("docs/results/speed")
BETA = 0.75
OURS, LEAN, FLOOR = "spikeproof", "spikeproof, recompute", "layers alone"


@dataclass(frozen=True)
class Case:
    """density: the share of inputs that spike. rounds: of the measurement."""

    architecture: str
    shape: tuple[int, ...]
    steps: int
    batch: int
    density: float
    rounds: int

    def __str__(self) -> str:
        shape = "x".join(map(str, (self.steps, self.batch, *self.shape)))
        return f"{shape} -> {self.architecture}, {self.density:.1%} of inputs spike"


CASES = {
    "small": Case("64-10", (64,), 20, 32, 0.13, 200),
    "dense": Case("512-10", (784,), 20, 128, 0.13, 15),
    "conv": Case("16C5S2P0-32C3S2P0-128-10", (1, 28, 28), 8, 32, 0.13, 41),
    "event": Case("256-10", (2312,), 50, 32, 0.008, 15),
}

PAGE = """\
# What a training step costs

Written by `{command}`, on one thread.

A step is forward, loss, backward and optimiser, of layers of LIF neurons without synaptic current. The figures are
ratios to the same layers with the same optimiser, torch's fused AdamW, and **no neurons at all**, the median over
interleaved rounds with its quartiles. The inputs are random, of the density named; peers get them as float32, as they
need them.

{times}

The most memory that tensors take at once during a step, beyond weights and input, in MiB:

{memory}
"""


class Layers(nn.Module):
    """The layers of a network alone, each on all steps at once."""

    def __init__(self, network: SpikingNetwork, neurons: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.layers = nn.ModuleList(deepcopy(stage.synapse) for stage in network.stages)
        self.neurons = nn.ModuleList(neurons() for _ in self.layers)

    def forward(self, spikes: Tensor) -> Tensor:
        """Output [T, B, 10] of spikes [T, B, *shape]."""
        for layer, neurons in zip(self.layers, self.neurons, strict=True):
            flat = spikes.flatten(2) if isinstance(layer, nn.Linear) else spikes
            spikes = neurons(layer(flat.flatten(0, 1)).unflatten(0, flat.shape[:2]))
        return spikes


class StepByStep(nn.Module):
    """Neurons that are called at every step, with a state that starts as `start` makes it."""

    def __init__(self, neurons: nn.Module, start: Callable[[], object]) -> None:
        super().__init__()
        self.neurons, self.start = neurons, start

    def forward(self, current: Tensor) -> Tensor:
        state, fired = self.start(), []
        for arriving in current:
            spikes, state = self.neurons(arriving, state)
            fired.append(spikes)
        return torch.stack(fired)


class Forgetting(nn.Module):
    """Neurons that run over all steps and keep their state, which is reset before."""

    def __init__(self, neurons: nn.Module) -> None:
        super().__init__()
        self.neurons = neurons

    def forward(self, current: Tensor) -> Tensor:
        self.neurons.reset()
        return self.neurons(current)


def peers() -> dict[str, Callable[[], nn.Module]]:
    """Neurons of each library, hard reset and arctan or its own surrogate; as its documentation shows them."""
    import norse.torch as norse
    import snntorch
    from spikingjelly.activation_based import neuron, surrogate

    def of_snntorch() -> nn.Module:
        leaky = snntorch.Leaky(BETA, reset_mechanism="zero")
        return StepByStep(leaky, leaky.reset_mem)

    def of_spikingjelly() -> nn.Module:
        slope = surrogate.ATan()
        return Forgetting(neuron.LIFNode(1 / (1 - BETA), False, surrogate_function=slope, step_mode="m"))

    def of_norse() -> nn.Module:
        leak = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(1000 * (1 - BETA)))
        return StepByStep(norse.LIFBoxCell(leak), lambda: None)

    return {"snnTorch": of_snntorch, "SpikingJelly": of_spikingjelly, "Norse": of_norse}


def steps_of(case: Case) -> dict[str, Callable[[], object]]:
    """A training step by what makes it, the layers alone first."""
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(case.steps, case.batch, *case.shape, generator=generator) < case.density).to(torch.uint8)
    floats, labels = spikes.float(), torch.arange(case.batch) % 10
    network = build(case.architecture, case.shape, neuron=lambda: LIF(BETA), seed=0).train()
    training = Training(learning_rate=1e-3)

    def learn(layers: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        objective = loss(layers(floats), labels)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()

    works: dict[str, Callable[[], object]] = {}
    for name, neurons in {FLOOR: nn.Identity, **peers()}.items():
        layers = Layers(network, neurons)
        works[name] = partial(
            learn, layers, torch.optim.AdamW(layers.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        )
    for name, update in {OURS: by_backpropagation, LEAN: by_recomputation}.items():
        own = deepcopy(network)
        works[name] = partial(update, own, optimizer_of(own, training), spikes, labels, training, (0,))
    return works


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(cases: Mapping[str, list[str]], names: list[str]) -> str:
    lines = [row([str(CASES[name]), *cells]) for name, cells in cases.items()]
    return "\n".join([row(["steps x batch x input -> layers", *names]), "|---" + "|---:" * len(names) + "|", *lines])


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers, not ours to heed
    ratios: dict[str, Ratio] = {}
    times, memory = {}, {}
    for name, case in CASES.items():
        works = steps_of(case)
        took = interleaved(case.rounds, works, time.process_time)
        found = {way: ratio(took[way], took[FLOOR]) for way in works if way != FLOOR}
        bytes_of = {way: peak_bytes(work) for way, work in works.items()}
        leanest = min(size for way, size in bytes_of.items() if way not in (FLOOR, OURS, LEAN))
        ratios |= {f"{name}, {way}": each for way, each in found.items()}
        share = bytes_of[OURS] / leanest
        ratios[f"{name}, memory to the leanest peer's"] = Ratio(share, (share, share))
        kept = bytes_of[LEAN] / bytes_of[OURS]
        ratios[f"{name}, memory of recomputing to keeping"] = Ratio(kept, (kept, kept))
        times[name] = [f"{1e3 * median(took[FLOOR]):.1f} ms"]
        times[name] += [f"{each.ratio:.2f} ({each.spread[0]:.2f} to {each.spread[1]:.2f})" for each in found.values()]
        memory[name] = [f"{size / 2**20:.2f}" for size in bytes_of.values()]
        print(row([name, *times[name]]), row(memory[name]), sep="\n")
    names = [FLOOR, *found]
    page = PAGE.format(command=COMMAND, times=table(times, names), memory=table(memory, names))
    write_text(FOLDER / "training.md", page)
    write(FOLDER / "training.json", COMMAND, ratios)


if __name__ == "__main__":
    main()
