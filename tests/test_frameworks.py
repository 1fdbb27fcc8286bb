"""A module that was trained in snnTorch becomes a network with the same spikes, or is refused with a reason."""

import copy

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from base.differences import Difference, table
from base.errors import UserError
from quantize import engine, reference
from quantize.fold import fold
from quantize.scales import quantize
from train.frameworks.snntorch import from_snntorch

STEPS, SAMPLES, INPUTS, HIDDEN = 100, 4, 12, 9


def spikes(*shape, density=0.4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < density).to(torch.uint8)


def dense(inputs, outputs, bias=True, scale=2.0):
    layer = nn.Linear(inputs, outputs, bias)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


def run_by_hand(layers, neurons, inputs):
    """Spikes of every population, [T, B, N] each, of layers and neurons in turn, step by step in float64."""
    layers, neurons = ([copy.deepcopy(part).double() for part in parts] for parts in (layers, neurons))
    rasters = [[] for _ in neurons]
    for neuron in neurons:
        neuron.reset_mem()
        for inner in neuron.children():  # recurrent weights, which its float32 spikes enter
            inner.register_forward_pre_hook(lambda inner, args: (args[0].double(),))
    with torch.no_grad():
        for arriving in inputs.double():
            for raster, layer, neuron in zip(rasters, layers, neurons, strict=True):
                emitted = neuron(layer(arriving))
                arriving = (emitted[0] if isinstance(emitted, tuple) else emitted).double()
                raster.append(arriving)
    return [torch.stack(raster) for raster in rasters]


PER_NEURON = torch.linspace(0.3, 0.95, HIDDEN)
NEURONS = {
    "leaky": (lambda: snn.Leaky(0.9), "soft-late"),
    "leaky, zero": (lambda: snn.Leaky(0.9, reset_mechanism="zero"), "hard"),
    "leaky, zero at once": (lambda: snn.Leaky(0.9, reset_mechanism="zero", reset_delay=False), "hard"),
    "leaky, beta of each": (lambda: snn.Leaky(PER_NEURON, learn_beta=True), "soft-late"),
    "leaky, beta beyond 1": (lambda: snn.Leaky(1.2, reset_mechanism="zero"), "hard"),
    "leaky, threshold": (lambda: snn.Leaky(0.8, threshold=0.7, learn_threshold=True), "soft-late"),
    "leaky, other gradients": (lambda: snn.Leaky(0.8, spike_grad=surrogate.fast_sigmoid()), "soft-late"),
    "leaky, no surrogate": (lambda: snn.Leaky(0.8, surrogate_disable=True), "soft-late"),
    "leaky, states returned": (lambda: snn.Leaky(0.8, init_hidden=True, output=True), "soft-late"),
    "leaky, states hidden": (lambda: snn.Leaky(0.8, init_hidden=True), "soft-late"),
    "synaptic": (lambda: snn.Synaptic(0.5, 0.8), "soft-late"),
    "synaptic, zero": (lambda: snn.Synaptic(0.5, 0.8, reset_mechanism="zero"), "hard-late"),
    "synaptic, zero at once": (lambda: snn.Synaptic(0.5, 0.8, reset_mechanism="zero", reset_delay=False), "hard"),
    "synaptic, shares of each": (lambda: snn.Synaptic(PER_NEURON, PER_NEURON.flip(0), learn_alpha=True), "soft-late"),
    "lapicque": (lambda: snn.Lapicque(beta=0.8, threshold=0.3), "soft-late"),
    "lapicque, zero": (lambda: snn.Lapicque(beta=0.8, threshold=0.3, reset_mechanism="zero"), "hard-late"),
    "lapicque, R and C": (lambda: snn.Lapicque(R=5.1, C=1.3, time_step=0.7), "soft-late"),
    "rleaky": (lambda: snn.RLeaky(0.8, linear_features=HIDDEN), "soft-late"),
    "rleaky, zero": (lambda: snn.RLeaky(0.8, linear_features=HIDDEN, reset_mechanism="zero"), "hard-late"),
    "rleaky, zero at once": (
        lambda: snn.RLeaky(0.8, linear_features=HIDDEN, reset_mechanism="zero", reset_delay=False),
        "hard",
    ),
    "rleaky, one V": (lambda: snn.RLeaky(0.8, V=-0.4, all_to_all=False), "soft-late"),
    "rleaky, V of each": (lambda: snn.RLeaky(0.8, V=PER_NEURON - 0.5, all_to_all=False), "soft-late"),
    "rsynaptic": (lambda: snn.RSynaptic(0.5, 0.8, V=-0.4, all_to_all=False), "soft-late"),
    "rsynaptic, zero": (
        lambda: snn.RSynaptic(0.5, 0.8, V=0.4, all_to_all=False, reset_mechanism="zero"),
        "hard-late",
    ),
}


