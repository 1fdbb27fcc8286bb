"""The configuration: what a file or a setting may say, and what a user is told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.errors import UserError
from quantize.precision import Precision
from run import config
from run.config import Config, read, write

ROOT = Path(__file__).parent.parent
SINGLE_RUNS = sorted(set((ROOT / "examples").glob("*.toml")) - set((ROOT / "examples").glob("compare-*.toml")))


def test_the_defaults_survive_being_written_and_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(write(Config(), {"python": "3"}))
    assert read(tmp_path / "config.toml") == Config() == read(None)


def test_settings_change_single_keys_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('seed = 3\n[network]\narchitecture = "32-10"\nbeta = 1\n')
    chosen = read(
        tmp_path / "c.toml", ["network.architecture=16C3-10", "deploy.backends=engine, lava", "network.floor=true"]
    )
    assert chosen.network == config.NetworkConfig(architecture="16C3-10", beta=1.0, floor=True)
    assert (chosen.seed, chosen.deploy.backends) == (3, ("engine", "lava"))


def test_a_model_is_trained_no_further_unless_epochs_are_given() -> None:
    assert read(None, ["network.model=my_module:net"]).train.epochs == 0
    assert read(None, ["network.model=my_module:net", "train.epochs=5"]).train.epochs == 5
    assert read(None).train.epochs > 0


def test_the_bits_of_single_layers_are_a_table_or_settings(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[quantize]\nbits = 4\nper_layer = { conv1 = 8, dense2 = "ternary" }\n')
    chosen = read(tmp_path / "c.toml", ["quantize.per_layer.conv1=6", "quantize.calibration=max"])
    assert chosen.quantize == Precision(4, {"conv1": 6, "dense2": "ternary"}, "max")
    (tmp_path / "again.toml").write_text(write(chosen, {}))
    assert read(tmp_path / "again.toml") == chosen


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.epochs=many", "'train.epochs' is 'many'; it must be a whole number, as in"),
        ("train.epochs=2.5", "it must be a whole number"),
        ("network.floor=1", "it must be true or false"),
        ("network.beta=fast", "it must be a number"),
        ("data.dataset=7", "it must be a text"),
        ("train=3", "'train' is a section"),
        ("train.epochs.more=3", "'train.epochs' is {'more': 3}"),
        ("epochs", "is not of the form key=value"),
        ("deploy.backends=engine,lawa", "'lawa' is no backend; did you mean 'lava'?"),
        ("deploy.backends=engine", "leaves nothing to compare"),
        ("seed=-1", "seed: -1 is below 0"),
        ("quantize.bits=12", "quantize.bits: 12 is no width of weights; give 8 to 1"),
        ("quantize.bits=1.5", "'quantize.bits' is 1.5; it must be a number of bits or a name, as in 8"),
        ("quantize.per_layer=4", "it must be a section of layers and their bits"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_nearest_valid_name(setting: str, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        read(None, [setting])
    assert says in str(refusal.value)


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[train\n")
    with pytest.raises(UserError, match="is not valid TOML"):
        read(tmp_path / "broken.toml")


@pytest.mark.parametrize("example", SINGLE_RUNS, ids=lambda path: path.stem)
def test_every_example_is_a_valid_configuration(example: Path) -> None:
    read(example)
