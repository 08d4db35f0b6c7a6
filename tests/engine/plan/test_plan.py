from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkit.core.errors import PlanError
from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.function import FunctionOp
from fedkit.engine.plan.layer_norm import LayerNorm
from fedkit.engine.plan.pair import PairOp
from fedkit.engine.plan.plan import load_plan, plan_digest, save_plan, verify
from fedkit.engine.plan.structure import VERSION, Plan, PlanOp, StoredTensor
from fedkit.tasks import losses
from tests.engine.plan.one_plan import CONV, LINEAR, NORM, ONE, PLAN, POOL

# x (2, 4, 4) -> 3x3 convolution to 4 channels, norm, ReLU -> read three times: pooled, added to
# itself, and both concatenated -> 2x2 pooling -> flatten -> linear


# ReLU of x (2, 1, 1), normalised with a value per element in either shape -> linear
LAYER = LayerNorm(0, 1, "layer", 1e-5, "layer.weight", "layer.bias", "l1-layer")
LAYERED = Plan(
    weights={"layer.weight": (2,), "layer.bias": (2, 1, 1), "fc.weight": (3, 2)},
    stats={},
    prunable=("fc.weight",),
    tensors=(
        StoredTensor((2, 1, 1)),
        StoredTensor((2, 1, 1), activation="relu"),
        StoredTensor((3, 1, 1)),
    ),
    ops=(LAYER, Conv(1, 2, "fc.weight", None, ONE, ONE, (0, 0), ONE, groups=1)),
    output=2,
)


def with_layer(**changes: Any) -> Plan:
    return replace(LAYERED, ops=(replace(LAYER, **changes), *LAYERED.ops[1:]))


def with_op(index: int, op: PlanOp) -> Plan:
    return replace(PLAN, ops=(*PLAN.ops[:index], op, *PLAN.ops[index + 1 :]))


def with_tensor(index: int, **changes: Any) -> Plan:
    tensors = list(PLAN.tensors)
    tensors[index] = replace(tensors[index], **changes)
    return replace(PLAN, tensors=tuple(tensors))


def with_weight(name: str, shape: tuple[int, ...]) -> Plan:
    return replace(PLAN, weights={**PLAN.weights, name: shape})


def test_a_good_plan_passes_and_gives_its_layout() -> None:
    verify(PLAN)
    assert PLAN.layout.prunable_shapes == {"conv.weight": (4, 1, 3, 3), "fc.weight": (3, 32)}
    assert PLAN.layout.stats is PLAN.stats


def test_a_plan_is_read_without_torch() -> None:
    code = "import fedkit.engine.plan.plan, sys; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# The rules