class Alternating(nn.Module):
    """Layers and neurons in turn, in a loop over time."""

    def __init__(self, layers, neurons):
        super().__init__()
        self.layers, self.neurons = nn.ModuleList(layers), nn.ModuleList(neurons)

    def forward(self, inputs):
        emitted = []
        for arriving in inputs:
            for layer, neuron in zip(self.layers, self.neurons, strict=True):
                result = neuron(layer(arriving))
                arriving = result[0] if isinstance(result, tuple) else result
            emitted.append(arriving)
        return torch.stack(emitted)


@pytest.mark.parametrize("name", NEURONS)
def test_every_option_that_has_an_exact_form_keeps_all_spikes(name):
    make, reset = NEURONS[name]
    torch.manual_seed(2)
    bias = "synaptic" not in name
    layers, neurons = [dense(INPUTS, HIDDEN, bias), dense(HIDDEN, HIDDEN, bias, 4.0)], [make(), make()]
    inputs = spikes(STEPS, SAMPLES, INPUTS)
    network, _ = from_snntorch(Alternating(layers, neurons), inputs)
    assert [lif.reset for lif in network.neurons.values()] == [reset, reset]
    ours, theirs = network.double().rasters(inputs), run_by_hand(layers, neurons, inputs)
    for raster, expected in zip(ours.values(), theirs, strict=True):
        assert np.array_equal(raster.numpy(), expected.numpy())
        assert 0.02 < expected.mean() < 0.9


def test_a_soft_reset_at_once_is_ours_as_long_as_no_membrane_exceeds_two_thresholds():
    torch.manual_seed(0)
    neurons = [snn.Leaky(0.8, reset_delay=False)]
    calm, wild = dense(INPUTS, HIDDEN, scale=1.0), dense(INPUTS, HIDDEN, scale=8.0)
    inputs = spikes(STEPS, SAMPLES, INPUTS)
    network, differences = from_snntorch(Alternating([calm], neurons), inputs)
    assert [lif.reset for lif in network.neurons.values()] == ["soft"]
    assert "reset above twice the threshold" in [difference.what for difference in differences]
    with pytest.raises(
        UserError, match=r"population layers_0: \d+ of 3600 spikes differ from snnTorch's, first in sam"
    ):
        from_snntorch(Alternating([wild], neurons), inputs)


@pytest.mark.parametrize(
    ("neuron", "text"),
    [
        (lambda: snn.Leaky(0.9, reset_mechanism="none"), "Leaky: reset_mechanism = 'none'"),
        (lambda: snn.Leaky(0.9, threshold=torch.ones(HIDDEN)), "a threshold for each neuron; divide the weights"),
        (lambda: snn.Leaky(0.9, graded_spikes_factor=2.0), "graded_spikes_factor = 2 makes spikes other than 0 and 1"),
        (lambda: snn.Leaky(0.9, state_quant=lambda state: state.round()), "state_quant = .* rounds states"),
        (lambda: snn.Leaky(0.0), "beta = 0.0: the share of the voltage"),
        (lambda: snn.Leaky(0.9, threshold=-1.0), "threshold = -1.0: must be above 0"),
        (lambda: snn.Synaptic(0.5, 0.9), "layer layers_0: its bias enters the synaptic current there"),
        (lambda: snn.RSynaptic(0.5, 0.9, linear_features=HIDDEN), "its bias enters the synaptic current there"),
        (lambda: snn.RSynaptic(0.5, 0.9, all_to_all=False, reset_delay=False), "does not reset it"),
        (lambda: snn.RLeaky(0.9, conv2d_channels=1, kernel_size=3), "through a convolution"),
        (lambda: snn.Alpha(0.9, 0.8), "layer neurons.0 is snnTorch's Alpha, .* can be imported: Lapicque, Leaky, RLe"),
    ],
)
def test_every_option_without_an_exact_form_is_refused_with_the_reason(neuron, text):
    with pytest.raises(UserError, match=text):
        from_snntorch(Alternating([dense(INPUTS, HIDDEN)], [neuron()]), spikes(5, 2, INPUTS))


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_inhibition_is_refused():
    with pytest.raises(UserError, match=r"layer neurons\.0, snnTorch's Leaky: inhibition = True lets one neuron"):
        from_snntorch(Alternating([dense(INPUTS, HIDDEN)], [snn.Leaky(0.9, inhibition=True)]), spikes(5, 2, INPUTS))


