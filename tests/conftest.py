"""What holds for every test: a fixed seed, no uninitialised memory that looks like a result, one thread."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure() -> None:
    # Under deterministic algorithms torch.empty and its relatives hand out NaN (the largest integer for
    # integers), so an output that no kernel wrote shows. It holds for the whole process, fixtures included.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The tensors of tests are small, and two workers share the cores. A test of threads sets its own number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
