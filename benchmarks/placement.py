"""Cores that the same networks take here and in nengo-loihi 1.1.0, by its own utilisation and block splitting.

    uv run --no-project --python 3.11 --with nengo-loihi==1.1.0 --with "nengo<4.1" --with "numpy<2" --with scipy \
        --with rich python -m benchmarks.placement

In an environment of its own: nengo-loihi is GPL, and its NumPy older than this project's. It is given each population
as a block and each connection as its synapse, dense or with shared kernels (population axons of 32 bits, its default).
It splits blocks evenly along the neurons, from their unsplit counts, and validates what came of it. What differs:

- A block is a core there. Here small populations share one.
- Here parts are as large as fits. Its even ones may exceed a limit, and then it refuses the network.
- Its count before a split knows no limit of the first neuron that a pixel reaches (256), as its split and this do, so
  that maps larger than a core take a little less in it. Its split stores equal lists once, of dense weights too.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import nengo
import numpy as np
from nengo.exceptions import BuildError
from rich.console import Console
from rich.table import Table

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nengo_loihi.block import Axon, LoihiBlock, Synapse
    from nengo_loihi.builder import Model
    from nengo_loihi.builder.split_blocks import split_model
    from nengo_loihi.builder.validate import validate_model
    from nengo_loihi.conv import channel_idxs, conv2d_loihi_weights, pixel_idxs
    from nengo_loihi.inputs import SpikeInput

from deploy.chip import limits
from deploy.chip.limits import Chip, Limit
from deploy.chip.placement import Demand, Part, least_cores, place
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

# Input, then layers: neurons, or channels of a 3 by 3 kernel with the same padding, and its stride.
Layer = int | tuple[int, int]
RANDOM, STACKS = 100, 300
INDICES = [0, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]  # 12 at most on a core; before a split more are needed
NETWORKS: list[tuple[tuple[int, ...], list[Layer]]] = [
    ((64,), [64, 10]),
    ((784,), [128, 10]),
    ((784,), [256, 10]),
    ((784,), [512, 512, 10]),
    ((1024,), [1024]),
    ((1024,), [1000, 1000]),
    ((4000,), [300, 10]),
    ((1, 9, 9), [(16, 1), (32, 2), 10]),
    ((1, 27, 27), [(16, 1), (32, 2), (32, 2), 10]),
    ((2, 33, 33), [(8, 2), (16, 2), 10]),
    ((3, 33, 33), [(32, 1), (64, 2), (64, 2), (64, 2), 10]),
]


def network(shape: tuple[int, ...], layers: list[Layer]) -> IntegerNetwork:
    """Random weights, none of them zero."""
    random, source, start = np.random.default_rng(0), INPUT, shape
    populations, connections = [], []
    for number, layer in enumerate(layers):
        name = f"layer{number}"
        size = (layer, int(np.prod(shape))) if isinstance(layer, int) else (layer[0], shape[0], 3, 3)
        weight = 2 * random.integers(1, 128, size) * random.choice([-1, 1], size)
        geometry = {} if isinstance(layer, int) else {"stride": (layer[1],) * 2, "padding": (1, 1)}
        connections.append(Connection(source, name, weight, -6, **geometry))
        shape = connections[-1].output_shape(shape)
        populations.append(Population(name, shape, *map(np.asarray, (4095, 410, 500, 0))))
        source = name
    return IntegerNetwork(start, tuple(populations), tuple(connections), source)


def notation(shape: tuple[int, ...], layers: list[Layer]) -> str:
    names = [str(layer) if isinstance(layer, int) else f"{layer[0]}C3S{layer[1]}" for layer in layers]
    return "-".join(["x".join(map(str, shape)), *names])


def theirs(network: IntegerNetwork) -> Model:
    """The network as blocks of nengo-loihi, one a population; neurons of maps pixel by pixel, as it prefers them."""
    model, ends = Model(), {}
    for name in (INPUT, *network.order):
        neurons = int(np.prod(network.shape_of(name)))
        if name == INPUT:
            ends[name] = SpikeInput(neurons, label=name)
            model.add_input(ends[name])
        else:
            ends[name] = LoihiBlock(neurons, label=name)
            model.add_block(ends[name])
    for connection in network.connections:
        source = network.shape_of(connection.source)
        if connection.is_conv:
            channels, *size = source
            # On maps of odd size its "same" padding is one pixel on every side.
            kernel = connection.weight.transpose(2, 3, 1, 0).astype(np.float32)
            transform = nengo.Convolution(
                len(kernel[0, 0, 0]), (*size, channels), (3, 3), connection.stride, padding="same", init=kernel
            )
            weights, indices, axon_to_weight, bases = conv2d_loihi_weights(transform)
            synapse = Synapse(int(np.prod(size)))
            synapse.set_population_weights(weights, indices, axon_to_weight, bases, pop_type=32)
            places, atoms = pixel_idxs(transform.input_shape), channel_idxs(transform.input_shape)
        else:
            weight = connection.weight.T.astype(np.float32)
            synapse = Synapse(len(weight))
            synapse.set_weights(weight)
            places, atoms = np.arange(len(weight)), None
        ends[connection.target].add_synapse(synapse)
        axon = Axon(synapse.n_axons)
        axon.target = synapse
        axon.set_compartment_axon_map(places, atoms=atoms)
        ends[connection.source].add_axon(axon)
    return model


def memory(network: IntegerNetwork, chip: Chip) -> int:
    """Bits of all synapses here, unsplit."""
    demand = Demand(network, replace(chip, limits=chip.limits | {"synapse.index_bits": Limit(INDICES, "", "given")}))
    wholes = [Part(p.name, tuple((0, size) for size in p.shape)) for p in network.populations]
    return sum(demand.of(whole).synapse_bits for whole in wholes)


def blocks(network: IntegerNetwork) -> tuple[int, str]:
    """Blocks that nengo-loihi splits the network into, and why it then refuses them, or nothing."""
    model = theirs(network)
    split_model(model)
    try:
        validate_model(model)
    except (BuildError, AssertionError) as refused:
        return len(model.blocks), str(refused)
    return len(model.blocks), ""


def drawn(random: np.random.Generator) -> IntegerNetwork:
    """Dense layers behind each other, or convolutions and a dense layer."""
    if random.random() < 0.5:
        layers: list[Layer] = [int(size) for size in random.integers(1, 900, random.integers(1, 4))]
        return network((int(random.integers(1, 1500)),), layers)
    side = 2 * int(random.integers(2, 12)) + 1
    maps = [(int(random.integers(1, 40)), int(random.integers(1, 3))) for _ in range(random.integers(1, 4))]
    return network((int(random.integers(1, 5)), side, side), [*maps, int(random.integers(1, 40))])


def compare_random(chip: Chip) -> str:
    random = np.random.default_rng(0)
    counts = {"fewer": 0, "as many": 0, "more": 0}
    while sum(counts.values()) < RANDOM:
        made = drawn(random)
        there, refused = blocks(made)
        if not refused:
            here = len(place(made, chip).cores)
            counts["fewer" if here < there else "as many" if here == there else "more"] += 1
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"{RANDOM} random networks that nengo-loihi accepts, cores here: {told}."


def stacks(chip: Chip) -> str:
    """How far random dense layers behind each other, of 10 to 2,500 neurons, are from what counting allows."""
    random, ratios, singles = np.random.default_rng(0), [], []
    while len(ratios) + len(singles) < STACKS:
        sizes = np.exp(random.uniform(np.log(10), np.log(2500), random.integers(2, 6))).astype(int).tolist()
        made = network((sizes[0],), sizes[1:])
        ratio = len(place(made, chip).cores) / least_cores(made, chip)
        (singles if len(sizes) == 2 else ratios).append(ratio)
    within = sum(ratio <= 1.1 for ratio in ratios)
    return (
        f"{len(singles)} random dense layers: at most {max(singles):.2f} times the least; {len(ratios)} stacks of 2 to "
        f"4: {within} within a tenth of it, on average {np.mean(ratios):.2f} and at most {max(ratios):.2f} times."
    )


def main() -> None:
    chip = limits.load("loihi1")
    table = Table("network", "at least", "cores here", "s", "nengo-loihi", "s", "kbit here", "nengo-loihi")
    refusals: list[str] = []
    for shape, layers in NETWORKS:
        ours = network(shape, layers)
        began = time.perf_counter()
        here = len(place(ours, chip).cores)
        seconds, began = time.perf_counter() - began, time.perf_counter()
        there, refused = blocks(ours)
        refusals += [f"† refused: {refused}"] if refused else []
        cells = (
            notation(shape, layers),
            least_cores(ours, chip),
            here,
            f"{seconds:.2f}",
            f"{there} †" if refused else there,
            f"{time.perf_counter() - began:.2f}",
            f"{memory(ours, chip) / 1000:,.0f}",
            f"{sum(s.bits() for block in theirs(ours).blocks for s in block.synapses) / 1000:,.0f}",
        )
        table.add_row(*map(str, cells))
    console = Console()
    console.print(table)
    for sentence in (*refusals, compare_random(chip), stacks(chip)):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
