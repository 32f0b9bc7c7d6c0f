"""Pictures show what their scene says, and the same scene is always the same picture."""

import numpy as np
import pytest
from PIL import ImageChops

from mos.smallworld.captions import BACKDROP_PHRASES, FULL_DETAIL, caption_scene, describe, world_words
from mos.smallworld.concepts import concept_pictures
from mos.smallworld.pictures import num_subjects_at, scene_at
from mos.smallworld.render import compose_scene, mirrored, render_scene, sample_scene
from mos.smallworld.world import ACCESSORIES, BACKDROPS, CLASSES, HUES, PATTERNS, World, concept_identity


def _pixels(image):
    return np.asarray(image).astype(int)


def test_one_scene_is_one_picture():
    scene = sample_scene(np.random.default_rng(4), num_subjects=3)
    first, second = render_scene(scene), render_scene(scene, with_masks=False)
    assert first.image.tobytes() == second.image.tobytes()
    assert len(first.masks) == 3
    assert second.masks == ()


@pytest.mark.parametrize("name", CLASSES)
def test_the_mask_covers_exactly_what_the_subject_changes(name):
    rng = np.random.default_rng(6)
    scene = compose_scene(rng, [concept_identity(1, name)], "room")
    rendered = render_scene(scene)
    empty = render_scene(
        type(scene)(subjects=(), backdrop="room", horizon_shift=scene.horizon_shift, feature_x=scene.feature_x)
    )
    changed = np.asarray(ImageChops.difference(rendered.image, empty.image)).max(2) > 40
    mask = np.asarray(rendered.masks[0])
    assert changed.sum() > 300
    assert not (changed & (mask == 0)).any()
    assert (changed & (mask == 255)).sum() > 0.9 * (mask == 255).sum()


def test_the_main_colour_dominates_a_plain_subject():
    rng = np.random.default_rng(8)
    identity = concept_identity(2, "mug")
    plain = type(identity)(**{**identity.__dict__, "pattern": "plain", "accessory": "none"})
    rendered = render_scene(compose_scene(rng, [plain], "space"))
    inside = _pixels(rendered.image)[np.asarray(rendered.masks[0]) == 255]
    near = np.abs(inside - np.array(plain.colours[0].rgb)).max(1) < 12
    assert near.mean() > 0.4


def test_subjects_stand_where_their_place_says():
    rng = np.random.default_rng(9)
    seen = set()
    for _ in range(40):
        scene = sample_scene(rng, num_subjects=int(rng.integers(2, 5)))
        for subject, mask in zip(scene.subjects, render_scene(scene).masks, strict=True):
            seen.add(subject.place)
            rows, columns = np.nonzero(np.asarray(mask) > 127)
            if "left" in subject.place:
                assert columns.mean() < 28
            if "right" in subject.place:
                assert columns.mean() > 36
            if "top" in subject.place:
                assert rows.mean() < 28
            if "bottom" in subject.place:
                assert rows.mean() > 36
    assert seen == {"left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"}


def test_a_mirrored_picture_mirrors_its_mask():
    scene = sample_scene(np.random.default_rng(10))
    rendered = render_scene(scene)
    back = mirrored(mirrored(rendered))
    assert back.image.tobytes() == rendered.image.tobytes()
    assert back.masks[0].tobytes() == rendered.masks[0].tobytes()
    with pytest.raises(ValueError, match="one subject"):
        mirrored(render_scene(sample_scene(np.random.default_rng(1), num_subjects=2)))


def test_full_captions_name_everything_and_only_known_words():
    rng = np.random.default_rng(11)
    known = set(world_words())
    for count in (1, 2, 3, 4):
        scene = sample_scene(rng, num_subjects=count)
        caption = caption_scene(scene, rng, FULL_DETAIL)
        assert set(caption.split()) <= known
        assert BACKDROP_PHRASES[scene.backdrop] in caption
        for subject in scene.subjects:
            assert subject.identity.pattern in caption
            assert subject.identity.colours[0].name in caption
            assert subject.place in caption


def test_captions_sometimes_leave_attributes_out():
    rng = np.random.default_rng(12)
    identity = concept_identity(0, "cat")
    from mos.smallworld.captions import Detail

    texts = [describe(identity, rng, Detail()) for _ in range(200)]
    named = sum(identity.pattern in text for text in texts)
    assert 110 < named < 190


def test_concept_pictures_give_nothing_away():
    identity = concept_identity(7, "robot")
    pictures = concept_pictures(identity, seed=7)
    assert len(pictures) == 8
    attributes = {*HUES, *PATTERNS, *ACCESSORIES} - {"none"}
    areas = []
    for image, caption, mask in pictures:
        assert image.size == mask.size == (64, 64)
        assert "<TOK>" in caption
        assert not attributes & set(caption.split())
        areas.append((np.asarray(mask) > 127).sum())
    assert max(areas) > 2 * min(areas)
    assert len({caption.split("<TOK> ")[1] for _, caption, _ in pictures}) == len(BACKDROPS)


def test_training_pictures_are_numbered_for_good():
    world = World()
    assert scene_at(77, seed=3, world=world) == scene_at(77, seed=3, world=world)
    counts = [num_subjects_at(index, seed=3) for index in range(400)]
    assert set(counts) == {1, 2, 3, 4}
    assert 0.5 < counts.count(1) / 400 < 0.74
