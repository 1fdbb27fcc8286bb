"""Memory and time of one update, by backpropagation through time and online, at T = 10 and T = 100.

uv run python -m benchmarks.online_memory

Memory is the peak of live tensors that torch's allocator counts during the update, beyond weights and input; time is
the processor's, the least of three updates, on one thread. The network is 16C3-WS-AP2-64-WS-10 on 8 x 8 spikes, B = 64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from train.architecture import build
from train.neurons import LIF
from train.training import Training
from train.updates import by_backpropagation, optimizer_of, step_by_step

ARCHITECTURE, BATCH, ROUNDS = "16C3-WS-AP2-64-WS-10", 64, 3


def update(online: str, steps: int) -> Callable[[], None]:
    """One update of a fresh network on random spikes."""
    network = build(ARCHITECTURE, (1, 8, 8), neuron=lambda: LIF(reset="soft"), seed=0)
    training = Training(online=online)
    optimizer = optimizer_of(network, training)
    spikes = torch.bernoulli(torch.full((steps, BATCH, 1, 8, 8), 0.3)).to(torch.uint8)
    labels = torch.arange(BATCH) % 10
    learn = step_by_step if online else by_backpropagation
    return lambda: learn(network, optimizer, spikes, labels, training, (0,)) and None


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that was allocated and not yet freed at any time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    live = peak = 0
    assert seen.profiler is not None
    for _, size in sorted(_allocations(seen.profiler.kineto_results.experimental_event_tree())):
        live += size
        peak = max(peak, live)
    return peak


def _allocations(events: Iterable[Any]) -> Iterable[tuple[int, int]]:
    for event in events:
        if event.typed[0].name == "Allocation":
            yield event.start_time_ns, event.typed[1].alloc_size
        yield from _allocations(event.children)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| learning | T | MiB | ms |\n|---|---:|---:|---:|")
    for name, online in (("through time", ""), ("OTTT-A", "a"), ("OTTT-O", "o")):
        for steps in (10, 100):
            work = update(online, steps)
            work()
            times = []
            for _ in range(ROUNDS):
                began = time.process_time()
                work()
                times.append(time.process_time() - began)
            print(f"| {name} | {steps} | {peak_bytes(work) / 2**20:.2f} | {1e3 * min(times):.0f} |")


if __name__ == "__main__":
    main()