BROKEN = {
    "the plan has version 2": replace(PLAN, version=VERSION + 1),
    "prunable 'x' is not a weight": replace(PLAN, prunable=("x",)),
    "has weight 'fc.weight', which must be among the prunable": replace(
        PLAN, prunable=("conv.weight",)
    ),
    "a parameter has more than 1073741824 values": with_weight("fc.weight", (3, 2**30)),
    "an example of a tensor has more than 67108864 values": with_tensor(2, shape=(4, 2**20, 2**20)),
    "prunable 'fc.weight' is listed 2 times": replace(PLAN, prunable=("fc.weight",) * 2),
    "'fc.bias' has shape (0,)": with_weight("fc.bias", (0,)),
    "tensor 2 has shape (4, 0, 4)": with_tensor(2, shape=(4, 0, 4)),
    "tensor 1 has a norm with eps 0.0": with_tensor(1, norm=replace(NORM, eps=0.0)),
    "whose 'norm.bias' has shape (5,)": with_weight("norm.bias", (5,)),
    "whose 'b.running_mean' has shape None; it must be among the stats": with_tensor(
        1, norm=replace(NORM, name="b")
    ),
    "the plan has no tensors": replace(PLAN, tensors=(), ops=(), output=0),
    "tensor 0 has a norm or an activation": with_tensor(0, activation="relu"),
    "op 0 (conv) reads tensor 7; there are only 0 to 6": with_op(0, replace(CONV, source=7)),
    "op 0 (conv) reads tensor -1": with_op(0, replace(CONV, source=-1)),
    "op 0 (conv) reads tensor 1 with 0 of 4 channels": with_op(0, replace(CONV, source=1)),
    "op 1 (add) reads tensor 2 with 0 of 4": with_op(1, Add(1, 2, 2)),
    "op 0 (conv) writes tensor 0": with_op(0, replace(CONV, target=0)),
    "op 0 (conv) writes tensor 9": with_op(0, replace(CONV, target=9)),
    "op 1 (add) writes tensor 1, which is written already": with_op(1, Add(1, 1, 1)),
    "op 3 (copy) writes tensor 3, which is written already": with_op(3, Copy(1, 3, channel=2)),
    "op 3 (pool) reads tensor 3 with 4 of 8 channels": replace(
        PLAN, ops=(*PLAN.ops[:3], *PLAN.ops[4:])
    ),
    "after the last op, there is tensor 7 with 0 of 1": replace(
        PLAN, tensors=(*PLAN.tensors, StoredTensor((1, 1, 1)))
    ),
    "the output is tensor 7; there are only": replace(PLAN, output=7),
    "op 0 (conv) has 3 groups": with_op(0, replace(CONV, groups=3)),
    "op 0 (conv) has 0 groups": with_op(0, replace(CONV, groups=0)),
    "op 0 (conv) has weight 'y' of shape None": with_op(0, replace(CONV, weight="y")),
    "op 0 (conv) has weight 'conv.weight' of shape (4, 2, 3, 3)": with_weight(
        "conv.weight", (4, 2, 3, 3)
    ),
    "op 6 (conv) has weight 'fc.weight' of shape (3, 31)": with_weight("fc.weight", (3, 31)),
    "op 6 (conv) has bias 'fc.bias' of shape (4,)": with_weight("fc.bias", (4,)),
    "op 0 (conv) turns a plane of (4, 4) into (4, 4)": with_op(0, replace(CONV, padding=(0, 1))),
    "op 0 (conv) has kernel (3, 3), stride (0, 1)": with_op(0, replace(CONV, stride=(0, 1))),
    "op 0 (conv) has kernel (3, 3), stride (1, 1), dilation (1, 1), padding (-1, 1)": with_op(
        0, replace(CONV, padding=(-1, 1))
    ),
    "op 4 (pool) turns 8 channels into 4": replace(
        PLAN,
        tensors=(
            *PLAN.tensors[:4],
            StoredTensor((4, 2, 2)),
            StoredTensor((16, 1, 1)),
            PLAN.tensors[6],
        ),
    ),
    "op 4 (pool) turns a plane of (4, 4) into (2, 2)": with_op(4, replace(POOL, stride=ONE)),
    "op 4 (pool) has padding (2, 0); it must be at most half": with_op(
        4, replace(POOL, kernel=(3, 2), stride=(3, 2), padding=(2, 0))
    ),
    "op 2 (copy) writes (4, 4, 4) to (4, 4, 3)": replace(
        PLAN,
        tensors=(*PLAN.tensors, StoredTensor((4, 4, 3))),
        ops=(PLAN.ops[0], PLAN.ops[1], Copy(1, 7), *PLAN.ops[2:]),
    ),
    "op 3 (copy) writes (4, 4, 4) to (8, 4, 4) from channel -1": with_op(3, Copy(1, 3, channel=-1)),
    "op 1 (add) adds (4, 4, 4) and (2, 4, 4)": with_op(1, Add(1, 0, 2)),
    "the output has shape (8, 2, 2) and 1 dimension(s); with 1 it must be (features": replace(
        PLAN, tensors=PLAN.tensors[:5], ops=PLAN.ops[:5], output=4
    ),
    "the output has shape (8, 2, 2) and 2 dimension(s)": replace(
        PLAN, tensors=PLAN.tensors[:5], ops=PLAN.ops[:5], output=4, output_dims=2
    ),
    "the output has 4 dimensions": replace(PLAN, output_dims=4),  # type: ignore[arg-type]
    "loss cross_entropy has weights of 2 classes, and the model has 3": replace(
        PLAN, loss=losses.CrossEntropy((1.0, 2.0))
    ),
    "pos_weight for 2 channels": replace(PLAN, loss=losses.BCEWithLogits((1.0, 2.0))),
    "the output has norm 'norm'": replace(
        PLAN,
        weights={"w": (4, 2), "norm.weight": (4,), "norm.bias": (4,)},
        prunable=("w",),
        tensors=(StoredTensor((2, 1, 1)), StoredTensor((4, 1, 1), NORM)),
        ops=(Conv(0, 1, "w", None, ONE, ONE, (0, 0), ONE, groups=1),),
        output=1,
    ),
    "op 0 (l1-layer) has eps inf": with_layer(eps=math.inf),
    "op 0 (l1-layer) has parameter 'fc.weight' of shape (3, 2); it must be (2, 1, 1) or (2, 1)": (
        with_layer(bias="fc.weight")
    ),
    "op 0 (l1-layer) turns (2, 1, 1) into (1, 1, 1); a layer norm": replace(
        LAYERED, tensors=(LAYERED.tensors[0], StoredTensor((1, 1, 1)), LAYERED.tensors[2])
    ),
    "'layer.bias' is used 0 times": with_layer(bias=None),
    "'layer.weight' is used 2 times": with_layer(bias="layer.weight"),
    "'spare' is used 0 times": with_weight("spare", (1,)),
    "'fc.weight' is used 2 times": replace(
        PLAN,
        tensors=(*PLAN.tensors[:6], StoredTensor((3, 1, 1)), StoredTensor((3, 1, 1))),
        ops=(*PLAN.ops, replace(LINEAR, target=7, bias=None)),
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_rule_is_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        verify(BROKEN[message])
    assert message in str(caught.value)
    assert str(caught.value).endswith("; capture the model again")
    with pytest.raises(PlanError):
        save_plan(BROKEN[message], tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


# The file


WEIGHTED = asdict(losses.CrossEntropy([1, 0.5, 2], -100, 0.1))
LOSSES: dict[str, losses.Loss] = {
    "cross_entropy": losses.CrossEntropy([1, 0.5, 2], -100, 0.1),
    "mse_loss": losses.MSE(),
    "l1_loss": losses.L1(),
    "huber_loss": losses.Huber(2),
    "smooth_l1_loss": losses.SmoothL1(0.0),
    "binary_cross_entropy_with_logits": losses.BCEWithLogits((1, 2, 3)),
    "triplet_margin_loss": losses.TripletMargin(0.3),
    "info_nce": losses.InfoNCE(0.3),
}


def test_every_loss_is_saved_and_read(tmp_path: Path) -> None:
    assert set(LOSSES) == set(losses.LOSSES)
    for kind, loss in LOSSES.items():
        plan, path = replace(PLAN, loss=loss), tmp_path / kind
        save_plan(plan, path)
        assert load_plan(path) == plan and json.loads(path.read_bytes())["loss"]["kind"] == kind
        assert plan_digest(plan) == plan_digest(load_plan(path)) != plan_digest(PLAN)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"kind": "mse"}, "field loss is .*'mse'"),
        ({}, "field loss"),
        (None, "field loss"),
        ({"kind": "mse_loss", "reduction": "sum"}, "field loss.*reduction"),
        ({"delta": 0.0, "kind": "huber_loss"}, "delta is 0.0; .* greater than 0"),
        ({"delta": "1", "kind": "huber_loss"}, "field loss.huber_loss.delta is '1'"),
        ({"delta": math.inf, "kind": "huber_loss"}, "is inf"),
        ({"delta": 1, "kind": "huber_loss"}, "not written as this program writes"),
        ({"kind": "huber_loss"}, "not written as this program writes"),
        ({**asdict(losses.CrossEntropy()), "kind": "cross_entropy"}, "not written as this program"),
        ({**WEIGHTED, "weight": [1.0, 2.0]}, "2 classes, and the .* has 3"),
        ({**WEIGHTED, "weight": [1.0, "x", 2.0]}, "weight.1 is 'x'"),
        (
            {**WEIGHTED, "weight": [1.0, -1.0, 2.0]},
            "weight is .* at least 0",
        ),
        ({**WEIGHTED, "ignore_index": 2**80}, "ignore_index"),
        (
            {**WEIGHTED, "label_smoothing": math.nan},
            "label_smoothing is nan",
        ),
    ],
)
def test_a_loss_that_is_none_is_refused_in_one_line(
    loss: object, message: str, tmp_path: Path, data: bytes
) -> None:
    content = {k: v for k, v in json.loads(data).items() if k != "sha256"}
    found = refusal(tmp_path / "plan.json", signed({**content, "loss": loss}))
    assert re.search(message, found) and "\n" not in found and len(found) < 700


