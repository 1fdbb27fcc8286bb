"""Imports lava-nc 0.10.0 on Python 3.10 to 3.13 and leaves no trace in the importing process. Import it before lava.

* From Python 3.11 on, a dataclass refuses defaults that are not hashable; `var_model` has such ones (`ByteEncoder`).
* Lava sets multiprocessing's start method, which fails where one is set already and binds the whole process.
* Its modules warn when first compiled or imported; that is nothing a user can mend.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def _hashable_byte_encoder() -> Iterator[None]:
    original: Any = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        if cls is not None and cls.__name__ == "ByteEncoder":
            options["unsafe_hash"] = True
        return original(cls, **options)

    dataclasses.dataclass = dataclass
    try:
        yield
    finally:
        dataclasses.dataclass = original


@contextmanager
def _unset_start_method() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextmanager
def visiting() -> Iterator[None]:
    """Leave no trace of what Lava does inside.

    Lava keeps every process it made for ever, with its weights and one more log handler, and its reshape ports warn.
    """
    from lava.magma.core.process.process import ProcessServer
    from lava.magma.core.process.variable import VarServer

    handlers, processes, variables = logging.getLogger().handlers, ProcessServer().processes, VarServer().vars
    kept = [(objects, len(objects)) for objects in (handlers, processes, variables)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for objects, count in kept:
            del objects[count:]


def load(module: str) -> ModuleType:
    """Import a module of Lava, or one that imports Lava."""
    with warnings.catch_warnings(), _unset_start_method():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


if sys.version_info >= (3, 11):
    with _hashable_byte_encoder():
        load("lava.magma.compiler.var_model")
for _module in ("lava.magma.core.process.process", "lava.magma.core.run_configs", "lava.utils.weightutils"):
    load(_module)
