"""One saved model for all tests of this folder."""

import pytest
from store_helpers import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model directory; tests must not write to it."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")
