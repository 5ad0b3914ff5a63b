PYTHON ?= python3
PY = .venv/bin/python
DEMO = --dataset_name photos --seed 0
PRETRAIN = --image_size 16 --arch resnet10 --batch_size 64 --d_pos 1 --d_neg 10 --epochs 4 --knn_every 4 --k 20 --resume never
# A process per CPU, up to 8, of one thread each.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help install demo test soak peers gpu-profile gpu-tests gpu-train clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

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
	$(PY) linear.py $(DEMO) --arch resnet10 --image_size 32 --k 20 --batch_size 128 --epochs 3 --lr 0.01 --results results/demo \
		--model_path random results/demo/photos/photos_SimCLR_4model_64_4_1.0_10.0.pth

test: .venv/installed-tests  ## ruff, mypy and pytest
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy
	$(PYTEST)

soak: .venv/installed-tests  ## the long tests in full
	SOAK=1 $(PYTEST) -m soak

.venv-peers/installed: requirements.txt requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -r requirements.txt -r requirements-peers.txt
	touch $@

peers: .venv-peers/installed  ## tests against the real lightly, Lightning and scikit-learn, in an environment of their own
	.venv-peers/bin/python -m pytest tests/test_peers.py

gpu-profile: .venv/installed  ## what a step's time goes to, and which settings make it faster
	$(PY) -m benchmark.gpu_profile --device cuda --results results

gpu-tests: .venv/installed-tests  ## the tests on the GPU
	ATTENTIONCE_DEVICE=cuda $(PY) -m pytest --junitxml=results/gpu/tests.xml

# A quarter of an hour at a time. GPU_TRAIN may also name another --dataset_name.
GPU_TRAIN = --d_pos 1 --d_neg 10 --device cuda --results results/gpu
GPU_SECONDS = 900

gpu-train: .venv/installed  ## fifteen minutes of training; its state is kept, so that the same command continues
	timeout --preserve-status --signal=USR1 $(GPU_SECONDS) $(PY) main.py --dataset_name cifar10 $(GPU_TRAIN)

clean:  ## remove .venv and caches
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
