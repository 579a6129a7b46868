# Each target makes .venv and installs by itself; only the first call pays for it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# uv does not read pip's setting: pass it on, so that an offline build of torch is found.
FIND_LINKS := $(addprefix --find-links ,$(PIP_FIND_LINKS))
export DO_NOT_TRACK := true

.PHONY: demo test coverage bench soak test-stores lint docs lock audit sbom container clean

demo: $(READY)  ## end to end on synthetic scenes, about ten minutes on two cores
	$(BIN)/python -m demo $(IMAGES)

test: $(READY) lint  ## everything that a machine without GPU and network can check
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: $(READY)  ## which lines the tests reach, in htmlcov/; child processes count, no gate
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report term:skip-covered --cov-report html

bench: $(READY)  ## speed against named peers, writes reports/bench.json
	$(BIN)/python -m tests.benchmarks

MINUTES ?= 30
soak: $(READY)  ## batch jobs every minute while things fail, half an hour or MINUTES=6; writes reports/soak.json
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

test-stores: $(READY)  ## the demo on PostgreSQL and S3, full disks, lost machines; PROFILE=tiny takes minutes
	PROFILE=$(PROFILE) $(BIN)/python -m pytest -n 0 -s tests/stores.py tests/full_disk.py tests/flows/automations.py

lint: $(READY)  ## style, import contracts, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(READY)  ## the manual in site/; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lock: $(READY)  ## refresh requirements.lock from pyproject.toml
	$(BIN)/uv pip compile $(FIND_LINKS) --extra dev --no-annotate --no-header pyproject.toml \
		| sed -e 's/+cpu$$//' -e '/^nvidia-ml-py=/!{/^nvidia-/d;}' -e '/^triton==/d' -e '/^cuda-/d' > requirements.lock.new
	mv requirements.lock.new requirements.lock

audit: $(READY)  ## known weaknesses of the packages in requirements.lock; fails without PyPI's own network
	$(BIN)/uvx pip-audit --strict --no-deps --disable-pip -r requirements.lock

sbom: $(READY)  ## what is installed here, with licences, as CycloneDX in sbom.json
	$(BIN)/uvx --from cyclonedx-bom cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(BIN)/python

container: $(READY)  ## the Dockerfile's steps without Docker, in roots of Debian's packages; as root, minutes
	$(BIN)/python -m tests.support.dockerfile

$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode $(FIND_LINKS) -r requirements.lock -e '.[dev]'
	touch $(READY)

clean:  ## forget everything that was made, but not the environment
	rm -rf data models metrics plots reports mlruns mlflow.db site htmlcov sbom.json .coverage .import_linter_cache
