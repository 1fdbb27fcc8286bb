"""The leaky integrate-and-fire neuron as a torch module: parameters that the chip can hold, and the scan over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.errors import UserError, nearest
from train.scan import Reset, after_reset, lif_scan
from train.surrogates import surrogate as surrogate_of

DECAY_UNITY = 1 << 12
LEAST_BETA, MOST_ALPHA = 1 / DECAY_UNITY, 1 - 1 / DECAY_UNITY


class LIF(nn.Module):
    """Current-based leaky integrate-and-fire neurons, stateless between calls; the equations are those of `lif_scan`.

    beta: share of the voltage kept per step, 1/4096 to 1: the chip keeps (4096 - dv) / 4096 with dv in 0..4095.
    alpha: share of the synaptic current kept, 0 (no memory) to 4095/4096: the chip keeps (4095 - du) / 4096.
    Both are one number, or a tensor with one for each neuron.
    threshold: above 0; a neuron spikes when its voltage is strictly above it.
    reset: "hard" (to 0; the only one of Lava's own neurons) or "soft" (minus the threshold).
    floor: whether the voltage is kept from going below 0.
    surrogate, width: shape and width of the gradient at the threshold, in units of voltage. The tails of the default
    reach neurons that never spike, which a shape of finite width leaves dead.
    learn_decay: whether the shares are trained, as a sigmoid over the range above, which they therefore never leave;
    alpha = 0 (no synaptic current) and beta = 1 (no leak) stay as they are. per_neuron: one of each for every neuron.
    Raises UserError for anything else.
    """

    def __init__(
        self,
        beta: float | Tensor = 0.75,
        alpha: float | Tensor = 0.0,
        threshold: float = 1.0,
        reset: Reset = "hard",
        floor: bool = False,
        surrogate: str = "arctan",
        width: float = 1.0,
        learn_decay: bool = False,
        per_neuron: bool = False,
    ) -> None:
        super().__init__()
        if not all(LEAST_BETA <= value <= 1 for value in _values(beta)):
            raise UserError(
                f"beta = {beta}: the share of the voltage a neuron keeps per step must be between 1/4096 and 1, the "
                "range of the chip's 12-bit decay; choose 1 for no leak, or 1/4096 for practically no memory"
            )
        if not all(0 <= value <= MOST_ALPHA for value in _values(alpha)):
            raise UserError(
                f"alpha = {alpha}: the share of the synaptic current kept per step must be between 0 and 4095/4096, "
                "the range of the chip's 12-bit decay; choose 0 for no memory"
            )
        if per_neuron and not learn_decay:
            raise UserError(
                "per_neuron = true without learn_decay: neurons that learn no decay have all the same; set "
                "learn_decay = true, or give alpha and beta as tensors"
            )
        if not 0 < threshold < float("inf"):
            raise UserError(f"threshold = {threshold}: must be above 0 and finite; 1.0 is the usual choice")
        if reset not in ("hard", "soft"):
            raise UserError(f"unknown reset '{reset}'; {nearest(reset, ('hard', 'soft'))}")
        if not 0 < width < float("inf"):
            raise UserError(f"surrogate width = {width}: must be above 0 and finite; the threshold is the usual choice")
        self.threshold, self.reset, self.floor = float(threshold), reset, floor
        self.surrogate, self.width = surrogate, float(width)
        self._slope = surrogate_of(surrogate)
        self.learn_decay, self.per_neuron = learn_decay, per_neuron
        self._share("beta", beta, LEAST_BETA, 1.0, learn_decay and not all(value == 1 for value in _values(beta)))
        self._share("alpha", alpha, 0.0, MOST_ALPHA, learn_decay and any(_values(alpha)))

    def _share(self, name: str, share: float | Tensor, low: float, high: float, learned: bool) -> None:
        if learned:
            inside = (torch.as_tensor(share, dtype=torch.float32) - low) / (high - low)
            self.register_parameter(f"{name}_logit", nn.Parameter(torch.logit(inside, eps=1e-3)))
        elif isinstance(share, Tensor):
            self.register_buffer(f"{name}_fixed", share.detach().clone())
        else:
            setattr(self, f"{name}_fixed", float(share))

    @property
    def beta(self) -> float | Tensor:
        """Share of the voltage kept: a number, or a tensor (learned: with its gradient) that broadcasts to a sample."""
        logit: Tensor | None = getattr(self, "beta_logit", None)
        fixed: float | Tensor = getattr(self, "beta_fixed", 0.0)
        return fixed if logit is None else LEAST_BETA + (1 - LEAST_BETA) * torch.sigmoid(logit)

    @property
    def alpha(self) -> float | Tensor:
        """Share of the synaptic current kept, likewise."""
        logit: Tensor | None = getattr(self, "alpha_logit", None)
        fixed: float | Tensor = getattr(self, "alpha_fixed", 0.0)
        return fixed if logit is None else MOST_ALPHA * torch.sigmoid(logit)

    def spread_over(self, shape: tuple[int, ...]) -> None:
        """Be the neurons of a population of that shape: with `per_neuron`, each gets decays of its own.

        Raises UserError for decays given per neuron that do not broadcast to the shape.
        """
        for name in ("alpha", "beta"):
            share = getattr(self, name)
            if isinstance(share, Tensor) and not _broadcasts(share.shape, shape):
                raise UserError(
                    f"{name} of shape {list(share.shape)} for neurons of shape {list(shape)}: give one number, or one "
                    "for each neuron"
                )
            logit = getattr(self, f"{name}_logit", None)
            if self.per_neuron and logit is not None:
                logit.data = logit.data.expand(shape).clone()

    def forward(self, current: Tensor, bias: Tensor | None = None, recurrent: Tensor | None = None) -> Tensor:
        """Spikes [T, B, *shape] (0 or 1, float) of current [T, B, *shape]; the bias broadcasts to [*shape].

        recurrent: weights [N, N] over which neurons of shape (N,) hear their own spikes one step later.
        """
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
            recurrent=recurrent,
        )

    def step(self, current: Tensor, bias: Tensor | None, voltage: Tensor | float) -> tuple[Tensor, Tensor]:
        """Spikes [1, B, *shape] of one step, and the voltage after it, from the voltage before (0 at first).

        Neither voltage has a gradient. For neurons without synaptic current: the share kept of the voltage then comes
        into a scan of a single step as current, with the same float operations in the same order.
        """
        reached = self.beta * voltage + current
        spikes = self(reached, bias)
        with torch.no_grad():
            membrane = reached if bias is None else reached + bias
            return spikes, after_reset(membrane, threshold=self.threshold, reset=self.reset, floor=self.floor)

    def extra_repr(self) -> str:
        learned = f", learn_decay=True, per_neuron={self.per_neuron}" if self.learn_decay else ""
        return (
            f"beta={_shown(self.beta)}, alpha={_shown(self.alpha)}, threshold={self.threshold}, reset={self.reset}, "
            f"floor={self.floor}, surrogate={self.surrogate}, width={self.width}{learned}"
        )


def _values(share: float | Tensor) -> list[float]:
    return torch.as_tensor(share, dtype=torch.float64).reshape(-1).tolist()


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in aligned)


def _shown(share: float | Tensor) -> str:
    if isinstance(share, Tensor) and share.dim():
        return f"{share.min().item():.4g}..{share.max().item():.4g}"
    return f"{torch.as_tensor(share).item()}"
