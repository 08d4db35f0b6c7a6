# Everything runs in a virtual environment of its own, made on first use:
#   make run              the main job
#   make test             what continuous integration runs: the default set of tests
#   make test-all         the slow set of tests too: an hour and more
# VENV=DIR     another folder for the environment (make owns it: `make clean` removes it)
# PYTHON=PATH  the Python to make it with (3.11 or newer)
# PYTEST_FLAGS flags for pytest, such as "-m slow" (default: two workers, each with whole files, in
#              the order of the folders: by numbers of tests, the longest few would come last)

SHELL := /bin/sh
PYTEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder
unexport PYTHONPATH
# Tests start hundreds of interpreters, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
NEEDED := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(NEEDED)' 2>/dev/null && command -v $$python && break; done)
endif
COMPILER := $(shell command -v cc || command -v gcc || command -v clang)
CODE := fedkit edge sim tests examples docs/site
# Those that take long have targets of their own.
LONG := exact intaccuracy inttransformer jobs quantise simulate
BENCHMARKS = $(filter-out $(LONG),$(shell $(BIN)/python -m fedkit.bench.registry | cut -f 1))
RUN := fedkit run --task digits --devices 10 --alpha 0.5 --density 0.1 --with-dense

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

run: $(STAMP) ## Train, export and measure the main example
	$(BIN)/$(RUN)

test: check ## Check everything, and run the default set of tests
	$(BIN)/pytest $(PYTEST_FLAGS)

test-all: check ## Check everything, and run the default and the slow set of tests
	$(BIN)/pytest $(PYTEST_FLAGS) -m 'slow or not slow'

check: $(STAMP) ## Lint, check the format and the types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy --num-workers 2 $(CODE)

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

setup: $(STAMP) ## Make the virtual environment, or bring it up to date

# The versions that are tested, on Linux with Python 3.11. torch stays at the version in the file
# and is raised by hand: its other builds are gigabytes. numpy 1 has no build for Python 3.13.
constraints: tools ## Write constraints.txt anew, with the newest versions that fit
	rm -rf build/constraints
	'$(PYTHON)' -m venv build/constraints
	grep '^torch==' constraints.txt > build/torch.txt
	build/constraints/bin/pip install -c build/torch.txt -e '.[dev,docs]'
	{ echo '# Made by `make constraints`; see there.'; \
	build/constraints/bin/pip freeze --exclude-editable | \
	sed 's/+cpu$$//; s/^numpy==.*/&; python_version < "3.12"/'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints

results: committed $(STAMP) ## Make results/*.json and the tables of README and docs anew
	mkdir -p build
	$(BIN)/$(RUN) --out build/runs --name results-$$(date +%s) --json > build/main-digits
	for name in $(BENCHMARKS); do $(BIN)/fedkit bench $$name --json > build/$$name || exit; done
	ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 $(BIN)/fedkit bench inttrain --json > build/inttrain-avx512
	for name in main-digits $(BENCHMARKS) inttrain-avx512; do \
	tail -n 1 build/$$name | $(BIN)/python -m json.tool - results/$$name.json || exit; done
	$(BIN)/python -m fedkit.bench.readme

# Tables refuse what was measured with code that no commit has: better said before the hours.
committed:
	@case "$$(git describe --always --dirty 2>/dev/null)" in *-dirty) \
	echo 'There are changes that no commit has; commit them first, results name their commit.'; \
	exit 1;; esac

# Hours: 66 trainings over all of Fashion-MNIST. Stopped, it continues from those that are done.
accuracy: committed $(STAMP) ## Measure what integers cost in accuracy, into results/
	mkdir -p build
	$(BIN)/fedkit bench intaccuracy --json > build/intaccuracy
	tail -n 1 build/intaccuracy | $(BIN)/python -m json.tool - results/inttrain-fashion-mnist.json
	$(BIN)/fedkit bench inttransformer --json > build/inttransformer
	tail -n 1 build/inttransformer | $(BIN)/python -m json.tool - results/inttrain-transformer.json
	$(BIN)/python -m fedkit.bench.readme

