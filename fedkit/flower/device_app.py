"""The ClientApp of a real device. With a plan of the model it trains without torch.

A device says where its own things are when its SuperNode is started, here in a network that is
trusted (Flower's manual has the flags for TLS):

    flower-supernode --superlink HOST:PORT --insecure \
        --node-config 'plan="resnet8.plan" data="mine.npz" device=0'

- `plan`: path of the plan of the fleet's model (`fedkit.engine.plan.plan`). Without it, the
  device builds the run's model with torch, which must be installed.
- `data`: path of an .npz with this device's examples, or `module:function` returning them
  (`fedkit.device.data.load_examples`).
- `device`: index of this device in the fleet, from 0; no two may be equal.
- `task`: name of the task whose data these are; the device takes part in no run of another one.
- `trainer`: folder of `fedkit export RUN --target c99-train`, where a microcontroller trains and
  this device is its gateway. It brings the plan.
- `microcontroller`: where that is, as /dev/ttyACM0 or socket://HOST:PORT; `baud` of a serial port,
  else 115200. With data="microcontroller" it trains on examples of its own.
- `state`: folder for what this device remembers of runs, so that a restart loses nothing; without
  it, a SuperNode remembers for as long as it lives.

Relative paths start where the SuperNode was started. All else comes with the run's own config.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError, DataError
from fedkit.core.heap import keep_small
from fedkit.device.data import Expected, check_trainable, load_examples
from fedkit.device.held_out import device_of
from fedkit.device.memory import DurableMemory
from fedkit.device.round import Device
from fedkit.engine.base import Engine
from fedkit.engine.plan.plan import load_plan, plan_digest
from fedkit.engine.precision import describe, plan_engine
from fedkit.engine.sparse.budget import budget
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.flower.client_app import in_context, make_client_app
from fedkit.flower.run_config import EXPECTED_KEY, run_keys, run_name
from fedkit.methods.interface import Phase
from fedkit.methods.registry import resolve
from fedkit.methods.travel import first_counts
from fedkit.tasks.task import Examples, cross_entropy
from fedkit.wire.messages import Packet

_EXAMPLE = 'start the SuperNode with --node-config \'plan="model.plan" data="mine.npz" device=0\''


def device_from_context(context: Context) -> Device:
    """Return the device that this node is; plan and data are read once per process.

    Raises:
        ConfigError: A key of the node's config is missing or wrong, or one of the run's, or the
            run asks for the torch engine.
        EngineError: The compiled kernels are missing here.
        PlanError: The plan is missing or broken.
        DataError: The data is missing, or does not fit the plan.
    """
    node = context.node_config
    config = resolve(make_config(run_keys(context.run_config)[0]))
    expected = str(context.run_config.get(EXPECTED_KEY, ""))
    if "task" in node and (own := _text(node, "task")) != config.task:
        raise DataError(
            f"this device holds data of task {own!r}, and the run is of task {config.task!r}; run "
            "the fleet on its own task, or bring data of the other and set task in device.toml"
        )
    plan = _text(node, "plan") if "plan" in node else ""
    if plan and config.engine == "torch":
        raise ConfigError(
            "engine is 'torch', but this device computes from a plan, with the sparse engine; set "
            "engine to sparse or auto, or give the node no plan"
        )
    index, data = _index(node, config.devices), _text(node, "data")
    if "trainer" in node:
        line = _text(node, "microcontroller"), _baud(node)
        return _make_gateway(_text(node, "trainer"), line, data, index, config, expected)
    return _make_device(plan, data, index, config, expected)


@functools.lru_cache(maxsize=1)
def _make_gateway(
    folder: str, line: tuple[str, int], data: str, index: int, config: RunConfig, expected: str
) -> Device:
    """Return a device whose training steps a microcontroller makes."""
    from fedkit.trainer.engine import LinkedEngine, OwnExamplesEngine
    from fedkit.trainer.link import TrainerLink
    from fedkit.trainer.on_disk import load_trainer

    trainer = load_trainer(Path(folder))
    if expected:
        Expected.parse(expected).check_plan(plan_digest(trainer.plan))
    if config.precision != "fp32":
        raise ConfigError(
            f"precision is {config.precision!r}, and a microcontroller trains in float32; leave "
            "precision at fp32"
        )
    if data == _OWN_DATA:
        if config.validation_share:
            raise ConfigError(
                "validation_share is set, and the examples lie on the microcontroller, which "
                "measures nothing; leave it at 0, or give the gateway data"
            )
        own = OwnExamplesEngine(trainer, TrainerLink(*line))
        return device_of(index, _first(own.examples, config), own, config)
    examples, plan = _examples(data, config, expected), trainer.plan
    shape, outputs = plan.tensors[0].shape, plan.output_shape
    check_trainable(examples, shape, plan.loss, outputs, config.single_class)
    return device_of(index, examples, LinkedEngine(trainer, TrainerLink(*line)), config)


_OWN_DATA = "microcontroller"
"""Data of a device whose microcontroller has the examples."""


def _examples(data: str, config: RunConfig, expected: str) -> Examples:
    examples = load_examples(data)
    if expected:
        Expected.parse(expected).check(examples)
    return _first(examples, config)


def _first(examples: Examples, config: RunConfig) -> Examples:
    """Return as many examples as a device of the run is to have."""
    if not config.examples_per_device:
        return examples
    return examples.take(np.arange(min(config.examples_per_device, len(examples))))


@functools.lru_cache(maxsize=1)
def _make_device(plan_path: str, data: str, index: int, config: RunConfig, expected: str) -> Device:
    examples = _examples(data, config, expected)
    if not plan_path:
        return device_of(index, examples, _engine_of_task(config, examples), config)
    keep_small()
    plan = load_plan(Path(plan_path))
    if expected:
        Expected.parse(expected).check_plan(plan_digest(plan))
    shape, outputs = plan.tensors[0].shape, plan.output_shape
    check_trainable(examples, shape, plan.loss, outputs, config.single_class)
    engine = plan_engine(
        plan, config.precision, stored_bits=config.stored_bits, memory=config.memory_bytes
    )
    print(f"engine: {describe(engine)}", file=sys.stderr, flush=True)
    if config.memory and isinstance(engine, SparseEngine):
        planned = budget(engine, first_counts(config, engine), examples, config.batch_size)
        print(f"memory: {planned.line()}", file=sys.stderr, flush=True)
    return device_of(index, examples, engine, config)


def _engine_of_task(config: RunConfig, examples: Examples) -> Engine:
    """Return the engine that a simulation of this run would choose; imports torch."""
    try:
        from fedkit.engine.choose import make_engine
        from fedkit.tasks import load_task
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"without a plan this device computes with torch, and {error.name} is not installed "
            f"here; install it, or {_EXAMPLE}"
        ) from error
    task = load_task(config.task)
    engine, notice = make_engine(task, config.model, config.seed, *config.engine_wishes)
    outputs = engine.outputs(engine.initial_state(), examples.inputs[:1]).shape[1:]
    loss = task.known_loss or (cross_entropy if task.classifies else None)
    check_trainable(examples, examples.inputs.shape[1:], loss, outputs, config.single_class)
    print(f"engine: {notice}", file=sys.stderr, flush=True)
    return engine


def _text(node: Mapping[str, Any], key: str) -> str:
    found = _value(node, key)
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{key} of the node config is {found!r}; it must be text: {_EXAMPLE}")
    return found


def _index(node: Mapping[str, Any], devices: int) -> int:
    found = _value(node, "device")
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < devices:
        raise ConfigError(
            f"device of the node config is {found!r}; it must be a whole number in 0 .. "
            f"{devices - 1}, since the run has devices={devices}"
        )
    return found


def _baud(node: Mapping[str, Any]) -> int:
    found = node.get("baud", 115200)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ConfigError(f"baud of the node config is {found!r}; it must be a whole number")
    return found


def _value(node: Mapping[str, Any], key: str) -> Any:
    if key not in node:
        raise ConfigError(
            f"the node config lacks {key}; it holds {sorted(node) or 'nothing'}: {_EXAMPLE}"
        )
    return node[key]


def answer_in(device: Device, phase: Phase, request: Packet, context: Context) -> Packet:
    """Answer with the memory in the node's `state` folder, or in its context if it has none."""
    try:
        if "state" not in context.node_config:
            return in_context(device, phase, request, context)
        folder = Path(_text(context.node_config, "state"))
        remembered = DurableMemory(folder, run_name(context.run_config))
        return remembered.answer(device.handle, phase, request)
    finally:
        device.rest()


app = make_client_app(device_from_context, answer_in)
"""What a Flower app for real devices names as its ClientApp."""
