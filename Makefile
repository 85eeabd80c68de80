# `make help` lists the targets. The two that matter: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3.11
PY := .venv/bin/python
# pytest's own limit is per test (pyproject.toml); this one is for the whole run
TEST_LIMIT ?= 80m
TESTS ?= tests
PYTEST = timeout --kill-after=30 $(TEST_LIMIT) $(PY) -m pytest < /dev/null $(TESTS) --durations=10

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu demo test test-slow test-faults lint types lock clean bench-setup bench-whole-job bench-memory bench-baselines bench-quality bench-embedding bench-merge bench-federation bench-updates bench-labels bench-finetune bench-partitions bench-cluster bench-gpu bench

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## the environment in .venv/, Java, the Delta jars; about a second when nothing changed
	@PYTHON="$(PYTHON)" scripts/setup.sh

setup-gpu:  ## the same with cuML, for machines with a GPU (about 1 GB more)
	@PYTHON="$(PYTHON)" scripts/setup.sh gpu

demo: setup  ## the whole job on 20,000 docstrings of the installed packages: topics on the terminal, a report as HTML
	@$(PY) -m jobs.demo < /dev/null

test:  ## all tests but the long ones below
	@PYTHON="$(PYTHON)" scripts/setup.sh tests s3
	$(PYTEST)

test-slow:  ## what takes a minute or more, and is another form of what a shorter test holds
	@PYTHON="$(PYTHON)" scripts/setup.sh tests s3
	$(PYTEST) -m slow

test-faults: setup  ## kill the driver, the actors, Ray and Spark at many points, and compare the tables
	$(PYTEST) -m faults

lint: setup  ## ruff: lint and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup  ## mypy on topicscale/
	$(PY) -m mypy

lock: setup  ## pin what pyproject.toml asks for, with hashes, in the requirements files
	@scripts/lock.sh

bench-setup:  ## BERTopic in an environment of its own, .venv-bertopic/
	@PYTHON="$(PYTHON)" scripts/setup.sh bertopic

bench-whole-job: bench-setup  ## the whole job against BERTopic's fit: docstrings and AG News
	$(PY) -m benchmarks.whole_job

bench-memory: setup  ## peak memory at 100,000 documents against 25,000
	$(PY) -m benchmarks.memory

bench-baselines: bench-setup  ## LDA, TF-IDF + k-means, BERTopic and topicscale on labelled corpora
	$(PY) -m benchmarks.baselines

bench-quality: bench-setup  ## topics over partitions against BERTopic's merge_models
	$(PY) -m benchmarks.quality

bench-embedding: setup  ## embedding speed against SentenceTransformer.encode
	$(PY) -m benchmarks.embedding

bench-merge: setup  ## merging 300,000 local topics of which the answer is known
	$(PY) -m benchmarks.merge

bench-federation: bench-setup  ## sites and partitions: what merging costs, against BERTopic.merge_models
	$(PY) -m benchmarks.federation

bench-updates: setup  ## 30 daily updates against one fit
	$(PY) -m benchmarks.updates

bench-labels: setup  ## labels a second against BERTopic's TextGeneration, and how well they find their topics
	$(PY) -m benchmarks.labels

bench-finetune: setup  ## what each recipe gains, memory of large batches, two workers against one
	$(PY) -m benchmarks.finetune

bench-partitions: setup  ## the driver over 20,000 partitions, killed twice: its time, its memory, its logs
	$(PY) -m benchmarks.partitions

bench-cluster: setup  ## AG News submitted to two Ray nodes and two Spark workers on loopback, against the local run
	$(PY) -m benchmarks.cluster

bench-gpu: setup-gpu  ## what a GPU gains: embedding, cuML, a 13B language model in 4 bits, training (not part of bench)
	$(PY) -m benchmarks.gpu

bench: bench-embedding bench-quality bench-baselines bench-memory bench-merge bench-federation bench-updates bench-labels bench-finetune bench-partitions bench-cluster bench-whole-job  ## every benchmark, one after another

clean:  ## remove everything that make made
	rm -rf .venv .venv-bertopic .venv.lock demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
