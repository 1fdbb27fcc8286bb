"""What a connection adds to its target's activation, three ways that compute the same integers.

    rows        the weights of all sources that spiked are added up: dense connections, few binary spikes
    products    a matrix product of bytes into 32 bits, by onnxruntime: dense connections, many spikes or graded ones
    taps        every source adds its weights wherever its kernel reaches: convolutions, and sums beyond 32 bits

All sums are of halved weights, which are whole since weights are even, and which fit a byte; the shift makes up for it.
They are exact because they are held in integers that the largest possible sum fits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numba import njit

from quantize.arithmetic import WEIGHT_STEP, shift
from quantize.integer_network import Connection, IntegerNetwork

HALF_SPAN = 128  # halved weights are -128..127
SAMPLED = 4  # samples of a batch by which its density is told
UNROLLED = 4  # rows that are added at once

# add(source [T, B, I], step, sample, activation [t, b, N]): the spikes of steps step..step+t-1 and samples
# sample..sample+b-1 are weighed, summed, shifted and added to the activation, int32.
Add = Callable[[np.ndarray, int, int, np.ndarray], None]


@lru_cache(maxsize=512)
def adder(network: IntegerNetwork, connection: Connection) -> Add:
    """The function that adds what the connection carries, in whichever way is the fastest for what arrives."""
    if connection.is_conv or _worst(network, connection) >= 1 << 31:
        return taps(network, connection)
    by_products = cache(lambda: products(network, connection))
    if network.payload_max(connection.source) > 1:
        return by_products()
    by_rows, outputs = cache(lambda: rows(network, connection)), len(connection.weight)

    def add(source: np.ndarray, step: int, sample: int, activation: np.ndarray) -> None:
        steps, samples = activation.shape[:2]
        seen = source[step : step + steps, sample : sample + min(samples, SAMPLED)]
        density = np.count_nonzero(seen.view(bool)) / seen.size
        way = by_rows if rows_are_cheaper(density, outputs) else by_products
        way()(source, step, sample, activation)

    return add


def rows_are_cheaper(density: float, outputs: int) -> bool:
    """Cycles for each input, as measured where bytes are multiplied by VNNI: looking at it and, if it spikes, adding
    its weights, 15 a cycle, against multiplying it by its weights, 50 a cycle."""
    return 1.2 + density * outputs / 15 < outputs / 50


def rows(network: IntegerNetwork, connection: Connection) -> Add:
    """For a dense connection of binary spikes."""
    outputs, inputs = connection.weight.shape
    weights = np.zeros((inputs + 1, outputs), np.int8)  # the last row is added where there are no UNROLLED spikes left
    weights[:-1] = connection.weight.T // WEIGHT_STEP
    holding, shifts = _holding(_worst(network, connection)), _shifts(connection)

    def add(source: np.ndarray, step: int, sample: int, activation: np.ndarray) -> None:
        _add_rows(source, step, sample, weights, *shifts, np.empty(outputs, holding), activation)

    return add


def products(network: IntegerNetwork, connection: Connection) -> Add:
    """For a dense connection whose sums fit 32 bits."""
    multiply = _byte_product(connection.weight.T // WEIGHT_STEP, network.payload_max(connection.source))

    def add(source: np.ndarray, step: int, sample: int, activation: np.ndarray) -> None:
        steps, samples = activation.shape[:2]
        sent = source[step : step + steps, sample : sample + samples].reshape(-1, source.shape[2])
        activation += shift(multiply(sent), connection.exponent + 1).reshape(activation.shape)

    return add


def taps(network: IntegerNetwork, connection: Connection) -> Add:
    """For every connection: a dense one is a convolution of maps of one pixel."""
    shape, weight, groups = network.shape_of(connection.source), connection.weight, connection.groups
    if not connection.is_conv:
        shape, weight = (weight.shape[1], 1, 1), weight[:, :, None, None]
    outputs, group_channels = weight.shape[:2]
    reach = _reach(connection, shape)
    # [source channel, place in the kernel, target channel within the group]
    by_group = (weight // WEIGHT_STEP).reshape(groups, outputs // groups, group_channels, -1).transpose(0, 2, 3, 1)
    kernels = np.ascontiguousarray(by_group, np.int8).reshape(shape[0], -1, outputs // groups)
    holding, shifts = _holding(_worst(network, connection)), _shifts(connection)

    def add(source: np.ndarray, step: int, sample: int, activation: np.ndarray) -> None:
        sums = np.empty((activation.shape[2] // outputs, groups, outputs // groups), holding)
        _add_taps(source, step, sample, kernels, group_channels, *reach, *shifts, sums, activation)

    return add


def _worst(network: IntegerNetwork, connection: Connection) -> int:
    """The largest sum of halved weights."""
    return network.largest_sum(connection) // WEIGHT_STEP


def _holding(worst: int) -> type[np.signedinteger]:
    return next(kind for kind in (np.int16, np.int32, np.int64) if worst <= np.iinfo(kind).max)


def _shifts(connection: Connection) -> tuple[int, int]:
    """Bits to the left and to the right, one of them 0, for a sum of halved weights."""
    return max(connection.exponent + 1, 0), max(-connection.exponent - 1, 0)


def _reach(connection: Connection, source: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which output positions a pixel of a source map [H, W] reaches, through which place in the kernel.

    Pixel p has the entries starts[p]..starts[p+1]-1 of positions and of places.
    """
    height, width = source[1:]
    down, right = connection.taps(source) if connection.is_conv else np.zeros((2, 1, 1), np.int32)
    y, x = np.broadcast_arrays(down[:, None, :, None], right[None, :, None, :])
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixels = (y * width + x)[inside]
    positions, places = np.nonzero(inside.reshape(len(down) * len(right), -1))
    order = pixels.argsort(kind="stable")
    starts = np.searchsorted(pixels[order], np.arange(height * width + 1))
    return starts.astype(np.uint32), positions[order].astype(np.uint32), places[order].astype(np.uint32)


