"""One private Ray for all tests here that need one, as starting it takes seconds; other folders start without it."""

from collections.abc import Iterator

import pytest

from cluster.session import Session, local_ray


@pytest.fixture(scope="package")
def ray_session() -> Iterator[Session]:
    """A private Ray with two logical CPUs, as on a laptop, and one logical GPU, which only who asks for it is given."""
    with local_ray(num_cpus=2, num_gpus=1) as session:
        yield session
