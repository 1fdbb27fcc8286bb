"""The integer step has one meaning: the reference, the engine, aware training and the ONNX graph compute the same for
all states, activations, biases, thresholds and decays. The code itself is run on symbols, and z3 finds no difference.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import z3
from numba import njit
from symbols import Lost, Paths, Quotient, Share, Symbol, Truth, term

from deploy.onnx import integer
from quantize import arithmetic, aware, engine
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from train import kernels

STATE = 1 << 23
RANGES = {  # of everything that a step reads
    "u": (1 - STATE, STATE),
    "v": (1 - STATE, STATE - 1),
    "kept u": (-STATE * 4096, STATE * 4096),
    "kept v": (-STATE * 4096, STATE * 4096),
    "activation": (-(1 << 24), 1 << 24),
    "bias": (-(1 << 19), (1 << 19) - 1),
    "threshold": (0, (1 << 17) - 1),
}


def symbol(name: str) -> Symbol:
    return Symbol(z3.Int(name))


class Step:
    """What one step reads, as symbols, and what is assumed of them.

    Where a form truncates a product in a known way, that is replaced by what the state keeps.
    """

    def __init__(self) -> None:
        self.u, self.v, self.activation, self.bias, self.mantissa = map(
            symbol, ("u", "v", "activation", "bias", "threshold")
        )
        self.keep_u, self.keep_v = Share(self.u, symbol("kept u")), Share(self.v, symbol("kept v"))
        self.assumed = [z3.And(z3.Int(name) >= low, z3.Int(name) <= high) for name, (low, high) in RANGES.items()]
        self.rewritten = [
            (truncated(share.product).term, z3.Int(f"truncated {share.product.term}"))
            for share in (self.keep_u, self.keep_v)
            for truncated in TRUNCATIONS
        ]
        self.assumed += [z3.And(kept >= -STATE, kept <= STATE) for _, kept in self.rewritten]
        self.narrowed: list[Any] = []

    def narrow(self, value: Any) -> Any:
        """The value cast to int32, which it must fit."""
        if isinstance(value, Symbol):
            self.narrowed.append(z3.substitute(fits_int32(value), *self.rewritten))
        return value

    def possible(self, conditions: list[Any]) -> bool:
        solver = z3.SolverFor("QF_LIA")
        solver.add(*self.assumed, *(z3.substitute(condition, *self.rewritten) for condition in conditions))
        answer = solver.check()
        assert answer != z3.unknown
        return bool(answer == z3.sat)

    def holds(self, condition: Any, claim: Any) -> bool:
        return not self.possible([condition, z3.Not(claim)])


def fits_int32(value: Symbol) -> Any:
    return z3.And(value.term >= -(1 << 31), value.term < 1 << 31)


Outcome = tuple[Any, Any, Any]  # u, v, spikes as terms


def where(condition: Truth, yes: Any, no: Any) -> Symbol:
    return Symbol(z3.If(condition.term, term(yes), term(no)))


class Sign:
    def __init__(self, of: Symbol) -> None:
        self.of = of

    def __mul__(self, size: Symbol) -> Symbol:
        return where(self.of > 0, size, where(self.of < 0, 0 - size, 0))


def _same(value: Any, *_: Any) -> Any:
    return value


def _int32(value: Any) -> Any:
    return value.truncated() if isinstance(value, Quotient) else value


NUMPY = SimpleNamespace(
    int64=_same,
    float64=_same,
    float32=_same,
    int32=_int32,
    asarray=_same,
    sign=Sign,
    abs=lambda x: where(x < 0, 0 - x, x),
    where=where,
    clip=lambda x, low, high: where(x < low, low, where(x > high, high, x)),
    maximum=lambda x, low: where(x < low, low, x),
    greater=lambda a, b: a > b,
)


def cells(*values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, object)
    array.reshape(-1)[:] = values
    return array


def reference(step: Step, reset: str, floor: bool) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "np", NUMPY)
        u, v, spikes = arithmetic.lif_step(
            step.u,
            step.v,
            step.activation,
            decay_u=Lost(step.keep_u, 0) + -arithmetic.CURRENT_DECAY_OFFSET,
            decay_v=Lost(step.keep_v, 0),
            threshold_mant=step.mantissa,
            bias=step.bias,
            reset=reset,
            floor=floor,
            rules=arithmetic.Rules(fires=NUMPY.greater),
        )
    return term(u), term(v), term(spikes)


def of_engine(step: Step, reset: str, floor: bool) -> Outcome:
    one, nobody = (1, 1, 1), np.empty((1, 0, 1), object)
    u, v, spikes = cells(step.u, shape=(1, 1)), cells(step.v, shape=(1, 1)), cells(0, shape=one)
    step.narrowed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "np", SimpleNamespace(int32=step.narrow))
        patch.setattr(engine, "decayed", lambda state, share: biased_shift(share * state))
        engine._scan.py_func(
            cells(step.activation, shape=one),
            0,
            1,
            0,
            u,
            v,
            *(cells(value, shape=(1,)) for value in (step.keep_u, step.keep_v, step.mantissa << 6)),
            cells(step.bias, shape=(1, 1)),
            reset.startswith("hard"),
            reset.endswith("late"),
            floor,
            spikes,
            nobody,
            nobody,
        )
    return term(u[0, 0]), term(v[0, 0]), term(spikes[0, 0, 0])


class Part:
    """A number in units that are so many times as large."""

    def __init__(self, number: Any, unit: int) -> None:
        self.number, self.unit = number, unit

    def __rmul__(self, unit: int) -> Any:
        assert unit == self.unit
        return self.number


def of_aware_training(step: Step, reset: str, floor: bool) -> Outcome:
    """Of a whole activation: one that is not is rounded down before anything else."""
    integers = {**vars(NUMPY), "int32": step.narrow}
    memory = SimpleNamespace(**integers, empty=lambda size, _: np.empty(size, object), floor=_same)
    step.narrowed.clear()
    state, spikes = cells(step.u, step.v, shape=(2, 1)), cells(0, shape=(1, 1))
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in {
            "np": memory,
            "fill": kernels.fill.py_func,
            "_fill_units": aware._fill_units.py_func,
            "decayed": lambda state, share: biased_shift(share * state),
            "TILE": 1,
        }.items():
            patch.setattr(aware, name, stand_in)
        aware._kernel.py_func(
            cells(step.mantissa << 6, shape=(1,)),
            *(0, 1, 0, 1),
            cells(step.activation, shape=(1, 1)),
            cells(Part(step.bias, 64), shape=(1,)),
            spikes,
            state,
            *(cells(Part(share, 4096), shape=(1,)) for share in (step.keep_u, step.keep_v)),
            1.0,
            reset.startswith("hard"),
            floor,
            reset.endswith("late"),
        )
    return term(state[0, 0]), term(state[1, 0]), term(spikes[0, 0])


OPERATORS = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Cast": lambda a: a.truncated() if isinstance(a, Quotient) else a,
    "Greater": lambda a, b: a > b,
    "LessOrEqual": lambda a, b: a <= b,
    "Where": where,
    "Clip": NUMPY.clip,
}


def of_onnx(step: Step, reset: str, floor: bool) -> Outcome:
    """The nodes of a network's exported graph behind the sum of its connection. No value of theirs leaves int32."""
    lif = Population("a", (1,), 7, 8, 9, 10, reset=reset, floor=floor)
    made = integer.build(IntegerNetwork((1,), (lif,), (Connection(INPUT, "a", np.array([[2]])),), "a"))
    values: dict[str, Any] = {
        "a/u": step.u,
        "a/v": step.v,
        "connection/0/drive": step.activation << 6,
        "population/a/decay_u": Lost(step.keep_u, 1),
        "population/a/decay_v": Lost(step.keep_v, 0),
        "population/a/threshold_mant": step.mantissa,
        "a/bias": step.bias,
    }
    nodes = {node.output[0]: node for node in made.nodes}

    def value(name: str) -> Any:
        if name not in values and name.startswith("constant/"):
            values[name] = int(float(name.split("/")[2]))
        elif name not in values:
            node = nodes[name]
            values[name] = OPERATORS[node.op_type](*map(value, node.input))
            if isinstance(values[name], Symbol):
                assert step.holds(z3.BoolVal(True), fits_int32(values[name])), f"{name} leaves int32"
        return values[name]

    return tuple(term(value(f"a/{what}")) for what in ("u/next", "v/next", "spikes"))  # type: ignore[return-value]


