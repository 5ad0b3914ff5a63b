PYTHON ?= python3
PY = .venv/bin/python
DEMO = --dataset_name photos --seed 0
PRETRAIN = --image_size 16 --arch resnet10 --batch_size 64 --d_pos 1 --d_neg 10 --epochs 12 --knn_every 4 --k 20 --resume never

.PHONY: help install demo test soak clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

install: .venv/installed  ## make .venv and install what main.py and linear.py need

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -r requirements.txt
	touch $@

.venv/installed-tests: .venv/installed requirements-dev.txt
	$(PY) -m pip install -q -r requirements-dev.txt
	touch $@

demo: .venv/installed  ## pretrain on the embedded photographs, then compare with the same encoder untrained
	$(PY) main.py $(DEMO) $(PRETRAIN) --results results/demo
	$(PY) linear.py $(DEMO) --arch resnet10 --k 20 --batch_size 128 --epochs 10 --lr 0.01 --results results/demo \
		--model_path random results/demo/photos/photos_SimCLR_4model_64_12_1.0_10.0.pth

test: .venv/installed-tests  ## ruff, mypy and pytest
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest

soak: .venv/installed-tests  ## the long tests in full
	SOAK=1 $(PY) -m pytest -m soak

clean:  ## remove .venv and caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
