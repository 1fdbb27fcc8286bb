"""The integer network as an ONNX step: docs/arithmetic.md in standard operators, with every integer as the chip has it.

All states are int32. Sums are `MatMulInteger` and `ConvInteger` over halved weights, a byte each; what they lack is
made up for by the shift. A decay's product needs up to 44 bits: float64 holds it exactly, and casting back cuts the
fraction off towards zero, as the contract wants.
"""

from __future__ import annotations

import json
from functools import reduce

import numpy as np
from onnx import TensorProto

from base.errors import UserError
from deploy.onnx.graph import BATCH, INPUT, Step, Value, reset
from quantize import arithmetic as rules
from quantize.integer_network import Connection, IntegerNetwork, Population, pack

HALF_SPAN = 128  # halved weights are -128..127
INT16_LIMIT = 1 << 15


def build(network: IntegerNetwork) -> Step:
    """The network's step. Raises UserError where a sum could leave the 32 bits that ONNX has for it."""
    kind = np.int16 if network.input_is_bias_of else np.uint8
    step = Step(Value(INPUT, kind, (BATCH, *network.input_shape)))
    step.remember(network.connections, network.shape_of)
    indices = {id(connection): index for index, connection in enumerate(network.connections)}
    for name in network.order:
        population = network[name]
        drives = [_drive(step, network, indices[id(c)], c) for c in network.into(name)]
        drive = reduce(lambda a, b: step.add(f"{b}/added", "Add", a, b), drives) if drives else None
        bias = _bias(step, network, population)
        if population.spiking:
            _lif(step, population, drive, bias)
        else:
            step.add(f"{name}/current", "Add", str(drive), bias)
    step.pass_on()
    for population in network.populations:
        what, dtype = ("spikes", np.uint8) if population.spiking else ("current", np.int32)
        step.emit(f"{population.name}/{what}", dtype, population.shape)
    return step


def about(network: IntegerNetwork, step: Step) -> dict[str, str]:
    """The metadata of the network's models: all that their initialisers do not tell of it."""
    header, arrays = pack(network)
    beside = {name: array.tolist() for name, array in arrays.items() if name not in step.initialisers}
    return {
        "arithmetic": rules.ARITHMETIC_ID,
        "network": json.dumps(header),
        "beside": json.dumps(beside),
        "network_sha256": network.hash,
    }


def weight_of(stored: np.ndarray) -> np.ndarray:
    """A connection's weights from their initialiser. Raises TypeError for one that is of another type."""
    if stored.dtype not in (np.int8, np.uint8):
        raise TypeError(f"weights are {stored.dtype}, not int8 or uint8")
    half = stored.astype(np.int16) - (HALF_SPAN if stored.dtype == np.uint8 else 0)
    return rules.WEIGHT_STEP * (half.T if half.ndim == 2 else half)


def _drive(step: Step, network: IntegerNetwork, index: int, connection: Connection) -> str:
    """What a connection adds to its target's current, in state units: shift(W s, exponent) 2^6."""
    name = f"connection/{index}"
    total = _sum(step, network, name, connection)
    up = connection.exponent + 1  # for the halved weights
    if up < 0:  # clearing the bits that a right shift loses is a floor, whatever the sign
        total = step.add(f"{name}/floored", "BitwiseAnd", total, step.number(-(1 << -up)))
    up += rules.STATE_SHIFT
    operator = "Mul" if up >= 0 else "Div"
    return step.add(f"{name}/drive", operator, total, step.number(1 << abs(up)))


def _sum(step: Step, network: IntegerNetwork, name: str, connection: Connection) -> str:
    """The sum over halved weights, int32."""
    largest = network.payload_max(connection.source)
    worst = network.largest_sum(connection) // rules.WEIGHT_STEP
    if worst >= 1 << 31:
        raise UserError(
            f"onnx: connection {connection.name} could sum to {worst}, beyond the 32 bits of ONNX's integer products; "
            "lower the payload bits or split the connection."
        )
    half = connection.weight // rules.WEIGHT_STEP
    shape = network.shape_of(connection.source)
    spikes = step.heard(connection.source, connection.delay)
    if not connection.is_conv:
        half = half.T
        if len(shape) > 1:
            spikes = step.add(f"{name}/flat", "Flatten", spikes)
    zero_points: tuple[str, ...] = ()
    if not connection.is_conv and 2 * largest * HALF_SPAN < INT16_LIMIT:
        weight = step.array(f"{name}/weight", half.astype(np.int8))
    else:
        # The convolution of onnxruntime 1.23, the last for Python 3.10, takes no int8. And without VNNI, products of
        # uint8 x int8 are added pairwise in 16 bits that saturate; of uint8 x uint8 they are not.
        weight = step.array(f"{name}/weight", (half + HALF_SPAN).astype(np.uint8))
        zero_points = (step.number(0, np.uint8), step.number(HALF_SPAN, np.uint8))
    if not connection.is_conv:
        return step.add(f"{name}/sum", "MatMulInteger", spikes, weight, *zero_points)
    return step.add(
        f"{name}/sum",
        "ConvInteger",
        spikes,
        weight,
        *zero_points,
        strides=connection.stride,
        pads=connection.padding * 2,
        dilations=connection.dilation,
        group=connection.groups,
    )


