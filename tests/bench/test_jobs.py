"""`fedkit bench jobs`: how jobs are trained, what a row says, and its table."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from fedkit.bench import jobs
from fedkit.config import make_config
from fedkit.tasks import load_task
from tests.imports import ROOT


@pytest.mark.parametrize("job", jobs.JOBS, ids=lambda job: job.task)
def test_every_job_names_a_task_and_settings_that_there_are(job: jobs.DeviceJob) -> None:
    assert load_task(job.task).name == job.task
    for settings in jobs.VARIANTS.values():
        make_config({**settings(job), **job.quick, "task": job.task})


@pytest.mark.parametrize("job", jobs.JOBS, ids=lambda job: job.task)
def test_models_are_trained_for_as_long(job: jobs.DeviceJob) -> None:
    sparse, dense, central = (
        make_config({**settings(job), "task": job.task}) for settings in jobs.VARIANTS.values()
    )
    assert (dense.method, central.method, central.devices) == ("dense", "dense", 1)
    assert dense.density == central.density == 1.0 > sparse.density
    assert len({(each.rounds, each.epochs) for each in (sparse, dense, central)}) == 1
    assert sparse.devices == dense.devices > 1


EXAMPLES = {"damaged-digits": "anomaly", "keywords-kwt": "keywords", "motions-gru": "motions"}


@pytest.mark.parametrize("job", jobs.JOBS, ids=lambda job: job.task)
def test_a_fleet_is_that_of_its_example(job: jobs.DeviceJob) -> None:
    name = EXAMPLES.get(job.task, job.task)
    example = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    settings = dict(example.get("SETTINGS", example.get("FLEET", {})))
    for network in example.get("NETWORKS", {}).values():
        settings |= network if network["task"] == job.task else {}
    assert {**jobs.VARIANTS["fedtiny"](job), "task": job.task} == {"task": job.task, **settings}


COST = {"instructions": 1234, "flash_bytes": 5000, "ram_bytes": 7000, "stack_bytes": 1}
ROW: dict[str, Any] = {
    **{"job": "j", "trained": "fedtiny", "density": 0.1, "unit": "accuracy", "float": 0.5},
    **{"int8": 0.25, "bytes_sent": 2_500_000, "seconds": 200.0, "cpu_seconds": 150.0},
    **{"cortex-m4": COST, "cortex-a53": COST},
}


def test_a_row_of_the_table() -> None:
    line = jobs.table({"rows": [ROW]})[-1]
    assert line == (
        "| j | fedtiny | 10% | accuracy | 0.5000 | 0.2500 | 2.5 MB | 2.5 min "
        "| 1,234 | 5 kB | 7 kB | 1,234 |  |"
    )


@pytest.mark.slow
def test_the_anomaly_job_runs() -> None:
    (job,) = (each for each in jobs.JOBS if each.task == "damaged-digits")
    row = jobs.row(job, "fedtiny", quick=True)
    assert abs(row["float"] - row["int8"]) < 0.02
    assert row["threshold"]["roc_auc"] == row["int8"]
    assert len(row["roc_auc_by_type"]) == 10
    assert row["cortex-m4"]["flash_bytes"] < 100_000
