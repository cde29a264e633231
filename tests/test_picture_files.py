"""Names and writing of picture files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from hybrid.picture_files import plan_files, slug, write_picture


def test_slugs() -> None:
    assert slug("A red apple!") == "a-red-apple"
    assert slug("../../etc") == "etc"
    assert slug("Äpfel 苹果") == "äpfel-苹果"
    assert slug("?!") == "picture"
    assert len(slug("word " * 40)) <= 50


def test_numbers_go_on_after_those_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "041-x.png").touch()
    assert [path.name for path in plan_files(str(tmp_path), ["a b", "c"])] == ["042-a-b.png", "043-c.png"]


def test_a_failed_write_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_picture(Image.new("RGB", (2, 2)), tmp_path / "gone" / "deeper" / "a.png")
    with pytest.raises((OSError, ValueError)):
        write_picture(Image.new("RGB", (0, 0)), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []
