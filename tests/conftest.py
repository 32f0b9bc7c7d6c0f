"""What all tests share."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --require-everything, which turns a skip for want of a dependency into a failure."""
    parser.addoption(
        "--require-everything",
        action="store_true",
        help="fail instead of skipping when a dependency is missing",
    )
    parser.addoption("--registry-runs", default=200, help="runs of the registry's state machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Report a skip as a failure where everything is required."""
    report = yield
    if report.skipped and item.config.getoption("--require-everything") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although everything is required: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def tiny_base():
    """A random-weight base of the Stable Diffusion 1.x kind; leave its weights as they are."""
    from mos.random_base import random_base

    return random_base("sd1")
