"""Trainers as folders: what is refused, and C that every compiler takes."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedkit.bench import emulator
from fedkit.bench.sparsetrain import random_batch
from fedkit.core.errors import ExportError, FedkitError
from fedkit.engine.base import LocalTraining
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.execution import Key, least_peak, tightly
from fedkit.tasks import losses
from fedkit.trainer.emit import emit
from fedkit.trainer.on_disk import load_trainer, save_trainer
from tests.trainer.compiled import (
    STRICT,
    Compiled,
    check_equal,
    compile_host,
    compile_shared,
    model,
    write,
)

SMALL = (3, 8, 8)


BARE = Path(emulator.__file__).with_name("bare")


def test_it_is_read_back(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    made = save_trainer(tmp_path / "trainer", plan, state.masks, stored_bits=8)
    found = load_trainer(tmp_path / "trainer")
    assert (found.plan, found.batch, found.stored_bits) == (plan, 1, 8)
    assert found.arena_bytes == made.arena_bytes == emit(plan, state.masks, 1, 8).arena_bytes
    assert all(np.array_equal(found.masks[name], state.masks[name]) for name in plan.prunable)
    header = (tmp_path / "trainer" / "trainer_model.h").read_text()
    assert f"#define TRAINER_ARENA_BYTES {made.arena_bytes}\n" in header


def test_the_same_is_written_each_time() -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    assert emit(plan, state.masks, 1, 8) == emit(plan, state.masks, 1, 8)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    (tmp_path / "taken").touch()
    with pytest.raises(ExportError, match="is there already"):
        save_trainer(tmp_path / "taken", plan, state.masks)


@pytest.mark.parametrize("name", ["trainer.c", "masks.bin"])
def test_changes_are_noticed(tmp_path: Path, name: str) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    save_trainer(tmp_path / "trainer", plan, state.masks)
    with (tmp_path / "trainer" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ExportError, match="was changed"):
        load_trainer(tmp_path / "trainer")


def test_what_is_missing_is_noticed(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    save_trainer(tmp_path / "trainer", plan, state.masks)
    (tmp_path / "trainer" / "trainer.c").unlink()
    with pytest.raises(ExportError, match="lacks a file"):
        load_trainer(tmp_path / "trainer")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sha256": 3}', "not json"])
def test_what_is_no_trainer(tmp_path: Path, text: str) -> None:
    with pytest.raises(ExportError, match=r"holds no trainer\.json"):
        load_trainer(tmp_path)
    (tmp_path / "trainer.json").write_text(text)
    with pytest.raises(ExportError, match="is damaged"):
        load_trainer(tmp_path)


def test_memory_that_does_not_suffice() -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    needed = emit(plan, state.masks).arena_bytes
    assert emit(plan, state.masks, ram=needed).arena_bytes == needed
    with pytest.raises(ExportError, match=rf"needs {needed:,} bytes .* \(--stored-bits 16\)"):
        emit(plan, state.masks, ram=needed - 1)
    assert (
        emit(plan, state.masks, 2).arena_bytes > needed > emit(plan, state.masks, 1, 8).arena_bytes
    )


@pytest.mark.parametrize(("batch", "bits", "message"), [
    (3, 32, "batch is 3"), (0, 32, "batch is 0"), (16, 32, "1, 2, 4 or 8"), (1, 12, "bits is 12")
])  # fmt: skip
def test_settings_that_do_not_exist(batch: int, bits: int, message: str) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    with pytest.raises(ExportError, match=message):
        emit(plan, state.masks, batch, bits)


def test_ops_that_it_lacks_are_named() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    plan = capture(nn.Sequential(*layers), SMALL)
    masks = {name: np.ones(plan.weights[name], bool) for name in plan.prunable}
    with pytest.raises(ExportError, match=r"hard_swish.* lacks: it has .*conv.* board with Linux"):
        emit(plan, masks)


def test_a_norm_of_one_value_is_refused() -> None:
    plan, state = model("resnet8", (3, 4, 4), 0.05)
    with pytest.raises(ExportError, match=r"sees one value per channel.*\(--batch 2\)"):
        emit(plan, state.masks)
    emit(plan, state.masks, 2)


def test_another_loss_is_refused() -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    other = replace(plan, loss=losses.CrossEntropy(label_smoothing=0.1))
    with pytest.raises(FedkitError, match="plain cross-entropy"):
        emit(other, state.masks)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(("batch", "bits"), [(1, 32), (1, 4), (2, 16)])
def test_it_compiles_without_a_warning(
    tmp_path: Path, compiler: str, batch: int, bits: int
) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    made = emit(plan, state.masks, batch, bits)
    assert compile_host(made, tmp_path, compiler=compiler).stat().st_size > 0


def test_it_needs_no_more_of_a_library_than_bare_processors_have(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    write(emit(plan, state.masks, 1, 8).files, tmp_path)
    own = subprocess.run(["gcc", "-print-file-name=include"], capture_output=True, text=True)
    bare = ["-nostdinc", "-ffreestanding", "-isystem", str(BARE), "-isystem", own.stdout.strip()]
    command = ["gcc", *STRICT, *bare, "-fsyntax-only", str(tmp_path / "trainer.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_headers_stand_by_themselves(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    write(emit(plan, state.masks).files, tmp_path)
    for header in ("trainer.h", "link.h"):
        command = ["gcc", *STRICT, "-fsyntax-only", str(tmp_path / header)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("density", "bits"), [(1.0, 32), (0.05, 4)])
def test_sanitizers_find_nothing(tmp_path: Path, density: float, bits: int) -> None:
    # Of address alone what needs no library to be loaded first.
    plan, state = model("resnet8", (3, 9, 7), density)
    check_equal(
        tmp_path, plan, state, random_batch(2, (3, 9, 7)), bits=bits,
        how=LocalTraining(1, 1, 0.05, 0.9, 5e-4),
        flags=("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    )  # fmt: skip


def test_examples_that_are_none(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    made = emit(plan, state.masks, 2)
    found = Compiled(compile_shared(made, tmp_path), made, made.statistics_count)
    image = np.zeros(SMALL, np.float32)
    found.begin(0)
    assert [found.put(place, image, label) for place, label in ((2, 0), (-1, 0), (0, 10), (0, -1))]
    assert found.put(0, image, 9) == 0
    assert found.step(0.1, 0.9, 0.0)[0] == 2  # incomplete
    before = found.values.copy()
    found.values[:] = np.nan
    assert found.put(1, image, 0) == 0
    assert found.step(0.1, 0.9, 0.0)[0] == 3  # diverged
    found.values[:] = before


def test_nothing_that_lives_at_a_time_overlaps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        begins = rng.integers(0, 30, 40)
        wanted: dict[Key, tuple[int, int, int]] = {
            ("x", n): (int(rng.integers(1, 99)), int(begin), int(begin + rng.integers(0, 9)))
            for n, begin in enumerate(begins)
        }
        places, peak = tightly(wanted, 20_000)
        assert peak >= least_peak(wanted)
        for moment in range(40):
            alive = sorted(
                (places[key], places[key] + size)
                for key, (size, first, last) in wanted.items()
                if first <= moment <= last
            )
            assert all(one[1] <= other[0] for one, other in pairwise(alive))
            assert all(end <= peak for _, end in alive)
