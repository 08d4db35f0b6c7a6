"""A pass as one call: its bits, its threads, and what may happen between and around walks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedkit.core.errors import EngineError
from fedkit.engine.base import GradientSums, LocalTraining
from fedkit.engine.kernels import native
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.nn.norm import L1LayerNorm
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.ops.examples import AROUND, EXAMPLES, Around, case_of
from tests.engine.same_bits import same_bits
from tests.engine.sparse.by_hand import by_hand
from tests.engine.sparse.cases import engines, examples, l1, layered, mobile, pruned, zoo
from tests.sets import slow

SHAPE = (3, 8, 8)
MODELS = {
    "resnet8": zoo("resnet8", SHAPE),
    "l1": l1(zoo("resnet8", SHAPE)),
    "layers": layered(L1LayerNorm, SHAPE),
    "gates": mobile(SHAPE),
}
HOW = LocalTraining(epochs=1, batch_size=16, lr=0.05, momentum=0.9, weight_decay=1e-3)
COUNT = 21  # with batches of one tile and of several, and a tile that is not full


def everything(engine: SparseEngine, state: ModelState, data: Examples) -> Iterator[bytes]:
    """Yield the bits of what each mode of a program computes."""
    sums: GradientSums = {}
    for how, added in ((HOW, None), (HOW, sums)):
        trained, loss = engine.train(state, data, how, 3, added)
        yield np.float64(loss).tobytes()
        yield from (np.asarray(value).tobytes() for value in trained.weights.values())
        yield from (np.asarray(value).tobytes() for value in trained.stats.values())
    yield from (sums[name].tobytes() for name in sorted(sums))
    yield from (value.tobytes() for value in engine.gradients(state, data).values())
    for name, top in engine.top_gradients(state, data, dict.fromkeys(state.masks, 5)).items():
        yield name.encode() + top.indices.tobytes() + top.values.tobytes()
    for frozen in (False, True):
        yield repr(engine.norm_moments(state, data, frozen)).encode()
    yield engine.outputs(state, data.inputs).tobytes()
    yield np.float64(engine.loss(state, data)).tobytes()


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("density", [0.1, slow(1.0)])
@pytest.mark.parametrize("model", MODELS)
def test_walks_have_the_bits_of_calls_one_by_one(model: str, density: float, bits: int) -> None:
    reference, plain = engines(MODELS[model], SHAPE)
    state, data = pruned(reference.initial_state(), density), examples(COUNT, SHAPE)
    with by_hand():
        expected = [*everything(SparseEngine(plain.plan, stored_bits=bits), state, data)]
    for threads in (1, 2, 3):
        engine = SparseEngine(plain.plan, threads=threads, stored_bits=bits)
        assert [*everything(engine, state, data)] == expected, threads


IN_FLOAT = [name for name, each in EXAMPLES.items() if FAMILIES[each.op.kind].sparse is not None]


@pytest.mark.parametrize("around", AROUND, ids=lambda around: around.norm or "plain")
@pytest.mark.parametrize("name", IN_FLOAT)
def test_every_op_is_a_step_like_its_call(name: str, around: Around) -> None:
    case = case_of(EXAMPLES[name], around, 0.5)
    found = []
    for threads in (0, 1, 3):
        with by_hand() if threads == 0 else nullcontext():
            engine = SparseEngine(case.plan, threads=threads or 1, stored_bits=16)
            program = engine.program(case.state, "train", len(case.inputs))
            program.forward(case.inputs, np.arange(len(case.inputs)))
            loss = program.loss(case.targets)
            program.backward()
        outputs = program.outputs().tobytes()
        found.append((loss, outputs, program.gradient.tobytes()))
    assert found[0] == found[1] == found[2] and program.gradient.any()


def test_a_kernel_without_a_row_is_named() -> None:
    kernels = native.load_kernels()
    with pytest.raises(EngineError, match=r"have no step_sgd_\w+; give it a row in steps.h"):
        kernels.step(kernels.sgd)


# Threads


def running() -> int:
    """Return the threads of this process."""
    return len(os.listdir("/proc/self/task"))


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted")


@on_linux
def test_threads_begin_with_the_first_pass_and_end_with_the_program() -> None:
    reference, plain = engines(MODELS["resnet8"], SHAPE)
    state, data = pruned(reference.initial_state(), 0.2), examples(COUNT, SHAPE)
    before = running()
    engine = SparseEngine(plain.plan, threads=3)
    program = engine.program(state, "train", COUNT)
    assert running() == before
    for _ in range(3):
        program.forward(data.inputs, np.arange(COUNT))
        assert running() == before + 2
    del engine, program
    assert running() == before


def test_a_pass_that_fails_in_between_leaves_a_program_that_works() -> None:
    reference, plain = engines(MODELS["resnet8"], SHAPE)
    state, data = pruned(reference.initial_state(), 0.2), examples(COUNT, SHAPE)
    engine, seen = SparseEngine(plain.plan, threads=3), list[int]()

    def fail(number: int) -> None:
        seen.append(number)
        if len(seen) == 3:
            raise KeyboardInterrupt

    program = engine.program(state, "train", COUNT)
    program.forward(data.inputs, np.arange(COUNT))
    program.loss(data.targets)
    with pytest.raises(KeyboardInterrupt):
        program.backward(before=fail)
    expected = SparseEngine(plain.plan).gradients(state, data)
    found = engine.gradients(state, data)
    assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())


def test_programs_walk_at_the_same_time() -> None:
    reference, plain = engines(MODELS["gates"], SHAPE)
    state, data = pruned(reference.initial_state(), 0.2), examples(COUNT, SHAPE)
    expected = plain.train(state, data, HOW, 3)[0]

    def train(_: int) -> ModelState:
        return SparseEngine(plain.plan, threads=2).train(state, data, HOW, 3)[0]

    with ThreadPoolExecutor(3) as pool:
        assert all(same_bits(found, expected) for found in pool.map(train, range(6)))


SCRIPT = """
import os, sys
import numpy as np
from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.sparse.program import SparseProgram

