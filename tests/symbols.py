"""Runs the project's own integer code on symbols: what it computes for all values at once, as terms of an SMT solver.

Symbols are whole numbers without a width, which shifts and masks divide as two's complement does; nothing here comes
near the end of 64 bits. Of a state's decay only the product with its kept share is looked at, as any number of 36 bits,
exactly divided by 4096 where a form works in floats; that float64 holds it exactly is shown elsewhere. Code that
branches runs once for every way that it can take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import z3


class Paths:
    """Every way through code that branches on symbols: `explore` runs it once for each, and tells under which condition
    it goes there. `possible`: whether a list of conditions can hold together."""

    def __init__(self, possible: Callable[[list[Any]], bool]) -> None:
        self._possible = possible

    def explore(self, run: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
        global _current
        waiting: list[list[bool]] = [[]]
        while waiting:
            self._taken, self._planned, self._conditions, self._waiting = [], waiting.pop(), [], waiting
            _current = self
            result = run()
            yield z3.And(self._conditions) if self._conditions else z3.BoolVal(True), result

    def choose(self, condition: Any) -> bool:
        place = len(self._taken)
        if place < len(self._planned):
            way = self._planned[place]
        else:
            way = self._possible([*self._conditions, condition])
            if way and self._possible([*self._conditions, z3.Not(condition)]):
                self._waiting.append([*self._taken, False])
        self._taken.append(way)
        self._conditions.append(condition if way else z3.Not(condition))
        return way


_current: Paths


class Truth:
    """A comparison of symbols."""

    def __init__(self, term: Any) -> None:
        self.term = term

    def __bool__(self) -> bool:
        return _current.choose(self.term)


class Symbol:
    """A whole number that stands for all of a range."""

    def __init__(self, term: Any) -> None:
        self.term = term

    def __add__(self, other: Any) -> Symbol:
        return Symbol(self.term + term(other))

    def __sub__(self, other: Any) -> Symbol:
        return Symbol(self.term - term(other))

    def __rsub__(self, other: Any) -> Symbol:
        return Symbol(term(other) - self.term)

    def __mul__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Share) else Symbol(self.term * term(other))

    def __truediv__(self, other: Any) -> Symbol:
        return self  # of membranes in other units, which nothing here looks at

    def __lshift__(self, bits: int) -> Symbol:
        return Symbol(self.term * (1 << bits))

    def __rshift__(self, bits: int) -> Symbol:
        return Symbol(self.term / (1 << bits))  # z3 divides towards minus infinity

    def __and__(self, mask: int) -> Symbol:
        assert mask & (mask + 1) == 0, "only the lowest bits"
        return Symbol(self.term % (mask + 1))

    def __gt__(self, other: Any) -> Truth:
        return Truth(self.term > term(other))

    def __lt__(self, other: Any) -> Truth:
        return Truth(self.term < term(other))

    def __ge__(self, other: Any) -> Truth:
        return Truth(self.term >= term(other))

    def __le__(self, other: Any) -> Truth:
        return Truth(self.term <= term(other))

    __radd__, __rmul__ = __add__, __mul__


def term(value: Any) -> Any:
    if isinstance(value, Symbol):
        return value.term
    if isinstance(value, Truth):
        return z3.If(value.term, z3.IntVal(1), z3.IntVal(0))
    assert value == int(value)
    return z3.IntVal(int(value))


class Share:
    """What a state keeps per step, in 4096ths or, `real`, as a real number; `of` is the state, `product` what it makes
    of that in 4096ths."""

    def __init__(self, of: Symbol, product: Symbol, real: bool = False) -> None:
        self.of, self.product, self.real = of, product, real

    def __mul__(self, state: Symbol) -> Any:
        assert state is self.of, "a decay of something else than its state"
        return Quotient(self.product) if self.real else self.product

    def __truediv__(self, unity: Any) -> Share:
        assert unity == 4096
        return Share(self.of, self.product, real=True)

    __rmul__ = __mul__


class Lost:
    """A decay: taken from 4096, with or without the offset that belongs to it, it leaves a share."""

    def __init__(self, share: Share, offset: int) -> None:
        self.share, self.offset = share, offset

    def __add__(self, offset: int) -> Lost:
        return Lost(self.share, self.offset - offset)

    def __rsub__(self, unity: int) -> Share:
        assert unity == 4096 - self.offset
        return self.share


class Quotient:
    """product / 4096, a real number."""

    def __init__(self, product: Symbol) -> None:
        self.product = product

    def truncated(self) -> Symbol:
        """As a cast to integers does."""
        size = self.product.term
        return Symbol(z3.If(size < 0, -(-size / 4096), size / 4096))
