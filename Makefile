# Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

ENGINE ?= docker
BUILD_FLAGS ?=
TARGETS ?= step train serve
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
CUDA_INDEX ?= https://download.pytorch.org/whl/cu130

.DEFAULT_GOAL := help
.PHONY: help demo test check benchmark-data benchmark-pretrain zoo images cluster cluster-down docs

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

demo: $(READY)  ## Set up and run the whole life on this machine
	$(BIN)/vlmflow run recipes/demo.yaml

test: $(READY)  ## Set up and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

benchmark-data: $(READY)  ## Pairs a second of the curation, against a plain script and datasets.map
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data

benchmark-pretrain: $(READY)  ## Seconds of a CLIP training step, against open_clip's
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pretrain

zoo: $(READY)  ## Train every family and its control, two at a time; write benchmarks/results/zoo
	ls recipes/zoo/*.yaml | xargs -n 1 basename -s .yaml | \
		xargs -P 2 -I NAME sh -c '$(BIN)/vlmflow zoo check NAME --seconds 100 --out benchmarks/results/zoo > /dev/null'

images: $(READY)  ## Build the images step, train and serve, named by revision (ENGINE=podman, BUILD_FLAGS=...)
	for target in $(TARGETS); do \
		index=$$(test $$target = train && echo $(CUDA_INDEX) || echo $(CPU_INDEX)); \
		$(ENGINE) build $(BUILD_FLAGS) --file infra/images/Containerfile --target $$target \
			--build-arg TORCH_INDEX=$$index --build-arg REVISION=$$($(BIN)/python -m vlmflow.runtime.step revision) \
			--tag $$($(BIN)/python -m vlmflow.runtime.step image $$target) . || exit 1; \
	done

cluster: $(READY)  ## A cluster on this machine with all of vlmflow in it (kind; see infra/README.md)
	infra/cluster.sh up

cluster-down:  ## Delete that cluster, with all that is in it
	infra/cluster.sh down

docs: $(READY)  ## Write the generated parts of README and docs
	$(BIN)/python -m pipelines.docs

# torch first and by itself: the exact version takes the CPU build where an index offers one.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
