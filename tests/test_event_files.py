"""Real recordings are read exactly; a damaged file is refused with the place of the damage."""

import shutil
import struct
import sys

import numpy as np
import pytest
from shared_data import NMNIST_SMALL, SPOKEN_DIGITS, needs

from base.errors import UserError
from train.datasets import load
from train.datasets.event_files import read_bin


def unpacked(data):
    """Events (t, x, y, p) of a .bin file, one after the other, bit by bit."""
    for x, y, bits in struct.iter_unpack(">BB3s", data):
        number = int.from_bytes(bits, "big")
        yield number % 2**23, x, y, number // 2**23


def archive_recording(archive, k):
    polarity = np.unpackbits(archive["p"])
    start, stop = archive["offsets"][k : k + 2]
    time = np.cumsum(archive["dt"][start:stop].astype(np.int64))
    return time, archive["x"][start:stop], archive["y"][start:stop], polarity[start:stop]


@needs(NMNIST_SMALL)
def test_the_original_files_decode_to_the_events_of_the_archive():
    with np.load(NMNIST_SMALL / "nmnist_small.npz") as stored:
        archive = {name: stored[name] for name in stored.files}
    place = {int(index): k for k, index in enumerate(archive["index"])}
    files = sorted((NMNIST_SMALL / "Test").glob("*/*.bin"))
    assert len(files) == 40
    for file in files:
        k = place[60_000 + int(file.stem)]
        assert archive["label"][k] == int(file.parent.name)
        events = read_bin(file)
        for ours, theirs in zip(events, archive_recording(archive, k), strict=True):
            assert np.array_equal(ours, theirs)
        assert list(zip(*map(np.ndarray.tolist, events), strict=True)) == list(unpacked(file.read_bytes()))


@needs(NMNIST_SMALL)
def test_small_nmnist_holds_every_event_of_its_archive_at_its_pixel(tmp_path):
    dataset = load("nmnist_small", str(NMNIST_SMALL), str(tmp_path))
    assert (dataset.shape, dataset.classes, len(dataset.train), len(dataset.test)) == ((2, 34, 34), 10, 1000, 100)
    with np.load(NMNIST_SMALL / "nmnist_small.npz") as archive:
        time, x, y, p = archive_recording(archive, 1007)
        assert dataset.test.labels.tolist() == archive["label"][archive["test"]].tolist()
    ours, address = next(iter(dataset.test.values[[7]]))
    assert np.array_equal(ours, time - time[0])
    assert np.array_equal(np.unravel_index(address, (2, 34, 34)), (p, y, x))
    assert load("nmnist_small", str(NMNIST_SMALL), str(tmp_path), pool=17).shape == (2, 2, 2)


@needs(SPOKEN_DIGITS)
def test_spoken_digits_hold_every_spike_of_their_archive(tmp_path):
    dataset = load("spoken_digits", str(SPOKEN_DIGITS), str(tmp_path))
    assert (dataset.shape, dataset.classes, len(dataset.train), len(dataset.test)) == ((40,), 10, 600, 300)
    with np.load(SPOKEN_DIGITS / "fsdd_spikes40.npz") as archive:
        k = int(np.flatnonzero(~archive["test"])[33])
        part = slice(*archive["offsets"][k : k + 2])
        time, channel = np.cumsum(archive["dt"][part].astype(int)) * 250, archive["channel"][part]
    ours, address = next(iter(dataset.train.values[[33]]))
    assert np.array_equal(ours, time - time[0])
    assert np.array_equal(address, channel)


@pytest.fixture
def original(tmp_path):
    """N-MNIST's folders with one recording a digit and part, of real events where they are here."""
    for part in ("Train", "Test"):
        for digit in range(10):
            folder = tmp_path / "nmnist" / part / str(digit)
            folder.mkdir(parents=True)
            real = sorted((NMNIST_SMALL / "Test" / str(digit)).glob("*.bin"))
            if real:
                shutil.copy(real[0], folder / "00001.bin")
            else:
                (folder / "00001.bin").write_bytes(bytes([digit, 3, 0x80, 1, 0, 4, 5, 0, 2, 0]))
    return tmp_path / "nmnist"


