"""A thousand rounds through Flower in forks: memory stays flat, and no more and more files are."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedkit.bench.process import shared_memory
from fedkit.flower.processes import marked
from fedkit.server.checkpoint import RunFolder
from tests.ended_commands import assert_all_gone
from tests.processes import started
from tests.whole_runs import flags

KEYS: dict[str, Any] = {
    "devices": 100,
    "devices_per_round": 10,
    "rounds": 1000,
    "partition": "iid",
    "epochs": 1,
    "test_examples": 60,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "uplink_bits": 4,
    "adjust_every": 10,
    "adjust_stop": 900,
    "measure_every": 100,
}


class Sample(NamedTuple):
    """What is seen of a run at a moment.

    Attributes:
        done: Rounds so far.
        memory: Bytes of all processes (PSS).
        opened: Their open files.
        kept: Files of the run folder.
    """

    done: int
    memory: int
    opened: int
    kept: int


def look(mark: str, folder: Path) -> Sample:
    pids, lines = marked(mark), RunFolder(folder).metrics()
    opened = 0
    for pid in pids:
        try:
            opened += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            continue
    kept = sum(path.is_file() for path in folder.rglob("*"))
    return Sample(lines[-1]["round"] if lines else 0, shared_memory(pids), opened, kept)


@pytest.mark.slow
def test_a_thousand_rounds_neither_grow_nor_keep_files(tmp_path: Path) -> None:
    folder, samples = tmp_path / "runs" / "r", list[Sample]()
    command = ["run", *flags(KEYS), "--out", str(folder.parent), "--name", "r", "--json"]
    with started(tmp_path, "-m", "fedkit", *command) as process:
        while process.poll() is None:
            time.sleep(1.0)
            samples.append(look(f"FEDKIT_TEST={tmp_path}", folder))
        assert process.returncode == 0, process.communicate()[1]
        assert_all_gone(tmp_path)
    assert len(RunFolder.open(folder).metrics()) == 2 + KEYS["rounds"]
    second, last = (
        [sample for sample in samples if first <= sample.done < first + 250] for first in (250, 750)
    )
    for what, most in (("memory", 1.03), ("opened", 1.0), ("kept", 1.0)):
        before, after = (statistics.median(getattr(s, what) for s in q) for q in (second, last))
        print(what, before, after)
        assert after <= most * before, what
