"""What a configuration says, made: data, encoding, network, training; and what of it decides which result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from base.errors import UserError
from quantize.arithmetic import DECAY_UNITY
from run.config import Config, DataConfig, NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor

    from base.differences import Difference
    from quantize.folded import FoldedLayer
    from quantize.integer_network import Connection, IntegerNetwork, Population
    from train.datasets import Dataset
    from train.encoding import Encoding
    from train.frameworks.finding import Found
    from train.network import SpikingNetwork
    from train.training import Training

WATCHED_SAMPLES = 64  # of the training part, to take a model over; all that it computes for them is kept meanwhile


def prepare(config: Config) -> tuple[SpikingNetwork, Dataset, Encoding, Training]:
    """What `fit` trains, on what and how. Raises UserError where these do not fit each other."""
    return network_of(config), dataset_of(config), encoding_of(config), training_of(config)


def dataset_of(config: Config) -> Dataset:
    from train.datasets import load

    data = config.data
    return load(data.dataset, data.folder, data.cache, data.validation, data.pool)


def encoding_of(config: Config) -> Encoding:
    from train.encoding import Encoding

    data = config.data
    return Encoding(
        data.encoding, data.steps, data.bits, config.seed, data.bins, data.window_us, data.augment, data.direct
    )


def training_of(config: Config) -> Training:
    from train.training import Training

    return Training(**asdict(config.train), seed=config.seed)


def network_of(config: Config) -> SpikingNetwork:
    """The network of the configuration before any training. Raises UserError where it does not fit the data set."""
    dataset = dataset_of(config)
    if config.network.model:
        what, network = f"network.model: '{config.network.model}'", taken_of(config)[0]
    else:
        what, network = _built(config, dataset)
    ends_with = network.stages[-1].output_shape
    if ends_with != (dataset.classes,):
        raise UserError(
            f"{what} ends with {ends_with[0]} neurons, but '{dataset.name}' has {dataset.classes} classes; end it with "
            f"{dataset.classes}."
        )
    return network


def _built(config: Config, dataset: Dataset) -> tuple[str, SpikingNetwork]:
    """What says the architecture, and the untrained network that has it."""
    from train.architecture import build
    from train.encoding import encode
    from train.neurons import LIF
    from train.presets import expand

    encoding, settings = encoding_of(config), _own(config.network)
    shape = tuple(encode(dataset.train.values[:1], np.arange(1), encoding).shape[2:])
    notation = expand(settings.pop("architecture"), shape, dataset.classes)
    readout = settings.pop("readout")
    network = build(
        notation,
        shape,
        neuron=lambda: LIF(**settings),
        payload_bits=encoding.payload_bits,
        readout=readout,
        input_is_bias=encoding.input_is_bias,
        seed=config.seed,
    )
    return f"network.architecture: '{notation}'", network


def _own(network: NetworkConfig) -> dict[str, Any]:
    """What a configuration says of a network that is no model from elsewhere."""
    return {key: value for key, value in asdict(network).items() if key not in ("model", "way", "dt")}


def taken_of(config: Config) -> tuple[SpikingNetwork, list[Difference]]:
    """The network that the model is, in the way in which it is deployed, and how its neurons differ from its own."""
    from train.frameworks.stock import as_stock

    found = found_of(config.network, config.data, config.seed)
    if config.network.way == "exact":
        return copy.deepcopy(found.network), found.differences
    return as_stock(found.network, found.differences)


@cache
def found_of(network: NetworkConfig, data: DataConfig, seed: int) -> Found:
    """The model, watched on the first samples by which the data are calibrated, or read from a NIR file. Raises
    UserError as `find` and `take`, or `foreign.read` and `unfold.network_of`, do, naming the model."""
    from train.frameworks.finding import find, take
    from train.trainer import calibration_inputs

    config = Config(seed, data)
    dataset, encoding = dataset_of(config), encoding_of(config)
    if encoding.input_is_bias:
        raise UserError(
            "data.direct = 'bias' with network.model: no model is made for input as a bias; set data.direct = 'graded'"
        )
    inputs = calibration_inputs(dataset, encoding)[:, :WATCHED_SAMPLES]
    shape = tuple(inputs.shape[2:])
    if network.model.endswith(".nir"):
        return _read(network, shape, encoding.payload_bits)
    module = find(network.model)
    try:
        return take(module, inputs, encoding.payload_bits)
    except UserError as error:
        told = ", ".join(map(str, ("T", "B", *shape)))
        raise UserError(f"network.model = '{network.model}' on {dataset.name}, input [{told}]: {error}") from error


def _read(chosen: NetworkConfig, shape: tuple[int, ...], payload_bits: int) -> Found:
    """The network of a NIR file, for input of that shape."""
    from deploy.nir import foreign
    from quantize.folded import with_input_scaled
    from quantize.unfold import network_of as unfolded
    from train.frameworks.finding import Found

    file = Path(chosen.model)
    found = foreign.read(file, chosen.dt, chosen.reset)
    if np.prod(found.input_shape) != np.prod(shape):
        raise UserError(
            f"{file}: takes input of shape {list(found.input_shape)}, and is given {list(shape)}; choose the data that "
            "it was trained on."
        )
    layers = with_input_scaled(found.layers, 1 / (2**payload_bits - 1))
    network = unfolded(layers, shape if len(found.input_shape) == 1 else found.input_shape, payload_bits)
    return Found(network, None, network, list(found.differences))


def folded_of(config: Config, weights: Path) -> tuple[SpikingNetwork, tuple[FoldedLayer, ...]]:
    """The trained network of that file, and its folded layers."""
    from quantize.fold import fold
    from train.checkpoint import load_weights

    network = network_of(config)
    load_weights(network, weights)
    return network, fold(network)


def untrained(config: Config) -> IntegerNetwork:
    """What the architecture becomes without any training: the integers of the weights that it starts from, none of
    them zero. Decays that each neuron learns by itself may all come to differ, and do so here."""
    from quantize.fold import fold
    from quantize.scales import quantize

    network = network_of(config)
    precision = replace(config.quantize, calibration="max")  # the rest takes samples, or time, and changes no size
    integers, _ = quantize(fold(network), network.input_shape, network.payload_bits, precision)
    differ = config.network.learn_decay and config.network.per_neuron

    def learned(population: Population) -> Population:
        decays = np.arange(population.size).reshape(population.shape) % DECAY_UNITY
        return replace(population, decay_v=decays) if differ and population.spiking else population

    def full(connection: Connection) -> Connection:
        weight = connection.weight
        return replace(connection, weight=np.where(weight == 0, weight.max(), weight))

    populations, connections = map(learned, integers.populations), map(full, integers.connections)
    return replace(integers, populations=tuple(populations), connections=tuple(connections))


def aware(config: Config) -> Callable[[SpikingNetwork, Tensor], SpikingNetwork]:
    """What turns a network, by samples to calibrate it, into the one whose forward pass is its integers."""
    from quantize.aware import AwareNetwork

    return partial(AwareNetwork, precision=config.quantize)


def trains(config: Config) -> bool:
    """Whether anything is trained: a model may be deployed as it comes."""
    epochs = config.train.epochs, config.train.relu_epochs, config.train.aware_epochs
    return not config.network.model or any(epochs)


def deployed(config: Config) -> str:
    """What the ways call the one that a configuration deploys."""
    return config.network.way + (", trained further" if trains(config) else "")


def decides_training(config: Config) -> list[Any]:
    """All of a configuration that decides the trained weights, as JSON data."""
    of_integers = [asdict(config.quantize)] if config.train.aware_epochs else []
    return [*decides_network(config), asdict(config.train), *of_integers]


def decides_network(config: Config) -> list[Any]:
    """All of a configuration, beside the weights, that decides the trained network and what it is shown: of a model not
    its name, but what it is."""
    if not config.network.model:
        return [config.seed, _data(config), _own(config.network)]
    from train.frameworks.finding import identity

    return [config.seed, _data(config), identity(taken_of(config)[0])]


def decides_integers(config: Config) -> list[Any]:
    """All of a configuration, beside the weights, that decides the integer network."""
    return [*decides_network(config), asdict(config.quantize)]


def _data(config: Config) -> dict[str, Any]:
    """What of the data decides a result: all but where it is kept meanwhile."""
    return {key: value for key, value in asdict(config.data).items() if key != "cache"}
