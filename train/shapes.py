"""The shape of one sample behind each part of a network, and the refusal of parts that cannot stand there."""

from __future__ import annotations

import torch
from torch import nn

from base.errors import UserError
from train.parts import NORMS, Recurrent, ScaledWS, Skip, SumPool2d

Shape = tuple[int, ...]

ALLOWED = (
    "allowed are nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.BatchNorm1d, "
    "nn.BatchNorm2d, nn.Sequential, and SumPool2d, TdBN, ScaledWS, Recurrent, Skip, Residual, Readout and LIF of this "
    "package"
)


def shape_after(name: str, part: nn.Module, shape: Shape) -> Shape:
    """Shape of one sample behind layer `name` that receives `shape`; UserError if the layer cannot stand there."""
    if type(part) in (nn.Linear, Recurrent):
        return _after_linear(name, part, shape)  # type: ignore[arg-type]
    if type(part) is nn.Conv2d:
        return _after_convolution(name, part, shape)
    if isinstance(part, Skip):
        if part.channels != shape[0]:
            raise UserError(
                f"layer {name} skips {part.channels} channels but receives {shape[0]}; use Skip({shape[0]})"
            )
        return shape
    if isinstance(part, (nn.AvgPool2d, SumPool2d)):
        return _after_pooling(name, part, shape)
    if type(part) is nn.MaxPool2d:
        return _after_max_pooling(name, part, shape)
    if isinstance(part, nn.Flatten):
        if (part.start_dim, part.end_dim) != (1, -1):
            raise UserError(f"layer {name}: {part} flattens only some axes; use nn.Flatten() as it is")
        return (torch.Size(shape).numel(),)
    if type(part) is nn.Dropout:
        return shape
    if type(part) in NORMS:
        return _after_norm(name, part, shape)  # type: ignore[arg-type]
    raise UserError(f"layer {name}: {type(part).__name__} cannot stand here or has no exact integer form; {ALLOWED}")


def _after_norm(name: str, norm: nn.modules.batchnorm._BatchNorm | ScaledWS, shape: Shape) -> Shape:
    if norm.num_features != shape[0]:
        raise UserError(
            f"layer {name} norms {norm.num_features} channels but receives {shape[0]}; give it num_features={shape[0]}"
        )
    if isinstance(norm, ScaledWS):
        return shape
    if not norm.track_running_stats or norm.momentum is None:
        raise UserError(
            f"layer {name}: {norm} keeps no running statistics to fold into weights; leave track_running_stats and "
            "momentum as they are"
        )
    if len(shape) != {nn.BatchNorm1d: 1, nn.BatchNorm2d: 3}.get(type(norm), len(shape)):
        raise UserError(
            f"layer {name}: {type(norm).__name__} does not fit currents of shape {list(shape)}; use nn.BatchNorm1d "
            "after a Linear and nn.BatchNorm2d after a Conv2d"
        )
    return shape


def _after_max_pooling(name: str, part: nn.MaxPool2d, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise UserError(
            f"layer {name} pools maps [C, H, W] but receives shape {list(shape)}; put it before the flattening"
        )
    if part.ceil_mode or part.return_indices:
        raise UserError(f"layer {name}: {part} has no integer form; leave out ceil_mode and return_indices")
    geometry = (_pair(value) for value in (part.kernel_size, part.stride, part.padding, part.dilation))
    sides = tuple(
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, stride, padding, dilation in zip(shape[1:], *geometry, strict=True)
    )
    if min(sides) < 1:
        raise UserError(
            f"layer {name}: a window of {part.kernel_size} does not fit into maps of {shape[1]} x {shape[2]}; choose a "
            "smaller one"
        )
    return (shape[0], *sides)


def _after_pooling(name: str, part: nn.AvgPool2d | SumPool2d, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise UserError(
            f"layer {name} pools maps [C, H, W] but receives shape {list(shape)}; put it before the flattening"
        )
    size, stride = _pair(part.kernel_size), _pair(part.stride)
    if isinstance(part, nn.AvgPool2d) and (
        size != stride or _pair(part.padding) != (0, 0) or part.ceil_mode or part.divisor_override is not None
    ):
        raise UserError(
            f"layer {name}: {part} has no exact integer form; use nn.AvgPool2d(size) with stride = size, without "
            "padding, ceil_mode or divisor_override"
        )
    channels, *sides = shape
    for side, window in zip(sides, size, strict=True):
        if side % window:
            raise UserError(
                f"layer {name} pools windows of {size[0]} x {size[1]} over maps of {sides[0]} x {sides[1]}, which "
                "they do not divide; choose a size that divides the map"
            )
    return (channels, sides[0] // size[0], sides[1] // size[1])


def _after_linear(name: str, dense: nn.Linear, shape: Shape) -> Shape:
    if len(shape) != 1:
        raise UserError(f"layer {name} is dense but receives maps of shape {list(shape)}; put nn.Flatten() before it")
    if dense.in_features != shape[0]:
        raise UserError(
            f"layer {name} takes {dense.in_features} inputs but receives {shape[0]}; give it in_features={shape[0]}"
        )
    return (dense.out_features,)


def _after_convolution(name: str, conv: nn.Conv2d, shape: Shape) -> Shape:
    if conv.padding_mode != "zeros":
        raise UserError(f"layer {name}: padding_mode '{conv.padding_mode}' has no integer form; use 'zeros'")
    if len(shape) != 3:
        raise UserError(
            f"layer {name} convolves maps [C, H, W] but receives shape {list(shape)}; put it before the flattening"
        )
    if conv.in_channels != shape[0]:
        raise UserError(
            f"layer {name} takes {conv.in_channels} channels but receives {shape[0]}; give it in_channels={shape[0]}"
        )
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same" and any(total % 2 for total in reach):
        raise UserError(
            f"layer {name}: padding 'same' is lopsided for kernel {conv.kernel_size}; give the padding as a number"
        )
    if isinstance(conv.padding, str):
        conv.padding = (0, 0) if conv.padding == "valid" else (reach[0] // 2, reach[1] // 2)
    height, width = (
        (side + 2 * padding - total - 1) // stride + 1
        for side, padding, total, stride in zip(shape[1:], conv.padding, reach, conv.stride, strict=True)
    )
    if height < 1 or width < 1:
        raise UserError(
            f"layer {name}: a kernel of {reach[0] + 1} x {reach[1] + 1} does not fit into maps of {shape[1]} x "
            f"{shape[2]} padded by {conv.padding[0]} x {conv.padding[1]}; choose a smaller kernel or more padding"
        )
    return (conv.out_channels, height, width)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
