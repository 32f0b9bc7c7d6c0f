"""Publish, yank, delete, index, sweep and die in any order, with faults, against a model in memory.

200 runs in the normal tests; `pytest tests/registry/test_machine.py --registry-runs 10000` for the long ones.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mos.concept import ConceptRef
from mos.errors import BadInputError, CheckFailedError, ConflictError, NotFoundError, TryAgainError
from registry.client import Details, Registry
from registry.documents import sha256_hex
from registry.home import Home
from registry.indexer import Indexer, Scope
from registry.layout import DATA
from registry.reading import readable_manifest
from registry.row import Row, State
from registry.shards import read_table
from registry.sweeping import sweep
from tests.registry.faults import Died, Fault, FaultyStore
from tests.registry.world import LICENCE, Clock, MemoryStore, any_weights, make_package

CONCEPTS = [ConceptRef(owner, name) for owner in ("alice", "bob") for name in ("cat", "dog")]
PLANS = st.dictionaries(st.integers(0, 25), st.sampled_from(list(Fault)), max_size=2)
PASSING = (TryAgainError, CheckFailedError, BadInputError, NotFoundError, Died)
"""What a fault may come out as: busy, damaged bytes noticed, an object not there yet, a death."""


@dataclass
class Version:
    """What the model knows of one version."""

    run_id: str
    content: bytes
    yanked: bool | None = False
    deleted: bool | None = False


class RegistryMachine(RuleBasedStateMachine):
    """The registry beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="mos-machine-")
        self.clock = Clock()
        self.store = FaultyStore(MemoryStore(self.clock), self.clock)
        self.registry = Registry.over(self.store, create=True, home=Home(self.folder.name), clock=self.clock)
        self.keys = {owner: self.registry.new_owner(owner) for owner in ("alice", "bob")}
        self.model: dict[ConceptRef, Version] = {}
        self.unsure: dict[tuple[ConceptRef, str], bytes] = {}

    def teardown(self) -> None:
        """Without faults every retry converges, and the catalogue says what the model says."""
        self.store.arm({})
        for (concept, run_id), content in sorted(self.unsure.items()):
            self._publish(concept, run_id, content)
        for ref, version in self.model.items():
            self._settle(ref, version)
        self._index("sweep")
        self._index("hints")
        incremental = self._rows()
        assert set(incremental) == set(self.model)
        for ref, version in self.model.items():
            expected = State.DELETED if version.deleted else State.YANKED if version.yanked else State.LISTED
            assert incremental[ref].state == expected, incremental[ref].reason
        self._index("rebuild")
        assert self._rows() == incremental
        self.folder.cleanup()

    @rule(concept=st.sampled_from(CONCEPTS), run=st.integers(0, 2), content=st.integers(0, 1), plan=PLANS)
    def publish(self, concept: ConceptRef, run: int, content: int, plan: dict[int, Fault]) -> None:
        """Publish, perhaps again, perhaps with other bytes, perhaps in vain."""
        run_id, weights = f"run-{run}", b"weights %d %d" % (run, content)
        if not self._with_faults(plan, lambda: self._publish(concept, run_id, weights)):
            self.unsure[(concept, run_id)] = weights

    @rule(number=st.integers(0, 20), action=st.sampled_from(["yank", "unyank", "delete"]), plan=PLANS)
    def withdraw(self, number: int, action: str, plan: dict[int, Fault]) -> None:
        """Yank, unyank or delete one of the versions."""
        if not self.model:
            return
        ref = sorted(self.model)[number % len(self.model)]
        version = self.model[ref]
        self.store.arm({})
        if action == "delete" and self._is_shared(ref, version):
            with pytest.raises(ConflictError, match="shares a file"):
                self._withdraw(ref, action)
            return
        done = self._with_faults(plan, lambda: self._withdraw(ref, action))
        if version.deleted:
            return
        if action == "delete":
            version.deleted = True if done else None
        else:
            version.yanked = (action == "yank") if done else None

    @rule(scope=st.sampled_from(["hints", "sweep", "rebuild"]), plan=PLANS)
    def index(self, scope: Scope, plan: dict[int, Fault]) -> None:
        """Index, perhaps dying on the way."""
        self._with_faults(plan, lambda: self._index(scope))

    @rule(plan=PLANS)
    def collect(self, plan: dict[int, Fault]) -> None:
        """Sweep up garbage, perhaps dying on the way."""
        self._with_faults(plan, lambda: sweep(self.registry.shelf, now_s=self.clock()))

    @rule(hours=st.sampled_from([0.1, 5.0, 30.0]))
    def wait(self, hours: float) -> None:
        """Let time pass."""
        self.clock.advance(hours * 3600)

    @invariant()
    def versions_have_no_gaps_and_no_run_twice(self) -> None:
        """Whatever died, versions count from 1 and each run is one of them; what was promised is there."""
        self.store.arm({})
        for concept in CONCEPTS:
            versions = self.registry.shelf.versions(concept)
            assert versions == list(range(1, len(versions) + 1))
            runs = [self.registry.shelf.manifest(concept.at(version)).manifest.run_id for version in versions]
            assert len(set(runs)) == len(runs)
        for ref, version in self.model.items():
            assert self.registry.shelf.manifest(ref).manifest.run_id == version.run_id

    @invariant()
    def what_is_visible_is_whole(self) -> None:
        """Every manifest that exists can be read, and its files too unless they were deleted."""
        self.store.arm({})
        for concept in CONCEPTS:
            for number in self.registry.shelf.versions(concept):
                ref = concept.at(number)
                signed, problem, _ = readable_manifest(self.registry.shelf, ref)
                assert signed is not None, problem
                if not any(item.event.action == "delete" for item in self.registry.shelf.events(ref)[0]):
                    self.registry.shelf.file(ref, signed.manifest.weights)

    @invariant()
    def what_the_catalogue_names_is_there(self) -> None:
        """Every file of the newest snapshot lies in the store, not only in this home's cache."""
        self.store.arm({})
        for shard in self.registry.shelf.catalogue().snapshot.data:
            assert sha256_hex(self.store.inner.get(f"{DATA}{shard.sha256}.parquet")) == shard.sha256

    def _publish(self, concept: ConceptRef, run_id: str, weights: bytes) -> None:
        package = make_package(concept.name, content=weights)
        made = self.registry.publish_package(
            package, concept, self.keys[concept.owner], run_id, LICENCE, Details(created_at=self.clock())
        )
        self.store.arm({})
        known = self.model.get(made.ref)
        assert known is None or known.run_id == run_id
        for ref, version in self.model.items():
            same = (ref.owner, ref.name, version.run_id) == (concept.owner, concept.name, run_id)
            assert not same or ref == made.ref
        if known is None:
            self.model[made.ref] = Version(run_id, weights)
        self.unsure.pop((concept, run_id), None)

    def _withdraw(self, ref: ConceptRef, action: str) -> None:
        self.registry.withdraw(ref, action, self.keys[ref.owner], "why not")  # type: ignore[arg-type]

    def _settle(self, ref: ConceptRef, version: Version) -> None:
        """Repeat what was left in doubt, and know then."""
        if version.deleted is None:
            if self._is_shared(ref, version):
                version.deleted = any(e.event.action == "delete" for e in self.registry.shelf.events(ref)[0])
            else:
                self._withdraw(ref, "delete")
                version.deleted = True
        if version.yanked is None:
            self._withdraw(ref, "yank")
            version.yanked = True

    def _is_shared(self, ref: ConceptRef, version: Version) -> bool:
        mine = self.registry.shelf.manifest(ref).manifest.weights.sha256
        for concept in CONCEPTS:
            for number in self.registry.shelf.versions(concept):
                other = concept.at(number)
                if other != ref and other.owner == ref.owner:
                    same = self.registry.shelf.manifest(other).manifest.weights.sha256 == mine
                    gone = any(e.event.action == "delete" for e in self.registry.shelf.events(other)[0])
                    if same and not gone:
                        return True
        return False

    def _index(self, scope: Scope) -> None:
        key = self.registry.home.registry_key(self.registry.record.registry_id, "indexer")
        Indexer(self.registry.shelf, key, any_weights, clock=self.clock).run(scope)

    def _rows(self) -> dict[ConceptRef, Row]:
        catalogue = self.registry.shelf.catalogue()
        records = [r for shard in catalogue.snapshot.data for r in read_table(catalogue.load(shard)).to_pylist()]
        rows = [Row.from_dict(record) for record in records]
        assert len({row.ref for row in rows}) == len(rows)
        return {row.ref: row for row in rows}

    def _with_faults(self, plan: dict[int, Fault], action: Callable[[], object]) -> bool:
        """Run an action under a plan of faults; whether it came through."""
        self.store.arm(plan)
        try:
            action()
        except PASSING:
            if not self.store.struck:
                raise
            return False
        finally:
            self.store.arm({})
            self.store.struck.clear()
        return True


@pytest.mark.timeout(7200)  # for the long run: 10,000 take about a quarter of an hour of one core
def test_nothing_is_lost_doubled_or_half_visible(request: pytest.FixtureRequest):
    runs = int(request.config.getoption("--registry-runs", default=200))
    run_state_machine_as_test(
        RegistryMachine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=12,
            deadline=None,
            database=None,
            derandomize=runs == 200,
            suppress_health_check=list(HealthCheck),
        ),
    )
