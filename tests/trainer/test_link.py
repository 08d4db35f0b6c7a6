"""A microcontroller behind a gateway is an ordinary device of a fleet."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import tty
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError, DataError, EngineError, FleetError
from fedkit.device.round import Device
from fedkit.engine.base import LocalTraining
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.flower.device_app import device_from_context
from fedkit.methods.interface import Answer, Phase, Request
from fedkit.server.rounds import Report, run_rounds
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from fedkit.trainer.emit import emit
from fedkit.trainer.engine import LinkedEngine, OwnExamplesEngine
from fedkit.trainer.link import TrainerLink
from fedkit.trainer.on_disk import TrainerFolder, save_trainer
from fedkit.wire.messages import Packet
from tests.fleet import tiny
from tests.flower.same_bits import assert_same_bits
from tests.trainer.compiled import compile_host, running

CONFIG = tiny.config(
    method="random", selection="none", devices=2, batch_size=1, epochs=1, rounds=2, momentum=0.9
)
ONE = LocalTraining(1, 1, lr=0.05, momentum=0.9, weight_decay=5e-4)


class DevicesHere:
    """Devices in this process."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices, self.traffic = devices, (0, 0)
        self._memories = [Packet({})] * len(devices)

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Ask every device all the same."""

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        answers = []
        for number, device in enumerate(self._devices):
            reply, memory = device.handle(phase, request.whole(), self._memories[number])
            self._memories[number] = memory
            answers.append(read(reply))
        return answers


def run(*engines: SparseEngine) -> list[Report]:
    devices = [Device(i, tiny.examples(12 + i, 10 + i), e, CONFIG) for i, e in enumerate(engines)]
    return list(run_rounds(tiny.server(CONFIG), DevicesHere(devices), None))


def ordinary() -> SparseEngine:
    engine = tiny.engine()
    return SparseEngine(capture(engine.module(engine.initial_state()), (1, 4, 4)), simd="plain")


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    """Of a fleet of ordinary devices."""
    return run(ordinary(), ordinary())


@pytest.fixture(scope="module")
def folder(reports: list[Report], tmp_path_factory: pytest.TempPathFactory) -> TrainerFolder:
    path = tmp_path_factory.mktemp("gateway") / "model-c99-train"
    return save_trainer(path, ordinary().plan, reports[-1].state.masks)


@pytest.fixture(scope="module")
def program(folder: TrainerFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = emit(folder.plan, folder.masks)
    return compile_host(made, tmp_path_factory.mktemp("host"), "-fsanitize=address,undefined")


@pytest.fixture
def link(program: Path) -> Iterator[TrainerLink]:
    with running(program) as address:
        found = TrainerLink(address)
        yield found
        found.close()


@pytest.fixture
def engine(folder: TrainerFolder, link: TrainerLink) -> LinkedEngine:
    return LinkedEngine(folder, link)


def test_a_round_ends_with_the_bits_of_ordinary_devices(
    reports: list[Report], engine: LinkedEngine
) -> None:
    linked = run(ordinary(), engine)
    assert len(linked) == len(reports)
    for one, other in zip(linked, reports, strict=True):
        assert_same_bits(one.state, other.state)


def test_its_own_examples_never_leave_it(
    reports: list[Report], folder: TrainerFolder, program: Path
) -> None:
    own = tiny.examples(13, 11)  # those of device 1
    with running(program, own) as address:
        engine = OwnExamplesEngine(folder, TrainerLink(address))
        assert len(engine.examples) == 13 and not engine.examples.inputs.any()
        state = state_of(reports)
        found = engine.train(state, engine.examples, ONE, 3)
        expected = ordinary().train(state, own, ONE, 3)
        assert_same_bits(found[0], expected[0])
        assert found[1] == expected[1]
        for ask in (engine.loss, engine.norm_moments, engine.gradients):
            with pytest.raises(EngineError, match="trains and does nothing else"):
                ask(state, engine.examples)


def test_who_has_no_examples_says_so(folder: TrainerFolder, link: TrainerLink) -> None:
    with pytest.raises(DataError, match="no examples of its own"):
        OwnExamplesEngine(folder, link)


def state_of(reports: list[Report]) -> ModelState:
    return reports[-1].state


def test_what_it_cannot_do_is_refused(reports: list[Report], engine: LinkedEngine) -> None:
    state, data = state_of(reports), tiny.examples(4, 0)
    name = next(iter(state.masks))
    others = {**state.masks, name: ~state.masks[name]}
    with pytest.raises(EngineError, match=r"masks differ .* export the trainer"):
        engine.train(replace(state, masks=others), data, ONE, 0)
    with pytest.raises(EngineError, match=r"batch_size is 2 .* takes 1 at a time"):
        engine.train(state, data, replace(ONE, batch_size=2), 0)
    with pytest.raises(EngineError, match="a part of the weights"):
        engine.train(state, data, replace(ONE, trained=frozenset({name})), 0)
    with pytest.raises(EngineError, match="several threads"):
        engine.replica()


def test_a_label_that_is_no_class_is_refused_and_it_goes_on(
    reports: list[Report], engine: LinkedEngine
) -> None:
    state, data = state_of(reports), tiny.examples(4, 0)
    wrong = Examples(data.inputs, np.array([0, 1, 2, tiny.CLASSES]))
    with pytest.raises(FleetError, match="label is no class"):
        engine.train(state, wrong, ONE, 0)
    assert_same_bits(engine.train(state, data, ONE, 0)[0], ordinary().train(state, data, ONE, 0)[0])


def test_a_loss_that_is_not_finite_ends_a_round(
    reports: list[Report], engine: LinkedEngine
) -> None:
    state = state_of(reports)
    far = {n: np.where(a != 0, np.float32(3e38), a) for n, a in state.weights.items()}
    with pytest.raises(FleetError, match="loss became"):
        engine.train(replace(state, weights=far), tiny.examples(4, 0), ONE, 0)


def test_another_trainer_is_noticed(
    folder: TrainerFolder, link: TrainerLink, tmp_path: Path
) -> None:
    other = save_trainer(tmp_path / "other", folder.plan, folder.masks, stored_bits=8)
    with pytest.raises(EngineError, match=r"another trainer .* stored_bits"):
        LinkedEngine(other, link)


@pytest.mark.parametrize(
    "damage", [b"", b"nothing of that kind", b"FK\x81\x01\xff\xff\xff\xff", b"FK\x7f"]
)
def test_nonsense_at_the_other_end_is_an_error(damage: bytes) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(damage)

        thread = threading.Thread(target=answer)
        thread.start()
        link = TrainerLink(f"socket://127.0.0.1:{server.getsockname()[1]}", timeout=5)
        with pytest.raises(FleetError, match=r"the microcontroller at .socket://"):
            link.about()
        thread.join()
        link.close()


def test_damaged_requests_are_refused_and_it_goes_on(program: Path) -> None:
    rng = np.random.default_rng(0)
    with running(program) as address:
        host, port = address.removeprefix("socket://").split(":")
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=10) as line:
                line.sendall(b"FK" + rng.integers(0, 256, 40, np.uint8).tobytes())
        link = TrainerLink(address)
        assert link.about().classes == tiny.CLASSES
        link.close()


@contextmanager
def wired(program: Path) -> Iterator[str]:
    """Put a serial line, of which a terminal has the other end, before a program."""
    near, far = os.openpty()
    tty.setraw(near)
    with running(program) as address:
        host, port = address.removeprefix("socket://").split(":")
        with socket.create_connection((host, int(port))) as line:

            def carry() -> None:
                ends = {near: line.fileno(), line.fileno(): near}
                while True:
                    for ready in select.select([*ends], [], [])[0]:
                        if not (found := os.read(ready, 4096)):
                            return
                        os.write(ends[ready], found)

            thread = threading.Thread(target=carry, daemon=True)
            thread.start()
            yield os.ttyname(far)
            line.shutdown(socket.SHUT_RDWR)
            thread.join()
    os.close(near)
    os.close(far)


def test_a_serial_line_carries_the_same(
    reports: list[Report], folder: TrainerFolder, program: Path
) -> None:
    state, data = state_of(reports), tiny.examples(4, 0)
    with wired(program) as port:
        link = TrainerLink(port, timeout=60)
        found, _ = LinkedEngine(folder, link).train(state, data, ONE, 0)
        link.close()
    assert_same_bits(found, ordinary().train(state, data, ONE, 0)[0])


def test_late_replies_are_passed_over_and_a_broken_line_is_opened_anew(program: Path) -> None:
    with running(program) as address:
        link = TrainerLink(address)
        about = link.about()
        link._open().write(request(7))  # whose reply nobody waits for
        assert link.about() == about
        link.close()
        assert link.about() == about
        link.close()


def request(number: int) -> bytes:
    body = struct.pack("<BBI", 1, number, 0)
    return b"FK" + body + struct.pack("<I", zlib.crc32(body))


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(FleetError, match="cannot be reached"):
            TrainerLink(f"socket://127.0.0.1:{taken.getsockname()[1]}", timeout=1)
    with pytest.raises(FleetError, match="cannot be reached"):
        TrainerLink("/dev/no-such-port")


def context_of(folder: TrainerFolder, address: str, config: RunConfig, **node: Any) -> Context:
    given: Any = {"device": 1, "trainer": str(folder.path), "microcontroller": address, **node}
    keys = {name: value for name, value in config.as_dict().items()}
    return Context(1, 2, given, RecordDict(), keys)


def test_a_node_with_a_microcontroller_is_a_device(
    reports: list[Report], folder: TrainerFolder, program: Path, tmp_path: Path
) -> None:
    state, data = state_of(reports), tiny.examples(12, 4)
    np.savez(tmp_path / "mine.npz", inputs=data.inputs, targets=data.targets)
    with running(program, data) as address:
        for where in (str(tmp_path / "mine.npz"), "microcontroller"):
            device = device_from_context(context_of(folder, address, CONFIG, data=where))
            assert device.index == 1 and len(device.examples) == 12
            found, _ = device.engine.train(state, device.examples, ONE, 5)
            assert_same_bits(found, ordinary().train(state, data, ONE, 5)[0])
            device.engine._link.close()  # type: ignore[attr-defined]  # a host has one gateway


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        ({"data": "microcontroller"}, {"precision": "int8"}, "trains in float32"),
        (
            {"data": "microcontroller"},
            {"validation_share": 0.2, "device_eval": 1},
            "measures nothing",
        ),
        ({"data": "microcontroller", "baud": 0}, {}, "baud of the node config is 0"),
        ({"data": "microcontroller", "microcontroller": 7}, {}, "must be text"),
        ({}, {}, "lacks data"),
    ],
)
def test_nodes_that_are_no_gateways(
    folder: TrainerFolder, node: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    config = CONFIG.changed(**changes)
    with pytest.raises(ConfigError, match=message):
        device_from_context(context_of(folder, "socket://127.0.0.1:1", config, **node))
