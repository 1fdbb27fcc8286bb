"""The order of the floors: who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {
    "base": set(),
    "train": {"base"},
    "quantize": {"base", "train"},
    "deploy": {"base", "quantize"},
    "run": {"base", "train", "quantize", "deploy"},
}
NEEDS_TORCH = {
    "quantize.aware",
    "quantize.calibration",
    "quantize.cost",
    "quantize.fold",
    "quantize.scales",
    "quantize.sensitivity",
    "quantize.unfold",
}


def modules(*packages: str) -> list[str]:
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def imported(module: str, for_types: bool = True) -> set[str]:
    """Names that a module imports; without `for_types` none that only a type checker sees."""
    file = ROOT.joinpath(*module.split("."))
    source = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")
    found: set[str] = set()
    tree = ast.parse(source)
    if not for_types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


@pytest.mark.smoke
@pytest.mark.parametrize("module", modules(*BELOW))
def test_a_floor_imports_only_from_the_floors_below(module: str) -> None:
    floor = module.split(".")[0]
    ours = {name.split(".")[0] for name in imported(module)} & set(BELOW)
    assert ours <= BELOW[floor] | {floor}
    if floor == "deploy":
        assert not imported(module, for_types=False) & NEEDS_TORCH


@pytest.mark.smoke
def test_no_torch_is_loaded_by_deploy_or_by_the_integer_half_of_quantize() -> None:
    names = [name for name in modules("base", "quantize", "deploy") if name not in NEEDS_TORCH]
    program = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        f"for name in {names!r}: __import__(name)\n"
        "assert not {'torch', 'train', 'snntorch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize(("module", "other"), [("quantize.integer_network", "rich"), ("pipeline", "sklearn")])
def test_the_integer_network_and_the_command_line_load_nothing_that_computes(module: str, other: str) -> None:
    program = (
        f"import sys, {module}\n"
        f"heavy = {{'torch', 'numba', 'scipy', 'lava', 'matplotlib', 'onnx', '{other}'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
