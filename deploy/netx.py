"""The HDF5 file that lava-dl 0.6's `netx.hdf5.Network` reads, for networks that it can hold: a chain of dense layers
and convolutions of 8-bit weights without exponents, into stock CUBA neurons with a hard reset.

    /layer/0     type = input, shape
    /layer/<k>   type = dense | conv | flatten; shape, weight, bias (mantissas 2^6), a convolution's stride, padding,
                 dilation and groups; neuron/type = CUBA, iDecay, vDecay, vThMant

Shapes are [C, H, W] and weights as in torch, which is how lava-dl itself writes them. netx makes du = iDecay - 1,
dv = vDecay, vth = vThMant and bias_exp = 6 of them, and chooses Dense's weight exponent anew. Samples of T steps in one
run take `Network(file, reset_interval=T, reset_offset=1)`: with its own default, 0, netx resets every layer a step too
early, and a bias acts before the first sample.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np

from base.errors import UserError
from base.files import whole_file
from quantize import arithmetic as rules
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.precision import NETX_BIAS_EXPONENT

KEY = ", or quantize with quantize.netx = true"


def save(network: IntegerNetwork, path: Path) -> None:
    """Write the network. Raises UserError for the first thing of it that netx would refuse, drop or change."""
    chain = _chain(network)
    file = io.BytesIO()
    with h5py.File(file, "w") as handle:
        handle.attrs["network_sha256"] = network.hash
        shape, layers = network.input_shape, 0

        def layer(kind: str, shape: tuple[int, ...]) -> h5py.Group:
            nonlocal layers
            group = handle.create_group(f"layer/{layers}")
            layers += 1
            group.create_dataset("type", data=np.array([kind], "S10"))
            group.create_dataset("shape", data=np.asarray(shape))
            return group

        layer("input", shape)
        for population, connection in chain:
            weight, bias = _weight(connection), _bias(population)
            if connection.is_conv:
                group = layer("conv", population.shape)
                for name in ("stride", "padding", "dilation", "groups"):
                    group.create_dataset(name, data=getattr(connection, name))
            else:
                if len(shape) > 1:
                    layer("flatten", (int(np.prod(shape)),))
                group = layer("dense", population.shape)
            group.create_dataset("weight", data=weight, compression="gzip")
            if bias is not None:
                group.create_dataset("bias", data=bias)
            for name, value in _neuron(population).items():
                group.create_dataset(f"neuron/{name}", data=value)
            shape = population.shape
    with whole_file(path) as beside:
        beside.write_bytes(file.getbuffer())


def _refuse(what: str, why: str, instead: str = "") -> NoReturn:
    raise UserError(f"netx: {what} {why}; export onnx or nir, which hold it{instead}.")


def _chain(network: IntegerNetwork) -> list[tuple[Population, Connection]]:
    """The populations in their order, each with the one connection into it."""
    if network.input_is_bias_of:
        _refuse("the input", f"is the bias of '{network.input_is_bias_of}', but netx sends it through weights")
    if network.payload_bits > 1:
        _refuse("the input", f"has values of {network.payload_bits} bits, but the file says nothing of its payload")
    if network.time_weights is not None:
        _refuse("the output", "has time weights, for which the file has no place")
    chain = []
    source = INPUT
    for name in network.order:
        into = network.into(name)
        if len(into) != 1 or into[0].source != source:
            joined = ", ".join(connection.name for connection in into)
            _refuse(f"population '{name}'", f"hears {joined}, but netx joins each layer to the one before alone")
        if into[0].delay:
            _refuse(f"connection {into[0].name}", f"has a delay of {into[0].delay}, which netx drops or applies twice")
        chain.append((network[name], into[0]))
        source = name
    if source != network.output:
        _refuse(f"population '{source}'", f"lies behind the output '{network.output}', but netx reads the last layer")
    return chain


def _neuron(population: Population) -> dict[str, object]:
    what = f"population '{population.name}'"
    if not population.spiking:
        _refuse(what, "is a readout without neurons, to which netx gives a threshold")
    if population.reset != "hard" or population.floor:
        _refuse(what, f"has a {population.reset} reset{' and a floor' * population.floor}, unlike Lava's stock neurons")
    registers = {}
    for name, register in (("iDecay", "decay_u"), ("vDecay", "decay_v"), ("vThMant", "threshold_mant")):
        values = getattr(population, register)
        if (values != values.flat[0]).any():
            _refuse(what, f"has {register} from {values.min()} to {values.max()}, but a layer has one")
        registers[name] = int(values.flat[0])
    registers["iDecay"] += rules.CURRENT_DECAY_OFFSET
    return {"type": np.array(["CUBA"], "S10"), **registers, "refDelay": 1, "gradedSpike": False}


def _bias(population: Population) -> np.ndarray | None:
    """Mantissas of netx's exponent, [O] or, of a map that has more than one for a channel, [W, H, C]."""
    if not population.bias.any():
        return None
    what, bias = f"population '{population.name}'", np.broadcast_to(population.bias, population.shape)
    lost = bias % (1 << NETX_BIAS_EXPONENT)
    mantissas, half = bias >> NETX_BIAS_EXPONENT, 1 << (rules.BIAS_BITS - 1)
    if lost.any():
        _refuse(
            what, f"has a bias of {bias[lost != 0][0]}, but netx has multiples of {1 << NETX_BIAS_EXPONENT} alone", KEY
        )
    if (mantissas < -half).any() or (mantissas >= half).any():
        _refuse(what, f"has biases from {bias.min()} to {bias.max()}, beyond the mantissas {-half}..{half - 1} of netx")
    rows = mantissas.reshape(len(mantissas), -1)
    return rows[:, 0] if (rows == rows[:, :1]).all() else mantissas.T


def _weight(connection: Connection) -> np.ndarray:
    """The weights with their exponent, as they lie in the file."""
    what, exponent = f"connection {connection.name}", connection.exponent
    wide = connection.weight.astype(np.int64)
    weight = wide << exponent if exponent >= 0 else wide >> -exponent
    if exponent < 0 and (weight << -exponent != wide).any():
        _refuse(what, f"has the weight exponent {exponent}, which rounds; netx has none", KEY)
    if weight.max() > rules.WEIGHT_MAX or weight.min() < rules.WEIGHT_MIN:
        _refuse(what, f"has weights from {weight.min()} to {weight.max()} with its exponent {exponent}, beyond "
                      f"{rules.WEIGHT_MIN}..{rules.WEIGHT_MAX}; netx has none", KEY)  # fmt: skip
    if not connection.is_conv:
        _check_optimised(what, weight)
    return weight.astype(np.int32)


def _check_optimised(what: str, weight: np.ndarray) -> None:
    """Refuse what does not survive netx's choice of a weight exponent: it doubles weights while they fit their sign's
    eight bits, and Lava then clips at -255 where none is positive, and drops the lowest bit where signs are mixed."""
    least, most = int(weight.min()), int(weight.max())
    if not least and not most:
        _refuse(what, "has no weight but 0, on which netx fails")
    if most <= 0 and -least & (-least - 1) == 0:
        _refuse(what, f"has weights from {least} to {most}, none above 0, and netx and Lava turn {least} into another")
    mixed = least < 0 <= most  # as netx has it
    doubled = max(2 * most, -2 * least - 1) <= 255
    if mixed and not doubled and (weight % 2).any():
        _refuse(what, "has odd weights beside large ones, whose lowest bit Lava drops")
