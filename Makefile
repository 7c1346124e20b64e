# For users: `make demo` sets up and trains the default recipe, `make check` sets up and passes everything CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs
ARGUMENTS :=
DEMO := demo-$(shell date +%Y%m%d-%H%M%S)
# Twice quiet: pip warns of local folders of its configuration that lack a package. Errors are still shown.
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint requirements.lock

.PHONY: demo study check format lint types imports test debian peers foreign lock clean

demo: $(VENV)/base
	$(BIN)/perjoule train recipes/default.yaml name=$(DEMO) runs=$(RUNS) $(ARGUMENTS)
	$(BIN)/perjoule report $(RUNS)/$(DEMO)

# Four architectures of one size, on text and on nested brackets, in turn: under fifteen minutes on two cores
# (docs/studies/architectures.md).
STUDY := $(RUNS)/study-$(shell date +%Y%m%d-%H%M%S)
STUDIED := transformer retnet longnet ebt
study: $(VENV)/base
	$(BIN)/python -m perjoule.models.matched 1m --seq-len 256 --vocab-size 2048
	set -e; for task in text dyck; do for model in $(STUDIED); do \
	  $(BIN)/perjoule train recipes/study/$$task-$$model.yaml runs=$(STUDY); done; done
	for model in $(STUDIED); do $(BIN)/perjoule evaluate $(STUDY)/dyck-$$model 'loss.splits=[validation,ood]'; done
	for task in text dyck; do $(BIN)/perjoule report $(STUDIED:%=$(STUDY)/$$task-%) --output $(STUDY)/$$task.html; done

check: lint types imports test

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/mypy

imports: $(VENV)/dev
	$(BIN)/lint-imports

# Two test processes on two cores; one thread each, so that they do not take each other's core.
test: $(VENV)/dev debian
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Reports are tested in a real browser and jobs on a real Slurm. Debian's are installed where that is allowed.
debian:
	@{ command -v chromium && command -v slurmctld && command -v munged; } >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && apt-get install -y -qq --no-install-recommends chromium slurm-wlm munge >/dev/null; } \
	  || echo "chromium or Slurm is missing and cannot be installed here: their tests will be skipped"

# Other frameworks and energy meters, for benchmarks/ only; some of them break the project's own environment.
peers: .peers/ready

.peers/ready: requirements-peers.lock
	$(PYTHON) -m venv .peers
	.peers/bin/pip install -qq --disable-pip-version-check --constraint requirements-peers.lock torch
	.peers/bin/pip install -qq --disable-pip-version-check --constraint requirements-peers.lock \
	  transformers accelerate lightning zeus 'codecarbon[carbonboard]' datasets datatrove 'dask[distributed]' tiktoken \
	  pyarrow peft parameterized pytest \
	  --editable .
	# litdata asks for torchvision, which breaks the CPU torch, and torchscale for versions of years ago.
	.peers/bin/pip install -qq --disable-pip-version-check --constraint requirements-peers.lock --no-deps \
	  torchao torchscale litdata boto3 botocore s3transfer jmespath obstore tifffile lightning-utilities
	touch $@

# transformers' own tests over our four classes. TRANSFORMERS: a checkout of its repository, with tests/.
foreign: .peers/ready
	.peers/bin/python tests/foreign/transformers_suites.py $(TRANSFORMERS)

$(VENV)/base: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(INSTALL) --editable '.[dev]'
	touch $@

# Take the newest versions that fit pyproject.toml and pin them (docs/decisions/0002-one-lock.md).
lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install -qq torch==2.13.0
	$(VENV)/lock/bin/pip install -qq --editable '.[dev]'
	{ echo '# Pinned versions of everything, used as constraints by make and CI. Renew with `make lock`.'; \
	  $(VENV)/lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf $(VENV)/lock

clean:
	rm -rf $(VENV) .peers
