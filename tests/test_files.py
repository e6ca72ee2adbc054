"""Files that are never half written."""

import pytest

from harness import files


def test_write_atomically_replaces_files_and_folders_and_cleans_up(tmp_path):
    for text in ("one", "two"):
        files.write_atomically(tmp_path / "a.json", lambda path, text=text: path.write_text(text))
        files.write_atomically(tmp_path / "folder", lambda path, text=text: (path.mkdir(), (path / text).touch()))
    assert (tmp_path / "a.json").read_text() == "two"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]

    def broken(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(tmp_path / "a.json", broken)
    assert (tmp_path / "a.json").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]
