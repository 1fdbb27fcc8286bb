"""How precise the integers of a network are to be: all that a user chooses about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from base.errors import UserError, nearest
from quantize.arithmetic import BIAS_EXPONENT_MAX, EXPONENT_MAX, EXPONENT_MIN

Bits = int | str
TERNARY = "ternary"
BITS: tuple[Bits, ...] = (8, 7, 6, 5, 4, 3, 2, 1, TERNARY)
CALIBRATIONS = ("membrane", "error", "percentile", "max")
SCALES = ("learned", "fixed", "calibrated")
RANGES = ("proven", "calibrated")
NETX_BIAS_EXPONENT = 6  # of every bias in the files that lava-dl reads


@dataclass(frozen=True)
class Precision:
    """bits: of every layer's weights, 8 to 1 or "ternary"; per_layer: of some layers, by name.

    calibration: where the weights of a connection are clipped: where clipping and rounding together cost the least
    squared error in the membranes behind them ("membrane", which takes samples: `quantize/calibration.py`) or in the
    weights ("error"), at the 99.9th percentile of their magnitudes ("percentile"), or at the largest ("max").
    scales: whether aware training learns the clips that it starts with ("learned"), keeps them ("fixed") or finds them
    anew before every update ("calibrated"). per_channel: whether each neuron, or channel, that spikes has a clip and so
    a threshold of its own. netx: whether weights go without exponents and biases are whole units of activation, which
    is what lava-dl's files hold. range: whether a layer's scale is the largest under which no input can push a state
    out of 24 bits ("proven"), or twice what samples push states to must fit ("calibrated", which takes samples and
    proves nothing); activations keep 16 bits either way.
    """

    bits: Bits = 8
    per_layer: Mapping[str, Bits] = field(default_factory=dict)
    calibration: str = "membrane"
    scales: str = "learned"
    per_channel: bool = False
    netx: bool = False
    range: str = "proven"

    def __post_init__(self) -> None:
        chosen = {"bits": self.bits} | {f"per_layer.{name}": bits for name, bits in self.per_layer.items()}
        for key, bits in chosen.items():
            if bits not in BITS:
                raise UserError(f"quantize.{key}: {bits!r} is no width of weights; give 8 to 1, or '{TERNARY}'.")
        for key, known in (("calibration", CALIBRATIONS), ("scales", SCALES), ("range", RANGES)):
            if getattr(self, key) not in known:
                raise UserError(f"quantize.{key}: '{getattr(self, key)}' is none; {nearest(getattr(self, key), known)}")
        if (self.calibration, self.scales) == ("membrane", "calibrated"):
            raise UserError(
                "quantize.scales = 'calibrated' finds clips before every update, which calibration = 'membrane' is too "
                "slow for; set scales = 'fixed' or 'learned', or calibration = 'error'."
            )

    def of(self, layer: str) -> Bits:
        return self.per_layer.get(layer, self.bits)

    @property
    def exponents(self) -> tuple[int, int]:
        """The least and the largest that a connection may have."""
        return (0, 0) if self.netx else (EXPONENT_MIN, EXPONENT_MAX)

    @property
    def bias_exponents(self) -> tuple[int, int]:
        """The least and the largest that a population's bias may have."""
        return (NETX_BIAS_EXPONENT, NETX_BIAS_EXPONENT) if self.netx else (0, BIAS_EXPONENT_MAX)

    def separates(self, neuron: str) -> bool:
        """Whether channels of such neurons are clipped each by itself; a readout's currents are compared, so all share
        one scale."""
        return self.per_channel and neuron == "lif"

    def check(self, layers: Iterable[str]) -> None:
        """Raises UserError for a name in per_layer that is none of the layers with weights."""
        known = set(layers)
        for name in self.per_layer:
            if name not in known:
                raise UserError(f"quantize.per_layer: '{name}' is no layer with weights; {nearest(name, known)}")


EIGHT_BITS = Precision()
WITHOUT_SAMPLES = Precision(calibration="error")
