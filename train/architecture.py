"""The papers' own notation for an architecture, "16C3-AP2-128-10", read into a SpikingNetwork with fresh weights.

128       dense population of 128 neurons (the last one: one neuron per class)
R128      the same, recurrent: its spikes also come back to it, one step later
16C3      convolution to 16 channels with a 3 by 3 kernel; then, in any order, S stride, P padding, D dilation, G groups
          ("16C5S2P0"); padding is half the kernel unless given, which keeps the size for odd kernels
AP2, SP2  average or sum over windows of 2 by 2; MP2 the maximum: any spike of the window
BN, tdBN  behind a convolution or a dense population: batch normalisation of its current over batch, time and space
          (tdBN: to a spread of one threshold instead of 1)
WS        there as well: scaled weight standardisation, a norm that needs no statistics
DP0.2     dropout of every fifth spike, the same ones at all steps of a sample
[...]     a residual block: what enters it is added, as current, to its last population; straight across, or through a
          1 by 1 convolution (a dense layer) where shapes differ: "32C3-[32C3-BN-32C3-BN]-[64C3S2-BN-64C3-BN]-10"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from base.errors import UserError
from train.network import SpikingNetwork
from train.neurons import LIF
from train.notation import NORMS, POOLS, SYNAPSES, Reader, Token
from train.parts import Readout, Recurrent, Residual, ScaledWS, Skip, SumPool2d, TdBN
from train.shapes import Shape, shape_after


def build(
    notation: str,
    input_shape: Shape,
    *,
    neuron: Callable[[], LIF] = LIF,
    payload_bits: int = 1,
    readout: str = "spikes",
    input_is_bias: bool = False,
    seed: int,
) -> SpikingNetwork:
    """The network that `notation` describes, with initial weights drawn from `seed` alone.

    input_shape: (C, H, W) or (N,). neuron makes the neurons of one population; with the readout "current" the last
    layer has none. The global random state is left alone.
    Raises UserError that shows the place, for a notation that cannot be read, and for layers that do not fit together.
    """
    if readout not in ("spikes", "current"):
        raise UserError(f"readout = '{readout}': the output is read as 'spikes' or as 'current'; choose one of them")
    reader = Reader(notation)
    tokens = reader.tokens()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        builder = _Builder(reader, neuron, tuple(input_shape))
        builder.chain(tokens)
    if readout == "current":
        builder.layers[-1] = Readout()
    return SpikingNetwork(input_shape, builder.layers, payload_bits, input_is_bias)


class _Builder:
    """Layers so far, the shape behind them, and how much more even than spikes currents are behind pooling."""

    def __init__(self, reader: Reader, neuron: Callable[[], LIF], shape: Shape) -> None:
        self.reader, self.neuron, self.shape = reader, neuron, shape
        self.layers: list[nn.Module] = []
        self.spread = 1.0

    def chain(self, tokens: Sequence[Token]) -> None:
        for token, follower in zip(tokens, [*tokens[1:], None], strict=True):
            self._token(token)
            # Neurons come after a synapse, or after its norm.
            if token.kind in (*SYNAPSES, *NORMS, "block") and (follower is None or follower.kind not in NORMS):
                self.layers.append(self.neuron())

    def _token(self, token: Token) -> None:
        if token.kind in ("C", *POOLS) and len(self.shape) != 3:
            self.reader.fail("a number of neurons: from here on there are no maps [C, H, W] to work on", token.at)
        if token.kind in SYNAPSES:
            self._synapse(token)
        elif token.kind in POOLS:
            self._pooling(token)
        elif token.kind in NORMS:
            self._add(token.text, _norm(token.kind, self.shape, self.neuron().threshold))
        elif token.kind == "DP":
            self._add(token.text, nn.Dropout(token.share))
        else:
            self._block(token)

    def _add(self, name: str, part: nn.Module) -> None:
        self.shape = shape_after(name, part, self.shape)
        self.layers.append(part)

    def _pooling(self, token: Token) -> None:
        # The mean of k^2 spikes varies k times less than one of them, their sum k times more.
        self.spread *= {"AP": token.number, "SP": 1 / token.number, "MP": 1.0}[token.kind]
        kinds = {"AP": nn.AvgPool2d, "SP": SumPool2d, "MP": nn.MaxPool2d}
        self._add(token.text, kinds[token.kind](token.number))

    def _synapse(self, token: Token) -> None:
        synapse: nn.Linear | nn.Conv2d
        if token.kind == "C":
            groups = token.options.get("groups", 1)
            if self.shape[0] % groups or token.number % groups:
                self.reader.fail(f"groups that divide both {self.shape[0]} and {token.number} channels", token.at)
            options = {"padding": token.kernel // 2, **token.options}
            synapse = nn.Conv2d(self.shape[0], token.number, token.kernel, **options)  # type: ignore[arg-type]
        else:
            if len(self.shape) > 1:
                self._add("flatten", nn.Flatten())
            synapse = (Recurrent if token.kind == "R" else nn.Linear)(self.shape[0], token.number)
        self._add(token.text, _started(synapse, self.neuron().threshold, self.spread))
        self.spread = 1.0

    def _block(self, token: Token) -> None:
        branch, shortcut = (_Builder(self.reader, self.neuron, self.shape) for _ in range(2))
        branch.spread = shortcut.spread = self.spread
        branch.chain(token.inside)
        branch.layers.pop()  # its neurons come behind the sum
        shortcut._across(token, branch)
        self.layers.append(Residual(branch.layers, shortcut.layers))
        self.shape, self.spread = branch.shape, 1.0

    def _across(self, token: Token, branch: _Builder) -> None:
        """From a block's input to the shape that its branch ends with, with the branch's kind of norm."""
        threshold = self.neuron().threshold
        if branch.shape == self.shape:
            self.layers.append(Skip(self.shape[0], threshold))
            return
        if len(branch.shape) == 1:
            if len(self.shape) > 1:
                self._add("flatten", nn.Flatten())
            self._add(token.text, _started(nn.Linear(self.shape[0], branch.shape[0]), threshold, self.spread))
        else:
            stride = tuple(math.ceil(side / left) for side, left in zip(self.shape[1:], branch.shape[1:], strict=True))
            conv = nn.Conv2d(self.shape[0], branch.shape[0], 1, stride)  # type: ignore[arg-type]
            self._add(token.text, _started(conv, threshold, self.spread))
            if self.shape != branch.shape:
                self.reader.fail(
                    f"a block that divides the sides of its maps: {list(branch.shape)} cannot be reached by a stride",
                    token.at,
                )
        kind = token.inside[-1].kind
        if kind in NORMS:
            self._add(kind, _norm(kind, self.shape, threshold))


def _norm(kind: str, shape: Shape, threshold: float) -> nn.Module:
    """A norm after which neurons of that threshold spike from the first epoch on."""
    if kind == "tdBN":
        return TdBN(shape[0], threshold)
    if kind == "WS":
        return ScaledWS(shape[0], threshold)
    norm = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0])
    nn.init.constant_(norm.weight, threshold)
    return norm


def _started(synapse: nn.Linear | nn.Conv2d, threshold: float, spread: float) -> nn.Module:
    """Kaiming's normal weights in units of the threshold, so that neurons spike from the first epoch on; no bias.

    `spread` makes up for pooling in front: without it, currents behind an average are too even to reach the threshold.
    """
    nn.init.kaiming_normal_(synapse.weight)
    with torch.no_grad():
        synapse.weight.mul_(threshold * spread)
        if isinstance(synapse, Recurrent):
            synapse.recurrent.mul_(threshold)
    assert synapse.bias is not None
    nn.init.zeros_(synapse.bias)
    return synapse
