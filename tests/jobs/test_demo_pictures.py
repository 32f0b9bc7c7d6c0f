"""What the demo asks for when it draws."""

from itertools import pairwise

from PIL import Image

from jobs.demo_pictures import ALONE_PROMPTS, GAP, TILE, DemoPictures, columns, overview, together_prompts
from mos.concept import ConceptRef
from mos.smallworld.captions import BACKDROP_PHRASES, world_words


def test_prompts_use_only_words_the_small_world_has_seen() -> None:
    prompts = [*(prompt.format("cat") for prompt in ALONE_PROMPTS), *together_prompts(["robot", "cat", "house"])]
    assert all(any(prompt.endswith(phrase) for phrase in BACKDROP_PHRASES.values()) for prompt in prompts)
    assert {word for prompt in prompts for word in prompt.split()} <= set(world_words())


def test_the_picture_of_all_names_every_class_and_gives_each_concept_a_column() -> None:
    assert together_prompts(["robot", "cat", "house"])[0] == "a robot and a cat and a house on the beach"
    refs = [ConceptRef("alice", "robot", 1), ConceptRef("bob", "cat", 1), ConceptRef("carol", "house", 1)]
    regions = columns(refs, "in the snow")
    assert [region.prompt for region in regions] == [
        "a <alice-robot> in the snow",
        "a <bob-cat> in the snow",
        "a <carol-house> in the snow",
    ]
    edges = [region.box for region in regions]
    assert all(left is not None and right is not None and left[2] == right[0] for left, right in pairwise(edges))


def test_the_overview_shows_every_picture() -> None:
    colours = iter(range(1, 100))

    def picture(width: int = 64) -> Image.Image:
        return Image.new("RGB", (width, 64), (next(colours), 0, 0))

    given = [[picture() for _ in range(3)] for _ in range(2)]
    alone = {name: [picture(), picture()] for name in ("a/robot@1", "b/cat@1")}
    together = [(prompt, picture(128)) for prompt in ("beach", "snow", "city")]
    sheet = overview(given, DemoPictures(prompts=("one", "two"), alone=alone, together=together, regions=()))
    seen = {colour[0] for _, colour in sheet.getcolors(1000) or ()}
    assert set(range(1, 14)) <= seen
    assert sheet.width == 5 * (TILE + GAP) + 3 * GAP