# Hours: models at two to four densities, every artifact on the test set. Both continue too.
exact: committed $(STAMP) ## Compare artifacts with their definition, and our 8 bits with those of others
	mkdir -p build
	$(BIN)/fedkit bench exact --json > build/exact
	tail -n 1 build/exact | $(BIN)/python -m json.tool - results/exact.json
	$(BIN)/fedkit bench quantise --json > build/quantise
	tail -n 1 build/quantise | $(BIN)/python -m json.tool - results/quantise.json
	$(BIN)/python -m fedkit.bench.readme

# Minutes. Of the package the data is used alone; the words are spoken by espeak-ng.
jobs: committed $(STAMP) ## Train the jobs of small devices, and measure what comes of them
	mkdir -p build
	$(BIN)/pip install -q --no-deps aeon
	$(BIN)/fedkit bench jobs --json > build/jobs
	tail -n 1 build/jobs | $(BIN)/python -m json.tool - results/jobs.json
	$(BIN)/python -m fedkit.bench.readme

# Half an hour, most of it stock Flower's; nothing else should run meanwhile.
simulations: committed $(STAMP) ## Measure simulated fleets beside stock Flower, into results/
	mkdir -p build
	$(BIN)/fedkit bench simulate --json > build/simulate
	tail -n 1 build/simulate | $(BIN)/python -m json.tool - results/simulate.json
	$(BIN)/python -m fedkit.bench.readme

docs: $(STAMP) ## Build the documentation into build/site, strictly and without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f docs/site/mkdocs.yml

# Cross-compiled by zig, which comes from PyPI; a wheel without its kernels is an error here.
wheels: $(STAMP) ## Build wheels for x86-64 and aarch64 Linux into dist/
	$(BIN)/pip install -q -c constraints.txt ziglang
	zig=$$($(BIN)/python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))'); \
	for arch in x86_64 aarch64; do \
	cc="$$zig cc -target $$arch-linux-gnu.2.17"; \
	CC="$$cc" LDSHARED="$$cc -shared -s" _PYTHON_HOST_PLATFORM=linux-$$arch \
	$(BIN)/pip wheel -q --no-deps -w dist -C--build-option=bdist_wheel \
	-C--build-option=--plat-name=manylinux_2_17_$$arch . && \
	$(BIN)/python -m zipfile -l dist/fedkit-*_$$arch.whl | grep _kernels || exit 1; done

clean: ## Remove the virtual environment and all that was built
	@test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || \
	{ echo 'VENV=$(VENV) is not a virtual environment; not removing it'; exit 1; }
	rm -rf $(VENV) build dist fedkit.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f fedkit/engine/kernels/_kernels*
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and removed first: without it an environment is unfinished, and made
# anew from nothing.
$(STAMP): pyproject.toml constraints.txt $(wildcard fedkit/engine/kernels/*.[ch]) | tools
	@test -e $(STAMP) || test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || \
	{ echo 'VENV=$(VENV) is not a virtual environment; choose another folder'; exit 1; }
	@test -e $(STAMP) || '$(PYTHON)' -m venv --clear $(VENV)
	@rm -f $(STAMP)
	$(BIN)/pip install -c constraints.txt -e '.[dev,docs]'
	@touch $(STAMP)

DEBIAN := Debian/Ubuntu: sudo apt install
FEDORA := Fedora: sudo dnf install
MACOS := macOS:

tools:
	@'$(PYTHON)' -c '$(NEEDED)' 2>/dev/null || { echo 'Python 3.11 or newer with venv was not' \
	'found. $(DEBIAN) python3.11 python3.11-venv; $(FEDORA) python3.11; $(MACOS) brew install' \
	'python@3.11; or set PYTHON=/path/to/python'; exit 1; }
	@test -n '$(COMPILER)' || { echo 'A C compiler (cc, gcc or clang) was not found.' \
	'$(DEBIAN) gcc; $(FEDORA) gcc; $(MACOS) xcode-select --install'; exit 1; }

.PHONY: help run results committed accuracy exact jobs simulations test test-all docs check format setup constraints wheels clean tools
