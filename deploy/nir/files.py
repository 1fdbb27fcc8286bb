"""NIR files: written whole, and read back into the IntegerNetwork they came from.

Metadata say which network a file claims to hold, and its nodes hold the weights. Neither is believed: `load` builds the
graph of that network anew, and the file must hold the same, number for number. So what other tools read is what this
program reads.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nir
import numpy as np

from base.errors import UserError, claims_of
from base.files import whole_file
from deploy import hdf5
from deploy.nir import integer
from deploy.nir.graph import FORMAT, FORMAT_VERSION
from quantize.arithmetic import ARITHMETIC_ID
from quantize.integer_network import IntegerNetwork

AGAIN = "export it again with 'pipeline.py export nir'"


def save(graph: nir.NIRGraph, path: Path) -> None:
    with whole_file(path) as beside:
        beside.write_bytes(_written(graph))


def load(path: Path) -> IntegerNetwork:
    """The network in a graph that `pipeline.py export nir` wrote, with the hash that it had.

    Raises UserError for a file that is missing, too large, cut or foreign, and for a graph that is not the one of its
    network.
    """
    path = Path(path)
    node = hdf5.read(path, "NIR").get("node")
    about = node.get("metadata") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(about, dict) or str(about.get("format")) != FORMAT:
        raise UserError(
            f"{path}: is a NIR graph from elsewhere, without a numeric contract; read it with deploy.nir.foreign, "
            "which tells what it leaves open, and quantize what that makes of it."
        )
    for what, found, known in (
        ("version", about.get("version"), FORMAT_VERSION),
        ("arithmetic", about.get("arithmetic"), ARITHMETIC_ID),
    ):
        if "network" in about and str(found) != str(known):
            raise UserError(f"{path}: is {FORMAT} of {what} {found}; this program reads {known}, {AGAIN}.")
    if "network" not in about:
        raise UserError(f"{path}: holds a float network; only integers can be read back, take network.nir.")
    with claims_of(path, AGAIN):
        network = integer.network_of(node)
        if integer.numbers_in_graph(network) > _numbers(node["nodes"]):
            raise ValueError("it claims more neurons and weights than it holds")
        rebuilt = hdf5.parse(_written(integer.graph_of(network)[0]), path)["node"]
    different = _difference(rebuilt, node, "")
    if different is not None:
        raise UserError(
            f"{path}: its graph is not the one of the network it describes, '{different}' is different; only graphs as "
            f"this program writes them are understood, {AGAIN}."
        )
    return network


def _written(graph: nir.NIRGraph) -> bytes:
    file = io.BytesIO()
    nir.write(file, graph)
    return file.getvalue()


def _numbers(tree: Any) -> int:
    return sum(_numbers(entry) for entry in tree.values()) if isinstance(tree, dict) else int(np.size(tree))


def _difference(ours: Any, theirs: Any, where: str) -> str | None:
    """The first place at which two trees differ."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        same = np.asarray(ours).dtype == np.asarray(theirs).dtype and np.array_equal(ours, theirs)
        return None if same and type(ours) is type(theirs) else where or "node"
    for name in sorted(ours.keys() | theirs.keys()):
        inside = f"{where}/{name}" if where else name
        if name not in ours or name not in theirs:
            return inside
        found = _difference(ours[name], theirs[name], inside)
        if found is not None:
            return found
    return None
