"""Fixtures of several files."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot of the losses, which takes longer than a tiny training: ``pytest.mark.usefixtures("no_plots")``."""
    monkeypatch.setattr("hybrid.training.can_plot", lambda: False)
