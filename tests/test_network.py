"""A chain of torch parts becomes populations; what has no exact integer form is refused with its name."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from base.errors import UserError
from train.architecture import build
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout, Recurrent, Residual, ScaledWS, Skip, SumPool2d, TdBN, batch_affine, running_affine


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


def test_input_as_a_bias_goes_past_the_synaptic_current():
    torch.manual_seed(2)
    dense, lif = nn.Linear(5, 4), LIF(beta=0.75, alpha=0.5)
    network = SpikingNetwork((5,), [dense, lif], payload_bits=2, input_is_bias=True)
    with torch.no_grad():
        dense.weight.uniform_(-0.5, 1)
    values = torch.tensor([[0, 1, 2, 3, 3], [3, 0, 1, 0, 2]], dtype=torch.uint8)
    spikes = network(values.expand(9, 2, 5))
    loaded, v = F.linear(values / 3, dense.weight, dense.bias), torch.zeros(2, 4)
    for step in range(9):
        v = 0.75 * v + loaded
        fires = v > 1
        assert torch.equal(spikes[step], fires.float())
        v = v * ~fires
    assert 0 < spikes.mean() < 1


def test_without_synaptic_current_a_bias_is_what_graded_spikes_are():
    inputs = torch.randint(0, 16, (1, 6, 1, 8, 8), generator=torch.Generator().manual_seed(1)).expand(8, -1, -1, -1, -1)
    networks = [
        build("6C3-BN-AP2-20-5", (1, 8, 8), payload_bits=4, input_is_bias=biased, seed=0).double()
        for biased in (False, True)
    ]
    graded, biased = (network(inputs) for network in networks)
    assert torch.equal(graded, biased)
    for output in (graded, biased):
        output.mean(0).square().sum().backward()
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2), LIF()], "layer pool1 takes the maximum of the input"),
        ([nn.Flatten(), Recurrent(16, 2), LIF()], "layer recurrent1 is recurrent"),
        ([nn.Flatten(), nn.Linear(16, 2), Readout()], "layer dense1 is a current readout"),
        (
            [Residual([nn.Conv2d(1, 1, 1), LIF(), nn.Conv2d(1, 1, 1)], [Skip(1)]), LIF()],
            "layers residual1_conv1 and residual1 both read the input",
        ),
        ([Residual([nn.Conv2d(1, 1, 1)], [Skip(1)]), LIF()], "layer residual1 adds two currents"),
    ],
)
def test_input_as_a_bias_of_anything_but_one_layer_is_refused(parts, says):
    with pytest.raises(UserError, match=says):
        SpikingNetwork((1, 4, 4), parts, input_is_bias=True)


def test_input_that_changes_is_no_bias():
    network = SpikingNetwork((3,), [nn.Linear(3, 2), LIF()], input_is_bias=True)
    inputs = torch.ones(4, 1, 3)
    network(inputs)
    inputs[2, 0, 1] = 0
    with pytest.raises(UserError, match="changes over time cannot be a bias"):
        network(inputs)


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
        ((1, 8, 8), [nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), LIF()], "conv1 is followed by pool1"),
        (
            (1, 8, 8),
            [nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(16, 2), LIF()],
            "LPPool2d .*no exact integer form; allowed",
        ),
        ((1, 8, 8), [nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(16, 2), LIF()], "has no integer form"),
        ((1, 8, 8), [nn.AvgPool2d(2), nn.MaxPool2d(2)], "pool1_ takes the maximum of what is no spike"),
        ((1, 8, 8), [nn.MaxPool2d(2)], "ends with pool1"),
        ((4,), [nn.BatchNorm1d(4), nn.Linear(4, 2), LIF()], "norm1 norms no current"),
        ((4,), [nn.Linear(4, 2), nn.BatchNorm1d(3), LIF()], "norms 3 channels but receives 2"),
        ((4,), [nn.Linear(4, 2), nn.BatchNorm2d(2), LIF()], "BatchNorm2d does not fit"),
        ((4,), [nn.Linear(4, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2), LIF()], "for the second time"),
        ((4,), [nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False), LIF()], "no running statistics"),
        ((4,), [nn.Linear(4, 2), ScaledWS(3), LIF()], "norms 3 channels but receives 2"),
        ((4,), [Skip(4), ScaledWS(4), LIF()], "norm1 standardises a single weight per channel"),
        ((4,), [nn.Linear(4, 2), nn.Dropout(0.5), LIF()], "dense1 is followed by dropout1"),
        ((4,), [nn.Linear(4, 2), Readout(), nn.Linear(2, 2), LIF()], "a readout is the last layer"),
        ((4,), [Recurrent(4, 2), Readout()], "recurrent1 feeds spikes back"),
        ((4,), [Residual([nn.Linear(4, 2)], [Skip(4)]), LIF()], r"branch of shape \[2\] and a shortcut of shape \[4\]"),
        ((4,), [Residual([nn.Linear(4, 4), LIF()], [Skip(4)]), LIF()], "its branch yields no current"),
        ((4,), [Residual([nn.Linear(4, 4)], [Skip(3)]), LIF()], "residual1_skip1 skips 3 channels but receives 4"),
        ((4,), [Residual([nn.Linear(4, 4), nn.GRU(4, 4)], [Skip(4)]), LIF()], "residual1_dense1 is followed by"),
        ((4,), [nn.Linear(4, 2), LIF(beta=torch.full((3,), 0.5))], r"beta of shape \[3\] for neurons of shape \[2\]"),
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


def test_a_norm_sees_batch_time_and_space_together():
    torch.manual_seed(0)
    network = SpikingNetwork((1, 6, 6), [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), LIF()])
    spikes = binary(5, 4, 1, 6, 6)
    conv, norm, fresh = network.conv1, network.norm1, nn.BatchNorm2d(3)
    maps = nn.functional.conv2d(spikes.float().flatten(0, 1), conv.weight)
    current, bias = network.stages[0].links[0].forward(spikes.float())
    # The convolution's own bias is added behind the norm's gain, where it stays a bias.
    expected = fresh(maps) + (conv.bias / (maps.var((0, 2, 3), correction=0) + norm.eps).sqrt()).view(3, 1, 1)
    torch.testing.assert_close((current + bias).flatten(0, 1), expected)
    torch.testing.assert_close(norm.running_var, fresh.running_var)
    torch.testing.assert_close(norm.running_mean, fresh.running_mean)
    network.eval()
    current, bias = network.stages[0].links[0].forward(spikes.float())
    torch.testing.assert_close((current + bias).flatten(0, 1), norm(maps + conv.bias.view(3, 1, 1)))


@pytest.mark.parametrize("shape", [(40, 3), (10, 3, 4, 5)])
def test_tdbn_normalises_to_alpha_times_threshold(shape):
    norm, current = TdBN(3, threshold=0.5, alpha=0.7), torch.randn(shape) * 4 + 1
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    gain, offset = batch_affine(norm, current)
    over = (1, 3, *[1] * (len(shape) - 2))
    axes = [0, *range(2, len(shape))]
    centred = current - current.mean(axes, keepdim=True)
    unit = centred / (current.var(axes, correction=0, keepdim=True) + norm.eps).sqrt()
    expected = norm.weight.view(over) * 0.7 * 0.5 * unit + norm.bias.view(over)
    torch.testing.assert_close(current * gain.view(over) + offset.view(over), expected)
    torch.testing.assert_close(norm(current), expected)
    norm.eval()
    gain, offset = running_affine(norm)
    torch.testing.assert_close(current * gain.view(over) + offset.view(over), norm(current))


@pytest.mark.parametrize("synapse", [nn.Linear(6, 5), nn.Conv2d(4, 6, 3, groups=2)])
def test_standardised_weights_have_no_mean_and_as_much_variance_as_their_channel_gains(synapse):
    norm, weight = ScaledWS(len(synapse.weight)), synapse.weight.double()
    with torch.no_grad():
        norm.gain.uniform_(0.5, 2)
    rows = norm(weight).flatten(1)
    fan_in = rows.shape[1]
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)).double())
    spread = weight.flatten(1).var(1) * fan_in
    torch.testing.assert_close(rows.var(1) * fan_in, norm.gain.double() ** 2 * spread / (spread + 1e-4))


def test_standardised_weights_are_scaled_where_they_read_spikes_and_not_at_the_input():
    layers = [nn.Linear(5, 4), ScaledWS(4), LIF(), nn.Linear(4, 3), ScaledWS(3), LIF()]
    network = SpikingNetwork((5,), layers)
    spikes, hidden = binary(6, 2, 5).float(), binary(6, 2, 4).float()
    for stage, arriving, scale in zip(network.stages, (spikes, hidden), (1, 2.74), strict=True):
        (link,) = stage.links
        current, bias = link.forward(arriving)
        weight = link.norm(link.synapse.weight) * scale
        torch.testing.assert_close(current + bias, nn.functional.linear(arriving, weight, link.synapse.bias))
    network(binary(6, 2, 5)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_dropout_takes_the_same_spikes_at_every_step_and_none_in_evaluation():
    torch.manual_seed(0)
    network = SpikingNetwork((50,), [nn.Dropout(0.4), Skip(50, 1.0), LIF(threshold=0.5)])
    shown = network(torch.ones(6, 8, 50, dtype=torch.uint8))
    assert torch.equal(shown, shown[:1].expand_as(shown))
    assert 0.5 < shown.mean() < 0.7
    assert not torch.equal(shown[:, 0], shown[:, 1])
    assert network.eval()(torch.ones(6, 8, 50, dtype=torch.uint8)).all()


def test_max_pooling_is_a_population_that_spikes_when_any_of_its_window_does():
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 2, 3, padding=1), LIF(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3), LIF()]
    rasters = SpikingNetwork((1, 8, 8), parts).rasters(binary(6, 3, 1, 8, 8))
    windows = rasters["conv1"].unfold(3, 2, 2).unfold(4, 2, 2).flatten(-2)
    assert torch.equal(rasters["pool2"], windows.amax(-1))
    assert list(rasters) == ["conv1", "pool2", "dense3"]


def test_max_pooling_of_graded_input_is_refused():
    parts = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2), LIF()]
    with pytest.raises(UserError, match="pool1 takes the maximum of 4-bit values"):
        SpikingNetwork((1, 8, 8), parts, payload_bits=4)


def test_a_recurrent_population_hears_itself_one_step_later():
    torch.manual_seed(0)
    network = SpikingNetwork((4,), [Recurrent(4, 3), LIF(beta=0.5)])
    with torch.no_grad():
        network.recurrent1.weight.uniform_(-0.5, 1.5)
        network.recurrent1.recurrent.uniform_(-1, 1)
    part, spikes, v, last, expected = network.recurrent1, binary(9, 2, 4), torch.zeros(2, 3), torch.zeros(2, 3), []
    with torch.no_grad():
        for step in spikes.float():
            v = 0.5 * v + (step @ part.weight.T + last @ part.recurrent.T) + part.bias
            last = (v > 1).float()
            v = v * (1 - last)
            expected.append(last)
    assert torch.equal(network(spikes), torch.stack(expected))
    network(spikes).sum().backward()
    assert part.recurrent.grad.abs().sum() > 0


def test_a_residual_block_adds_currents_into_one_population():
    torch.manual_seed(0)
    block = Residual([nn.Linear(4, 5), LIF(), nn.Linear(5, 4)], shortcut=[Skip(4, 0.7)])
    network = SpikingNetwork((4,), [block, LIF(beta=0.5), nn.Linear(4, 2), Readout()])
    assert [stage.name for stage in network.stages] == ["residual1_dense1", "residual1", "dense2"]
    spikes, (first, _, last) = binary(7, 3, 4), block.branch.values()
    inner = network.rasters(spikes)["residual1_dense1"].float()
    current = inner @ last.weight.T + spikes.float() * 0.7
    assert torch.equal(network.rasters(spikes)["residual1"].float(), LIF(beta=0.5)(current, last.bias))
    output = network(spikes)
    torch.testing.assert_close(output, network.dense2(network.rasters(spikes)["residual1"].float()))
    output.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (first.weight, last.weight, block.shortcut.skip1.weight))


def test_sequentials_are_read_as_the_parts_they_hold():
    parts = [nn.Linear(4, 3), LIF(), nn.Linear(3, 2), LIF()]
    nested = SpikingNetwork((4,), nn.Sequential(nn.Sequential(*parts[:2]), *parts[2:]))
    assert list(nested.state_dict()) == list(SpikingNetwork((4,), parts).state_dict())


def test_an_input_that_never_changes_fires_the_spikes_of_the_same_input_written_out_at_every_step():
    network = build("8C3-BN-AP2-20-5", (1, 8, 8), neuron=LIF, payload_bits=4, seed=0)
    image = torch.randint(0, 16, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    shown = image.expand(5, *image.shape)
    gradients = []
    for spikes in (shown, shown.contiguous()):
        network.zero_grad()
        out = network(spikes)
        out.mean().backward()
        gradients.append((out.detach(), network.stages[0].synapse.weight.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])