def _bias(step: Step, network: IntegerNetwork, population: Population) -> str:
    """mantissa 2^exponent, the input being the mantissa where it is the population's bias."""
    name = population.name
    if name == network.input_is_bias_of:
        mantissa = step.add(f"{name}/bias_mant", "Cast", INPUT, to=TensorProto.INT32)
    else:
        mantissa = step.array(f"population/{name}/bias_mant", population.bias_mant)
    return step.add(f"{name}/bias", "Mul", mantissa, step.number(1 << population.bias_exp))


def _lif(step: Step, population: Population, drive: str | None, bias: str) -> None:
    """`arithmetic.lif_step`, from a drive that is shifted already."""
    name, kind, limit = population.name, population.reset, rules.STATE_LIMIT
    before_u, before_v = (step.state(f"{name}/{what}", np.int32, population.shape) for what in ("u", "v"))
    mantissa = step.array(f"population/{name}/threshold_mant", population.threshold_mant)
    threshold = step.add(f"{name}/threshold", "Mul", mantissa, step.number(1 << rules.STATE_SHIFT))
    u = _kept(step, before_u, population.decay_u, rules.CURRENT_DECAY_OFFSET)
    if drive is not None:
        u = step.add(f"{name}/u/driven", "Add", u, drive)
    u = _wrapped(step, name, u)
    v = _kept(step, before_v, population.decay_v, 0)
    v = step.add(f"{name}/v/driven", "Add", v, u)
    v = step.add(f"{name}/v/biased", "Add", v, bias)
    late = rules.is_late(kind)
    if late:
        fired = step.add(f"{name}/fired", "Greater", before_v, threshold)
        v = reset(step, f"{name}/v/reset", v, fired, threshold, kind, np.int32)
    low, high = step.number(0 if population.floor else -(limit - 1)), step.number(limit - 1)
    v = step.add(f"{name}/v/next" if late else f"{name}/v/saturated", "Clip", v, low, high)
    fires = step.add(f"{name}/fires", "Greater", v, threshold)
    if not late:
        reset(step, f"{name}/v/next", v, fires, threshold, kind, np.int32)
    step.add(f"{name}/spikes", "Cast", fires, to=TensorProto.UINT8)


def _kept(step: Step, state: str, decay: np.ndarray, offset: int) -> str:
    """trunc(state (4096 - (decay + offset)) / 4096); the share, a constant, is exact in float64."""
    population, what = state.split("/")
    unity, lost = step.number(rules.DECAY_UNITY - offset), step.array(f"population/{population}/decay_{what}", decay)
    whole = step.add(f"{state}/whole_share", "Sub", unity, lost)
    real = step.add(f"{state}/real_share", "Cast", whole, to=TensorProto.DOUBLE)
    share = step.add(f"{state}/share", "Div", real, step.number(rules.DECAY_UNITY, np.float64))
    wide = step.add(f"{state}/wide", "Cast", state, to=TensorProto.DOUBLE)
    product = step.add(f"{state}/product", "Mul", wide, share)
    return step.add(f"{state}/kept", "Cast", product, to=TensorProto.INT32)


def _wrapped(step: Step, name: str, u: str) -> str:
    """`arithmetic.wrap_current`: one wrap by 2^24 into (-2^23, 2^23]."""
    limit, span = rules.STATE_LIMIT, step.number(2 * rules.STATE_LIMIT)
    over = step.add(f"{name}/u/over", "Greater", u, step.number(limit))
    under = step.add(f"{name}/u/under", "LessOrEqual", u, step.number(-limit))
    lowered = step.add(f"{name}/u/lowered", "Sub", u, span)
    raised = step.add(f"{name}/u/raised", "Add", u, span)
    above = step.add(f"{name}/u/above", "Where", under, raised, u)
    return step.add(f"{name}/u/next", "Where", over, lowered, above)