def biased_shift(product: Symbol) -> Symbol:
    return (product + ((product >> 63) & 4095)) >> 12


def sign_apart(product: Symbol) -> Symbol:
    return Sign(product) * (NUMPY.abs(product) >> 12)


def cast(product: Symbol) -> Symbol:
    return Quotient(product).truncated()


TRUNCATIONS = (sign_apart, biased_shift, cast)


@pytest.mark.parametrize("form", [of_engine, of_aware_training, of_onnx])
@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("reset", arithmetic.RESETS)
def test_every_form_of_the_step_is_the_same_for_all_states(form: Any, reset: str, floor: bool) -> None:
    step = Step()
    expected = reference(step, reset, floor)
    ways = 0
    for condition, found in Paths(step.possible).explore(lambda: form(step, reset, floor)):
        assert step.holds(condition, z3.And([ours == theirs for ours, theirs in zip(expected, found, strict=True)]))
        assert step.holds(condition, z3.And(step.narrowed))
        ways += 1
    assert ways == 1 if form is of_onnx else ways > 6


@pytest.mark.parametrize("truncated", TRUNCATIONS)
def test_every_way_to_truncate_is_division_towards_zero(truncated: Any) -> None:
    """For products of up to 2^40 either way: the quotient whose remainder is smaller than 4096 and has their sign."""
    product = z3.Int("product")
    rest = product - 4096 * truncated(Symbol(product)).term
    solver = z3.Solver()
    solver.add(product > -(1 << 40), product < 1 << 40)
    solver.add(z3.Not(z3.If(product >= 0, z3.And(rest >= 0, rest < 4096), z3.And(rest <= 0, rest > -4096))))
    assert solver.check() == z3.unsat