def _byte_product(half: np.ndarray, largest: int) -> Callable[[np.ndarray], np.ndarray]:
    """spikes uint8 [M, I] up to `largest`, halved weights [I, O] -> their product, int32 [M, O]."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    inputs, outputs = half.shape
    # Without VNNI, products of uint8 x int8 are added pairwise in 16 bits that saturate; of uint8 x uint8 they are not.
    if 2 * largest * HALF_SPAN < 1 << 15:
        constants: dict[str, np.ndarray] = {"weight": half.astype(np.int8)}
    else:
        constants = {"weight": (half + HALF_SPAN).astype(np.uint8)}
        constants |= {"zero": np.array(0, np.uint8), "weight zero": np.array(HALF_SPAN, np.uint8)}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["spikes", *constants], ["sum"])],
        "product",
        [helper.make_tensor_value_info("spikes", TensorProto.UINT8, [None, inputs])],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, [None, outputs])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda spikes: session.run(None, {"spikes": spikes})[0]


@njit(cache=True, nogil=True)
def _add_rows(source, step, sample, weights, left, right, sums, activation):  # type: ignore[no-untyped-def]
    """source uint8 [T, B, I], weights int8 [I + 1, N], sums [N], activation int32 [t, b, N]."""
    inputs, outputs = source.shape[2], weights.shape[1]
    firing = np.empty(inputs + UNROLLED, np.uint32)  # signed indices would be checked for counting from the end
    for t in range(activation.shape[0]):
        for b in range(activation.shape[1]):
            count = 0
            for i in range(inputs):  # without a branch, which could not be predicted
                firing[count] = i
                count += source[step + t, sample + b, i]
            firing[count : count + UNROLLED] = inputs
            sums[:] = 0
            for k in range(0, count, UNROLLED):
                i0, i1, i2, i3 = firing[k], firing[k + 1], firing[k + 2], firing[k + 3]
                for n in range(outputs):
                    sums[n] += weights[i0, n] + weights[i1, n] + weights[i2, n] + weights[i3, n]
            for n in range(outputs):
                activation[t, b, n] += (np.int64(sums[n]) << left) >> right


@njit(cache=True, nogil=True)
def _add_taps(  # type: ignore[no-untyped-def]
    source, step, sample, kernels, group_channels, starts, positions, places, left, right, sums, activation
):
    """source uint8 [T, B, C H W], kernels int8 [C, places, O / groups], sums [P, groups, O / groups], activation int32
    [t, b, O P]."""
    pixels = len(starts) - 1
    firing = np.empty(pixels + 1, np.uint32)
    for t in range(activation.shape[0]):
        for b in range(activation.shape[1]):
            sums[:] = 0
            for channel in range(len(kernels)):
                first, group, count = channel * pixels, channel // group_channels, 0
                for pixel in range(pixels):
                    firing[count] = pixel
                    count += source[step + t, sample + b, first + pixel] != 0
                for k in range(count):
                    payload = source[step + t, sample + b, first + firing[k]]
                    for tap in range(starts[firing[k]], starts[firing[k] + 1]):
                        position, place = positions[tap], places[tap]
                        for n in range(kernels.shape[2]):
                            sums[position, group, n] += payload * kernels[channel, place, n]
            target = 0
            for group in range(sums.shape[1]):
                for n in range(sums.shape[2]):
                    for position in range(len(sums)):
                        activation[t, b, target] += (np.int64(sums[position, group, n]) << left) >> right
                        target += 1
