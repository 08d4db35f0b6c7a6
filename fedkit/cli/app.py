"""`fedkit`: the commands and how their errors reach the person."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edge.targets.registry import NAMES
from fedkit.bench.registry import BENCHMARKS
from fedkit.cli import flags, fleet
from fedkit.cli.terminal import Terminal
from fedkit.core.errors import ConfigError, FedkitError
from fedkit.core.signals import STOPS, stop_number, stop_words

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="Train one sparse model over a fleet of devices and export it as integer code.",
)
app.add_typer(fleet.app, name="fleet")
log = Terminal(stderr=True)


def _hush(quiet: bool) -> bool:
    log.quiet = quiet
    return quiet


Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_hush, help="print errors alone, and what --json asks"),
]
Name = Annotated[str, typer.Option(help="name of the run folder (default: time and task)")]
ArtifactPath = Annotated[Path, typer.Argument(help="an exported file or folder")]
TaskName = Annotated[str, typer.Option("--task", help="whose test set (default: that of its run)")]
RuntimeName = Annotated[
    str, typer.Option("--runtime", help="what runs it (default: the usual one of its target)")
]
Changed = Annotated[
    bool, typer.Option("--changed", help="take a file or folder that is not as its manifest says")
]
AcceptError = Annotated[
    bool, typer.Option("--accept-error", help="take also what is far from the float model")
]
Rewrites = Annotated[
    str,
    typer.Option(
        "--rewrite",
        metavar="NAMES",
        help="rewrites of the float graph, with commas between; exact stands for all exact ones "
        "that need not be named, and an unknown name is answered with all",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="import modules that another account's folder names")
]
RunPath = Annotated[Path, typer.Argument(help="a run folder, like runs/NAME")]


@app.command(cls=flags.ConfigCommand)
@flags.from_config
def run(
    values: dict[str, Any],
    name: Name = "",
    out: Annotated[Path, typer.Option(help="folder of all run folders")] = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help=flags.QUICK_HELP)] = False,
    with_dense: Annotated[
        bool, typer.Option("--with-dense", help="also run dense FedAvg of the same length")
    ] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="without Flower: same numbers, faster start")
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            help="what runs devices through Flower: processes, threads, ray (Flower's own), auto"
        ),
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="devices computing at once (0: one per core)")
    ] = 0,
    targets: Annotated[
        str,
        typer.Option(
            "--export",
            metavar="TARGETS",
            help=f"some of {', '.join(NAMES)}, with commas between: what must come of it; a "
            "model that cannot be exported is an error before anything runs (default: tflite, and "
            "a warning)",
        ),
    ] = "",
    resume: Annotated[
        str, typer.Option(help="name of a run that ended early, to go on with; last: the last one")
    ] = "",
    live: Annotated[
        bool, typer.Option("--live", help="show its report meanwhile, in a browser on this machine")
    ] = False,
    live_address: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="--live for those who reach this, by a token"),
    ] = "",
    logs: Annotated[
        str,
        typer.Option(
            "--log",
            metavar="LOGGERS",
            help="tensorboard or wandb (into the run folder), mlflow (mlflow.db beside it), or "
            "some with commas between",
        ),
    ] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a fleet to a sparse model, export it as int8 .tflite and measure both.

    Example: `fedkit run --task digits --devices 10 --alpha 0.5 --density 0.1 --with-dense`
    """
    from fedkit.cli import export, job, tables, watch

    if resume and name:
        raise ConfigError(f"--resume {resume} goes on under that name; leave out --name")
    if resume:
        given = {**(flags.QUICK if quick else {}), **values}
        config, path = job.to_resume(resume, out, given)
        with_dense |= job.dense_folder(path).is_dir()
    else:
        config = flags.make(values, quick)
        path = job.folder_for(config, name, out)
    asked = export.Form(_targets(targets)) if targets else None
    logging = _targets(logs) if logs else ()
    how = (with_dense, in_process, job.checked_backend(backend, config.accelerator), workers)
    todo = job.Job(config, path, *how, bool(resume), asked, logging)
    with watch.runs([path for _, path in todo.runs], live, live_address, _say):
        done = job.run_job(todo, log)
    _print(done, as_json, tables.run_table)


