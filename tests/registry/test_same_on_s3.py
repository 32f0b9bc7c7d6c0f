"""A directory and an S3 bucket hold the same published concepts with identical manifests."""

from collections.abc import Callable
from pathlib import Path

from mos.concept import ConceptRef
from registry.client import Details, Registry
from registry.home import Home
from registry.layout import manifest_key
from registry.search import Query
from tests.registry.world import Clock, ColourScorer, write_picture


def test_the_same_publications_give_the_same_objects(
    tmp_path: Path, s3_url: str, artifact: Callable[..., Path], clock: Clock
):
    home = Home(tmp_path / "home")
    places = [Registry.open(url, create=True, home=home, clock=clock) for url in (tmp_path / "shelf", s3_url)]
    refs = [ConceptRef("alice", "robot"), ConceptRef("alice", "robot"), ConceptRef("bob", "robot")]
    colours = [(250, 5, 5), (5, 250, 5), (5, 5, 250)]
    for registry in places:
        for number, ref in enumerate(refs):
            registry.publish(
                artifact("robot", seed=number),
                ref,
                key=registry.new_owner(ref.owner),
                run_id=f"run-{number}",
                details=Details(previews=[write_picture(tmp_path / f"{number}.png", colours[number])]),
            )
        registry.withdraw(ConceptRef("alice", "robot", 1), "yank", home.owner_key("alice"), "blurred")
        assert registry.index(scorers=[ColourScorer()]).states == {"listed": 2, "yanked": 1}
    published = [ConceptRef("alice", "robot", 1), ConceptRef("alice", "robot", 2), ConceptRef("bob", "robot", 1)]
    manifests = [[one.shelf.store.get(manifest_key(ref)) for ref in published] for one in places]
    assert manifests[0] == manifests[1]
    users = [[(one.key, one.size_bytes) for one in place.shelf.store.list("users/")] for place in places]
    assert users[0] == users[1]
    assert len(users[0]) >= 3 + 6 + 1
    rows = [place.search(Query(state=None, all_versions=True)) for place in places]
    assert rows[0] == rows[1]
    for place in places:
        (nearest, closeness), *_ = place.similar(ColourScorer(), prompts=["green"])
        assert nearest.ref == ConceptRef("alice", "robot", 2)
        assert closeness > 0.99
        assert place.pull(nearest.ref).read_bytes() == artifact("robot", seed=1).read_bytes()
