"""Products of spikes and weights that multiply no zeros: where spikes are few, rows of the weights are added up.

The same kernel makes the current from the weights' rows and the weights' gradient from the current's, the spikes being
listed by sample there and by source here. Sums are float32's in the order of the sources (or of the samples): another
order than that of a matrix product, so the last digits differ, but the same one for any batch and any threads.

Maps and currents of convolutions have their channels last in memory, where oneDNN is several times as fast. It is slow
only at the gradient of small strided maps, which a matrix product and the sum of its columns then stand in for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from train.threads import fusible, in_parts

# Measured on one thread against MKL and oneDNN: the share of values other than 0 up to which adding rows is faster.
DENSEST = 0.25  # of what a dense layer reads
DENSEST_MAPS = 0.03
LEAST_OUTPUTS = 128  # of a dense layer; below, listing the spikes costs what is saved
LEAST_COLUMNS = 16  # of a matrix product; of fewer, one of so many rows takes half as long
COUNTED = 4096  # values between two looks at whether they are too many already
TILE = 512  # outputs whose sums stay in the first-level cache
MOST_PRODUCTS = 1 << 14  # per row of strided maps, up to which adding up columns is faster
COLUMNS = 1 << 17  # values of columns that are made at once, to stay in the second-level cache

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a convolution moves over its maps."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Product(NamedTuple):
    """A synapse that multiplies: weights and, of a convolution, its geometry; see `conducted`."""

    weight: Tensor
    geometry: Geometry | None


class Rows(NamedTuple):
    """A matrix in compressed rows: of row n the values [starts[n]:starts[n + 1]] and the columns they stand in."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray


class Taps(NamedTuple):
    """By source pixel, as in Rows: through which places of a kernel it reaches which output pixels, of `size`."""

    starts: np.ndarray
    through: np.ndarray
    to: np.ndarray
    size: tuple[int, ...]


class Known(NamedTuple):
    """What the gradients of a product need beside weights and maps: the shape of these; the rows, in their stead; taps
    where spikes of maps were few."""

    shape: torch.Size
    rows: Rows | None = None
    taps: Taps | None = None


def conducted(maps: Tensor, weight: Tensor, geometry: Geometry | None = None) -> Tensor:
    """Current [..., O] of maps [..., I], two or three dimensions, or [..., C, H, W], which are flattened, and weights
    [O, I]; or, with a geometry, [..., O, H', W'] of maps [..., C, H, W] and weights [O, C / groups, kh, kw]; by
    whichever way is faster for so many spikes. Maps are of any type."""
    return _Product.apply(maps, weight, geometry)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
        current, kept, ctx.known = product(maps, weight, geometry)
        ctx.save_for_backward(kept, weight)
        ctx.geometry = geometry
        return current

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        return *gradients(grad, maps, weight, ctx.geometry, ctx.known, *ctx.needs_input_grad[:2]), None


def product(maps: Tensor, weight: Tensor, geometry: Geometry | None) -> tuple[Tensor, Tensor | None, Known]:
    """The current of `conducted`, the maps if they must be kept for `gradients`, and what these need to know. For
    functions of autograd: without gradients of its own."""
    sample = 1 if maps.dim() < 4 else 3  # dimensions
    if geometry is None:
        if len(weight) >= LEAST_OUTPUTS and _compiled(maps, weight):
            shown = _vectors(maps.detach().flatten(0, -sample - 1))
            most = DENSEST * shown.size
            nonzero = _count(shown.reshape(-1), most)
            if nonzero <= most:
                rows = Rows(*_listed(shown, nonzero))
                current = _added(rows, weight.detach().t()).unflatten(0, maps.shape[:-sample])
                return current, None, Known(maps.shape, rows)
        flat = maps.flatten(-sample).to(weight.dtype)
        if len(weight) >= LEAST_COLUMNS:
            current = F.linear(flat, weight)
        else:
            current = F.linear(weight, flat.flatten(0, -2)).t().contiguous().view(*maps.shape[:-sample], -1)
        return current, maps, Known(maps.shape)
    flat, taps = maps.detach().flatten(0, -4), None
    if _compiled(maps, weight):
        flat = flat.contiguous(memory_format=torch.channels_last)
        most = DENSEST_MAPS * flat.numel()
        if geometry.groups == 1 and _count(_pixels(flat).reshape(-1), most) <= most:
            taps = _taps_of(flat.shape[2:], weight, geometry)
            current = _added_taps(flat, weight, taps)
        else:
            weight = _channels_last(weight)
    if taps is None:
        current = F.conv2d(flat.to(weight.dtype), weight, None, *geometry)
    return current.unflatten(0, maps.shape[:-3]), maps, Known(maps.shape, taps=taps)


