"""Tests that need an NVIDIA GPU: all of this folder. Skipped, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wpk.core.errors import DeviceError
from wpk.core.target import Target
from wpk.runtime.cuda.driver import CudaDevice, open_device
from wpk.settings import known_gpu


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here carries the marker ``gpu``."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> Iterator[CudaDevice]:
    """The first GPU."""
    try:
        yield open_device()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def target(device: CudaDevice) -> Target:
    """The GPU as the compiler sees it."""
    return known_gpu(device.target)
