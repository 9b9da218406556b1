"""What several tests of the data share."""

import pytest
from support import forward_model


@pytest.fixture(scope="session")
def forward(alone):
    """The forward model of the config `test`; only the first worker compiles it."""
    with alone("forward_model"):
        return forward_model.build()
