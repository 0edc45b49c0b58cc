"""One saved model for all tests of this folder."""

import pytest
from store_helpers import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model directory; tests must not write to it."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The directory of a narrow model of CT volumes; tests must not write to it."""
    from volume_stores import save_toy

    return save_toy(tmp_path_factory.mktemp("toy") / "maisi")


@pytest.fixture
def scans(tmp_path):
    """A folder of six scans of different sizes, geometries, types and formats."""
    from volume_stores import write_scans

    return write_scans(tmp_path / "scans")
