"""The papers' own notation for an architecture, "16C3-AP2-128-10", read into a SpikingNetwork with fresh weights.

128       dense population of 128 neurons (the last one: one neuron per class)
16C3      convolution to 16 channels with a 3 by 3 kernel; then, in any order, S stride, P padding, D dilation, G groups
          ("16C5S2P0"); padding is half the kernel unless given, which keeps the size for odd kernels
AP2, SP2  average or sum over windows of 2 by 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import nn

from base.errors import UserError
from train.network import Shape, SpikingNetwork, SumPool2d, shape_after
from train.neurons import LIF

OPTIONS = {"S": "stride", "P": "padding", "D": "dilation", "G": "groups"}
START = "a number of neurons ('128'), a convolution ('16C3') or pooling ('AP2', 'SP2')"


@dataclass(frozen=True)
class _Token:
    """kind: "dense", "C", "AP" or "SP"; number: neurons, channels or size; at: where it starts in the notation."""

    kind: str
    number: int
    at: int
    text: str
    kernel: int = 0
    options: dict[str, int] = field(default_factory=dict)


def build(
    notation: str, input_shape: Shape, *, neuron: Callable[[], LIF] = LIF, payload_bits: int = 1, seed: int
) -> SpikingNetwork:
    """The network that `notation` describes, with initial weights drawn from `seed` alone.

    input_shape: (C, H, W) or (N,). neuron makes the neurons of one population. The global random state is left alone.
    Raises UserError that shows the place, for a notation that cannot be read, and for layers that do not fit together.
    """
    reader = _Reader(notation)
    shape: Shape = tuple(input_shape)
    layers: list[nn.Module] = []
    spread = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for token in reader.tokens():
            if token.kind != "dense" and len(shape) != 3:
                reader.fail("a number of neurons: from here on there are no maps [C, H, W] to work on", token.at)
            groups = token.options.get("groups", 1)
            if token.kind == "C" and (shape[0] % groups or token.number % groups):
                reader.fail(f"groups that divide both {shape[0]} and {token.number} channels", token.at)
            # The mean of k^2 spikes varies k times less than one of them, their sum k times more.
            if token.kind in ("AP", "SP"):
                spread *= token.number if token.kind == "AP" else 1 / token.number
            for part in _parts(token, shape, neuron, spread):
                layers.append(part)
                if not isinstance(part, LIF):
                    shape = shape_after(token.text, part, shape)
            if token.kind not in ("AP", "SP"):
                spread = 1.0
    return SpikingNetwork(input_shape, layers, payload_bits)


def _parts(token: _Token, shape: Shape, neuron: Callable[[], LIF], spread: float) -> list[nn.Module]:
    if token.kind == "AP":
        return [nn.AvgPool2d(token.number)]
    if token.kind == "SP":
        return [SumPool2d(token.number)]
    spiking = neuron()
    if token.kind == "C":
        options = {"padding": token.kernel // 2, **token.options}
        conv = nn.Conv2d(shape[0], token.number, token.kernel, **options)  # type: ignore[arg-type]
        return [_started(conv, spiking, spread), spiking]
    flatten = [nn.Flatten()] if len(shape) > 1 else []
    return [*flatten, _started(nn.Linear(torch.Size(shape).numel(), token.number), spiking, spread), spiking]


def _started(synapse: nn.Linear | nn.Conv2d, neuron: LIF, spread: float) -> nn.Module:
    """Kaiming's normal weights in units of the threshold, so that neurons spike from the first epoch on; no bias.

    `spread` makes up for pooling in front: without it, currents behind an average are too even to reach the threshold.
    """
    nn.init.kaiming_normal_(synapse.weight)
    with torch.no_grad():
        synapse.weight.mul_(neuron.threshold * spread)
    assert synapse.bias is not None
    nn.init.zeros_(synapse.bias)
    return synapse


class _Reader:
    """A place in the notation, moving right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def tokens(self) -> list[_Token]:
        tokens = [self._token()]
        while self.at < len(self.text):
            after = "'S', 'P', 'D', 'G', '-' or the end" if tokens[-1].kind == "C" else "'-' or the end"
            if not self._take("-"):
                self.fail(after)
            tokens.append(self._token())
        if tokens[-1].kind != "dense":
            self.fail("the number of classes as last layer, as in '...-10'", tokens[-1].at)
        return tokens

    def _token(self) -> _Token:
        start = self.at
        for kind in ("AP", "SP"):
            if self._take(kind):
                number = self._number(f"the size of the window, as in '{kind}2'")
                return _Token(kind, number, start, self.text[start : self.at])
        number = self._number(START)
        if not self._take("C"):
            return _Token("dense", number, start, self.text[start : self.at])
        kernel = self._number("the size of the kernel, as in '16C3'")
        options: dict[str, int] = {}
        while (letter := self.text[self.at : self.at + 1]) in OPTIONS and OPTIONS[letter] not in options:
            self.at += 1
            name = OPTIONS[letter]
            options[name] = self._number(f"the {name}, as in '{letter}1'", least=0 if name == "padding" else 1)
        return _Token("C", number, start, self.text[start : self.at], kernel, options)

    def _take(self, text: str) -> bool:
        found = self.text.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _number(self, expected: str, least: int = 1) -> int:
        end = self.at
        while end < len(self.text) and self.text[end] in "0123456789":
            end += 1
        if end == self.at:
            self.fail(expected)
        number = int(self.text[self.at : end])
        if number < least:
            self.fail(f"at least {least} here: {expected}")
        self.at = end
        return number

    def fail(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        raise UserError(
            f"cannot read the architecture at character {at + 1}:\n  {self.text}\n  {' ' * at}^\nexpected {expected}"
        )
