"""Every surrogate shape has peak 1 / width, area 1, and is even."""

import pytest
import torch
from scipy.integrate import quad

from base.errors import UserError
from train.surrogates import SURROGATES, Backward, surrogate

SHAPES = sorted(SURROGATES)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_peak_is_one_over_width_and_area_is_one(name, width):
    def h(x):
        return surrogate(name)(torch.tensor(x, dtype=torch.float64), width).item()

    assert h(0.0) == pytest.approx(1 / width)
    # Apart where the shapes have corners; beyond, heavy tails need the integral to infinity.
    area = 2 * sum(quad(h, a, b)[0] for a, b in ((0, width / 2), (width / 2, width), (width, float("inf"))))
    assert area == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_even_and_falls_away_from_the_threshold(name):
    x = torch.linspace(0, 5, 200, dtype=torch.float64)
    h = surrogate(name)(x, 0.8)
    assert torch.equal(h, surrogate(name)(-x, 0.8))
    assert (h.diff() <= 0).all()


@pytest.mark.parametrize("name", SHAPES)
def test_the_argument_is_left_as_it_was(name):
    x = torch.linspace(-2, 2, 9)
    surrogate(name)(x, 1.0)
    assert torch.equal(x, torch.linspace(-2, 2, 9))


def test_sigmoid_is_the_derivative_of_the_sigmoid():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.sigmoid(4 * x / 1.7).sum(), x)
    torch.testing.assert_close(surrogate("sigmoid")(x.detach(), 1.7), slope)


def test_slayer_is_the_exponential_of_its_paper():
    x, c, r = torch.linspace(-3, 3, 50, dtype=torch.float64), 0.3, 0.7
    torch.testing.assert_close(c * surrogate("slayer")(x, 2 * r), c / (2 * r) * torch.exp(-x.abs() / r))


@pytest.mark.parametrize("name", SHAPES)
def test_minus_x_over_width_times_the_slope_is_how_the_primitive_changes_with_the_width(name):
    x, width, step = 0.31, 1.1, 1e-5

    def spike(width):
        """The smooth primitive that the slope is the derivative of, from the threshold on."""
        return quad(lambda at: surrogate(name)(torch.tensor(at, dtype=torch.float64), width).item(), 0, x)[0]

    by_difference = (spike(width + step) - spike(width - step)) / (2 * step)
    h = surrogate(name)(torch.tensor(x, dtype=torch.float64), width).item()
    assert -x / width * h == pytest.approx(by_difference, rel=1e-6)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_mask_leaves_its_share_of_the_slope_or_all_of_it_rescaled(rescale):
    how = Backward("arctan", 1.0, mask=0.3, rescale=rescale)
    membrane, widths = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0)), torch.ones(40)
    torch.manual_seed(1)
    masked = how.slope(membrane, 1.0, widths, how.draw(membrane.shape)).mean()
    whole = how.slope(membrane, 1.0, widths, None).mean()
    assert masked / whole == pytest.approx(1 if rescale else 0.7, rel=0.01)


def test_without_a_mask_nothing_is_drawn():
    before = torch.get_rng_state()
    assert Backward("arctan", 1.0).draw(torch.Size([2, 3])) is None
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_shape_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'triangle'; did you mean 'triangular'"):
        surrogate("triangle")
