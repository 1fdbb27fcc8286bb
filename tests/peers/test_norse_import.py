"""A module that was trained in Norse becomes a network with the same spikes, or is refused with a reason."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from base.errors import UserError

pytestmark = pytest.mark.peers
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles functions in a way that torch has deprecated
    norse = pytest.importorskip("norse.torch", reason="Norse is not installed")

from train.frameworks.finding import take  # noqa: E402
from train.frameworks.norse import from_norse  # noqa: E402


def current_based(**parameters):
    return norse.LIFParameters(**{name: torch.as_tensor(value) for name, value in parameters.items()})


def boxed(reset=None, **parameters):
    own = {} if reset is None else {"reset_method": reset}
    return norse.LIFBoxParameters(**{name: torch.as_tensor(value) for name, value in parameters.items()}, **own)


CELLS = {
    "lif": lambda: norse.LIFCell(),
    "lif, other times": lambda: norse.LIFCell(current_based(tau_mem_inv=333.0, tau_syn_inv=500.0), dt=0.0015),
    "lif, no memory of currents": lambda: norse.LIFCell(current_based(tau_syn_inv=1000.0, v_th=0.4)),
    "lif, leaks elsewhere": lambda: norse.LIFCell(current_based(v_leak=-0.5, v_reset=-0.5, v_th=0.3)),
    "lif, over all steps": lambda: norse.LIF(current_based(v_th=0.7)),
    "box": lambda: norse.LIFBoxCell(boxed(v_th=0.3)),
    "box, subtracting": lambda: norse.LIFBoxCell(boxed(norse.reset_subtract, v_th=0.3)),
}


def binary(*shape):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_that_has_an_exact_form_keeps_all_spikes(name):
    torch.manual_seed(2)
    dense, cell = nn.Linear(12, 9, bias=False), CELLS[name]()
    dense.weight.data.mul_(4)
    inputs = binary(100, 4, 12)
    network, _ = from_norse(norse.SequentialState(dense, cell), inputs)
    with torch.no_grad():
        currents = dense.double()(inputs.double())
        if isinstance(cell, norse.LIF):
            expected = cell(currents)[0]
        else:
            emitted, state = [], None
            for current in currents:
                spikes, state = cell(current, state)
                emitted.append(spikes)
            expected = torch.stack(emitted)
    assert np.array_equal(network.double().rasters(inputs)["layer0"].numpy(), expected.numpy())
    assert 0.02 < expected.mean() < 0.95


def test_states_that_forward_passes_by_hand_are_followed():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.lif = nn.Linear(12, 9, bias=False), norse.LIFCell()
            self.dense.weight.data.mul_(6)

        def forward(self, inputs):
            state, emitted = None, []
            for arriving in inputs:
                spikes, state = self.lif(self.dense(arriving), state)
                emitted.append(spikes)
            return torch.stack(emitted)

    torch.manual_seed(0)
    network, _ = from_norse(Loop(), binary(30, 2, 12))
    assert network.rasters(binary(30, 2, 12))["dense"].any()


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (lambda: norse.LIFCell(), "layer layer0: its bias enters the synaptic current there"),
        (lambda: norse.LIFCell(current_based(v_reset=-0.2)), "layer 1, Norse's LIFCell: v_reset = -0.2 and v_leak = 0"),
        (lambda: norse.LIFCell(current_based(v_th=[0.5] * 9)), "v_th has 9 values; here a population has one"),
        (lambda: norse.LIFCell(current_based(tau_mem_inv=2000.0)), "beta = -1"),
        (lambda: norse.LIFBoxCell(boxed(lambda z, v, reset, th: v * (1 - z))), "reset_method is one of its own"),
        (lambda: norse.LIFBoxCell(boxed(norse.reset_subtract, v_leak=-0.5)), "v_leak = -0.5 with a reset that sub"),
        (
            lambda: norse.LIFRefracCell(),
            "layer 1 is Norse's LIFRefracCell, .* can be imported: LIF, LIFBoxCell, LIFCell",
        ),
    ],
)
def test_every_parameter_without_an_exact_form_is_refused_with_the_reason(cell, text):
    with pytest.raises(UserError, match=text):
        from_norse(norse.SequentialState(nn.Linear(12, 9), cell()), binary(20, 2, 12))


@pytest.mark.parametrize("name", ["lif", "lif, over all steps"])
def test_what_the_module_itself_emits_is_told_by_population(name):
    torch.manual_seed(2)
    dense, inputs = nn.Linear(12, 9, bias=False), binary(100, 4, 12)
    dense.weight.data.mul_(4)
    found = take(norse.SequentialState(dense, CELLS[name]()), inputs[:, :2])
    (theirs,), (ours,) = found.rasters(inputs).values(), found.network.double().rasters(inputs).values()
    assert torch.equal(theirs, ours)
    assert theirs.any()