@app.command("export")
def export_run(
    run: RunPath,
    target: Annotated[
        str,
        typer.Option(
            help=f"some of {', '.join(NAMES)}, with commas between; or c99-train, which trains"
        ),
    ] = "tflite",
    bits: Annotated[int, typer.Option(help="of the weights: 8, 6 or 4")] = 8,
    scales: Annotated[str, typer.Option(help="float, or pow2: rescale by shifts alone")] = "float",
    goal: Annotated[str, typer.Option(help="what C is written for: speed or size")] = "speed",
    lanes: Annotated[
        int, typer.Option(min=1, max=8, help="filters that an FPGA computes at a time")
    ] = 4,
    name: Annotated[
        str, typer.Option(help="what the identifiers of C begin with: several models, one program")
    ] = "model",
    device: Annotated[
        int | None,
        typer.Option(help="whose model: of a simulation whose devices keep tensors (--local)"),
    ] = None,
    batch: Annotated[int, typer.Option(help="c99-train: examples of a step, 1, 2, 4 or 8")] = 1,
    stored_bits: Annotated[
        int | None,
        typer.Option(help="c99-train: 32, 16, 8 or 4, of stored values (default: the run's)"),
    ] = None,
    ram: Annotated[
        int | None, typer.Option(metavar="BYTES", help="c99-train: most memory beside the stack")
    ] = None,
    rewrites: Rewrites = "",
    accept_error: AcceptError = False,
    trusted: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a run's model as integer artifacts and measure them on the whole test set.

    Example: `fedkit export runs/NAME --target onnx,c99 --bits 8`
    """
    from fedkit.cli import export, tables, training, trust

    trust.check_run(run, trusted, _say)
    if training.is_asked(_targets(target)):
        made = training.export_run(run, batch, stored_bits, ram, log)
        _print(made, as_json, tables.trainer_table)
        return
    options = bits, scales, goal, lanes, name, accept_error, device
    form = export.Form(_targets(target), *options, _names(rewrites))  # type: ignore[arg-type]
    _print(export.export_run(run, form, log), as_json, tables.artifacts_table)


@app.command("import")
def import_onnx(
    file: Annotated[Path, typer.Argument(help="an .onnx file")],
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=1x3x224x224",
            help="of an input whose sizes the file leaves open; without a name for one input",
        ),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="value to compute; what lies behind it is left out"),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="a .npy file of examples, for --out")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="artifact to make, which its ending tells: .tflite, .onnx, -c99, -fpga"),
    ] = None,
    rewrites: Rewrites = "",
    accept_error: AcceptError = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which ops of an ONNX file can be read, read it, and make an artifact of it.

    Exits with 1 if an op is refused.

    Example: `fedkit import model.onnx --input-shape 1x3x224x224 --calibration x.npy --out m.tflite`
    """
    from fedkit.cli import importing

    shapes, outputs = importing.shapes_of(input_shape or ()), tuple(output or ())
    found = importing.support(file, shapes, outputs)
    if not as_json:
        _print(found, False, importing.support_table)
    if found["refused"]:
        if as_json:
            _print(found, True, None)
        raise typer.Exit(1)
    graph = importing.read(file, shapes, outputs, _say)
    read = importing.about(graph)
    if out is not None:
        read |= importing.export(graph, calibration, out, accept_error, _names(rewrites))
    _print({**found, **read} if as_json else read, as_json, importing.read_table)


@app.command("rewrite")
def rewrite(
    path: Annotated[Path, typer.Argument(metavar="RUN|FILE.onnx", help="whose model")],
    rewrites: Rewrites = "exact",
    calibration: Annotated[
        Path | None, typer.Option(help="a .npy file of examples, for a .onnx file")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=1x3x224x224", help="of an input whose sizes a .onnx file leaves open"
        ),
    ] = None,
    trusted: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which rewrites of a model's float graph apply, which do not and why, what they save.

    It writes nothing: `fedkit export RUN --rewrite NAMES` and `fedkit import FILE --rewrite NAMES`
    export the model so.

    Example: `fedkit rewrite runs/NAME --rewrite ln_to_rms,lowrank_merge`
    """
    from fedkit.cli import look, rewriting, trust

    names = _names(rewrites)
    if look.is_run(path):
        trust.check_run(path, trusted, _say)
        found = rewriting.of_run(path, names)
    else:
        found = rewriting.of_file(path, names, input_shape or (), calibration, _say)
    _print(found, as_json, rewriting.rewrite_table)


@app.command("eval")
def evaluate(
    artifact: ArtifactPath,
    task: TaskName = "",
    runtime: RuntimeName = "",
    raw: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            help="a .wav, .png or .csv to be told the class of; again for more",
        ),
    ] = None,
    changed: Changed = False,
    trusted: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure an artifact in a runtime: accuracy on the whole test set, latency, size.

    With `--input` tell the classes of raw files instead.

    Of a folder of C or Verilog this runs the code in it; `--runtime interpreter` does not.

    Example: `fedkit eval runs/NAME/model-int8.tflite --runtime tflite-runtime`
    """
    from fedkit.cli import export, hearing, tables, trust

    if raw:
        if task:
            raise ConfigError(f"--task {task} has a test set, and --input has files; give one")
        heard = hearing.hear(artifact, raw, runtime, changed, log)
        _print(heard, as_json, hearing.hearing_table)
        return
    trust.check_artifact(artifact, task, trusted, _say)
    measured = export.evaluate(artifact, task, runtime, changed, log)
    _print(measured, as_json, tables.artifact_table)


@app.command()
def check(
    artifact: ArtifactPath,
    task: TaskName = "",
    runtime: RuntimeName = "",
    examples: Annotated[
        int, typer.Option(min=0, help="how many of the test set (0: all of it)")
    ] = 0,
    layers: Annotated[
        bool, typer.Option("--layers", help="compare every layer, not the outputs alone")
    ] = False,
    changed: Changed = False,
    accept_error: AcceptError = False,
    trusted: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare an artifact with the definition of its integers, and these with the float model.

    Exits with 1 if an integer differs, if they are far from the floats, or if inputs are out of the
    range of frozen norms.

    Of a folder of C or Verilog this runs the code in it; with `--runtime interpreter` that must be
    what is made of its graph here, and nothing of the folder is run.

    Example: `fedkit check runs/NAME/model-int8-c99 --layers`
    """
    from fedkit.cli import look, trust

    trust.check_artifact(artifact, task, trusted, _say)
    result = look.check(artifact, task, runtime, examples, layers, changed, log)
    _print(result, as_json, look.check_table)
    is_off = result["is_far"] or result["out_of_range"]
    if result["mismatches"] or (is_off and not accept_error):
        raise typer.Exit(1)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="ARTIFACT|RUN", help="what to look into")],
    graph: Annotated[
        Path | None,
        typer.Option(metavar="OUT.svg", help="draw an artifact's integer graph into this file"),
    ] = None,
    mask: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="LAYER OUT.svg|OUT.png", help="draw which weights of a layer are kept"
        ),
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="OUT.svg", help="draw when the engine of an FPGA does what"),
    ] = None,
    trusted: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show each layer of an artifact: shape, density, MACs, bytes, error against floats.

    Of a run: what its last checkpoint keeps of each layer.

    Example: `fedkit inspect runs/NAME/model-int8-c99 --mask blocks.0.conv mask.svg`
    """
    from fedkit.cli import look, trust

    is_run = look.is_run(path)
    if is_run and (graph or timeline):
        raise ConfigError(f"{path} is a run; --graph and --timeline are of its artifacts")
    if not is_run:
        trust.check_around(path, trusted, _say)
    if graph is not None:
        look.draw(path, graph)
    if timeline is not None:
        look.draw_timeline(path, timeline)
    if mask is not None:
        look.draw_mask(path, *mask)
    if is_run:
        _print(look.inspect_run(path), as_json, look.kept_table)
    else:
        _print(look.inspect(path), as_json, look.inspect_table)


@app.command()
def show(run: RunPath, as_json: Json = False, quiet: Quiet = False) -> None:
    """Show what a run folder holds: a finished run's figures, or how far an ended one came.

    Metric and loss over the rounds are lines of bars, from the least value to the largest.

    Example: `fedkit show runs/NAME`
    """
    from fedkit.cli import summary

    _print(summary.show(run), as_json, summary.table_of(run))


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="a folder of run folders")] = Path("runs"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the runs of a folder: running, finished, stopped or failed, and how far each came.

    Example: `fedkit runs`
    """
    from fedkit.cli import runs

    _print(runs.runs(folder), as_json, runs.runs_table)


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="run folders, like runs/NAME; or a comparison, like results/compare-NAME.json or "
            "runs/compare/NAME"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="the page to write (default: report.html in the first folder)"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a page about runs or a comparison, finished or not: one file without network.

    Example: `fedkit report runs/NAME`
    """
    from fedkit.cli import report as reports

    _print(reports.report(paths, out), as_json, reports.report_line)


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(help="the file to write, like model.plan")],
    task: Annotated[str, typer.Option(help="built-in task or package.module:name")] = "digits",
    model: Annotated[str, typer.Option(help="zoo model instead of the task's")] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the plan of a model: all that a device without torch needs to know of it.

    Example: `fedkit plan resnet8.plan --task digits --model resnet8`
    """
    from fedkit.cli import plan as plans

    _print(plans.write_plan(path, task, model), as_json, plans.plan_table)


@app.command()
def support(as_json: Json = False, quiet: Quiet = False) -> None:
    """Show which kinds of ops each reader, engine and export target takes, and which zoo models.

    It takes some half a minute, as every model is tried.

    Example: `fedkit support --json`
    """
    from fedkit.cli import support as supported

    _print(supported.support(), as_json, supported.support_table)


@app.command("flwr-run")
def flwr_run(
    path: Annotated[str, typer.Argument(metavar="APP", help="folder of a Flower app")],
    connection: Annotated[
        str, typer.Argument(metavar="[SUPERLINK]", help="a SuperLink of Flower's settings")
    ] = "",
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="keys of the app, in TOML")
    ] = None,
    federation_config: Annotated[
        str, typer.Option(help="of a simulation, such as num-supernodes=10")
    ] = "",
) -> None:
    """Do what `flwr run --stream` does, and return 2 where the run fails; Flower returns 0.

    A SuperLink that Flower starts for it ends with it.

    Example: `fedkit flwr-run sim/app --federation-config num-supernodes=4`
    """
    from fedkit.flower import flwr_run as flower

    options = [part for each in run_config or () for part in ("--run-config", each)]
    options += ["--federation-config", federation_config] if federation_config else []
    flower.flwr_run(path, connection, options)


@app.command()
def compare(
    grid: Annotated[Path, typer.Argument(help="a grid file, like examples/grid.toml")],
    out: Annotated[Path, typer.Option(help="folder of the result")] = Path("results"),
    work: Annotated[Path, typer.Option(help="folder of finished cells")] = Path("runs/compare"),
    workers: Annotated[
        int, typer.Option(min=0, help="cells running at once (0: one per core)")
    ] = 0,
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="run the cells on a Ray cluster, whose machines have the same fedkit",
        ),
    ] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every cell of a grid and compare their means; started again, it continues.

    Example: `fedkit compare examples/grid.toml`
    """
    from fedkit.cli import compare as grids
    from fedkit.cli import tables

    _print(grids.compare(grid, out, work, workers, log, ray), as_json, tables.compare_table)


@app.command(epilog=f"NAME is one of: {', '.join(BENCHMARKS)}")
def bench(
    name: Annotated[str, typer.Argument(help="a benchmark")],
    quick: Annotated[bool, typer.Option("--quick", help="within 45 s on two cores")] = False,
    target: Annotated[str, typer.Option(help="device: some targets, with commas between")] = "",
    artifact: Annotated[str, typer.Option(help="device: measure this one, not ResNet-8")] = "",
    ssh: Annotated[str, typer.Option(help="device: a board, as user@host")] = "",
    show: Annotated[bool, typer.Option("--list", help="device: show what is installed")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a benchmark and print its rows.

    Example: `fedkit bench device --target cortex-m4 --artifact runs/NAME/model-int8-c99`
    """
    from fedkit.cli import bench as benches

    options = benches.Options(target, artifact, ssh, show)
    _print(benches.bench(name, quick, options), as_json, benches.table)


def _targets(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return _targets(text) if text else ()


def _say(text: str) -> None:
    log.print(text, highlight=False, soft_wrap=True)


def _print(result: dict[str, Any], as_json: bool, table: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        Terminal(quiet=log.quiet).print(table(result))


def main() -> None:
    """Run a command; end with one message and an exit code where it fails or is stopped."""
    try:
        app()
    except FedkitError as error:
        _refuse(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _refuse(f"{where}{error.strerror}; make room or give the right to write, and try again")
    except MemoryError:
        _refuse("there is not enough memory for this; give it less data, or a larger machine")
    except STOPS as stop:
        log.quiet = False
        log.print(stop_words(stop), style="bold red")
        sys.exit(128 + stop_number(stop))


_ENVIRONMENT_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)
"""Errors of files that are the machine's, not ours: a full disk, a missing right."""


def _refuse(message: str, exit_code: int = 2) -> NoReturn:
    log.quiet = False
    log.print("error:", style="bold red", end=" ")
    log.print(message, highlight=False, soft_wrap=True)
    sys.exit(exit_code)
