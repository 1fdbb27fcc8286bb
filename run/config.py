"""Everything that decides a run, as frozen data, read from TOML and from `--set key=value`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from base.errors import UserError, nearest
from deploy import BACKENDS
from quantize.precision import Bits, Precision
from train.augment import Augmentation
from train.datasets import CACHE
from train.training import TrainingSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


WAYS = ("exact", "converted")


@dataclass(frozen=True)
class DataConfig:
    """dataset: a name `train.datasets` knows; folder: where it is (empty: the usual places); cache: where it is kept
    decoded; validation: the share of the training part held out to choose by.

    encoding: "rate", "latency", "direct" or "delta" for images, "events" for recordings, over `steps` time steps;
    `bits` is the width of a direct value or a count of events, `direct` tells whether direct values go in as "graded"
    spikes or as the first population's "bias". Of events only: `bins` cuts a recording by "duration",
    "count" or "window" (of window_us), `pool` sums so many pixels each way. augment: changes to training samples.
    """

    dataset: str = "digits"
    folder: str = ""
    cache: str = CACHE
    validation: float = 0.0
    encoding: str = "rate"
    steps: int = 16
    bits: int = 4
    direct: str = "graded"
    bins: str = "duration"
    window_us: int = 0
    pool: int = 1
    augment: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class NetworkConfig:
    """model: empty, or a network that was trained elsewhere: a module, "my_module:net" (`train/frameworks/finding.py`),
    or a NIR file, "theirs.nir": then an architecture and all that follows it here mean nothing, but for reset, which a
    NIR file leaves open. way: of a model, whether its neurons stay as they are ("exact") or become those that stock
    Lava has ("converted"). dt: of a NIR file, the seconds of a step.

    architecture: the papers' notation, after the input, or the name of a preset ("mlp", "conv-small", "vggsnn",
    "ms-resnet"). readout: whether the last layer spikes or is read as "current". alpha, beta: shares of current and
    voltage kept per step, and with learn_decay where learning starts, per_neuron for each neuron by itself. reset:
    "hard" or "soft", or either with "-late" behind it. neuron: "lif" or "klif", with scale_reset. Of the backward pass
    only: surrogate; width_by: "fixed" to width, learned from it ("psg"), or from the norms' gain ("mpd-agl"); mask: the
    share of surrogate gradients dropped, rescale: the rest made up for it; detach_reset."""

    model: str = ""
    way: str = "exact"
    dt: float = 1e-4
    architecture: str = "64-10"
    readout: str = "spikes"
    alpha: float = 0.0
    beta: float = 0.75
    threshold: float = 1.0
    reset: str = "hard"
    floor: bool = False
    surrogate: str = "arctan"
    width: float = 1.0
    width_by: str = "fixed"
    mask: float = 0.0
    rescale: bool = False
    detach_reset: bool = False
    learn_decay: bool = False
    per_neuron: bool = False
    neuron: str = "lif"
    scale_reset: bool = False


@dataclass(frozen=True)
class DeployConfig:
    """backends: who runs the integer network. samples: how many held-out samples each runs, 0 for all; the first
    `states` of them with u and v recorded. The rest is Lava's: target, lanes side by side (0: one, or many where one
    after the other would take long), seconds until a run is given up, the interpreter of its process (empty: this
    one), and the process a convolution becomes."""

    backends: tuple[str, ...] = ("reference", "engine", "lava")
    samples: int = 0
    states: int = 4
    target: str = "loihi2-sim"
    lanes: int = 0
    deadline: float = 600.0
    python: str = ""
    convolution: str = "Sparse"


@dataclass(frozen=True)
class ChipConfig:
    """name: "loihi1", "loihi2" or the path of a TOML file like those of `deploy/chip/`."""

    name: str = "loihi1"


@dataclass(frozen=True)
class Config:
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainingSettings = field(default_factory=TrainingSettings)
    quantize: Precision = field(default_factory=Precision)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    chip: ChipConfig = field(default_factory=ChipConfig)

    def __post_init__(self) -> None:
        if self.network.way not in WAYS:
            raise UserError(f"network.way: '{self.network.way}' is no way; {nearest(self.network.way, WAYS)}")
        for name in self.deploy.backends:
            if name not in BACKENDS:
                raise UserError(f"deploy.backends: '{name}' is no backend; {nearest(name, BACKENDS)}")
        if len(set(self.deploy.backends)) < 2:
            raise UserError(
                f"deploy.backends: {list(self.deploy.backends)} leaves nothing to compare; name at least two."
            )
        for key, value, least in (("seed", self.seed, 0), ("deploy.samples", self.deploy.samples, 0),
                                  ("deploy.states", self.deploy.states, 0)):  # fmt: skip
            if value < least:
                raise UserError(f"{key}: {value} is below {least}.")


def read(path: Path | None, settings: Iterable[str] = ()) -> Config:
    """The configuration of a TOML file (or the defaults), changed by settings like "network.beta=0.8".

    Raises UserError for a file that cannot be read, an unknown key (naming the nearest), and a value of another type.
    """
    return build(read_table(path, settings), str(path) if path is not None else "--set")


def read_table(path: Path | None, settings: Iterable[str] = ()) -> dict[str, Any]:
    """What a TOML file (or none) and settings say, before it is a configuration. Raises UserError for a broken file."""
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; give an existing TOML file.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: is not valid TOML: {error}.") from error
        table.pop("versions", None)  # what a run's own config.toml tells beside the configuration
    for setting in settings:
        _apply(table, setting)
    return table


def build(table: Mapping[str, Any], source: str) -> Config:
    """The configuration that a table says; `source` is whom a refusal names. A model is trained no further unless the
    table says for how many epochs. Raises UserError as `read` does."""
    config: Config = _build(Config, table, "", source)
    if config.network.model and "epochs" not in table.get("train", {}):
        config = replace(config, train=replace(config.train, epochs=0))
    return config


def write(config: Config, versions: Mapping[str, str]) -> str:
    """The configuration as TOML that `read` takes back, with the versions that ran it."""
    return tomli_w.dumps(asdict(config) | {"versions": dict(versions)})


def _apply(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting}: is not of the form key=value, as in --set train.epochs=5.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {setting}: '{section}' is a value, not a section.")
    table[last] = value


def _build(kind: Any, table: Mapping[str, Any], prefix: str, source: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{source}: unknown key '{prefix}{key}'; {nearest(key, known)}")
        wanted = hints[key]
        if is_dataclass(wanted):
            if not isinstance(value, dict):
                inside = f"{prefix}{key}.{fields(wanted)[0].name}"
                raise UserError(f"{source}: '{prefix}{key}' is a section; set one of its keys, as in {inside}.")
            values[key] = _build(wanted, value, f"{prefix}{key}.", source)
        else:
            values[key] = _convert(value, wanted, f"{prefix}{key}", known[key], source)
    return kind(**values)


def _convert(value: Any, wanted: Any, key: str, spec: Any, source: str) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if wanted == tuple[str, ...]:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
        wanted_name = "a list of names"
    elif wanted == Mapping[str, Bits]:
        if isinstance(value, dict) and all(type(bits) in (int, str) for bits in value.values()):
            return value
        wanted_name = "a section of layers and their bits"
    elif wanted == Bits:
        if type(value) in (int, str):
            return value
        wanted_name = "a number of bits or a name"
    elif type(value) is wanted:
        return value
    else:
        wanted_name = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[wanted]
    example = spec.default if spec.default is not MISSING else spec.default_factory()
    raise UserError(f"{source}: '{key}' is {value!r}; it must be {wanted_name}, as in {example!r}.")
