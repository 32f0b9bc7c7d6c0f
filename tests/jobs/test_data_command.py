import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.commands.data import command
from mos.errors import MosError
from tests.mos.training.hostile import quarters


def run(*arguments: object):
    return CliRunner().invoke(command, ["check", *map(str, arguments), "--resolution", "64"])


def test_a_good_folder_is_listed_with_a_sheet(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    quarters().save(tmp_path / "b.png")
    sheet = tmp_path / "sheet.jpg.png"
    result = run(tmp_path, "--sheet", sheet)
    assert result.exit_code == 0
    assert "used     a.png  96x64" in result.output
    assert "nearly the same: a.png and b.png" in result.output
    assert "2 pictures found, 2 will be used" in result.output
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_a_refused_picture_is_named_and_ends_with_bad_input(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"")
    result = run(tmp_path)
    assert "refused  b.jpg: an empty file" in result.output
    assert isinstance(result.exception, MosError)
    assert result.exception.exit_code == 3
    assert "1 of 2 pictures cannot be used" in str(result.exception)


def test_the_sheet_lies_beside_the_folder_unless_a_place_is_named(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    quarters().save(photos / "a.png")
    assert f"contact sheet: {tmp_path / 'photos-sheet.png'}" in run(photos).output
    assert [path.name for path in photos.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "photos-sheet.png") as image:
        assert image.format == "PNG"


def test_json_says_the_same(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    quarters().save(photos / "a.png")
    (photos / "a.txt").write_text("a photo of <TOK>")
    data = json.loads(run(photos, "--json").output)
    assert data["sheet"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert data["pictures"][0]["caption"] == "a photo of <TOK>"
    assert data["pictures"][0]["used"] is True


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path / "nothing")
    with pytest.raises(MosError, match="no such folder"):
        raise result.exception
