"""Where the files of a run are, in its folder, and how its stages tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]  # what, done, total, a note

WEIGHTS, METRICS = "train/weights.safetensors", "train/metrics.jsonl"
NETWORK, INPUTS, FLOAT = "quantize/network.npz", "quantize/inputs.npz", "quantize/float.npz"
SCALES, FIDELITY, BOUNDS = "quantize/scales.json", "quantize/fidelity.json", "quantize/bounds.json"
SENSITIVITY, SENSITIVITY_PAGE = "quantize/sensitivity.json", "quantize/sensitivity.md"
SENSITIVITY_PICTURES = ("quantize/sensitivity-layers.svg", "quantize/sensitivity-front.svg")
DIFFERENCES, WAYS_MEASURED = "differences.json", "ways.json"
CHIP = "deploy/chip.json"
VERDICT, REPORT, REPORT_JSON = "verdict.json", "report.html", "report.json"
STEP, SCAN = "deploy/step.onnx", "deploy/scan.onnx"
FLOAT_STEP, FLOAT_SCAN = "deploy/float_step.onnx", "deploy/float_scan.onnx"
NIR, FLOAT_NIR, NETX = "deploy/network.nir", "deploy/float.nir", "deploy/network.net"
