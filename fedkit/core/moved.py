"""Old import paths, kept until 0.2: each gives the module that took its place, with a warning.

`import fedkit` puts a finder before Python's own, so that no old path needs a file. Nothing is
imported here before an old path is asked for: this runs at every `import fedkit`, and before the
command line has looked for files that are in the way of Python's modules.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MODULES = {
    "edge.calibrate": "edge.quantize.calibrate",
    "edge.compiled": "edge.targets.c99.runner",
    "edge.emit.c99": "edge.targets.c99.emitter",
    "edge.emit.c_names": "edge.targets.c_names",
    "edge.emit.fpga": "edge.targets.fpga.emitter",
    "edge.emit.onnx": "edge.targets.onnx.emitter",
    "edge.emit.tflite": "edge.targets.tflite.emitter",
    "edge.fit": "edge.quantize.fit",
    "edge.interpret": "fedkit.graph.interpret",
    "edge.interpret_int8": "edge.define.interpret_int8",
    "edge.interpreted": "edge.targets.interpreter",
    "edge.kernels.assembler": "edge.targets.fpga.assembler",
    "edge.kernels.common": "edge.targets.common",
    "edge.kernels.lanes": "edge.targets.fpga.lanes",
    "edge.kernels.microcode": "edge.targets.fpga.microcode",
    "edge.kernels.pack": "edge.targets.c99.pack",
    "edge.kernels.program": "edge.targets.c99.calls",
    "edge.kernels.requant": "edge.targets.c99.requant",
    "edge.kernels.steps": "edge.targets.fpga.steps",
    "edge.ir": "fedkit.graph.ir",
    "edge.lower": "fedkit.graph.from_torch",
    "edge.lower_onnx": "fedkit.graph.from_onnx",
    "edge.lowering": "fedkit.graph.lowering",
    "edge.memory": "edge.arena",
    "edge.rounding": "edge.define.rounding",
    "edge.runtime": "edge.targets.tflite.runner",
    "edge.runtime_onnx": "edge.targets.onnx.runner",
    "edge.simulated": "edge.targets.fpga.runner",
    "edge.taps": "fedkit.graph.taps",
    "edge.truth": "edge.quantize.truth",
    "edge.yosys": "edge.targets.fpga.yosys",
    "fedkit.aggregation": "fedkit.server.aggregation",
    "fedkit.baselines": "fedkit.methods.registry",
    "fedkit.baselines.feddst": "fedkit.methods.feddst",
    "fedkit.baselines.magnitude": "fedkit.methods.magnitude",
    "fedkit.baselines.prunefl": "fedkit.methods.prunefl",
    "fedkit.baselines.random_masks": "fedkit.methods.random_masks",
    "fedkit.baselines.snip": "fedkit.methods.snip",
    "fedkit.baselines.ssfl": "fedkit.methods.ssfl",
    "fedkit.baselines.synflow": "fedkit.methods.synflow",
    "fedkit.checkpoint": "fedkit.server.checkpoint",
    "fedkit.cost": "fedkit.engine.flops",
    "fedkit.device_data": "fedkit.device.data",
    "fedkit.device_memory": "fedkit.device.memory",
    "fedkit.door": "fedkit.wire.validation",
    "fedkit.engine.integer.native": "fedkit.engine.kernels.int_native",
    "fedkit.engine.integer.network": "fedkit.engine.integer.integer_network",
    "fedkit.engine.sparse.capture": "fedkit.engine.plan.capture",
    "fedkit.engine.sparse.checks": "fedkit.engine.plan.checks",
    "fedkit.engine.sparse.geometry": "fedkit.engine.plan.geometry",
    "fedkit.engine.sparse.native": "fedkit.engine.kernels.native",
    "fedkit.engine.sparse.network": "fedkit.engine.kernels.network",
    "fedkit.engine.sparse.plan": "fedkit.engine.plan.plan",
    "fedkit.engine.sparse.schedule": "fedkit.engine.plan.execution",
    "fedkit.engine.sparse.side_effects": "fedkit.engine.plan.side_effects",
    "fedkit.engine.sparse.structs": "fedkit.engine.kernels.structs",
    "fedkit.errors": "fedkit.core.errors",
    "fedkit.events": "fedkit.server.events",
    "fedkit.exact_norms": "fedkit.methods.exact_norms",
    "fedkit.fedtiny": "fedkit.methods.fedtiny",
    "fedkit.fedtiny.bn_selection": "fedkit.stats.norms",
    "fedkit.fedtiny.candidates": "fedkit.sparse.candidates",
    "fedkit.fedtiny.method": "fedkit.methods.fedtiny.method",
    "fedkit.fedtiny.progressive": "fedkit.methods.fedtiny.progressive",
    "fedkit.files": "fedkit.core.files",
    "fedkit.fleet.processes": "fedkit.flower.processes",
    "fedkit.fleet.status": "fedkit.server.status",
    "fedkit.lookup": "fedkit.core.lookup",
    "fedkit.messages": "fedkit.wire.messages",
    "fedkit.method": "fedkit.methods.interface",
    "fedkit.names": "fedkit.core.names",
    "fedkit.numerics": "fedkit.core.numerics",
    "fedkit.plan": "fedkit.methods.schedule",
    "fedkit.plots": "fedkit.report.plots",
    "fedkit.privacy": "fedkit.server.privacy",
    "fedkit.provenance": "fedkit.core.provenance",
    "fedkit.reach": "fedkit.sparse.reach",
    "fedkit.rounds": "fedkit.server.rounds",
    "fedkit.server_training": "fedkit.methods.server_training",
    "fedkit.shiftquant.format": "fedkit.integers.format",
    "fedkit.shiftquant.l1norm": "fedkit.integers.l1norm",
    "fedkit.shiftquant.matmul": "fedkit.integers.matmul",
    "fedkit.shiftquant.quantize": "fedkit.integers.per_channel",
    "fedkit.signals": "fedkit.core.signals",
    "fedkit.sparse.codec": "fedkit.wire.codec",
    "fedkit.sparse.differences": "fedkit.wire.differences",
    "fedkit.sparse.schedule": "fedkit.sparse.adjustment",
    "fedkit.supervise": "fedkit.core.supervise",
    "fedkit.task": "fedkit.tasks.task",
    "fedkit.text": "fedkit.core.text",
    "fedkit.watch": "fedkit.core.watch",
    "sim.cell": "fedkit.bench.cell",
    "sim.run": "sim.simulation",
    "sim.superlink": "fedkit.flower.local_superlink",
}
"""Old path -> new path, of every module that moved."""

EMPTIED = ("edge.emit", "edge.kernels")
"""Packages of the old tree that held modules alone, which went different ways."""

NAMES: "dict[str, dict[str, str]]" = {
    "edge.interpret": {
        name: f"edge.define.interpret_int8.{name}"
        for name in ("Int8Array", "Int8Visitor", "evaluate_int8")
    },
    "edge.interpret_int8": {"Compute": "edge.ops.integer_spec.Exact"},
    "edge.ir": {
        **{
            name: f"fedkit.graph.integers.{name}"
            for name in (
                "LARGEST_MULTIPLIER",
                "SMALLEST_MULTIPLIER",
                "accumulator_bound",
                "activation",
                "limits",
            )
        },
        **{
            name: f"fedkit.graph.ops.registry.{name}"
            for name in (
                "CHANNEL_AXIS",
                "FUSES_ACTIVATION",
                "KEEPS_SCALE",
                "WEIGHTED",
                "WINDOWED",
                "infer_shape",
            )
        },
        "verify": "fedkit.graph.verify.verify",
    },
    "edge.lowering": {
        "LOGITS": "fedkit.graph.ops.softmax.LOGITS",
        "graph_shape": "fedkit.graph.layouts.graph_shape",
        "nhwc": "fedkit.graph.layouts.nhwc",
        "reaching": "fedkit.graph.sliding.reaching",
        "refuse_probabilities": "fedkit.graph.ops.softmax.refuse_probabilities",
        **{
            name: f"fedkit.graph.operands.{name}"
            for name in ("Unsupported", "activation", "constant", "require")
        },
    },
    "edge.kernels.program": {
        "Place": "edge.targets.c99.calls.BufferOffset",
        "Pointer": "edge.targets.c99.calls.ConstantAddress",
        "Program": "edge.targets.c99.calls.CallList",
    },
    "edge.kernels.steps": {
        "Map": "edge.targets.fpga.steps.MapLayout",
        "Pointer": "edge.targets.fpga.steps.LoopAddress",
        "Step": "edge.targets.fpga.steps.EngineStep",
    },
    "edge.quantize": {
        "Codes": "edge.quantize.to_int8.Codes",
        "Scaling": "edge.quantize.to_int8.Scaling",
        "Trained": "edge.quantize.to_int8.TrainedIntegers",
        "quantize": "edge.quantize.to_int8.quantize",
    },
    "edge.rounding": {"RUNTIMES": "edge.targets.registry.RUNTIMES"},
    "fedkit.baselines": {
        "DENSE": "fedkit.methods.dense.DENSE",
        "settle": "fedkit.methods.registry.resolve",
    },
    "fedkit.cost": {"Geometry": "fedkit.engine.flops.WeightUses"},
    "fedkit.device": {name: f"fedkit.device.round.{name}" for name in ("Device", "Memory")},
    "fedkit.engine.integer.native": {
        name: f"fedkit.engine.{module}.Int{name}"
        for module, names in (
            ("kernels.int_native", ("Chain", "Mix", "Read", "Tensor")),
            ("ops.conv_integer", ("Conv", "Map")),
            ("ops.layer_norm_integer", ("Layer",)),
            ("ops.pool", ("Pool",)),
        )
        for name in names
    },
    "fedkit.engine.sparse.native": {
        name: f"fedkit.engine.{module}.C{name}"
        for module, names in (
            ("kernels.native", ("Norm", "Padding", "Tensor")),
            ("ops.conv", ("Conv", "Map")),
            ("ops.layer_norm", ("Layer",)),
            ("ops.pool", ("Pool",)),
        )
        for name in names
    },
    "fedkit.engine.sparse.plan": {
        "Add": "fedkit.engine.ops.add.Add",
        "Conv": "fedkit.engine.plan.conv.Conv",
        "Copy": "fedkit.engine.ops.copy.Copy",
        "LayerNorm": "fedkit.engine.plan.layer_norm.LayerNorm",
        "Op": "fedkit.engine.plan.structure.PlanOp",
        "Pool": "fedkit.engine.ops.pool.Pool",
        "Tensor": "fedkit.engine.plan.structure.StoredTensor",
        "window_plane": "fedkit.engine.plan.windows.window_plane",
        **{
            name: f"fedkit.engine.plan.structure.{name}"
            for name in (
                *("Activation", "LayerKind", "Norm", "Pair", "Shape"),
                *("absolute_norms", "norm_levels", "sources"),
            )
        },
    },
    "fedkit.engine.sparse.structs": {
        "backward_maps": "fedkit.engine.ops.conv.backward_maps",
        "conv": "fedkit.engine.ops.conv.conv_struct",
        "layer": "fedkit.engine.ops.layer_norm.layer_struct",
        "pool": "fedkit.engine.ops.pool.pool_struct",
        "windows": "fedkit.engine.ops.pool.windows",
    },
    "fedkit.fedtiny.candidates": {"Pool": "fedkit.sparse.candidates.CandidatePool"},
    "fedkit.files": {
        "remove_halves": "fedkit.core.files.remove_partial",
        "write_whole": "fedkit.core.files.write_atomic",
    },
    "fedkit.method": {"Fleet": "fedkit.methods.interface.Dispatcher"},
    "fedkit.nn.zoo": {"InvertedResidual": "fedkit.nn.mobile.InvertedResidual"},
    "fedkit.report": {
        name: f"fedkit.report.comparison.{name}"
        for name in (
            *("GROUP", "Result", "means", "metric", "note", "series_keys", "table", "varying"),
        )
    },
    "fedkit.rounds": {"Step": "fedkit.server.rounds.StoredStep"},
    "fedkit.shiftquant.l1norm": {"Gradients": "fedkit.integers.l1norm.NormGradients"},
    "sim.run": {"record": "fedkit.server.record.record", "serve": "fedkit.flower.serve.serve"},
    "sim.scenario": {
        name: f"fedkit.server.scenario.{name}" for name in ("server_scenario", "with_model_named")
    },
}
"""Old module -> name that its successor does not have -> where that is now."""


def install() -> None:
    """Let Python ask here first where a module is; a second call does nothing."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def names(old: str) -> "Callable[[str], Any]":
    """Return the `__getattr__` of what took the place of the module `old`, for `NAMES`."""

    def find(name: str) -> "Any":
        new = NAMES[old].get(name)
        if new is None:
            raise AttributeError(f"module {old!r} has no attribute {name!r}", name=name)
        from importlib import import_module

        _warn(f"{old}.{name}", new)
        module, _, renamed = new.rpartition(".")
        value = getattr(import_module(module), renamed)
        setattr(sys.modules[old], name, value)  # so that this is asked, and warned of, once
        return value

    return find


class _Finder:
    """Finds old paths; its loader puts the new module in the place of the old one."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in MODULES and name not in EMPTIED:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self, is_package=name in EMPTIED)  # type: ignore[arg-type]

    def create_module(self, spec: "ModuleSpec") -> None:
        """Let Python make an empty module."""

    def exec_module(self, module: "ModuleType") -> None:
        old = module.__name__
        if old in EMPTIED:
            return
        from importlib import import_module

        _warn(old, MODULES[old])
        new = import_module(MODULES[old])
        if old in NAMES:
            vars(new).setdefault("__getattr__", names(old))
        if any(other.startswith(f"{old}.") for other in MODULES):
            vars(new).setdefault("__path__", [])  # as of a package: the old one's modules are below
        sys.modules[old] = new  # Python takes from here what it gives


def _warn(old: str, new: str) -> None:
    import warnings

    text = f"{old} is now {new}; the old path goes with fedkit 0.2"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
