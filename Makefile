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
.PHONY: help demo test test-containers check benchmark-data benchmark-pretrain zoo images cluster cluster-down docs docs-site

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

demo: $(READY)  ## Set up and run the end-to-end pipeline on this machine
	$(BIN)/vlmflow run recipes/demo.yaml

test: $(READY)  ## Set up and run the tests, except soak tests and those in containers (about 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not soak" --ignore tests/containers

test-containers: $(READY)  ## Run the soak tests; build the images with podman and test them (as root; about 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/containers

check: $(READY)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

benchmark-data: $(READY)  ## Measure pairs per second of curation, against a plain script and datasets.map
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data

benchmark-pretrain: $(READY)  ## Measure seconds per CLIP training step, against open_clip
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pretrain

zoo: $(READY)  ## Train every family and its control, two at a time; write benchmarks/results/zoo
	ls recipes/zoo/*.yaml | xargs -n 1 basename -s .yaml | \
		xargs -P 2 -I NAME sh -c '$(BIN)/vlmflow zoo check NAME --seconds 100 --out benchmarks/results/zoo > /dev/null'

images: $(READY)  ## Build the images step, train and serve, named by revision (ENGINE=podman, BUILD_FLAGS=...)
	for target in $(TARGETS); do \
		index=$$(test $$target = train && echo $(CUDA_INDEX) || echo $(CPU_INDEX)); \
		$(ENGINE) build $(BUILD_FLAGS) --file infra/images/Containerfile --target $$target \
			--build-arg TORCH_INDEX=$$index --build-arg REVISION=$$($(BIN)/python -m vlmflow.runtime.container_image revision) \
			--tag $$($(BIN)/python -m vlmflow.runtime.container_image image $$target) . || exit 1; \
	done

cluster: $(READY)  ## Create a cluster on this machine with everything installed (kind; see infra/README.md)
	infra/cluster.sh up

cluster-down:  ## Delete that cluster and everything in it
	infra/cluster.sh down

docs: $(READY)  ## Write the generated parts of the documentation
	$(BIN)/python -m pipelines.docs

docs-site: $(READY)  ## Build the documentation site into build/site; a broken link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch first and separately: the exact version selects the CPU build if an index has one.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