class Tutorial(nn.Module):
    """As in snnTorch's tutorials: membranes passed by hand, results in lists; the image is flattened on the way in."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = dense(64, 20), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = dense(20, 10), snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for step in range(x.size(0)):
            cur1 = self.fc1(x[step].flatten(1))
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Static(Tutorial):
    """Shows one image 25 times to itself."""

    def forward(self, x):
        return super().forward(x.expand(25, *x.shape))


class Step(nn.Module):
    """One step, with a residual connection, normed maps and states that are hidden; time is another's business."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), snn.Leaky(0.8, init_hidden=True), nn.AvgPool2d(2))
        self.conv, self.norm, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.lif = snn.Leaky(0.7, init_hidden=True)
        self.dropout, self.dense = nn.Dropout(0.5), dense(64, 10)
        self.out = snn.Synaptic(0.0, 0.9, init_hidden=True, output=True)

    def forward(self, image):
        maps = self.stem(image)
        maps = self.lif(self.norm(self.conv(maps)) + self.skip(maps))
        return self.out(self.dense(self.dropout(maps.view(maps.size(0), -1))))


def sequential():
    return nn.Sequential(
        nn.Flatten(), dense(64, 20), snn.Leaky(0.9, init_hidden=True), nn.Sequential(dense(20, 10)), last()
    )


def last():
    return snn.Leaky(0.9, init_hidden=True, output=True)


@pytest.mark.parametrize(
    ("make", "populations"),
    [
        (Tutorial, ["fc1", "fc2"]),
        (Static, ["fc1", "fc2"]),
        (Step, ["stem_0", "conv", "dense"]),
        (sequential, ["layer1", "layer3_0"]),
    ],
)
def test_modules_are_understood_however_their_forward_is_written(make, populations):
    torch.manual_seed(1)
    module = make()
    inputs = spikes(1, 3, 1, 8, 8).expand(25, 3, 1, 8, 8) if make is Static else spikes(25, 3, 1, 8, 8)
    if make is Step:
        module.stem[0].weight.data.mul_(3)
        module.norm.running_mean.fill_(-0.1)
        module.norm.running_var.fill_(0.02)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network, _ = from_snntorch(module, inputs)
    assert [stage.name for stage in network.stages] == populations
    assert all(0 < raster.float().mean() < 1 for raster in network.rasters(inputs).values())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_graded_input_reaches_the_module_as_shares_of_one():
    torch.manual_seed(1)
    network, _ = from_snntorch(
        Tutorial(), torch.randint(0, 16, (25, 3, 1, 8, 8), generator=torch.Generator().manual_seed(0)), payload_bits=4
    )
    assert network.payload_bits == 4


def test_a_last_layer_without_neurons_is_read_as_current():
    module = nn.Sequential(dense(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True), dense(HIDDEN, 3))
    network, _ = from_snntorch(module, spikes(20, 2, INPUTS))
    assert [stage.spiking for stage in network.stages] == [True, False]


