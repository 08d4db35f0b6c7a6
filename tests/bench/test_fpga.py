"""The benchmark of hardware: figures of whole tools, and none of a model that computes wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.bench.fpga import DEVICES, synthesise_block, synthesise_model
from edge.export import int8_graph, save_graph
from edge.targets.fpga import emitter as fpga
from edge.targets.fpga import yosys
from fedkit.bench import fpga as bench
from fedkit.bench.fpga import Measurement, Model, block_rows, model_rows, simulate
from fedkit.core.errors import ExportError
from tests.sets import slow_but

pytestmark = pytest.mark.skipif(
    yosys.obstacle("yosys") is not None, reason="needs yosys: pip install 'fedkit[bench]'"
)


@pytest.mark.slow
@pytest.mark.parametrize("device", slow_but(("ice40",), DEVICES))
def test_every_device_gives_figures(device: str) -> None:
    found = synthesise_block("l1_statistic", device)
    # The registers of the module: 25 + 25 + 9 + 8 + 3 + 1 bits.
    assert (found.ffs, found.dsp, found.bram) == (71, 0, 0)
    assert 50 < found.luts < 200
    assert (found.fmax_mhz is None) == (device == "xilinx7")


@pytest.mark.slow
def test_a_shift_costs_logic_and_a_missing_module_is_an_error() -> None:
    sizes = [
        synthesise_block(
            "shift_array", "ecp5", {"LANES": 2, "BITS": 4, "WEIGHT": 4, "GROUPS": groups}, False
        )
        for groups in (1, 4)
    ]
    assert sizes[0].luts < sizes[1].luts
    assert sizes[0].fmax_mhz is None  # as nothing was routed
    with pytest.raises(ExportError, match=r"yosys failed: ERROR: .*there_is_none"):
        synthesise_block("there_is_none", "ecp5")


def test_another_artifact_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    graph = int8_graph(model, np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2))
    with pytest.raises(ExportError, match="made for 'graph', not for an FPGA"):
        synthesise_model(save_graph(graph, tmp_path / "model.graph", {}).path)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_simulation")
def test_no_figure_is_given_for_a_wrong_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hdl = Path(shutil.copytree(fpga._HDL, tmp_path / "hdl"))
    text = (hdl / "lane.v").read_text()
    assert ".bias(bias)" in text
    (hdl / "lane.v").write_text(text.replace(".bias(bias)", ".bias(bias + 32'sd3000)"))
    monkeypatch.setattr(fpga, "_HDL", hdl)
    data = bench._digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
    graph = int8_graph(model.eval(), data.inputs[:50])
    saved = bench._saved(graph, data, tmp_path, 1)
    with pytest.raises(ExportError, match=r"outputs, first: Difference\(tensor='\w+', source='\d'"):
        simulate(saved, graph, data.test[:3], data.test_targets[:3])


@pytest.mark.slow
def test_rows_have_all_figures() -> None:
    plan = Measurement(2, (4,), ("ecp5",), (Model(4, 0.1, False, 1),), False, 1)
    rows = [*block_rows(plan, "ecp5"), *model_rows(plan)]
    assert [row["design"] for row in rows] == [
        *("fp16", "int", "shiftquant", "shiftquant-lanes", "l1-statistic", "l2-statistic"),
        "digits-cnn, no dsp",
    ]
    assert len({tuple(row) for row in rows}) == 1, "keys differ"
    fp16, plain, shifted, own, l1, _, model = rows
    assert plain["luts_vs_int"] == 1 < shifted["luts_vs_int"] <= own["luts_vs_int"]
    assert shifted["luts_vs_fp16"] == round(shifted["luts"] / fp16["luts"], 3)
    assert l1["luts_vs_l2"] < 1
    assert (model["dsp"], model["images_compared"]) == (0, 100)
    assert model["inferences_per_second"] == pytest.approx(
        1e6 * model["fmax_mhz"] / model["cycles_per_inference"], 1e-3
    )
