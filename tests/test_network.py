"""A chain of torch parts becomes populations; what has no exact integer form is refused with its name."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from base.errors import UserError
from train.network import SpikingNetwork, SumPool2d
from train.neurons import LIF


def convolutional():
    torch.manual_seed(0)
    return SpikingNetwork(
        (1, 8, 8),
        [
            nn.Conv2d(1, 3, 3, padding=1),
            LIF(beta=0.5),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 5),
            LIF(threshold=0.2),
        ],
    )


def binary(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_stages_describe_the_chain():
    first, second = convolutional().stages
    assert (first.name, first.input_shape, first.output_shape) == ("conv1", (1, 8, 8), (3, 8, 8))
    assert (second.name, second.input_shape, second.output_shape) == ("dense2", (3, 8, 8), (5,))
    assert [type(part) for part in second.before] == [nn.AvgPool2d, nn.Flatten]
    assert isinstance(second.synapse, nn.Linear)
    assert second.neuron.threshold == 0.2


def test_state_dict_is_named_after_the_populations():
    assert list(convolutional().state_dict()) == ["conv1.weight", "conv1.bias", "dense2.weight", "dense2.bias"]


def test_names_given_by_the_user_are_kept():
    named = OrderedDict(hidden=nn.Linear(4, 3), a=LIF(), answer=nn.Linear(3, 2), b=LIF())
    network = SpikingNetwork((4,), named)
    assert [stage.name for stage in network.stages] == ["hidden", "answer"]
    assert list(network.rasters(binary(2, 1, 4))) == ["hidden", "answer"]


@pytest.mark.smoke
def test_network_equals_its_equations_written_step_by_step():
    network = convolutional()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.6, 0.8)
    spikes = binary(6, 2, 1, 8, 8)
    conv, dense = network.stages[0].synapse, network.stages[1].synapse
    v1, v2, hidden, output = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5), [], []
    with torch.no_grad():
        for step in spikes.float():
            v1 = 0.5 * v1 + nn.functional.conv2d(step, conv.weight, padding=1) + conv.bias[:, None, None]
            hidden.append(v1 > 1.0)
            v1 = v1 * ~hidden[-1]
            pooled = nn.functional.avg_pool2d(hidden[-1].float(), 2).flatten(1)
            v2 = 0.75 * v2 + pooled @ dense.weight.T + dense.bias
            output.append(v2 > 0.2)
            v2 = v2 * ~output[-1]
    rasters = network.rasters(spikes)
    assert rasters["conv1"].dtype == torch.uint8
    assert torch.equal(rasters["conv1"], torch.stack(hidden).to(torch.uint8))
    assert torch.equal(rasters["dense2"], torch.stack(output).to(torch.uint8))
    assert torch.equal(network(spikes), torch.stack(output).float())
    assert 0 < rasters["dense2"].float().mean() < 1


def test_levels_are_divided_by_the_largest_level():
    dense = nn.Linear(1, 1, bias=False)
    nn.init.constant_(dense.weight, 1.0)
    levels = torch.tensor([7, 8, 15], dtype=torch.uint8).view(1, 3, 1)
    network = SpikingNetwork((1,), [dense, LIF(threshold=0.5)], payload_bits=4)
    assert network(levels).flatten().tolist() == [0, 1, 1]


def test_sum_pooling_is_average_pooling_times_the_window():
    maps = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(SumPool2d(3)(maps), nn.AvgPool2d(3)(maps) * 9)


def test_padding_given_as_a_word_becomes_a_number():
    layers = [nn.Conv2d(1, 2, (3, 5), padding="same"), LIF(), nn.Conv2d(2, 2, 3, padding="valid"), LIF()]
    first, second = SpikingNetwork((1, 8, 8), layers).stages
    assert first.synapse.padding == (1, 2)
    assert second.synapse.padding == (0, 0)
    assert (first.output_shape, second.output_shape) == ((2, 8, 8), (2, 6, 6))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 4, 3, stride=2),
        nn.Conv2d(2, 4, (2, 5), padding=(1, 0), dilation=(3, 1)),
        nn.Conv2d(2, 6, 4, stride=3, padding=2, groups=2),
    ],
)
def test_shape_of_a_convolution_is_the_shape_of_its_spikes(conv):
    network = SpikingNetwork((2, 9, 11), [conv, LIF()])
    assert network(binary(2, 3, 2, 9, 11)).shape == (2, 3, *network.stages[0].output_shape)


def test_every_weight_and_bias_receives_a_gradient():
    network = convolutional()
    network(binary(6, 4, 1, 8, 8)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("shape", "layers", "text"),
    [
        ((1, 8, 8), [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), LIF()], "conv1 is followed by pool1"),
        (
            (1, 8, 8),
            [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2), LIF()],
            "MaxPool2d .*no exact integer form; allowed",
        ),
        ((1, 8, 8), [nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 2), LIF()], "3 x 3 over maps of 8 x 8"),
        (
            (1, 8, 8),
            [nn.AvgPool2d(2, stride=1), nn.Flatten(), nn.Linear(49, 2), LIF()],
            "AvgPool2d.*no exact integer form",
        ),
        ((1, 8, 8), [nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(25, 2), LIF()], "no exact integer form"),
        ((1, 8, 8), [nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(16, 2), LIF()], "no exact integer form"),
        ((1, 8, 8), [nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), LIF()], "padding_mode 'circular'"),
        ((1, 8, 8), [nn.Conv2d(1, 2, 4, padding="same"), LIF()], "'same' is lopsided"),
        ((1, 8, 8), [nn.Conv2d(1, 2, 9), LIF()], "kernel of 9 x 9 does not fit into maps of 8 x 8"),
        ((1, 8, 8), [nn.Conv2d(3, 2, 3), LIF()], "takes 3 channels but receives 1"),
        ((8,), [nn.Conv2d(1, 2, 3), LIF()], r"receives shape \[8\]"),
        ((1, 8, 8), [nn.Linear(8, 2), LIF()], "put nn.Flatten"),
        ((1, 8, 8), [nn.Flatten(), nn.Linear(63, 2), LIF()], "takes 63 inputs but receives 64"),
        ((1, 8, 8), [nn.Flatten(2), nn.Linear(64, 2), LIF()], "flattens only some axes"),
        ((4,), [nn.Linear(4, 2)], "dense1 is followed by nothing"),
        ((4,), [nn.Linear(4, 2), LIF(), LIF()], "LIF cannot stand here"),
        ((1, 4, 4), [nn.Conv2d(1, 1, 3), LIF(), nn.Flatten()], "ends with flatten2"),
        ((4,), [], "no layers"),
        ((4,), OrderedDict(forward=nn.Linear(4, 2), b=LIF()), "'forward' cannot be used"),
    ],
)
def test_what_has_no_integer_form_is_refused_by_name(shape, layers, text):
    with pytest.raises(UserError, match=text):
        SpikingNetwork(shape, layers)


def test_input_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"\(2, 1, 64\) does not fit .* \[T, B, 1, 8, 8\]"):
        convolutional()(binary(2, 1, 64))
