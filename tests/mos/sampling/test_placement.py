import itertools
from dataclasses import replace

import pytest
from PIL import Image

from mos.sampling.auto_layout import compact_boxes
from mos.sampling.placement import crop, judge, row_from_json, summarise, table
from mos.sampling.placement_cast import (
    CAST,
    IDENTITY_SEED,
    PLACES,
    Member,
    Stage,
    square_canvas,
    wide_canvas,
)
from mos.sampling.placement_draw import BATCH, METHODS, OTHERS, canvas_of, draw, render, scene_prompt
from mos.sampling.placement_run import RowLog, plan
from mos.smallworld.world import concept_identity, hue_distance

ROBOT, CAT = concept_identity(IDENTITY_SEED, "robot"), concept_identity(IDENTITY_SEED, "cat")
NEAR_OWN = [[0.9, 0.1], [0.2, 0.8]]


class Seen:
    """A reading that shows an identity, some attributes changed."""

    def __init__(self, identity, **changes):
        self.class_name, self.pattern, self.accessory = identity.class_name, identity.pattern, identity.accessory
        self.hues = tuple(colour.hue for colour in identity.colours)
        self.backdrop = "beach"
        for name, value in changes.items():
            setattr(self, name, value)


def judged(*readings, seed=0, method="m"):
    return judge(readings, [ROBOT, CAT], NEAR_OWN, method=method, seed=seed)


def test_everyone_in_place_is_found_and_nothing_leaks():
    row = judged(Seen(ROBOT), Seen(CAT))
    assert (row.found, row.leaked, row.classes, row.nearest) == (
        (True, True),
        (False, False),
        (True, True),
        (True, True),
    )


def test_swapped_concepts_are_not_found_and_leak():
    row = judge([Seen(CAT), Seen(ROBOT)], [ROBOT, CAT], NEAR_OWN[::-1], method="m", seed=0)
    assert (row.found, row.leaked, row.nearest) == ((False, False), (True, True), (False, False))


def test_one_lost_attribute_is_forgiven_and_two_are_not():
    lost = [Seen(ROBOT, pattern="plain"), Seen(ROBOT, pattern="plain", accessory="none")]
    assert judged(lost[0], Seen(CAT)).found == (True, True)
    assert judged(lost[1], Seen(CAT)).found == (False, True)


def test_attributes_of_another_concept_on_the_right_class_are_a_leak():
    stolen = Seen(ROBOT, pattern=CAT.pattern, accessory=CAT.accessory, hues=(CAT.colours[0].hue, 0.0))
    row = judged(stolen, Seen(CAT))
    assert row.leaked == (True, False)


def test_crops_are_the_boxes():
    picture = Image.new("RGB", (64, 64))
    assert [crop(picture, box).size for box in compact_boxes(3)] == [(32, 32)] * 3


def test_cells_count_pictures_and_regions():
    rows = [judged(Seen(ROBOT), Seen(CAT), seed=seed) for seed in range(9)]
    rows.append(judged(Seen(CAT), Seen(CAT), seed=9))
    (cell,) = summarise(rows)
    assert cell.all_found.mean == pytest.approx(0.9)
    assert cell.found.mean == pytest.approx(0.95)
    assert cell.leaked.mean == pytest.approx(0.05)
    assert cell.all_found.low < 0.9 < cell.all_found.high
    assert "| 2 | m | 10 | 90 [" in table([cell])


def test_rows_survive_json():
    import json
    from dataclasses import asdict

    row = judged(Seen(ROBOT), Seen(CAT))
    assert row_from_json(json.loads(json.dumps(asdict(row)))) == row
    assert replace(row, seed=3).key == ("m", 2, 3)


def test_the_cast_can_be_told_apart_by_every_attribute():
    trio = [concept_identity(IDENTITY_SEED, class_name) for _, class_name in CAST[:3]]
    assert len({one.pattern for one in trio}) == len({one.accessory for one in trio}) == 3
    for one, other in itertools.combinations(trio, 2):
        assert hue_distance(one.colours[0].hue, other.colours[0].hue) >= 50


def test_renders_are_drawn_alone_and_shown_side_by_side():
    members = [Member(ref=None, identity=identity, references=(), edlora=None) for identity in (ROBOT, CAT)]
    stage = Stage(members=members, fused={})
    (scene,) = draw(None, stage, METHODS[0], [5], None)
    (again,) = draw(None, stage, METHODS[0], [5], None)
    assert scene.picture.size == (128, 64)
    assert scene.picture.tobytes() == again.picture.tobytes()
    assert [part.tobytes() for part in scene.parts] == [
        render(member, 5, number).tobytes() for number, member in enumerate(members)
    ]


def test_prompts_name_the_places_of_the_square_canvas():
    assert scene_prompt(["cat", "mug"], "in space") == "a cat on the left and a mug on the right in space"
    assert all(len(PLACES[count]) == count == len(square_canvas(count, 64).boxes) for count in PLACES)


def test_columns_of_the_wide_canvas_are_whole_cells_of_every_feature_map():
    canvas = wide_canvas(3, 64, 48)
    assert (canvas.width, canvas.height) == (144, 64)
    assert canvas_of(METHODS[-1], 3, 64).boxes == canvas.boxes
    for latents_to_a_cell in (4, 8, 16):
        assert all((x * canvas.width / latents_to_a_cell).is_integer() for box in canvas.boxes for x in box[::2])


def test_a_run_goes_on_batch_by_batch_and_a_torn_line_is_drawn_again(tmp_path):
    steps = list(plan([3, 2], 15, with_others=True))
    assert len(steps) == 2 * (2 * len(METHODS) + len(OTHERS))
    assert steps[0][0] == list(range(BATCH))
    assert steps[-1][0] == list(range(BATCH, 15))
    assert len({method.name for method in (*METHODS, *OTHERS)}) == len(METHODS) + len(OTHERS)
    log = RowLog(tmp_path / "rows.jsonl")
    log.add([judged(Seen(ROBOT), Seen(CAT), seed=seed) for seed in (0, 1)])
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    again = RowLog(path)
    assert again.done == {("m", 2, 0)}
    again.add([judged(Seen(ROBOT), Seen(CAT), seed=1)])
    assert RowLog(path).done == {("m", 2, 0), ("m", 2, 1)}