plan = load_plan(sys.argv[1])
masks = {name: np.ones(plan.weights[name], bool) for name in plan.prunable}
network = Network(plan, masks, native.load_kernels())
network.parameters.values[:] = np.linspace(-1, 1, len(network.parameters.values))
program = SparseProgram(network, "train", 24, threads=3)
inputs = np.linspace(-1, 1, 24 * 3 * 8 * 8, dtype=np.float32).reshape(24, 3, 8, 8)

def step():
    program.forward(inputs, np.arange(24))
    program.loss(np.arange(24) % 5)
    program.backward()
    return program.gradient.tobytes()

first = step()
"""
FORK = """
child = os.fork()
if child == 0:
    os._exit(0 if step() == first else 3)
assert step() == first
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
ENDLESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
print("begun", flush=True)
while True:
    step()
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    from fedkit.engine.plan.plan import save_plan

    save_plan(engines(MODELS["resnet8"], SHAPE)[1].plan, tmp_path / "plan")
    return tmp_path / "plan"


def start(script: str, plan: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT + script, str(plan)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_walks_as_its_parent_does(plan_file: Path) -> None:
    process = start(FORK, plan_file)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_an_interrupted_step_ends_the_program(plan_file: Path) -> None:
    process = start(ENDLESS, plan_file)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors and process.returncode == -signal.SIGINT


# Memory


def test_a_pass_allocates_nothing() -> None:
    reference, plain = engines(MODELS["resnet8"], SHAPE)
    state, data = pruned(reference.initial_state(), 0.2), examples(COUNT, SHAPE)
    program = SparseEngine(plain.plan, threads=2).program(state, "train", COUNT)
    program.forward(data.inputs, np.arange(COUNT))
    tracemalloc.start()
    program._forward_walk.run()
    program.loss(data.targets)
    program._backward_walk.run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096


def test_threads_need_room_for_the_sums_of_one_layer_each() -> None:
    reference, plain = engines(MODELS["resnet8"], SHAPE)
    state = pruned(reference.initial_state(), 1.0)
    one, three = (
        SparseEngine(plain.plan, threads=threads).program(state, "train", COUNT)
        for threads in (1, 3)
    )
    largest = max(weight.nbytes for weight in state.weights.values())
    assert one.partial.size == 0 and largest <= three.partial.nbytes / 3 < largest + 4096
    assert three.memory.peak - one.memory.peak >= three.partial.nbytes


def test_a_larger_batch_after_a_smaller_one_is_tabled_anew() -> None:
    case = case_of(EXAMPLES["conv-0"], AROUND[1])
    program = SparseEngine(case.plan, threads=2).program(case.state, "train", len(case.inputs))
    whole = replace(case, inputs=case.inputs, targets=case.targets)
    found = []
    for count in (len(whole.inputs), 3, len(whole.inputs)):
        program.forward(whole.inputs, np.arange(count))
        program.loss(whole.targets[:count])
        program.backward()
        found.append(program.gradient.tobytes())
    assert found[0] == found[2] != found[1]
