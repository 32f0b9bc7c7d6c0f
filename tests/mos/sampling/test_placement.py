import itertools
from dataclasses import replace

import pytest
from PIL import Image

from mos.sampling.auto_layout import compact_boxes
from mos.sampling.placement import crop, judge, row_from_json, summarise, table
from mos.sampling.placement_run import CAST, IDENTITY_SEED, PLACES, RENDERS, Stage, draw, scene_prompt
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


def test_renders_stand_in_their_boxes_and_prompts_name_the_places():
    class Member:
        identity = ROBOT

    stage = Stage(members=[Member(), Member()], boxes=compact_boxes(2), fused={})
    (picture,) = draw(None, stage, RENDERS, [5], None)
    (again,) = draw(None, stage, RENDERS, [5], None)
    assert picture.size == (64, 64)
    assert picture.tobytes() == again.tobytes()
    assert scene_prompt(["cat", "mug"], "in space") == "a cat on the left and a mug on the right in space"
    assert all(len(PLACES[count]) == count == len(compact_boxes(count)) for count in PLACES)
