"""Every surrogate shape has peak 1 / width, area 1, and is even."""

import pytest
import torch
from scipy.integrate import quad

from base.errors import UserError
from train.surrogates import SURROGATES, surrogate

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
    assert torch.equal(h, surrogate(name)(-x, 0.8)) or torch.allclose(h, surrogate(name)(-x, 0.8), rtol=1e-12)
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


def test_unknown_shape_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'triangle'; did you mean 'triangular'"):
        surrogate("triangle")
