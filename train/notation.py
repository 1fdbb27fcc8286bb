"""Reading an architecture in the papers' notation into tokens; `train/architecture.py` says what each one means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from base.errors import UserError

OPTIONS = {"S": "stride", "P": "padding", "D": "dilation", "G": "groups"}
START = (
    "a number of neurons ('128', 'R128'), a convolution ('16C3'), pooling ('AP2', 'SP2', 'MP2'), 'BN', 'tdBN', 'WS', "
    "dropout ('DP0.2') or a block ('[16C3-16C3]')"
)
SYNAPSES, POOLS, NORMS = ("dense", "R", "C"), ("AP", "SP", "MP"), ("BN", "tdBN", "WS")


@dataclass(frozen=True)
class Token:
    """kind: "dense", "R", "C", a pooling, a norm, "DP" or "block"; number: neurons, channels, size or share dropped;
    at: where it starts in the notation; inside: the tokens of a block."""

    kind: str
    at: int
    text: str
    number: int = 0
    share: float = 0.0
    kernel: int = 0
    options: dict[str, int] = field(default_factory=dict)
    inside: tuple[Token, ...] = ()


class Reader:
    """A place in the notation, moving right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def tokens(self) -> tuple[Token, ...]:
        """The whole notation. Raises UserError that shows the place where it cannot be read."""
        tokens = self._chain("the end")
        last = _synapse_of(tokens)
        if last.kind not in ("dense", "R"):
            self.fail("the number of classes as last layer, as in '...-10'", last.at)
        return tokens

    def _chain(self, closing: str) -> tuple[Token, ...]:
        tokens = [self._token()]
        while self.at < len(self.text) and not (closing == "']'" and self.text[self.at] == "]"):
            if not self._take("-"):
                self.fail(f"{_OPTIONS_TEXT if tokens[-1].kind == 'C' else ''}'-' or {closing}")
            tokens.append(self._token())
            if tokens[-1].kind in NORMS and tokens[-2].kind not in SYNAPSES:
                self.fail("a number of neurons or a convolution before its norm", tokens[-1].at)
        if tokens[0].kind in NORMS:
            self.fail("a number of neurons or a convolution before its norm", tokens[0].at)
        return tuple(tokens)

    def _token(self) -> Token:
        start = self.at
        if self._take("["):
            inside = self._chain("']'")
            if not self._take("]"):
                self.fail("']', the end of the block")
            last = _synapse_of(inside)
            if last.kind not in SYNAPSES:
                self.fail("a number of neurons or a convolution as last layer of a block", last.at)
            return self._made("block", start, inside=inside)
        for kind in NORMS:
            if self._take(kind):
                return self._made(kind, start)
        if self._take("DP"):
            return self._made("DP", start, share=self._share())
        for kind in POOLS:
            if self._take(kind):
                return self._made(kind, start, number=self._number(f"the size of the window, as in '{kind}2'"))
        if self._take("R"):
            return self._made("R", start, number=self._number("the number of recurrent neurons, as in 'R128'"))
        number = self._number(START)
        if not self._take("C"):
            return self._made("dense", start, number=number)
        kernel = self._number("the size of the kernel, as in '16C3'")
        options: dict[str, int] = {}
        while (letter := self.text[self.at : self.at + 1]) in OPTIONS and OPTIONS[letter] not in options:
            self.at += 1
            name = OPTIONS[letter]
            options[name] = self._number(f"the {name}, as in '{letter}1'", least=0 if name == "padding" else 1)
        return self._made("C", start, number=number, kernel=kernel, options=options)

    def _made(self, kind: str, start: int, **values: object) -> Token:
        return Token(kind, start, self.text[start : self.at], **values)  # type: ignore[arg-type]

    def _take(self, text: str) -> bool:
        found = self.text.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _digits(self, also: str = "") -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in "0123456789" + also:
            self.at += 1
        return self.text[start : self.at]

    def _number(self, expected: str, least: int = 1) -> int:
        start, digits = self.at, self._digits()
        if not digits:
            self.fail(expected)
        if int(digits) < least:
            self.fail(f"at least {least} here: {expected}", start)
        return int(digits)

    def _share(self) -> float:
        start, digits = self.at, self._digits(also=".")
        if digits.count(".") > 1 or not digits.strip(".") or not 0 < float(digits) < 1:
            self.fail("the share to drop, above 0 and below 1, as in 'DP0.2'", start)
        return float(digits)

    def fail(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        raise UserError(
            f"cannot read the architecture at character {at + 1}:\n  {self.text}\n  {' ' * at}^\nexpected {expected}"
        )


_OPTIONS_TEXT = "'S', 'P', 'D', 'G', "


def _synapse_of(tokens: tuple[Token, ...]) -> Token:
    """The last token, without its norm."""
    return tokens[-2] if tokens[-1].kind in NORMS and len(tokens) > 1 else tokens[-1]
