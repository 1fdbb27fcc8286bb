"""How a network behaves while something is done with it: as in evaluation, or with masks that repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from train.network import SpikingNetwork


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode (running statistics, no dropout), and back to the mode it was in."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def dropping_out(network: SpikingNetwork, *key: int) -> AbstractContextManager[None]:
    """Masks of dropout and of surrogate gradients, drawn from the key alone; the global random state is left alone."""
    return _drawing(key) if network.masks else nullcontext()


@contextmanager
def _drawing(key: tuple[int, ...]) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield
