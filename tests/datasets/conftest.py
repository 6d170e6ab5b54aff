"""What the tests of data sets share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def prepared(monkeypatch, tmp_path_factory):
    """The folder where tables are prepared: a new one for each test, never the user's."""
    import datasets
    import datasets.config

    folder = tmp_path_factory.mktemp("prepared")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    return folder
