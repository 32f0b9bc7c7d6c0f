"""What the demo asks for when it draws."""

from jobs.demo_pictures import ALONE_PROMPTS, together_prompts
from mos.smallworld.captions import BACKDROP_PHRASES, world_words


def test_prompts_use_only_words_the_small_world_has_seen() -> None:
    prompts = [*(prompt.format("cat") for prompt in ALONE_PROMPTS), *together_prompts(["robot", "cat", "house"])]
    assert all(any(prompt.endswith(phrase) for phrase in BACKDROP_PHRASES.values()) for prompt in prompts)
    assert {word for prompt in prompts for word in prompt.split()} <= set(world_words())


def test_the_picture_of_all_names_every_class_and_its_place() -> None:
    assert together_prompts(["robot", "cat", "house"])[0] == (
        "a robot at the top left and a cat at the top right and a house at the bottom on the beach"
    )