def gradients(
    grad: Tensor,
    maps: Tensor | None,
    weight: Tensor,
    geometry: Geometry | None,
    known: Known,
    of_maps: bool,
    of_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Those of maps and weights, as far as wanted, from the current's and the maps that `product` kept."""
    if geometry is not None:
        assert maps is not None
        return _conv_gradients(grad, maps, weight, geometry, known, of_maps, of_weight)
    flat = grad.reshape(-1, len(weight))
    grad_maps = _dense_map_gradient(flat, weight, known.shape) if of_maps else None
    if not of_weight:
        return grad_maps, None
    inputs = weight.shape[1]
    if known.rows is not None:
        return grad_maps, _added(Rows(*_by_column(*known.rows, inputs)), flat).t()
    assert maps is not None
    return grad_maps, flat.t() @ maps.reshape(-1, inputs).to(weight.dtype)


def _dense_map_gradient(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """That of maps of a shape, whose channels are the last in memory where it costs less to move those of weights."""
    if len(shape) < 4 or len(weight) > len(grad):
        return (grad @ weight).view(shape)
    *lead, channels, height, width = shape
    by_pixel = weight.view(-1, channels, height * width).mT.reshape(weight.shape)
    return (grad @ by_pixel).view(*lead, height, width, channels).movedim(-1, -3)


def _conv_gradients(
    grad: Tensor, maps: Tensor, weight: Tensor, geometry: Geometry, known: Known, of_maps: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    grad, maps = grad.flatten(0, -4), maps.flatten(0, -4)
    compiled = _compiled(maps, weight)
    if compiled:
        grad, maps = (x.contiguous(memory_format=torch.channels_last) for x in (grad, maps))
    by_columns = of_maps and compiled and _columns_pay(weight, geometry, maps.shape, grad.shape)
    wanted = of_maps and not by_columns, of_weight and known.taps is None, False
    grad_maps = grad_weight = None
    if any(wanted):
        *moving, groups = geometry
        laid = _channels_last(weight) if compiled else weight
        grad_maps, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, maps.to(weight.dtype), laid, None, *moving, False, (0, 0), groups, wanted
        )
    if by_columns:
        grad_maps = _added_columns(grad, weight, geometry, maps.shape)
    if of_weight and known.taps is not None:
        by_source = torch.zeros_like(_by_source(weight))
        arrays = _pixels(maps), _pixels(grad), *known.taps[:3], by_source.numpy()
        in_parts(_conv_weight_kernel, len(weight), grad.numel(), *arrays)
        grad_weight = by_source.permute(2, 0, 1).reshape(weight.shape)
    return None if grad_maps is None else grad_maps.unflatten(0, known.shape[:-3]), grad_weight


def _compiled(maps: Tensor, weight: Tensor) -> bool:
    return fusible(weight) and maps.device == weight.device


def _added(rows: Rows, table: Tensor) -> Tensor:
    """The product [N, O] of a matrix [N, I] and a table [I, O], float32 on the CPU."""
    out = torch.empty(len(rows.starts) - 1, table.shape[1])
    operations = len(rows.columns) * table.shape[1]
    in_parts(_added_kernel, len(out), operations, *rows, table.contiguous().numpy(), out.numpy())
    return out


def _taps_of(side: tuple[int, ...], weight: Tensor, geometry: Geometry) -> Taps:
    side, kernel, over = tuple(side), tuple(weight.shape[2:]), geometry[:3]
    size = tuple(
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for n, k, stride, padding, dilation in zip(side, kernel, *over, strict=True)
    )
    starts, through, to = _reached(side, size, kernel, *over)
    return Taps(starts, through, to, size)


def _added_taps(maps: Tensor, weight: Tensor, taps: Taps) -> Tensor:
    """The convolution [N, O, H', W'] of maps [N, C, H, W], float32 on the CPU."""
    current = torch.empty(len(maps), *taps.size, len(weight)).movedim(-1, 1)
    arrays = _pixels(maps), _by_source(weight).numpy(), *taps[:3], _pixels(current)
    in_parts(_conv_kernel, len(maps), current.numel(), *arrays)
    return current


def _columns_pay(weight: Tensor, geometry: Geometry, shape: torch.Size, size: torch.Size) -> bool:
    """Whether `_added_columns` is faster than oneDNN, which is slow at strided maps whose rows take few products."""
    simple = geometry.dilation == (1, 1) and geometry.groups == 1
    return simple and geometry.stride[1] > 1 and size[2] * size[3] * weight.numel() <= MOST_PRODUCTS * shape[2]


def _added_columns(grad: Tensor, weight: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """Gradient of maps of a shape [N, C, H, W] from the current's [N, O, H', W'], float32 on the CPU: of each output
    pixel the products with all weights (a column), added up where its window lies (col2im)."""
    samples, channels, *side = shape
    outputs, _, kernel, _ = weight.shape
    *_, rows, size = grad.shape
    errors, table = grad.movedim(1, -1).reshape(-1, outputs), weight.detach().movedim(1, -1).reshape(outputs, -1)
    at_once = max(1, COLUMNS // (rows * size * table.shape[1]))
    columns = torch.empty(at_once, rows * size, table.shape[1])  # written again and again while it is in cache
    grad_maps = torch.empty(samples, *side, channels)
    for into, shown in zip(grad_maps.split(at_once), errors.split(at_once * rows * size), strict=True):
        product = torch.mm(shown, table, out=columns[: len(into)].view(len(shown), -1))
        arrays = product.view(len(into), rows, size, kernel, -1).numpy(), into.numpy()
        in_parts(_col2im_kernel, len(into), product.numel(), *arrays, *geometry[:2])
    return grad_maps.movedim(-1, 1)


def _by_source(weight: Tensor) -> Tensor:
    """Weights [O, C, kh, kw] as [C, kh * kw, O]."""
    return weight.detach().flatten(2).permute(1, 2, 0).contiguous()


def _channels_last(weight: Tensor) -> Tensor:
    """The weights in that order, and with strides that say so, which those of a single channel else leave open: oneDNN
    would then take maps and current in the other order."""
    return weight.detach().clone(memory_format=torch.channels_last)


def _pixels(maps: Tensor) -> np.ndarray:
    """Maps [N, C, H, W], the channels last in memory, as [N, H * W, C]."""
    return maps.detach().movedim(1, -1).flatten(1, 2).numpy()


def _vectors(maps: Tensor) -> np.ndarray:
    """Maps [N, C, H, W] as `_pixels` where their channels are the last in memory; otherwise, and vectors [N, I], as
    [N, I, 1]."""
    if maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        return _pixels(maps)
    return maps.flatten(1).contiguous().unsqueeze(-1).numpy()


@njit(cache=True, nogil=True)
def _count(values, most):  # type: ignore[no-untyped-def]
    """How many are not 0, or some number above `most`."""
    found = 0
    for start in range(0, len(values), COUNTED):
        part = values[start : start + COUNTED]
        for i in range(len(part)):
            found += part[i] != 0
        if found > most:
            break
    return found


@njit(cache=True, nogil=True)
def _listed(maps, nonzero):  # type: ignore[no-untyped-def]
    """`Rows` of maps [N, H * W, C], one for each, in the order of channels first."""
    pixels, channels = maps.shape[1:]
    starts = np.zeros(len(maps) + 1, np.int32)
    columns, values = np.empty(nonzero + 1, np.int32), np.empty(nonzero + 1, np.float32)
    at = np.uint64(0)  # which no index from the end can be, so that Numba does not look for one
    for n in range(len(maps)):
        for channel in range(channels):
            for pixel in range(pixels):  # no branch, which would be guessed wrong at every spike
                value = maps[n, pixel, channel]
                columns[at], values[at] = channel * pixels + pixel, value
                at += np.uint64(value != 0)
        starts[n + 1] = at
    return starts, columns[:nonzero], values[:nonzero]


@njit(cache=True, nogil=True)
def _by_column(starts, columns, values, width):  # type: ignore[no-untyped-def]
    """The rows of the transposed matrix, of so many columns."""
    begin = np.zeros(width + 1, np.int32)
    for column in columns:
        begin[column + 1] += 1
    begin = np.cumsum(begin).astype(np.int32)
    at, rows, moved = begin.copy(), np.empty_like(columns), np.empty_like(values)
    for n in range(len(starts) - 1):
        for k in range(starts[n], starts[n + 1]):
            place = at[columns[k]]
            rows[place], moved[place] = n, values[k]
            at[columns[k]] += 1
    return begin, rows, moved


@njit(cache=True, nogil=True)
def _added_kernel(first, last, starts, columns, values, table, out):  # type: ignore[no-untyped-def]
    total = np.empty(TILE, np.float32)
    for start in range(0, table.shape[1], TILE):
        stop = min(start + TILE, table.shape[1])
        size = stop - start
        for n in range(first, last):
            total[:size] = np.float32(0)
            k, end = starts[n], starts[n + 1]
            while k + 4 <= end:  # four at a time: the sums are read and written less often
                a, b = table[columns[k], start:stop], table[columns[k + 1], start:stop]
                c, d = table[columns[k + 2], start:stop], table[columns[k + 3], start:stop]
                p, q, r, s = values[k], values[k + 1], values[k + 2], values[k + 3]
                for i in range(size):
                    total[i] = total[i] + p * a[i] + q * b[i] + r * c[i] + s * d[i]
                k += 4
            while k < end:
                a, p = table[columns[k], start:stop], values[k]
                for i in range(size):
                    total[i] += p * a[i]
                k += 1
            out[n, start:stop] = total[:size]


@njit(cache=True, nogil=True)
def _spikes_of(maps, place, value):  # type: ignore[no-untyped-def]
    """Flat places and values of what is not 0 in one sample [H * W, C]; how many there are."""
    at, flat = np.uint64(0), maps.reshape(-1)
    for i in range(len(flat)):
        place[at], value[at] = i, flat[i]
        at += np.uint64(flat[i] != 0)
    return np.int64(at)


@njit(cache=True)
def _reached(side, size, kernel, stride, padding, dilation):  # type: ignore[no-untyped-def]
    """`Taps` of source pixels y * W + x through places ky * kw + kx; side, size: of source and output, (H, W)."""
    starts = np.zeros(side[0] * side[1] + 1, np.int32)
    through, to = np.empty((2, side[0] * side[1] * kernel[0] * kernel[1]), np.int32)
    at = 0
    for y in range(side[0]):
        for x in range(side[1]):
            for ky in range(kernel[0]):
                below = y + padding[0] - ky * dilation[0]
                for kx in range(kernel[1]):
                    right = x + padding[1] - kx * dilation[1]
                    row, column = below // stride[0], right // stride[1]
                    whole = row * stride[0] == below and column * stride[1] == right
                    if whole and 0 <= row < size[0] and 0 <= column < size[1]:
                        through[at], to[at] = ky * kernel[1] + kx, row * size[1] + column
                        at += 1
            starts[y * side[1] + x + 1] = at
    return starts, through[:at], to[:at]


@njit(cache=True, nogil=True)
def _conv_kernel(first, last, maps, table, starts, through, to, current):  # type: ignore[no-untyped-def]
    """maps [N, H * W, C], table [C, kh * kw, O], current [N, H' * W', O]."""
    pixels, channels = maps.shape[1:]
    outputs = table.shape[2]
    place, value = np.empty(channels * pixels + 1, np.int32), np.empty(channels * pixels + 1, np.float32)
    for n in range(first, last):
        sums = current[n]
        sums[:] = np.float32(0)
        for spike in range(_spikes_of(maps[n], place, value)):
            pixel = place[spike] // channels
            channel = place[spike] - pixel * channels
            for tap in range(starts[pixel], starts[pixel + 1]):
                total, weight, payload = sums[to[tap]], table[channel, through[tap]], value[spike]
                for o in range(outputs):
                    total[o] += payload * weight[o]


@njit(cache=True, nogil=True)
def _col2im_kernel(first, last, columns, maps, stride, padding):  # type: ignore[no-untyped-def]
    """columns [N, H', W', kh, kw * C], maps [N, H, W, C]; row by row of the maps, which then stays in cache."""
    _, rows, size, kernel, run = columns.shape
    height, width, channels = maps.shape[1:]
    for n in range(first, last):
        for y in range(height):
            total = maps[n, y].reshape(-1)
            total[:] = np.float32(0)
            for place in range(kernel):
                row = (y + padding[0] - place) // stride[0]
                if 0 <= row < rows and row * stride[0] == y + padding[0] - place:
                    for column in range(size):
                        left = (column * stride[1] - padding[1]) * channels
                        start, stop = max(0, -left), min(run, width * channels - left)
                        window, added = total[left + start : left + stop], columns[n, row, column, place, start:stop]
                        for i in range(stop - start):
                            window[i] += added[i]


@njit(cache=True, nogil=True)
def _conv_weight_kernel(first, last, maps, grad, starts, through, to, grad_table):  # type: ignore[no-untyped-def]
    """For outputs first..last - 1, so that no two threads add to the same weight. Shapes as above."""
    pixels, channels = maps.shape[1:]
    place, value = np.empty(channels * pixels + 1, np.int32), np.empty(channels * pixels + 1, np.float32)
    for n in range(len(maps)):
        for spike in range(_spikes_of(maps[n], place, value)):
            pixel = place[spike] // channels
            channel = place[spike] - pixel * channels
            for tap in range(starts[pixel], starts[pixel + 1]):
                total, error = grad_table[channel, through[tap], first:last], grad[n, to[tap], first:last]
                for o in range(last - first):
                    total[o] += value[spike] * error[o]
