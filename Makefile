# Every target works on a fresh machine with Python 3.11 or newer: it makes .venv and installs what it needs.
PYTHON ?= python3
METHOD ?= cppo
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --constraint constraints.txt
# two math threads beat four on a small model; one setting for all keeps numbers comparable
export OMP_NUM_THREADS ?= 2

.PHONY: demo gpu reliability test test-lowest test-torchvision lab lint notebooks exercises links wheel book read e2e clean

# a file per process and one thread each: processes that share cores and take two threads wait for each other
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile
# numbers and asserts are checked, pictures are not; CPPO_FAST shortens training; stubs of exercises are left out
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with=tests/notebooks/sanitize.cfg
NBTEST := CPPO_FAST=1 TQDM_DISABLE=1 $(PYTEST) $(NBVAL) notebooks/
# CPPO_FRAMES: explorers show frames, because a committed page has no sliders
NBCONVERT := CPPO_FRAMES=1 $(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False
CORE := $(foreach name,training families policy cpl grpo perception packing adapters,tests/test_$(name).py)
COURSE := $(sort $(wildcard notebooks/[0-9]*.ipynb) $(wildcard notebooks/exercises/solutions/*.ipynb))

demo: $(VENV)/.base  ## train the tiny VLM with CPPO on the CPU (METHOD=grpo for the baseline)
	HF_HUB_OFFLINE=1 $(RUN) -m study demo --method $(METHOD)

test: $(VENV)/.dev lint  ## everything that CI runs
	$(PYTEST)
	$(NBTEST) || $(NBTEST)  # kernels that start side by side may be given one port, and one of them dies

test-lowest: .venv-lowest/.done  ## the core tests with the lowest versions that pyproject.toml allows
	$(subst $(VENV),.venv-lowest,$(PYTEST)) --deselect tests/test_grpo.py::test_loss_and_gradient_are_those_of_trl $(CORE)

test-torchvision: .venv-torchvision/.done  ## the families with torchvision, as on GPU machines (gigabytes: CUDA's torch)
	$(subst $(VENV),.venv-torchvision,$(PYTEST)) tests/test_families.py

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

lab: $(VENV)/.dev  ## open the course
	$(VENV)/bin/jupyter lab notebooks

notebooks: $(VENV)/.dev  ## run the course and the solutions again, one after the other, and keep their outputs
	set -e; for notebook in $(COURSE); do HF_HUB_OFFLINE=1 $(NBCONVERT) $$notebook; done

gpu: $(VENV)/.dev  ## measure everything that waits for a GPU, then fill in README's table (ARGS=--dry: try it without one)
	$(RUN) benchmarks/gpu_memory.py --as cppo grpo plain $(ARGS)
	$(RUN) scripts/readme_tables.py

exercises: $(VENV)/.dev  ## make the students' notebooks from the solutions
	$(RUN) scripts/make_exercises.py

reliability: $(VENV)/.dev  ## kills, damage, hostile input (an hour of soak: ARGS="--minutes 60"); then the table of docs/reliability.md
	$(RUN) tests/reliability/run.py $(ARGS)
	$(RUN) scripts/reliability_page.py

links:  ## write the repository's address on every page: REPOSITORY=owner/name (REPOSITORY= takes it out)
	$(PYTHON) scripts/links.py $${REPOSITORY+"$$REPOSITORY"}

wheel: $(RUN)  ## one file to install from, data included: what the notebooks ask for on Colab while no address is set
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	ls dist/cppo_ref-*.whl

book: $(VENV)/.book  ## make the course a site with search, in build/book/html, and slides; nothing is run, no network is used
	$(RUN) scripts/book.py

e2e: $(VENV)/.e2e  ## run notebooks in JupyterLab in a real browser (NOTEBOOKS="a.ipynb b.ipynb"; default: all)
	$(RUN) tests/e2e/run_notebooks.py $(NOTEBOOKS)
	$(RUN) tests/e2e/move_a_slider.py

read: book $(VENV)/.e2e  ## make the book and read it in a real browser
	$(RUN) tests/e2e/read_book.py

$(RUN):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(RUN)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --editable ".[dev,notebooks]"
	touch $@

.venv-lowest/.done: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt torch
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable . beartype pytest pytest-xdist
	touch $@

.venv-torchvision/.done: pyproject.toml constraints.txt
	test -x .venv-torchvision/bin/python || $(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/pip install --quiet torch torchvision
	grep -v ^torch== constraints.txt > .venv-torchvision/constraints.txt
	.venv-torchvision/bin/pip freeze | grep ^torch >> .venv-torchvision/constraints.txt
	.venv-torchvision/bin/pip install --quiet --constraint .venv-torchvision/constraints.txt --editable . beartype pytest pytest-xdist
	.venv-torchvision/bin/python -c "import torchvision"
	touch $@

$(VENV)/.book: $(VENV)/.dev
	$(PIP) --editable ".[book]"
	touch $@

$(VENV)/.e2e: $(VENV)/.dev
	$(PIP) --editable ".[e2e,notebooks]"
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-torchvision .pytest_cache .ruff_cache build dist
