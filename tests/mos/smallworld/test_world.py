"""The rules of the small world: what exists, what is held out, what a world file may say."""

import numpy as np
import pytest

from mos.errors import BadInputError
from mos.smallworld.world import (
    CLASSES,
    HELD_OUT_SHARE,
    HUE_JITTER,
    HUES,
    MIN_HUE_GAP,
    World,
    concept_identity,
    hue_distance,
    is_held_out,
    load_world,
    neighbour_identity,
    sample_identity,
)


def test_pretraining_never_draws_an_identity_of_a_held_out_cell():
    rng = np.random.default_rng(0)
    cells = {sample_identity(rng).cell for _ in range(3000)}
    concepts = {concept_identity(seed, name).cell for seed in range(40) for name in CLASSES}
    assert not cells & concepts
    assert len(concepts) > 140


def test_about_one_cell_in_sixteen_is_held_out():
    rng = np.random.default_rng(1)
    drawn = [sample_identity(rng, held_out=bool(index % 2)) for index in range(40)]
    assert [is_held_out(identity) for identity in drawn] == [False, True] * 20
    assert HELD_OUT_SHARE == 16


def test_colours_of_different_names_never_meet():
    centres = sorted(HUES.values())
    gaps = [hue_distance(low, high) for low, high in zip(centres, [*centres[1:], centres[0]], strict=True)]
    assert min(gaps) > 2 * HUE_JITTER


def test_a_concept_has_a_pattern_an_accessory_and_two_colours_apart():
    for name in CLASSES:
        identity = concept_identity(3, name)
        assert identity == concept_identity(3, name)
        assert identity.class_name == name
        assert identity.pattern != "plain"
        assert identity.accessory != "none"
        assert hue_distance(identity.colours[0].hue, identity.colours[1].hue) >= MIN_HUE_GAP


def test_the_neighbour_is_of_the_class_but_somebody_else():
    identity = concept_identity(5, "cat")
    other = neighbour_identity(identity)
    assert other.class_name == "cat"
    assert other.pattern != identity.pattern
    assert other.accessory != identity.accessory
    assert other.colours[0].name != identity.colours[0].name


def test_an_unknown_class_word_is_named():
    with pytest.raises(BadInputError, match="zebra"):
        concept_identity(0, "zebra")


def test_a_world_file_chooses_part_of_the_world(tmp_path):
    path = tmp_path / "world.toml"
    path.write_text('classes = ["cat", "car"]\nsingle_size = [30, 40]\n')
    world = load_world(path)
    assert world.classes == ("cat", "car")
    assert world.single_size == (30, 40)
    assert load_world(None) == World()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('classes = ["zebra"]', "zebra"),
        ("sizes = [1, 2]", "sizes"),
        ("group_size = [4, 8]", "group_size"),
        ("classes = [", "not a readable world file"),
        ("max_tilt = 'much'", "world.toml"),
    ],
)
def test_a_wrong_world_file_is_refused_with_its_reason(tmp_path, text, message):
    path = tmp_path / "world.toml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        load_world(path)
