"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data folder (``tiny.data_folder``)."""
    return tiny.data_folder(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot of the losses, which takes longer than a tiny training: ``pytest.mark.usefixtures("no_plots")``."""
    monkeypatch.setattr("hybrid.training.can_plot", lambda: False)
