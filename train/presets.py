"""Architectures by name, and what they expand to.

mlp         128-128-classes
conv-small  16C3-BN-AP2-32C3-BN-AP2-128-classes
vggsnn      64C3-128C3-AP2-256C3-256C3-AP2-512C3-512C3-AP2-512C3-512C3-AP2-classes, with BN after every convolution
            (Deng et al., arXiv 2202.11946); on inputs so small that a pooling finds maps of 1 by 1, it is left out
ms-resnet   16C3-BN-[16C3-BN-16C3-BN]-[32C3S2-BN-32C3-BN]-[64C3S2-BN-64C3-BN]-classes: membrane shortcuts
            (Hu et al., arXiv 2112.08954)
"""

from __future__ import annotations

from train.shapes import Shape

PRESETS = {
    "mlp": "128-128",
    "conv-small": "16C3-BN-AP2-32C3-BN-AP2-128",
    "vggsnn": "64C3-BN-128C3-BN-AP2-256C3-BN-256C3-BN-AP2-512C3-BN-512C3-BN-AP2-512C3-BN-512C3-BN-AP2",
    "ms-resnet": "16C3-BN-[16C3-BN-16C3-BN]-[32C3S2-BN-32C3-BN]-[64C3S2-BN-64C3-BN]",
}


def expand(architecture: str, input_shape: Shape, classes: int) -> str:
    """The notation behind a preset's name, ending with the classes; what is no such name is returned as it is."""
    if architecture not in PRESETS:
        return architecture
    tokens, side = [], min(input_shape[1:], default=1)
    for token in PRESETS[architecture].split("-"):
        if token == "AP2":
            if side == 1:
                continue
            side //= 2
        tokens.append(token)
    return "-".join([*tokens, str(classes)])
