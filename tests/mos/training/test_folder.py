import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from benchmarks.fusion_cost import peak_mb, reset_peak
from mos.training import DataError, load_concept_data
from mos.training.folder import scan_folder
from mos.training.sheet import contact_sheet
from tests.mos.training.hostile import all_cases, quarters

MOST_MB = 100
"""Three copies of the largest good picture take 35; the bombs among them would take gigabytes."""

COLOURS = {"red": (220, 30, 30), "white": (255, 255, 255), "grey": (128, 128, 128)}


def save_quarters(folder, *names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        quarters((96 + 4 * index, 64)).rotate(90 * index, expand=True).save(path)


def test_sixty_odd_or_hostile_files_each_work_or_are_refused_by_name_and_cause(tmp_path):
    cases = all_cases()
    assert len(cases) >= 60
    for name, write, _ in cases:
        write(tmp_path / name)
    held = reset_peak()
    report = scan_folder(tmp_path, resolution=64)
    assert held is None or peak_mb() - held < MOST_MB
    found = {item.name: item for item in report.items}
    wrong = []
    for name, _, expected in cases:
        item = found[name]
        if expected.startswith("used "):
            colour = COLOURS[expected.removeprefix("used ")]
            is_right = not item.cause and np.abs(item.pixels[4, 4].astype(int) - colour).max() <= 8
        else:
            named = name.rsplit(".", 1)[0] in item.cause
            is_right = bool(re.search(expected, item.cause)) and named and "\n" not in item.cause
        if not is_right:
            wrong.append(f"{name}: {item.cause or item.pixels[4, 4]}, expected {expected}")
    assert not wrong
    assert len(found) == len(cases)


def test_what_was_done_to_a_picture_is_said(tmp_path):
    for name, write, _ in all_cases():
        if name in ("animated.gif", "orientation6.jpg", "hidden colour.png", "cmyk.jpg", "really a png.jpg"):
            write(tmp_path / name)
    notes = {item.name: "; ".join(item.notes) for item in scan_folder(tmp_path, resolution=64).items}
    assert "first of 2 frames" in notes["animated.gif"]
    assert "EXIF" in notes["orientation6.jpg"]
    assert "over white" in notes["hidden colour.png"]
    assert "from CMYK" in notes["cmyk.jpg"]
    assert "is PNG in spite of its name" in notes["really a png.jpg"]


def test_memory_is_bounded_by_one_picture(tmp_path):
    big = quarters((3000, 2000))
    for index in range(6):
        big.save(tmp_path / f"{index}.png")
    tracemalloc.start()
    report = scan_folder(tmp_path, resolution=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 3000 * 2000 * 3
    assert all(item.pixels.shape == (64, 96, 3) for item in report.items)


def test_captions_masks_repeats_and_remarks(tmp_path):
    save_quarters(tmp_path, "a.png", "3_best/b.png", "other/c.png", "d.png")
    (tmp_path / "a.txt").write_text("a photo of <TOK> at home\n")
    (tmp_path / "3_best" / "b.txt").write_text("on the sofa")
    Image.new("L", (96, 64), 255).save(tmp_path / "a.mask.png")
    (tmp_path / "lonely.txt").write_text("x")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    data = load_concept_data(tmp_path, name="cat", class_word="cat", resolution=64)
    by_name = {picture.name: picture for picture in data.pictures}
    assert sorted(by_name) == ["3_best/b.png", "a.png", "d.png"]
    assert by_name["a.png"].caption == "a photo of <TOK> at home"
    assert by_name["a.png"].mask.shape == by_name["a.png"].pixels.shape[:2]
    assert by_name["3_best/b.png"].caption == "<TOK>, on the sofa"
    assert by_name["3_best/b.png"].repeats == 3
    assert by_name["d.png"].caption == "<TOK>"
    remarks = " ".join(scan_folder(tmp_path, resolution=64).remarks)
    for name in ("lonely.txt", "readme.md", "other/"):
        assert name in remarks


def test_near_duplicates_are_reported(tmp_path):
    quarters().save(tmp_path / "a.png")
    quarters().resize((192, 128)).save(tmp_path / "b.jpg", quality=60)
    quarters().rotate(180).save(tmp_path / "c.png")
    assert scan_folder(tmp_path, resolution=64).near_duplicates == (("a.png", "b.jpg"),)


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        scan_folder(tmp_path / "nothing", resolution=64)
    with pytest.raises(DataError, match="no pictures in it"):
        scan_folder(tmp_path, resolution=64)
    quarters().save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 2 pictures cannot be used: b.jpg: an empty file.*mos data check"):
        load_concept_data(tmp_path, name="cat", class_word="cat", resolution=64)


def test_too_many_pictures_are_refused_before_any_is_opened(tmp_path):
    for index in range(501):
        (tmp_path / f"{index}.png").touch()
    with pytest.raises(DataError, match="501 pictures, at most 500"):
        scan_folder(tmp_path, resolution=64)


def test_the_contact_sheet_shows_every_picture(tmp_path):
    save_quarters(tmp_path, *(f"{index}.png" for index in range(8)))
    (tmp_path / "x.png").write_bytes(b"no")
    sheet = contact_sheet(scan_folder(tmp_path, resolution=64))
    assert sheet.size == (6 * 136 + 8, 2 * 162 + 8)
    pixels = np.asarray(sheet)
    refused = pixels[8 + 162 + 10, 8 + 2 * 136 + 10]
    assert tuple(refused) == (220, 90, 90)
    assert len(np.unique(pixels[8:136, 8:136].reshape(-1, 3), axis=0)) > 4
