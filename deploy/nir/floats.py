"""The float network as a NIR graph: its folded layers, as quantization found them, in float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import nir

from base.differences import Difference
from deploy.nir.graph import build, told, unsaid
from quantize.folded import FoldedLayer


def graph_of(
    layers: Sequence[FoldedLayer], input_shape: Sequence[int], payload_max: int = 1
) -> tuple[nir.NIRGraph, list[Difference]]:
    """The graph of folded layers of inputs up to `payload_max`, and what only its metadata say.

    Raises UserError for names that NIR cannot hold.
    """
    rows = unsaid(layers, payload_max)
    neurons = {layer.name: {"reset": layer.reset, "floor": layer.floor} for layer in layers if layer.neuron == "lif"}
    about: dict[str, Any] = {"arithmetic": "float32", "neurons": json.dumps(neurons), "unsaid": told(rows)}
    if layers[-1].time_weights is not None:
        about["time_weights"] = layers[-1].time_weights
    return build(layers, input_shape, about), rows
