"""A reader of NIR graphs that knows nothing of this project: NIR's equations by Euler's rule, in float64."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch

DIGITS = 6  # of a factor in a step, which is what time constants in float32 tell of it


class Euler:
    """Steps a graph every `dt` seconds. What closes a loop is a step late."""

    def __init__(self, graph: nir.NIRGraph, dt: float = 1e-4) -> None:
        self.graph, self.dt = graph, dt
        self.before: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for a, b in graph.edges:
            self.before[b].append(a)

    def run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """What every node emits, [T, B, ...], of inputs [T, B, *shape]."""
        self.states: dict[str, list[Any]] = {}
        self.past: dict[str, list[np.ndarray]] = {name: [] for name in self.graph.nodes}
        for shown in inputs.astype(np.float64):
            self.shown, self.now, self.busy = shown, dict[str, np.ndarray](), set[str]()
            emitted = {name: self.value(name) for name in self.graph.nodes}
            for name, values in emitted.items():
                self.past[name].append(values)
        return {name: np.stack(steps) for name, steps in self.past.items()}

    def value(self, name: str) -> np.ndarray:
        if name not in self.now:
            if name in self.busy:
                return self.past[name][-1] if self.past[name] else self.zeros(self.graph.nodes[name].r)
            self.busy.add(name)
            self.now[name] = self.emitted(name, self.graph.nodes[name])
        return self.now[name]

    def heard(self, name: str) -> np.ndarray:
        return sum((self.value(before) for before in self.before[name]), np.zeros(()))

    def zeros(self, like: np.ndarray) -> np.ndarray:
        return np.zeros((len(self.shown), *like.shape))

    def factor(self, values: np.ndarray) -> np.ndarray:
        return np.round(values.astype(np.float64), DIGITS)

    def emitted(self, name: str, node: nir.NIRNode) -> np.ndarray:
        if isinstance(node, nir.Input):
            return self.shown
        if isinstance(node, nir.Delay):
            steps, past = round(node.delay.flat[0] / self.dt), self.past[self.before[name][0]]
            return past[-steps] if len(past) >= steps else self.zeros(node.delay)
        heard = self.heard(name)
        if isinstance(node, nir.Output):
            return heard
        if isinstance(node, nir.Flatten):
            return heard.reshape(len(heard), -1)
        if isinstance(node, nir.Scale):
            return heard * node.scale
        if isinstance(node, (nir.Linear, nir.Affine)):
            return heard @ node.weight.T.astype(np.float64) + getattr(node, "bias", 0)
        if isinstance(node, nir.Conv2d):
            weight, bias = (torch.from_numpy(values.astype(np.float64)) for values in (node.weight, node.bias))
            options = {key: tuple(int(n) for n in getattr(node, key)) for key in ("stride", "padding", "dilation")}
            return torch.nn.functional.conv2d(torch.from_numpy(heard), weight, bias, **options).numpy()
        return self.neuron(name, node, heard)

    def neuron(self, name: str, node: nir.NIRNode, heard: np.ndarray) -> np.ndarray:
        u, v = self.states.get(name, (0.0, 0.0))
        if isinstance(node, nir.CubaLIF):
            leak = self.dt / node.tau_syn
            heard = u = self.factor(1 - leak) * u + self.factor(node.w_in * leak) * heard
        if isinstance(node, nir.IF):
            v = v + self.factor(node.r * self.dt) * heard
        else:
            leak = self.dt / (node.tau_mem if isinstance(node, nir.CubaLIF) else node.tau)
            v = self.factor(1 - leak) * v + self.factor(node.v_leak * leak) + self.factor(node.r * leak) * heard
        if isinstance(node, nir.LI):
            self.states[name] = [u, v]
            return v
        fires = v > node.v_threshold
        self.states[name] = [u, np.where(fires, node.v_reset, v)]
        return fires.astype(np.float64)
