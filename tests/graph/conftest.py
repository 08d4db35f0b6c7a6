from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _models_are_the_same_each_time(seeded_single_thread: None) -> None:
    pass
