"""The run folder's memory: a step is done once, again when what decides it changes, and never half."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from base.errors import UserError
from base.files import whole_file, write_text
from run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    write_text(tmp_path / "source", "one")
    return RunFolder(tmp_path)


def copy_once(folder: RunFolder, decides: object = 1) -> bool:
    source, target = folder.path / "source", folder.path / "sub" / "target"
    return folder.step("copy", decides, [source], ["sub/target"], lambda: write_text(target, source.read_text()))


def test_a_step_is_done_once(folder: RunFolder) -> None:
    assert copy_once(folder)
    assert not copy_once(folder)
    assert folder.seconds().keys() == {"copy"}


def test_a_step_is_done_again_when_its_input_its_decision_or_its_output_changed(folder: RunFolder) -> None:
    copy_once(folder)
    write_text(folder.path / "source", "two")
    assert copy_once(folder)
    assert copy_once(folder, decides=2)
    (folder.path / "sub" / "target").write_text("touched")
    assert copy_once(folder, decides=2)
    (folder.path / "sub" / "target").unlink()
    assert copy_once(folder, decides=2)
    assert (folder.path / "sub" / "target").read_text() == "two"


def test_a_step_that_was_interrupted_is_not_done(folder: RunFolder) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.step("copy", 1, [], ["sub/target"], killed)
    assert copy_once(folder)


def test_a_missing_file_names_the_stage_that_writes_it(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"network\.npz is missing; run 'pipeline\.py quantize --out .*' first"):
        folder.require("quantize/network.npz", "quantize")


def test_a_broken_memory_is_named(folder: RunFolder) -> None:
    (folder.path / "steps.json").write_text("{")
    with pytest.raises(UserError, match=r"steps\.json cannot be read"):
        copy_once(folder)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "before")
    with suppress(RuntimeError), whole_file(tmp_path / "file") as beside:
        beside.write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/inside/x: "):
        write_text(tmp_path / "file" / "inside" / "x", "text")