@pytest.mark.parametrize("kind", ["layer", "l1-layer"])
def test_layer_norms_are_saved_and_read(kind: str, tmp_path: Path) -> None:
    plan = with_layer(kind=kind)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save_plan(PLAN, path)
    return path.read_bytes()


def signed(content: dict[str, Any]) -> bytes:
    """Write a file as `save_plan` does, whatever its content."""
    digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}) + "\n").encode()


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_saved_plan_comes_back_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(PLAN, path)
    loaded = load_plan(path)
    assert loaded == PLAN
    assert list(loaded.weights) == list(PLAN.weights)
    assert list(tmp_path.iterdir()) == [path]
    last = replace(PLAN.tensors[-1], activation="relu")
    save_plan(replace(PLAN, tensors=(*PLAN.tensors[:-1], last)), path)
    assert load_plan(path).tensors[-1] == last


def test_the_documented_digest_is_the_one_written(data: bytes) -> None:
    content = asdict(PLAN)
    assert content.pop("loss") == {**asdict(losses.CrossEntropy()), "kind": "cross_entropy"}
    assert content.pop("output_dims") == 1
    assert signed(content) == data


def test_a_missing_file_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read \(No such file .*\); capture the model"):
        load_plan(tmp_path / "plan.json")
    with pytest.raises(PlanError, match=r"cannot be written: No such file .*; give a path"):
        save_plan(PLAN, tmp_path / "folder" / "plan.json")


