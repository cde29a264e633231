"""schemathesis against the API's description: whatever it sends, the answer is one that is described, and never 500."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import text_pair
from serving import listening

pytestmark = pytest.mark.slow

UNSAYABLE = "positive_data_acceptance"
"""A schema cannot say that a file is a picture of 8x8, or that steps and fraction must leave places to fill."""


def test_answers_are_as_described(tmp_path: Path) -> None:
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
    if command is None:
        pytest.skip("needs schemathesis")
    with listening(text_pair()) as address:
        line = [command, "run", f"{address}/openapi.json", "--exclude-checks", UNSAYABLE, "--seed", "1", "-n", "30"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
