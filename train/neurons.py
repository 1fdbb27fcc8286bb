"""The leaky integrate-and-fire neuron as a torch module: parameters that the chip can hold, and the scan over time."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn

from base.errors import UserError, nearest
from train.scan import Reset, State, after_reset, lif_scan
from train.sparse import Product, conducted
from train.surrogates import Backward
from train.surrogates import surrogate as surrogate_of

DECAY_UNITY = 1 << 12
LEAST_BETA, MOST_ALPHA = 1 / DECAY_UNITY, 1 - 1 / DECAY_UNITY
LEAST_K, MOST_K, MOST_KEPT = 0.1, 10.0, 0.98
LEARNED_WIDTH = (0.4, 8.0)  # in thresholds
LEAST_WIDTH = 0.1  # in thresholds; below, a step's surrogate would be all but a spike of its own


class LIF(nn.Module):
    """Current-based leaky integrate-and-fire neurons, stateless between calls; the equations are those of `lif_scan`.

    beta: share of the voltage kept per step, 1/4096 to 1: the chip keeps (4096 - dv) / 4096 with dv in 0..4095.
    alpha: share of the synaptic current kept, 0 (no memory) to 4095/4096: the chip keeps (4095 - du) / 4096.
    Both are one number, or a tensor with one for each neuron.
    threshold: above 0; a neuron spikes when its voltage is strictly above it.
    reset: "hard" (to 0; the only one of Lava's own neurons) or "soft" (minus the threshold), in the step of the spike;
    or "hard-late" or "soft-late", in the step after it.
    floor: whether the voltage is kept from going below 0.
    surrogate, width: shape and width of the gradient at the threshold, in units of voltage. The tails of the default
    reach neurons that never spike, which a shape of finite width leaves dead.
    learn_decay: whether the shares are trained, as a sigmoid over the range above, which they therefore never leave;
    alpha = 0 (no synaptic current) and beta = 1 (no leak) stay as they are. per_neuron: one of each for every neuron.
    neuron: "lif", or "klif" (Jiang and Zhang, arXiv 2302.09238): one learned k for the population, and a floor. Its
    v = beta v + input, F = max(k v, 0), spikes where F > threshold, and goes on from F after the reset (scale_reset:
    from F / k). Here it is computed folded, as a LIF of the voltage k v: current and bias times k, and beta times k
    unless scale_reset. Where v is below 0 there is no surrogate.
    width_by: "fixed" to `width`; "psg", learned from there; or "mpd-agl" (Jiang et al., arXiv 2505.11863), from the
    spread that norms in front give the voltage, and `width` where there is none.
    mask, rescale, detach_reset: see `Backward`; the mask is drawn in training mode only.
    Raises UserError for anything else.
    """

    k: nn.Parameter | None
    width: float | nn.Parameter
    alpha_logit: nn.Parameter | None
    beta_logit: nn.Parameter | None
    alpha_fixed: float | Tensor
    beta_fixed: float | Tensor

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
        neuron: str = "lif",
        scale_reset: bool = False,
        width_by: str = "fixed",
        mask: float = 0.0,
        rescale: bool = False,
        detach_reset: bool = False,
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
        if reset not in get_args(Reset):
            raise UserError(f"unknown reset '{reset}'; {nearest(reset, get_args(Reset))}")
        if not 0 < width < float("inf"):
            raise UserError(f"surrogate width = {width}: must be above 0 and finite; the threshold is the usual choice")
        for what, name, known in (
            ("neuron", neuron, ("lif", "klif")),
            ("width_by", width_by, ("fixed", "psg", "mpd-agl")),
        ):
            if name not in known:
                raise UserError(f"unknown {what} '{name}'; {nearest(name, known)}")
        if scale_reset and neuron != "klif":
            raise UserError("scale_reset = true without k: it says how KLIF resets; set neuron = 'klif'")
        low, high = (bound * threshold for bound in LEARNED_WIDTH)
        if width_by == "psg" and not low <= width <= high:
            raise UserError(
                f"surrogate width = {width} to learn from: a learned width stays between {low:g} and {high:g}, 0.4 to "
                "8 thresholds; start inside"
            )
        if not 0 <= mask < 1:
            raise UserError(
                f"mask = {mask}: the share of surrogate gradients to drop must be at least 0 and below 1; 0.5 is usual"
            )
        if rescale and not mask:
            raise UserError("rescale = true without a mask: nothing is dropped that could be made up for; set mask")
        surrogate_of(surrogate)
        self.threshold, self.reset, self.floor = float(threshold), reset, floor or neuron == "klif"
        self.surrogate, self.width_by = surrogate, width_by
        self.width = nn.Parameter(torch.tensor(float(width))) if width_by == "psg" else float(width)
        self.mask, self.rescale, self.detach_reset = mask, rescale, detach_reset
        self.learn_decay, self.per_neuron = learn_decay, per_neuron
        self.k, self.scale_reset = None if neuron == "lif" else nn.Parameter(torch.tensor(1.0)), scale_reset
        self._share("beta", beta, LEAST_BETA, 1.0, learn_decay and not all(value == 1 for value in _values(beta)))
        self._share("alpha", alpha, 0.0, MOST_ALPHA, learn_decay and any(_values(alpha)))
        self.keep_in_range()

    def _share(self, name: str, share: float | Tensor, low: float, high: float, learned: bool) -> None:
        logit: nn.Parameter | None = None
        if learned:
            inside = (torch.as_tensor(share, dtype=torch.float32) - low) / (high - low)
            logit = nn.Parameter(torch.logit(inside, eps=1e-3))
        elif isinstance(share, Tensor):
            self.register_buffer(f"{name}_fixed", share.detach().clone())
        else:
            setattr(self, f"{name}_fixed", float(share))
        setattr(self, f"{name}_logit", logit)

    @property
    def beta(self) -> float | Tensor:
        """Share of the voltage kept: a number, or a tensor (learned: with its gradient) that broadcasts to a sample."""
        return self._leak if self.k is None or self.scale_reset else self.k * self._leak

    @property
    def _leak(self) -> float | Tensor:
        """The share before k."""
        if self.beta_logit is None:
            return self.beta_fixed
        return LEAST_BETA + (1 - LEAST_BETA) * torch.sigmoid(self.beta_logit)

    @property
    def alpha(self) -> float | Tensor:
        """Share of the synaptic current kept, likewise."""
        return self.alpha_fixed if self.alpha_logit is None else MOST_ALPHA * torch.sigmoid(self.alpha_logit)

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

    @property
    def spread_gain(self) -> float:
        """Standard deviation of the voltage over that of what enters it at each step: sqrt(1 + beta^2), as MPD-AGL
        estimates it from the one step before; of decays per neuron, for their mean."""
        return math.sqrt(1 + float(torch.as_tensor(self.beta).detach().mean()) ** 2)

    def keep_in_range(self) -> None:
        """Bring what an optimiser has moved back to where it has a meaning.

        k to 0.1 at least, and to 10 at most or to what keeps 0.98 of the voltage: from 1 on, the chip has no decay for
        it. A learned width to 0.4 to 8 thresholds.
        """
        if self.k is not None:
            most = MOST_K if self.scale_reset else MOST_KEPT / max(_values(self._leak))
            _clamp(self.k, LEAST_K, most)
        if isinstance(self.width, nn.Parameter):
            _clamp(self.width, *(bound * self.threshold for bound in LEARNED_WIDTH))

    def forward(self, current: Tensor, bias: Tensor | None = None, recurrent: Tensor | None = None) -> Tensor:
        """Spikes [T, B, *shape] (0 or 1, float) of current [T, B, *shape]; the bias broadcasts to [*shape].

        recurrent: weights [N, N] over which neurons of shape (N,) hear their own spikes one step later.
        """
        return self.scan(current, bias, recurrent)[0]

    def scan(
        self,
        current: Tensor,
        bias: Tensor | None,
        recurrent: Tensor | None,
        current_spread: float | None = None,
        synapse: Product | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward`'s spikes, and the membranes before floor and reset, likewise.

        current_spread: the standard deviation that norms give the current; None without a norm. synapse, state: see
        `lif_scan`.
        """
        if self.k is not None:
            current = self.k * (current if synapse is None else conducted(current, *synapse))
            synapse = None
            bias, recurrent = (None if x is None else self.k * x for x in (bias, recurrent))
        return lif_scan(
            current,
            bias,
            alpha=self.alpha,
            beta=self.beta,
            threshold=self.threshold,
            reset=self.reset,
            floor=self.floor,
            backward=self.backward(len(current), current_spread),
            recurrent=recurrent,
            synapse=synapse,
            state=state,
        )

    def backward(self, steps: int, current_spread: float | None) -> Backward:
        """What stands for the derivative of these neurons' spikes over so many steps."""
        return Backward(
            self.surrogate,
            self.widths(steps, current_spread),
            self.mask if self.training else 0.0,
            self.rescale,
            self.detach_reset,
            dead_below_zero=self.k is not None,
        )

    def step(self, current: Tensor, bias: Tensor | None, voltage: Tensor | float) -> tuple[Tensor, Tensor]:
        """Spikes [1, B, *shape] of one step, and the voltage after it, from the voltage before (0 at first).

        Neither voltage has a gradient. For neurons without synaptic current and k: the share kept of the voltage then
        comes into a scan of a single step as current, with the same float operations in the same order.
        """
        reached = self.beta * voltage + current
        spikes, membrane = self.scan(reached, bias, None)
        kept = after_reset(membrane.detach(), threshold=self.threshold, reset=self.reset, floor=self.floor)
        return spikes, kept

    def widths(self, steps: int, current_spread: float | None) -> float | Tensor:
        """The surrogate's width: one, or with MPD-AGL behind a norm [T], one standard deviation of the voltage to
        either side of the threshold; at the first step there is nothing to remember."""
        if self.width_by != "mpd-agl" or current_spread is None:
            return self.width
        first = 2 * current_spread * (1.0 if self.k is None else float(self.k))
        widths = torch.full((steps,), first * self.spread_gain)
        widths[0] = first
        return widths.clamp(min=LEAST_WIDTH * self.threshold)

    def extra_repr(self) -> str:
        learned = f", learn_decay=True, per_neuron={self.per_neuron}" if self.learn_decay else ""
        k = "" if self.k is None else f", k={_shown(self.k)}, scale_reset={self.scale_reset}"
        return (
            f"beta={_shown(self.beta)}, alpha={_shown(self.alpha)}, threshold={self.threshold}, reset={self.reset}, "
            f"floor={self.floor}, surrogate={self.surrogate}, width={_shown(self.width)}, width_by={self.width_by}, "
            f"mask={self.mask}, rescale={self.rescale}, detach_reset={self.detach_reset}{learned}{k}"
        )


@torch.no_grad()
def _clamp(parameter: nn.Parameter, least: float, most: float) -> None:
    parameter.clamp_(least, most)


def _values(share: float | Tensor) -> list[float]:
    return torch.as_tensor(share, dtype=torch.float64).reshape(-1).tolist()


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in aligned)


def _shown(share: float | Tensor) -> str:
    if isinstance(share, Tensor) and share.dim():
        return f"{share.min().item():.4g}..{share.max().item():.4g}"
    return f"{torch.as_tensor(share).item()}"