def test_the_original_folders_are_read(original, tmp_path):
    dataset = load("nmnist", str(original), str(tmp_path / "cache"))
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == list(range(10))
    for digit, (time, address) in enumerate(dataset.test.values):
        t, x, y, p = read_bin(original / "Test" / str(digit) / "00001.bin")
        assert np.array_equal(time, t - t[0])
        assert np.array_equal(np.unravel_index(address, (2, 34, 34)), (p, y, x))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bytes(5) + b"abc", "has 8 bytes and ends 3 bytes into event 1; expected 5 bytes an event"),
        (bytes(5) + bytes([34, 0, 0, 0, 1]), r"event 1 has x = 34, expected 0\.\.33"),
        (bytes([0, 240, 0, 0, 1]), r"event 0 has y = 240, expected 0\.\.33"),
        (bytes([0, 0, 0, 1, 0]) + bytes([0, 0, 0, 0, 9]), "event 1 is at 9 us, the one before it at 256 us"),
    ],
)
def test_a_damaged_recording_is_refused_with_the_place(original, tmp_path, content, says):
    (original / "Train" / "7" / "00001.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"Train/7/00001\.bin: {says}"):
        load("nmnist", str(original), str(tmp_path / "cache"))


def test_a_digit_without_training_recordings_is_named(original, tmp_path):
    (original / "Train" / "7" / "00001.bin").unlink()
    with pytest.raises(UserError, match="no sample has label 7"):
        load("nmnist", str(original), str(tmp_path / "cache"))
    shutil.rmtree(original / "Test")
    with pytest.raises(UserError, match=r"no Test/<digit>/<number>\.bin in"):
        load("nmnist", str(original), str(tmp_path / "cache"))


def own_events(folder, **changes):
    arrays = {
        "t": np.array([0, 5, 9, 2, 4, 1]), "x": np.array([0, 1, 2, 3, 0, 1]), "y": np.array([0, 1, 0, 1, 0, 1]),
        "p": np.array([0, 1, 0, 1, 1, 0]), "offsets": np.array([0, 3, 5, 6]), "labels": np.array([0, 1, 0]),
        "test": np.array([False, False, True]), "shape": np.array([2, 2, 4]),
    } | changes  # fmt: skip
    np.savez(folder / "events.npz", **arrays)
    return str(folder)


def test_anyone_s_events_can_be_read(tmp_path):
    dataset = load("events", own_events(tmp_path), str(tmp_path / "cache"))
    assert (dataset.shape, dataset.classes, len(dataset.train), len(dataset.test)) == ((2, 2, 4), 2, 2, 1)
    read = [(time.tolist(), address.tolist()) for time, address in dataset.train.values]
    assert read == [([0, 5, 9], [0, 13, 2]), ([0, 2], [15, 8])]


def test_anyone_s_spike_trains_can_be_read(tmp_path):
    np.savez(
        tmp_path / "spike_trains.npz", t=np.array([3, 8, 7]), channel=np.array([2, 0, 4]), offsets=np.array([0, 2, 3]),
        labels=np.array([0, 0]), test=np.array([False, True]), shape=np.array([5])
    )  # fmt: skip
    dataset = load("spike_trains", str(tmp_path), str(tmp_path / "cache"))
    assert [(time.tolist(), address.tolist()) for time, address in dataset.train.values] == [([0, 5], [2, 0])]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": np.array([0, 1])}, r"labels has shape \[2\], expected \[3\]"),
        ({"x": np.array([0])}, r"x has shape \[1\], expected \[6\]"),
        ({"offsets": np.array([0, 3, 5, 9])}, "offsets must rise from 0 to the number of events, 6"),
        ({"shape": np.array([2, 4])}, r"shape is \[2, 4\]; expected \[2, H, W\]"),
        ({"p": np.array([0, 1, 0, 1, 2, 0])}, r"recording 1: event 1 has p = 2, expected 0\.\.1"),
        ({"t": np.array([0, 9, 5, 2, 4, 1])}, "recording 0: event 2 is at 5 us, the one before it at 9 us"),
        ({"labels": np.array([0, 2, 0])}, "no sample has label 1"),
    ],
)
def test_a_faulty_archive_is_refused_with_the_place(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        load("events", own_events(tmp_path, **changes), str(tmp_path / "cache"))


def test_an_archive_that_is_cut_or_lacks_an_array_is_refused(tmp_path):
    own_events(tmp_path)
    whole = (tmp_path / "events.npz").read_bytes()
    (tmp_path / "events.npz").write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"events\.npz: is no whole \.npz archive"):
        load("events", str(tmp_path), str(tmp_path / "cache"))
    np.savez(tmp_path / "events.npz", t=np.zeros(1))
    with pytest.raises(UserError, match="has no array 'x', only t"):
        load("events", str(tmp_path), str(tmp_path / "cache"))


def test_a_missing_folder_is_named_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=rf"'nmnist': no Train in {tmp_path}/none; set data\.folder"):
        load("nmnist", str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["dvs_gesture", "cifar10_dvs", "shd"])
def test_without_tonic_its_sets_are_refused_with_the_way_out(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(UserError, match=rf"'{name}': is read through tonic, which is not installed"):
        load(name, cache=str(tmp_path))


def test_spiking_heidelberg_digits_are_read_by_tonic(tmp_path):
    """In tonic's own layout; skipped where the optional tonic is not installed."""
    pytest.importorskip("tonic")
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    units = rng.integers(0, 700, (40, 30))
    (tmp_path / "SHD").mkdir()
    for part in ("train", "test"):
        (tmp_path / "SHD" / f"shd_{part}.h5.zip").write_bytes(b"unpacked already")
        with h5py.File(tmp_path / "SHD" / f"shd_{part}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (40,), h5py.vlen_dtype(np.float16))
            channels = file.create_dataset("spikes/units", (40,), h5py.vlen_dtype(np.uint16))
            for k in range(40):
                times[k], channels[k] = np.arange(30, dtype=np.float16) / 64, units[k]
            file["labels"], file["extra/keys"], file["extra/speaker"] = np.arange(40) % 20, [b""] * 20, np.zeros(40)
    dataset = load("shd", str(tmp_path), str(tmp_path / "cache"))
    assert (dataset.shape, dataset.classes, len(dataset.train), len(dataset.test)) == ((700,), 20, 40, 40)
    for k, (time, channel) in enumerate(dataset.test.values):
        assert np.array_equal(time, np.arange(30) * 15_625)
        assert np.array_equal(channel, units[k])
