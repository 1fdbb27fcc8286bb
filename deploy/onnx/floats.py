"""The float network as an ONNX step in float32: its folded layers, as quantization found them.

Same steps, states and names as the integer step, and the order of operations of `train/scan.py`. Sums are float32's, so
that a membrane within rounding of the threshold may fire here and not in torch, or the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from deploy.onnx.graph import BATCH, INPUT, Step, Value, reset
from quantize.arithmetic import is_late

if TYPE_CHECKING:
    from quantize.fold import FoldedConnection, FoldedLayer


def build(layers: Sequence[FoldedLayer], input_shape: Sequence[int]) -> Step:
    """The step of folded layers, each after all that it hears within a step, of inputs uint8 [B, *input_shape]."""
    step = Step(Value(INPUT, np.uint8, (BATCH, *input_shape)))
    shapes = {INPUT: tuple(input_shape)} | {layer.name: layer.shape for layer in layers}
    step.remember([c for layer in layers for c in layer.connections], shapes.__getitem__)
    for layer in layers:
        currents = [
            _current(step, f"{layer.name}/from/{index}", connection, shapes[connection.source])
            for index, connection in enumerate(layer.connections)
        ]
        current = reduce(lambda a, b: step.add(f"{b}/added", "Add", a, b), currents)
        bias = _array(step, f"{layer.name}/bias", layer.bias.reshape(-1, *[1] * (len(layer.shape) - 1)))
        if layer.neuron == "none":
            step.add(f"{layer.name}/current", "Add", current, bias)
            step.emit(f"{layer.name}/current", np.float32, layer.shape)
        else:
            _lif(step, layer, current, bias)
            step.emit(f"{layer.name}/spikes", np.uint8, layer.shape)
    step.pass_on()
    return step


def about(layers: Sequence[FoldedLayer]) -> dict[str, str]:
    """The metadata of the layers' models: resets by population, and weights of the output's steps, if any."""
    described = {"arithmetic": "float32", "resets": json.dumps({layer.name: layer.reset for layer in layers})}
    weights = layers[-1].time_weights
    return described if weights is None else described | {"time_weights": json.dumps(weights.tolist())}


def _array(step: Step, name: str, values: Any) -> str:
    return step.array(name, np.asarray(values, np.float32))


def _current(step: Step, name: str, connection: FoldedConnection, shape: tuple[int, ...]) -> str:
    spikes = step.heard(connection.source, connection.delay)
    real = step.add(f"{name}/source", "Cast", spikes, to=TensorProto.FLOAT)
    if connection.geometry:
        weight, geometry = _array(step, f"{name}/weight", connection.weight), connection.geometry
        return step.add(
            f"{name}/sum",
            "Conv",
            real,
            weight,
            strides=geometry["stride"],
            pads=geometry["padding"] * 2,
            dilations=geometry["dilation"],
            group=geometry["groups"],
        )
    flat = step.add(f"{name}/flat", "Flatten", real) if len(shape) > 1 else real
    return step.add(f"{name}/sum", "MatMul", flat, _array(step, f"{name}/weight", connection.weight.T))


def _lif(step: Step, layer: FoldedLayer, current: str, bias: str) -> None:
    """`train.scan.lif_scan`, one step of it."""
    name, kind, late = layer.name, layer.reset, is_late(layer.reset)
    before_u, before_v = (step.state(f"{name}/{what}", np.float32, layer.shape) for what in ("u", "v"))
    threshold = _array(step, f"{name}/threshold", layer.threshold)
    u = step.add(f"{name}/u/kept", "Mul", before_u, _array(step, f"{name}/alpha", layer.alpha))
    if layer.input_is_bias:
        bias = step.add(f"{name}/loaded", "Add", current, bias)
        u = step.add(f"{name}/u/next", "Identity", u)
    else:
        u = step.add(f"{name}/u/next", "Add", u, current)
    v = step.add(f"{name}/v/kept", "Mul", before_v, _array(step, f"{name}/beta", layer.beta))
    v = step.add(f"{name}/v/driven", "Add", v, u)
    v = step.add(f"{name}/v/biased", "Add", v, bias)
    if late:
        fired = step.add(f"{name}/fired", "Greater", before_v, threshold)
        v = reset(step, f"{name}/v/reset", v, fired, threshold, kind, np.float32)
    fires = step.add(f"{name}/fires", "Greater", v, threshold)
    if layer.floor:
        v = step.add(f"{name}/v/raised", "Relu", v)
    if late:
        step.add(f"{name}/v/next", "Identity", v)
    else:
        reset(step, f"{name}/v/next", v, fires, threshold, kind, np.float32)
    step.add(f"{name}/spikes", "Cast", fires, to=TensorProto.UINT8)
