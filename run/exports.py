"""The formats that a run's network can be written in, beside its recordings:

    onnx, onnx-float    deploy/step.onnx, scan.onnx; float_step.onnx, float_scan.onnx
    nir, nir-float      deploy/network.nir; float.nir
    netx                deploy/network.net

Integers are written where there is no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from base.errors import UserError, nearest
from run import building
from run.config import Config
from run.files import FLOAT_NIR, FLOAT_SCAN, FLOAT_STEP, NETWORK, NETX, NIR, SCAN, STEP, WEIGHTS, Progress
from run.folder import RunFolder


def export(config: Config, folder: RunFolder, progress: Progress, formats: Sequence[str] = ()) -> bool:
    """Write the network in the formats named, or in all that hold any network; True if one of them had something to do.

    Raises UserError for an unknown format, and for what a format cannot hold.
    """
    for name in formats:
        if name not in EXPORTS:
            raise UserError(f"export: '{name}' is no format; {nearest(name, EXPORTS)}")
    done = []
    for name in formats or [name for name in EXPORTS if name != "netx"]:
        notes: list[str] = []
        done.append(EXPORTS[name](config, folder, notes.append))
        progress(f"export: {name}", 1, 1, "".join(notes) if done[-1] else "done before, unchanged")
    return any(done)


def _export_onnx(config: Config, folder: RunFolder, note: Callable[[str], None]) -> bool:
    network_file = folder.require(NETWORK, "quantize")

    def work() -> None:
        from deploy.onnx import files, graph, integer
        from quantize import integer_network

        network = integer_network.load(network_file)
        step = integer.build(network)
        about = integer.about(network, step)
        files.save(graph.step_model(step, about), folder.path / STEP)
        files.save(graph.scan_model(step, about), folder.path / SCAN)

    return folder.step("export: onnx", [], [network_file], [STEP, SCAN], work)


def _export_onnx_float(config: Config, folder: RunFolder, note: Callable[[str], None]) -> bool:
    weights = folder.require(WEIGHTS, "train")

    def work() -> None:
        from deploy.onnx import files, floats, graph

        network, layers = building.folded_of(config, weights)
        step, about = floats.build(layers, network.input_shape), floats.about(layers)
        files.save(graph.step_model(step, about), folder.path / FLOAT_STEP)
        files.save(graph.scan_model(step, about), folder.path / FLOAT_SCAN)

    return folder.step(
        "export: onnx-float", building.decides_network(config), [weights], [FLOAT_STEP, FLOAT_SCAN], work
    )


def _export_nir(config: Config, folder: RunFolder, note: Callable[[str], None]) -> bool:
    network_file = folder.require(NETWORK, "quantize")

    def work() -> None:
        from deploy.nir import files, graph, integer
        from quantize import integer_network

        made, rows = integer.graph_of(integer_network.load(network_file))
        files.save(made, folder.path / NIR)
        note(graph.in_words(rows))

    return folder.step("export: nir", [], [network_file], [NIR], work)


def _export_nir_float(config: Config, folder: RunFolder, note: Callable[[str], None]) -> bool:
    weights = folder.require(WEIGHTS, "train")

    def work() -> None:
        from deploy.nir import files, floats, graph

        network, layers = building.folded_of(config, weights)
        made, rows = floats.graph_of(layers, network.input_shape, 2**network.payload_bits - 1)
        files.save(made, folder.path / FLOAT_NIR)
        note(graph.in_words(rows))

    return folder.step("export: nir-float", building.decides_network(config), [weights], [FLOAT_NIR], work)


def _export_netx(config: Config, folder: RunFolder, note: Callable[[str], None]) -> bool:
    network_file = folder.require(NETWORK, "quantize")

    def work() -> None:
        from deploy import netx
        from quantize import integer_network

        netx.save(integer_network.load(network_file), folder.path / NETX)
        note("run it with reset_offset=1")

    return folder.step("export: netx", [], [network_file], [NETX], work)


EXPORTS = {
    "onnx": _export_onnx,
    "onnx-float": _export_onnx_float,
    "nir": _export_nir,
    "nir-float": _export_nir_float,
    "netx": _export_netx,
}
