"""What `make run` promises, as a test: slow, because it is the whole job."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_main_job_keeps_its_promises(tmp_path: Path) -> None:
    command = re.search(r"^RUN := fedkit (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command is not None
    arguments = [*command[1].split(), "--out", str(tmp_path), "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "fedkit", *arguments], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["accuracy_sparse"] >= summary["accuracy_dense_fedavg"] - 0.03
    assert abs(summary["accuracy_int8"] - summary["accuracy_sparse"]) <= 0.01
    assert summary["density"] <= 0.1
    assert summary["bytes_dense_fedavg"] > 7 * (summary["bytes_up"] + summary["bytes_down"])
    assert Path(summary["artifact"]).is_file()
