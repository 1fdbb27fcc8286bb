"""Products that add up rows where spikes are equal those that multiply everything: exactly where no sum rounds, and the
gradients of autograd within rounding."""

import pytest
import torch
from torch.nn import functional as F

from train import sparse
from train.scan import lif_scan
from train.sparse import DENSEST, Geometry, Product, conducted
from train.surrogates import Backward
from train.threads import in_parts

CONVOLUTIONS = [
    ((2, 12, 12), (20, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)),
    ((1, 28, 27), (16, 5, 4), Geometry((2, 3), (0, 2), (1, 1), 1)),
    ((3, 9, 9), (5, 3, 2), Geometry((1, 2), (2, 1), (2, 3), 1)),
    ((4, 8, 8), (6, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 2)),
    ((3, 11, 10), (6, 2, 3), Geometry((3, 2), (1, 1), (1, 1), 1)),  # some pixels reach no output
]


def spikes_of(shape, density, dtype=torch.uint8):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density).to(dtype)


def dyadic(*shape):
    """Multiples of 1/64, whose sums float32 holds exactly in any order."""
    return torch.randint(-64, 65, shape, generator=torch.Generator().manual_seed(2)) / 64


def twin(maps, weight, geometry):
    """Everything multiplied."""
    flat, maps = maps.to(weight.dtype).flatten(0, 1), maps.shape[:2]
    return (F.linear(flat, weight) if geometry is None else F.conv2d(flat, weight, None, *geometry)).unflatten(0, maps)


def cases():
    for density in (0.0, 0.004, 0.2, 0.6):  # listed, or above what is worth it
        for dtype in (torch.uint8, torch.float32):
            yield (300,), (130,), None, density, dtype
            yield (40,), (600,), None, density, dtype
            yield (50,), (12,), None, density, dtype  # too few outputs
            for shape, kernel, geometry in CONVOLUTIONS:
                yield shape, kernel, geometry, density, dtype


@pytest.mark.parametrize(("shape", "kernel", "geometry", "density", "dtype"), list(cases()))
def test_current_is_that_of_multiplying_everything(shape, kernel, geometry, density, dtype):
    maps = spikes_of((4, 3, *shape), density, dtype)
    groups = 1 if geometry is None else geometry.groups
    weight = dyadic(kernel[0], shape[0] // groups, *kernel[1:])
    assert torch.equal(conducted(maps, weight, geometry), twin(maps, weight, geometry))
    graded = maps * 3
    assert torch.equal(conducted(graded, weight, geometry), twin(graded, weight, geometry))


@pytest.mark.parametrize(("shape", "kernel", "geometry", "density", "dtype"), list(cases()))
def test_gradients_are_those_of_autograd(shape, kernel, geometry, density, dtype):
    maps = spikes_of((4, 3, *shape), density, dtype).float().requires_grad_(dtype == torch.float32)
    groups = 1 if geometry is None else geometry.groups
    weight = torch.randn(kernel[0], shape[0] // groups, *kernel[1:], generator=torch.Generator().manual_seed(3))
    weight.requires_grad_()
    leaves = [weight, maps] if maps.requires_grad else [weight]
    expected = twin(maps, weight, geometry)
    error = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad(conducted(maps, weight, geometry), leaves, error)
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves, error), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [12, 130])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("density", [0.02, 0.6])
def test_a_dense_layer_reads_maps_like_their_vectors_however_they_lie_in_memory(outputs, memory, density):
    vectors = spikes_of((4, 3, 300), density, torch.float32)
    maps = vectors.view(12, 3, 10, 10).to(memory_format=memory).unflatten(0, (4, 3))
    weight = torch.randn(outputs, 300, generator=torch.Generator().manual_seed(3))
    error = torch.randn(4, 3, outputs, generator=torch.Generator().manual_seed(4))
    found, expected = [], []
    for each, into in ((maps, found), (vectors, expected)):
        leaves = [each.detach().requires_grad_(), weight.detach().requires_grad_()]
        current = conducted(*leaves)
        into += [current, *torch.autograd.grad(current, leaves, error)]
    assert torch.equal(found[0], expected[0])
    assert found[1].shape == maps.shape
    for ours, theirs in zip(found[1:], (expected[1].view_as(maps), expected[2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_listed_and_what_is_multiplied_is_chosen_by_density(monkeypatch):
    ways = []
    monkeypatch.setattr(sparse, "_added", lambda rows, table: ways.append("listed") or torch.zeros(64, 200))
    for density in (DENSEST - 0.02, DENSEST + 0.02):
        ways.append(density)
        conducted(spikes_of((64, 1000), density), torch.zeros(200, 1000))
    assert ways == [DENSEST - 0.02, "listed", DENSEST + 0.02]


@pytest.mark.parametrize(("shape", "kernel", "geometry"), [((300,), (130,), None), *CONVOLUTIONS])
@pytest.mark.parametrize("density", [0.004, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scan_of_a_product_is_the_scan_of_its_current(shape, kernel, geometry, density, dtype):
    maps = spikes_of((6, 3, *shape), density, dtype).requires_grad_()
    groups = 1 if geometry is None else geometry.groups
    weight = (dyadic(kernel[0], shape[0] // groups, *kernel[1:]) * 4).to(dtype).requires_grad_()
    bias = (dyadic(kernel[0], *[1] * (len(shape) - 1)) / 4 + 0.25).to(dtype).requires_grad_()
    constants = {"alpha": 0.5, "beta": 0.75, "threshold": 1.0, "reset": "soft", "floor": False}
    constants["backward"] = Backward("triangular", 1.0)
    found, expected = (
        lif_scan(maps, bias, synapse=Product(weight, geometry), **constants),
        lif_scan(twin(maps, weight, geometry), bias, **constants),
    )
    assert all(map(torch.equal, found, expected))
    assert 0 < found[0].mean() < 1
    error = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    gradients = [torch.autograd.grad((spikes * error).sum(), [maps, weight, bias]) for spikes, _ in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_columns_of_many_samples_are_added_up_some_samples_at_a_time(monkeypatch):
    shape, kernel, geometry = CONVOLUTIONS[-1]
    maps = torch.randn(2, 5, *shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(kernel[0], shape[0], *kernel[1:], generator=torch.Generator().manual_seed(3))
    current = conducted(maps, weight, geometry)
    (together,) = torch.autograd.grad(current.square().sum(), maps, retain_graph=True)
    ran = []
    monkeypatch.setattr(sparse, "COLUMNS", 3 * current[0, 0, 0].numel() * weight[0].numel())
    monkeypatch.setattr(
        sparse, "in_parts", lambda kernel, items, *rest: ran.append(items) or in_parts(kernel, items, *rest)
    )
    (apart,) = torch.autograd.grad(current.square().sum(), maps)
    assert ran == [3, 3, 3, 1]
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "kernel", "geometry"), [((2000,), (256,), None), CONVOLUTIONS[0]])
def test_threads_do_not_change_a_bit(shape, kernel, geometry):
    maps = spikes_of((8, 40, *shape), 0.02)
    weight = torch.randn(kernel[0], shape[0], *kernel[1:], generator=torch.Generator().manual_seed(3)).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            current = conducted(maps, weight, geometry)
            results.append((current.detach(), *torch.autograd.grad(current.square().sum(), weight)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
