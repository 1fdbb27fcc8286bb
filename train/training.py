"""What decides how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from base.errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """All but the seed, as a configuration says it.

    weight_decay: decoupled, of synapses' weights alone: no biases, norms, decays, k or widths; in float epochs.
    pda: how much the penalty of `objectives.pda` weighs, 0 for none; 0.001 to 0.1 is usual.
    time_weights: whether steps of the output count by how well they answer alone (`train/time_weights.py`).
    online: "" for backpropagation through time; else OTTT (`train/online.py`), whose gradients are summed over the
    steps of a batch ("a") or applied after each ("o": T updates a batch, which want a lower learning rate). mse_share:
    of the mean squared error in its loss, the rest being cross entropy. input_trace: `online.step` tells.
    relu_epochs: for how many epochs the parts are trained with ReLU in place of neurons first, then converted
    (`train/conversion.py`). With epochs = 0 that is all.
    recompute: whether the steps are computed again for the backward pass (`train/recompute.py`), in less memory.
    aware_epochs: for how many epochs training goes on with the forward pass of the integers (`quantize/aware.py`), the
    learning rate falling along a cosine of its own from `aware_learning_rate`, weights decaying by
    `aware_weight_decay`.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    pda: float = 0.0
    time_weights: bool = False
    online: str = ""
    mse_share: float = 0.0
    input_trace: bool = True
    recompute: bool = False
    relu_epochs: int = 0
    aware_epochs: int = 0
    aware_learning_rate: float = 1e-3
    aware_weight_decay: float = 0.0


@dataclass(frozen=True)
class Training(TrainingSettings):
    """AdamW, its learning rate falling along half a cosine to 0. Raises UserError for values that cannot work."""

    seed: int = 0

    def __post_init__(self) -> None:
        least_epochs = 0 if self.relu_epochs > 0 or self.aware_epochs > 0 else 1
        for name, least in (
            ("epochs", least_epochs),
            ("relu_epochs", 0),
            ("aware_epochs", 0),
            ("batch_size", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"training with {name} = {getattr(self, name)}: must be at least {least}")
        for name, usual in (("learning_rate", "0.01"), ("aware_learning_rate", "0.001")):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(
                    f"training with {name} = {getattr(self, name)}: must be above 0 and at most 1; {usual} is usual"
                )
        if self.online not in ("", "a", "o"):
            raise UserError(
                f"training with online = '{self.online}': must be 'a' (one update a batch), 'o' (one a step) or '' "
                "(backpropagation through time)"
            )
        if not 0 <= self.mse_share <= 1:
            raise UserError(f"training with mse_share = {self.mse_share}: must be between 0 and 1; 0.05 is usual")
        if self.online and self.time_weights:
            raise UserError(
                "time_weights compare the steps of an output, which training online never has together; set one of "
                "online and time_weights"
            )
        if not self.online and (self.mse_share or not self.input_trace):
            raise UserError(
                "mse_share and input_trace belong to training online; set online = 'a' or 'o', or leave them out"
            )
        for name, usual in (("weight_decay", "0.01"), ("aware_weight_decay", "0.1"), ("pda", "0.01")):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"training with {name} = {getattr(self, name)}: must be 0, for none, or above; {usual} is usual"
                )
        for name, given in (("online", self.online), ("pda", self.pda), ("aware_epochs", self.aware_epochs)):
            if self.recompute and given:
                raise UserError(
                    f"recompute = true with {name} = {given!r}: only backpropagation of floats without a penalty on "
                    "membranes goes on from a step before; set one of the two"
                )
        if self.online and self.aware_epochs:
            raise UserError(
                f"aware_epochs = {self.aware_epochs} with online = '{self.online}': the forward pass of the integers "
                "runs all steps together; set one of the two"
            )
        if self.online and self.pda:
            raise UserError(
                "pda acts on the membranes of all steps together, which training online never has; set pda = 0"
            )