@pytest.mark.parametrize("broken", [b"", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, b'{"a": '])
def test_no_json(broken: bytes, tmp_path: Path) -> None:
    assert "is not JSON, so it is truncated or altered" in refusal(tmp_path / "p", broken)


def test_no_object(tmp_path: Path) -> None:
    assert "holds a list, a plan is a JSON object" in refusal(tmp_path / "p", b"[1]")


def test_another_version(tmp_path: Path) -> None:
    found = refusal(tmp_path / "p", signed({**asdict(PLAN), "version": 2}))
    assert "has version 2, this program reads 1; capture the model again" in found
    assert "has version None" in refusal(tmp_path / "p", b"{}")


def test_altered_content(data: bytes, tmp_path: Path) -> None:
    found = refusal(tmp_path / "p", data.replace(b"max", b"mean"))
    assert "is altered: it gives sha256 '" in found
    assert "restore the file or capture the model again" in found


WRONG_FIELDS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"output": "6"}, "field output is '6': input should be a valid integer"),
    ({"output": 6.0}, "field output is 6.0: "),
    ({"color": 1}, "field color is 1: "),
    ({"weights": {"a": [1.5]}}, "field weights.a.0 is 1.5: "),
    ({"tensors": [{"shape": [1, 2]}]}, "field tensors.0.shape.2 is "),
    ({"ops": [{"kind": "over"}]}, "field ops.0 is {'kind': 'over'}: its kind should be one of "),
    ({"ops": [{"kind": "copy", "source": 1}]}, "field ops.0.copy.target is "),
)


WRONG_SETTINGS = [
    (FunctionOp(1, 2, (), "elu"), "has settings (); it must have 3"),
    (FunctionOp(1, 2, (1.0,), "tanh"), "has settings (1.0,); it must have 0"),
    (FunctionOp(1, 2, (math.nan, 1.0), "clip"), "they must be numbers of float32"),
    (FunctionOp(1, 2, (-1e39, 1.0), "clip"), "they must be numbers of float32"),
    (FunctionOp(1, 2, (1e-300, 1.0), "softplus"), "has beta 1e-300; it must be greater than 0"),
    (PairOp(1, 0, 2, "mul"), "combines (4, 8, 8) and (1, 8, 8) into (4, 8, 8)"),
    (PairOp(0, 0, 2, "mul"), "combines (1, 8, 8) and (1, 8, 8) into (4, 8, 8)"),
]


@pytest.mark.parametrize(("op", "message"), WRONG_SETTINGS)
def test_a_function_or_pair_that_no_engine_can_run(op: PlanOp, message: str) -> None:
    image, shape, one = (1, 8, 8), (4, 8, 8), (1, 1)
    first = Conv(0, 1, "first", None, one, one, (0, 0), one, 1)
    last = Conv(2, 3, "last", None, (8, 8), one, (0, 0), one, 1)
    plan = Plan(
        {"first": (4, 1, 1, 1), "last": (3, 4, 8, 8)},
        {},
        ("first", "last"),
        tuple(map(StoredTensor, (image, shape, shape, (3, 1, 1)))),
        (first, op, last),
        3,
    )
    with pytest.raises(
        PlanError, match=re.escape(f"op 1 ({op.kind}) ") + ".*" + re.escape(message)
    ):
        verify(plan)
    verify(replace(plan, ops=(first, FunctionOp(1, 2, (), "tanh"), last)))


@pytest.mark.parametrize(("change", "message"), WRONG_FIELDS)
def test_a_wrong_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "p", signed({**asdict(PLAN), **change}))


def test_a_missing_field(tmp_path: Path) -> None:
    content = asdict(PLAN)
    del content["stats"]
    assert "field stats is " in refusal(tmp_path / "p", signed(content))


def test_a_broken_rule_in_a_file(tmp_path: Path) -> None:
    found = refusal(tmp_path / "p", signed({**asdict(PLAN), "output": 9}))
    assert "the output is tensor 9; there are only 0 to 6" in found


in_one_file = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@in_one_file
@given(st.data())
def test_no_altered_byte_goes_unseen(data: bytes, tmp_path: Path, choose: st.DataObject) -> None:
    place = choose.draw(st.integers(0, len(data) - 1))
    flip = choose.draw(st.integers(1, 255))
    altered = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
    assert refusal(tmp_path / "p", altered)


@in_one_file
@given(st.data())
def test_no_cut_goes_unseen(data: bytes, tmp_path: Path, choose: st.DataObject) -> None:
    assert refusal(tmp_path / "p", data[: choose.draw(st.integers(0, len(data) - 1))])
