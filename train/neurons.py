"""The leaky integrate-and-fire neuron as a torch module: parameters that the chip can hold, and the scan over time."""

from __future__ import annotations

from torch import Tensor, nn

from base.errors import UserError, nearest
from train.scan import Reset, lif_scan
from train.surrogates import surrogate as surrogate_of

DECAY_UNITY = 1 << 12


class LIF(nn.Module):
    """Current-based leaky integrate-and-fire neurons, stateless between calls; the equations are those of `lif_scan`.

    beta: share of the voltage kept per step, 1/4096 to 1: the chip keeps (4096 - dv) / 4096 with dv in 0..4095.
    alpha: share of the synaptic current kept, 0 (no memory) to 4095/4096: the chip keeps (4095 - du) / 4096.
    threshold: above 0; a neuron spikes when its voltage is strictly above it.
    reset: "hard" (to 0; the only one of Lava's own neurons) or "soft" (minus the threshold).
    floor: whether the voltage is kept from going below 0.
    surrogate, width: shape and width of the gradient at the threshold, in units of voltage. The tails of the default
    reach neurons that never spike, which a shape of finite width leaves dead.
    Raises UserError for anything else.
    """

    def __init__(
        self,
        beta: float = 0.75,
        alpha: float = 0.0,
        threshold: float = 1.0,
        reset: Reset = "hard",
        floor: bool = False,
        surrogate: str = "arctan",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        least, most = 1 / DECAY_UNITY, 1 - 1 / DECAY_UNITY
        if not least <= beta <= 1:
            raise UserError(
                f"beta = {beta}: the share of the voltage a neuron keeps per step must be between 1/4096 and 1, the "
                "range of the chip's 12-bit decay; choose 1 for no leak, or 1/4096 for practically no memory"
            )
        if not 0 <= alpha <= most:
            raise UserError(
                f"alpha = {alpha}: the share of the synaptic current kept per step must be between 0 and 4095/4096, "
                "the range of the chip's 12-bit decay; choose 0 for no memory"
            )
        if not 0 < threshold < float("inf"):
            raise UserError(f"threshold = {threshold}: must be above 0 and finite; 1.0 is the usual choice")
        if reset not in ("hard", "soft"):
            raise UserError(f"unknown reset '{reset}'; {nearest(reset, ('hard', 'soft'))}")
        if not 0 < width < float("inf"):
            raise UserError(f"surrogate width = {width}: must be above 0 and finite; the threshold is the usual choice")
        self.beta, self.alpha, self.threshold = float(beta), float(alpha), float(threshold)
        self.reset: Reset = reset
        self.floor = floor
        self.surrogate, self.width = surrogate, float(width)
        self._slope = surrogate_of(surrogate)

    def forward(self, current: Tensor, bias: Tensor | None = None) -> Tensor:
        """Spikes [T, B, *shape] (0 or 1, float) of current [T, B, *shape]; the bias broadcasts to [*shape]."""
        return lif_scan(
            current,
            bias,
            alpha=self.alpha,
            beta=self.beta,
            threshold=self.threshold,
            reset=self.reset,
            floor=self.floor,
            surrogate=self._slope,
            width=self.width,
        )

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, alpha={self.alpha}, threshold={self.threshold}, reset={self.reset}, "
            f"floor={self.floor}, surrogate={self.surrogate}, width={self.width}"
        )
