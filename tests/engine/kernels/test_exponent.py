"""exp and log of the loss: near those of more digits, and the same by every compiler."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from decimal import Decimal, getcontext
from pathlib import Path

import numpy as np
import pytest

from fedkit.engine.kernels import native

HERE = Path(native.__file__).parent
SOURCE = """
#include "exponent.h"
double e(double x) { return exponential(x); }
double l(double x) { return logarithm(x); }
"""


def compiled(folder: Path, compiler: str, level: str) -> ctypes.CDLL:
    (folder / "functions.c").write_text(SOURCE)
    library = folder / f"{compiler}{level}.so"
    flags = ["-std=c99", level, "-ffp-contract=off", "-shared", "-fPIC", f"-I{HERE}"]
    subprocess.run([compiler, *flags, str(folder / "functions.c"), "-o", str(library)], check=True)
    found = ctypes.CDLL(str(library))
    for name in ("e", "l"):
        function = getattr(found, name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    return found


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory.mktemp("exponent"), "gcc", "-O2")


EXPONENTS = [0.0, -0.0, -1e-300, -1e-9, -0.5, -math.log(2), -1.0, -20.0, -700.0, -708.0]
NUMBERS = [1.0, math.nextafter(1.0, 2.0), 1.4142135623730951, 1.4142135623730954, 2.0, 10.0, 1e300]


def test_they_are_near(functions: ctypes.CDLL) -> None:
    getcontext().prec = 40
    rng = np.random.default_rng(0)
    for x in (*EXPONENTS, *(-rng.exponential(20, 500)).tolist()):
        expected = Decimal(x).exp()
        assert abs(Decimal(functions.e(x)) - expected) <= Decimal(math.ulp(float(expected))), x
    for x in (*NUMBERS, *(1 + rng.exponential(20, 500)).tolist()):
        expected = Decimal(x).ln()
        assert abs(Decimal(functions.l(x)) - expected) <= 2 * Decimal(math.ulp(float(expected))), x


def test_ends(functions: ctypes.CDLL) -> None:
    assert functions.e(0.0) == 1.0 and functions.l(1.0) == 0.0
    assert functions.e(-1e4) == functions.e(-math.inf) == 0.0
    assert functions.l(math.inf) == math.inf
    assert math.isnan(functions.e(math.nan)) and math.isnan(functions.l(math.nan))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_compilers_give_the_same_bits(
    functions: ctypes.CDLL, tmp_path: Path, compiler: str, level: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    other = compiled(tmp_path, compiler, level)
    x = -np.random.default_rng(1).exponential(20, 300)
    assert [functions.e(each) for each in x] == [other.e(each) for each in x]
    assert [functions.l(1 - each) for each in x] == [other.l(1 - each) for each in x]
