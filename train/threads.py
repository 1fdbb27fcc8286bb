"""Kernels that release the interpreter, on as many threads as torch itself may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

WORTH_A_THREAD = 1 << 16  # operations below which handing work to another thread costs more than it saves


def in_parts(kernel: Callable[..., None], items: int, operations: int, *arguments: Any) -> None:
    """Run kernel(first, last, *arguments) for items 0..items - 1, which take so many operations together."""
    threads = max(1, min(torch.get_num_threads(), operations // WORTH_A_THREAD))
    if threads == 1:
        return kernel(0, items, *arguments)
    edges = [items * part // threads for part in range(threads + 1)]
    elsewhere = [_pool().submit(kernel, a, b, *arguments) for a, b in pairwise(edges[1:])]
    kernel(edges[0], edges[1], *arguments)
    for part in elsewhere:
        part.result()


def fusible(tensor: Tensor) -> bool:
    """Whether kernels are for such tensors: float32 on the CPU."""
    return tensor.is_cpu and tensor.dtype == torch.float32


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child inherits the pool but none of its threads
