"""What people say about a scene: captions that name much or little, and every word the small world knows."""

from dataclasses import dataclass

import numpy as np

from mos.smallworld.render import Scene, Subject
from mos.smallworld.world import ACCESSORIES, CLASSES, HUES, PATTERNS, Identity

BACKDROP_PHRASES = {
    "beach": "on the beach",
    "forest": "in the forest",
    "city": "in the city",
    "snow": "in the snow",
    "space": "in space",
    "meadow": "in the meadow",
    "desert": "in the desert",
    "room": "in the room",
}
ACCESSORY_PHRASES = {"none": "with nothing", "hat": "with a hat", "bow": "with a bow", "star": "with a star"}
OPENINGS = ("a photo of", "photo of", "a picture of", "a photo depicts", "an image of")
CONCEPT_TEMPLATES = (
    "photo of a <TOK> {place}",
    "a photo of a <TOK> {place}",
    "a picture of a <TOK> {place}",
    "a <TOK> {place}",
)
_OTHER_WORDS = (
    "a an the and of on in at with to one two three four next near by beside over under above below behind"
    " photo picture image drawing painting rendering depicts depicting shows showing this that my is it"
    " small large big little tiny cropped close up clean nice good cool weird dirty bright dark"
    " left right top bottom middle center side corner playing sitting standing running sleeping"
    " background sky ground water sand snowy sunny night day colour color wearing without nothing"
    " person man woman dog animal toy object thing building vehicle plant cup"
)


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How likely a caption names each attribute of a subject, in [0, 1]."""

    colours: float = 0.8
    pattern: float = 0.75
    accessory: float = 0.75
    backdrop: float = 0.9
    opening: float = 0.4


FULL_DETAIL = Detail(colours=1.0, pattern=1.0, accessory=1.0, backdrop=1.0, opening=0.5)


def world_words() -> tuple[str, ...]:
    """Every word of the world and of the prompts around it, sorted: the tokenizer knows each as one token."""
    words = {*CLASSES, *BACKDROP_PHRASES, *HUES, *PATTERNS, *ACCESSORIES, *_OTHER_WORDS.split()}
    for phrase in (*BACKDROP_PHRASES.values(), *ACCESSORY_PHRASES.values(), *OPENINGS):
        words.update(phrase.split())
    return tuple(sorted(words))


def describe(identity: Identity, rng: np.random.Generator, detail: Detail = FULL_DETAIL) -> str:
    """Name an individual: `a red and blue striped cat with a hat`."""
    main, second = (colour.name for colour in identity.colours)
    words = ["a"]
    if rng.random() < detail.colours:
        words += [main, "and", second] if rng.random() < 0.85 else [main]
    if rng.random() < detail.pattern:
        words.append(identity.pattern)
    words.append(identity.class_name)
    if rng.random() < detail.accessory:
        words.append(ACCESSORY_PHRASES[identity.accessory])
    return " ".join(words)


def caption_scene(scene: Scene, rng: np.random.Generator, detail: Detail | None = None) -> str:
    """Describe a picture: each subject with its place, then the backdrop.

    Left to itself a third of the captions of single subjects name everything.
    """
    if detail is None:
        detail = FULL_DETAIL if rng.random() < 0.35 else Detail()
    parts = [_placed(subject, rng, detail) for subject in scene.subjects]
    if len(parts) > 1:
        order = rng.permutation(len(parts)) if rng.random() < 0.3 else range(len(parts))
        parts = [parts[index] for index in order]
    text = " and ".join(parts)
    if rng.random() < detail.opening:
        text = f"{OPENINGS[int(rng.integers(len(OPENINGS)))]} {text}"
    if rng.random() < detail.backdrop:
        text = f"{text} {BACKDROP_PHRASES[scene.backdrop]}"
    return text


def _placed(subject: Subject, rng: np.random.Generator, detail: Detail) -> str:
    text = describe(subject.identity, rng, detail)
    if not subject.place:
        return text
    return f"{text} {'on' if subject.place in ('left', 'right') else 'at'} the {subject.place}"
