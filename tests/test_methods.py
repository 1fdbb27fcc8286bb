"""Every way to train that the comparison on digits lists goes the whole way, and ends with equal spikes."""

from pathlib import Path

import pytest

from run import stages
from run.comparison import plan
from run.folder import RunFolder

EXAMPLE = Path(__file__).parent.parent / "examples" / "compare-digits.toml"
QUICK = ("compare.seeds=1", "data.steps=4", "train.epochs=3", "deploy.samples=20", "deploy.states=2", "deploy.lanes=20")
METHODS = plan.read(EXAMPLE, QUICK).cells


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=[method.method for method in METHODS])
def test_a_method_trains_and_ends_in_an_equal_verdict(method: plan.Cell, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for stage in (stages.train, stages.quantize, stages.deploy, stages.verify):
        assert stage(method.config, folder, lambda *_: None)
    verdict = stages.verdict(folder)
    assert verdict["equal"] is True
    assert len(verdict["comparisons"]) == 3
    for pair in verdict["comparisons"]:
        assert pair["spikes_compared"] > 0
        assert pair["states_compared"] > 0
    assert verdict["accuracy_of_all"]["integer"] > 0.4  # guessing gives 0.1
