"""Files are written whole, and keep who may read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tnalgebra._files import write_text


def test_permissions_are_those_of_the_file_or_of_the_process(tmp_path: Path) -> None:
    plain, private = tmp_path / "plain", tmp_path / "private"
    private.write_text("before")
    private.chmod(0o600)
    before = os.umask(0o027)
    try:
        write_text(plain, "text")
        write_text(private, "text")
    finally:
        os.umask(before)
    assert plain.stat().st_mode & 0o777 == 0o640
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.read_text() == "text"


def test_a_file_is_as_it_was_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