def test_an_imported_network_goes_on_to_integers():
    torch.manual_seed(1)
    inputs = spikes(25, 6, 1, 8, 8)
    network, _ = from_snntorch(Tutorial(), inputs)
    integers, _ = quantize(fold(network), (1, 8, 8), 1)
    assert [population.reset for population in integers.populations] == ["soft-late", "soft-late"]
    recording = reference.run(integers, inputs.numpy())
    assert (recording.spikes["fc1"] != network.rasters(inputs)["fc1"].numpy()).mean() < 0.03
    assert engine.run(integers, inputs.numpy()).hash == recording.hash


def test_differences_are_data_and_a_table():
    module = nn.Sequential(dense(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True, learn_beta=True))
    _, differences = from_snntorch(module, spikes(20, 2, INPUTS))
    assert [(row.population, row.what, row.theirs, row.ours) for row in differences] == [
        ("layer0", "reset", "subtract, a step late", "soft-late"),
        ("layer0", "beta", "learned", "a constant"),
    ]
    text = table([Difference("fc1", "reset", "zero", "hard", "none")]).splitlines()
    assert text[0] == "| population | what | theirs | ours | consequence |"
    assert text[2] == "| fc1 | reset | zero | hard | none |"


def test_a_population_that_never_fires_is_told():
    _, differences = from_snntorch(
        nn.Sequential(dense(INPUTS, HIDDEN, scale=0.01), snn.Leaky(0.5, init_hidden=True)), spikes(20, 2, INPUTS)
    )
    assert "on silence alone" in differences[-1].consequence


class Wrong(nn.Module):
    """One population, and a mistake that `forward` makes."""

    def __init__(self, mistake):
        super().__init__()
        self.fc, self.lif, self.mistake = dense(INPUTS, HIDDEN), snn.Leaky(0.9), mistake
        self.back = dense(HIDDEN, HIDDEN)

    def forward(self, x):
        mem, spk, emitted = self.lif.reset_mem(), torch.zeros(x.size(1), HIDDEN), []
        for step in range(x.size(0)):
            cur = self.fc(x[step])
            match self.mistake:
                case "function":
                    cur = torch.sigmoid(cur)
                case "earlier":
                    cur = cur + self.back(spk) if step else cur + self.back(x[step][:, :HIDDEN])
                case "state":
                    mem = mem * 0.5 if step else mem
                case "twice":
                    cur = self.fc(x[step]) + cur
                case "input":
                    cur = self.fc(x[step] * 2)
            spk, mem = self.lif(cur, mem)
            emitted.append(spk)
        return torch.stack(emitted)


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("function", "layer lif is applied to what 'sigmoid' computes"),
        ("earlier", "layer back (does not read the input|reads at step 1 what lif yields at step 0)"),
        ("state", r"population fc: .* spikes differ from snnTorch's, first in sample 0 at step \d+, neuron \(\d,\), "),
        ("twice", r"Wrong was shown all 20 steps at once \(at its call 1, layer fc does not read the input"),
        ("input", "layer fc does not read the input of that step"),
    ],
)
def test_a_module_that_is_no_network_of_ours_is_refused_by_what_it_does(mistake, text):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=text):
        from_snntorch(Wrong(mistake), spikes(20, 2, INPUTS))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (spikes(1, 2, INPUTS), "of at least 2 steps"),
        (torch.full((4, 2, INPUTS), 0.5), "inputs hold 0.5; they are whole numbers from 0 to 1 at 1 payload bits"),
        (torch.full((4, 2, INPUTS), 2), "inputs hold 2"),
    ],
)
def test_inputs_that_could_prove_nothing_are_refused(inputs, text):
    with pytest.raises(UserError, match=text):
        from_snntorch(Wrong(""), inputs)


def test_a_module_of_torch_alone_is_refused():
    with pytest.raises(UserError, match="Sequential has no neurons of snnTorch"):
        from_snntorch(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), spikes(4, 2, 3))


def test_recurrent_neurons_without_a_dense_layer_in_front_are_refused():
    module = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.BatchNorm1d(HIDDEN), snn.RLeaky(0.9, V=0.5, all_to_all=False))
    module[2].init_hidden = True
    with pytest.raises(UserError, match="layer 2 is recurrent, which needs one Linear directly in front of it"):
        from_snntorch(module, spikes(4, 2, INPUTS))
