"""Who can run an integer network, by name. All return a Recording in layer time and obey docs/arithmetic.md."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from base.errors import UserError, nearest
from deploy import BACKENDS
from deploy.lava.backend import LavaOptions
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording

Progress = Callable[[int, int], None]


def run(
    name: str,
    network: IntegerNetwork,
    inputs: np.ndarray,
    states: int = 0,
    lava: LavaOptions | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Run inputs [T, B, *input_shape] on the backend of that name; u and v of the first `states` samples too.

    Each backend is imported when asked for. Raises UserError for an unknown name and for what the backend refuses.
    """
    if name == "reference":
        from quantize import reference

        return reference.run(network, inputs, states)
    if name == "engine":
        from quantize import engine

        return engine.run(network, inputs, states)
    if name == "onnx":
        from deploy.onnx import backend as onnx_backend

        return onnx_backend.run(network, inputs, states)
    lava = lava or LavaOptions()
    if name == "lava-models":
        from deploy.lava import models

        return models.run(network, inputs, states, convolution=lava.convolution)
    if name == "lava":
        from deploy.lava import backend

        return backend.run(network, inputs, states, options=lava, progress=progress)
    raise UserError(f"'{name}' is no backend; {nearest(name, BACKENDS)}")
