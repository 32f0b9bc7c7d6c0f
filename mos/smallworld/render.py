"""Draw scenes of the small world: 64x64 pictures, the masks of their subjects, and the truth about them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mos.smallworld.backdrops import draw_backdrop, sample_layout
from mos.smallworld.shapes import SUPERSAMPLING, Pen, draw_subject
from mos.smallworld.world import PICTURE_SIZE, Identity, World, sample_identity

_SIDE = PICTURE_SIZE * SUPERSAMPLING
_HALVES = {"left": (16.5, 34.0), "right": (47.5, 34.0)}
_STACK = {"top": (32.0, 16.5), "bottom": (32.0, 47.5)}
_TRIPLES = (
    {"top left": (16.5, 17.0), "top right": (47.5, 17.0), "bottom": (32.0, 47.0)},
    {"top": (32.0, 17.0), "bottom left": (16.5, 47.0), "bottom right": (47.5, 47.0)},
)
_QUARTERS = {
    "top left": (16.5, 17.0),
    "top right": (47.5, 17.0),
    "bottom left": (16.5, 47.0),
    "bottom right": (47.5, 47.0),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An individual placed in a picture.

    Attributes:
        identity: Who.
        centre: x and y in pixels.
        size: Side of its frame in pixels.
        tilt: Degrees clockwise.
        flip: Mirrored left to right.
        place: What a caption calls the position ("left", "top right"); empty for a lone subject.
    """

    identity: Identity
    centre: tuple[float, float]
    size: float
    tilt: float = 0.0
    flip: bool = False
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a picture shows: subjects from back to front on a backdrop."""

    subjects: tuple[Subject, ...]
    backdrop: str
    horizon_shift: float = 0.0
    feature_x: float = 52.0


@dataclass(frozen=True, kw_only=True)
class RenderedScene:
    """A drawn scene.

    Attributes:
        image: RGB, 64x64.
        masks: One "L" picture a subject, 255 where it is, 64x64.
        truth: The scene that was drawn.
    """

    image: Image.Image
    masks: tuple[Image.Image, ...]
    truth: Scene


def render_scene(scene: Scene, *, with_masks: bool = True) -> RenderedScene:
    """Draw a scene with fourfold supersampling; without masks it is a third faster."""
    canvas = draw_backdrop(scene.backdrop, scene.horizon_shift, scene.feature_x)
    masks = []
    for subject in scene.subjects:
        mask = Image.new("L", (_SIDE, _SIDE)) if with_masks else None
        pen = Pen(canvas, mask, centre=subject.centre, size=subject.size, tilt=subject.tilt, flip=subject.flip)
        draw_subject(pen, subject.identity)
        if mask is not None:
            masks.append(mask.reduce(SUPERSAMPLING))
    return RenderedScene(image=canvas.reduce(SUPERSAMPLING), masks=tuple(masks), truth=scene)


def sample_scene(
    rng: np.random.Generator,
    *,
    world: World | None = None,
    num_subjects: int = 1,
    held_out: bool = False,
) -> Scene:
    """Draw a scene of one to four strangers from the world."""
    world = world or World()
    identities = [sample_identity(rng, world=world, held_out=held_out) for _ in range(num_subjects)]
    backdrop = world.backdrops[int(rng.integers(len(world.backdrops)))]
    return compose_scene(rng, identities, backdrop, world=world)


def compose_scene(
    rng: np.random.Generator,
    identities: list[Identity],
    backdrop: str,
    *,
    world: World | None = None,
    single_size: tuple[float, float] | None = None,
) -> Scene:
    """Place one to four given individuals on a backdrop at drawn positions, sizes and tilts."""
    world = world or World()
    if len(identities) == 1:
        size = float(rng.uniform(*(single_size or world.single_size)))
        margin = size * 0.5 + 1
        centre = (float(rng.uniform(margin, 64 - margin)), float(rng.uniform(margin + 2, 65 - margin)))
        subjects = [_stand(rng, world, identities[0], centre, size, "")]
    else:
        places = _places(rng, len(identities))
        subjects = []
        for identity, (place, (x, y)) in zip(identities, places, strict=True):
            size = float(rng.uniform(*world.group_size))
            drift = rng.uniform(-1, 1, 2) * (0.8, 4.0 if len(identities) == 2 and place in _HALVES else 0.8)
            subjects.append(_stand(rng, world, identity, (x + float(drift[0]), y + float(drift[1])), size, place))
    shift, feature_x = sample_layout(rng)
    return Scene(subjects=tuple(subjects), backdrop=backdrop, horizon_shift=shift, feature_x=feature_x)


def mirrored(rendered: RenderedScene) -> RenderedScene:
    """The picture and its masks seen in a mirror; the truth keeps its places only for lone subjects.

    Raises:
        ValueError: If the scene has several subjects, whose places would no longer be true.
    """
    if len(rendered.truth.subjects) != 1:
        raise ValueError("only a scene with one subject can be mirrored")
    return RenderedScene(
        image=ImageOps.mirror(rendered.image),
        masks=tuple(ImageOps.mirror(mask) for mask in rendered.masks),
        truth=rendered.truth,
    )


def _stand(
    rng: np.random.Generator, world: World, identity: Identity, centre: tuple[float, float], size: float, place: str
) -> Subject:
    return Subject(
        identity=identity,
        centre=centre,
        size=size,
        tilt=float(rng.uniform(-world.max_tilt, world.max_tilt)),
        flip=bool(rng.integers(2)),
        place=place,
    )


def _places(rng: np.random.Generator, count: int) -> list[tuple[str, tuple[float, float]]]:
    if count == 2:
        layout = _HALVES if rng.random() < 0.8 else _STACK
    elif count == 3:
        layout = _TRIPLES[int(rng.integers(2))]
    else:
        layout = _QUARTERS
    return list(layout.items())
