"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from generating import Run
from pairs import class_pair, text_pair

from hybrid import HybridPipeline, cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data folder (``tiny.data_folder``)."""
    return tiny.data_folder(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a tiny tokenizer (``tiny.tokenizer_file``)."""
    return tiny.tokenizer_file(tmp_path_factory.mktemp("tokenizer") / "data")


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot of the losses, which takes longer than a tiny training: ``pytest.mark.usefixtures("no_plots")``."""
    monkeypatch.setattr("hybrid.training.can_plot", lambda: False)


@pytest.fixture(scope="module")
def pipe() -> HybridPipeline:
    """A tiny class-conditional pair."""
    return class_pair()


@pytest.fixture(scope="module")
def text() -> HybridPipeline:
    """A tiny text-conditional pair."""
    return text_pair()


@pytest.fixture(scope="module")
def pair_folder(pipe: HybridPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny class-conditional pair as files; its name is ``tiny``."""
    path = tmp_path_factory.mktemp("pairs") / "tiny"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def run(pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``hybrid-generate`` in an empty folder, with the tiny pair as the default one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(pair_folder))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