class InParts(Share):
    """A share whose products with the high bits of a state, and with its 12 lowest, are looked at by themselves."""

    def __init__(self, of: Symbol) -> None:
        self.high, self.low = symbol("high"), symbol("low")
        super().__init__(of, (self.high << 12) + self.low)
        self._products = [((of >> 12).term, self.high), ((of & 4095).term, self.low)]

    def __rmul__(self, part: Symbol) -> Symbol:
        return next(product for of, product in self._products if of.eq(part.term))


def test_engine_and_aware_training_truncate_in_32_bits() -> None:
    """A product of state and share has the sign of the state, or is 0 where the share is."""
    state, narrowed = symbol("state"), []
    share = InParts(state)

    def narrow(value: Any) -> Any:
        if isinstance(value, Symbol):
            narrowed.append(fits_int32(value))
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "np", SimpleNamespace(int32=narrow))
        found = engine.decayed.py_func(state, share)
    high, low, product = share.high.term, share.low.term, share.product.term
    solver = z3.SolverFor("QF_LIA")
    solver.add(state.term >= -STATE, state.term <= STATE)
    solver.add(high >= -2048 * 4096, high <= 2048 * 4096, low >= 0, low <= 4095 * 4096)
    solver.add(z3.Or(z3.And(high == 0, low == 0), z3.If(state.term < 0, product < 0, product >= 0)))
    solver.add(z3.Not(z3.And(found.term == cast(share.product).term, *narrowed)))
    assert solver.check() == z3.unsat
    assert len(narrowed) > 2


def test_a_step_that_fires_at_its_threshold_is_found() -> None:
    step = Step()
    with pytest.MonkeyPatch.context() as patch:
        expected = reference(step, "hard", False)
        patch.setattr(NUMPY, "greater", lambda a, b: a >= b)
        *_, spikes = reference(step, "hard", False)
    assert not step.holds(z3.BoolVal(True), spikes == expected[2])


@njit
def _differing(keep: int, least: int, most: int) -> int:
    """How many states in least..most float64 and integers decay otherwise."""
    share, found = keep / 4096, 0
    for state in range(least, most + 1):
        product = state * keep
        found += np.int32(share * np.float64(state)) != (product + ((product >> 63) & 4095)) >> 12
    return found


def test_float64_holds_every_share_and_every_product() -> None:
    """A share has at most 12 significant bits, a state 24, so their product needs 36 of 53: it is exact, and so is its
    quotient by a power of two. All shares are looked at, and for some of them all states."""
    lost = np.arange(4096)
    unused = {"threshold_mant": 0, "bias_mant": 0}
    population = Population("a", (4096,), lost, lost, **unused)
    assert np.array_equal(population.alpha * 4096, 4095 - lost)
    assert np.array_equal(population.beta * 4096, 4096 - lost)
    assert np.array_equal(population.beta.astype(np.float32), population.beta)
    for keep in (1, 2, 3, 683, 1023, 2048, 3071, 4093, 4095, 4096):
        assert _differing(keep, -STATE, STATE) == 0
    assert all(_differing(keep, STATE - 99, STATE) == 0 for keep in range(4097))
