# Every command a user or a developer needs; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := target/release/inferno-node

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

.PHONY: setup
setup: ## install what is missing (compiler, cmake, nats-server, …) from the distribution's packages
	@scripts/setup

.PHONY: build
build: setup ## the node in release mode
	cargo build --release --locked

.PHONY: cuda
cuda: setup ## the node with the CUDA backend, with the toolkit of CUDA_HOME, CUDA_PATH or the PATH (none: make cuda-toolkit)
	scripts/cuda

.PHONY: cuda-toolkit
cuda-toolkit: setup ## a CUDA 13 toolkit from PyPI in .tools/cuda, for machines without one; needs no GPU
	@scripts/cuda-toolkit

.PHONY: cuda-check
cuda-check: setup ## builds and links everything for GPUs, with a fetched toolkit where there is none; runs nothing on one
	scripts/cuda-check

.PHONY: gpu-check
gpu-check: setup ## on a machine with a GPU: every test and benchmark of the CUDA backend, and a table (docs/gpu.md)
	scripts/gpu-check build
	build/gpu-check/run
	scripts/gpu-check table build/gpu-check/results

.PHONY: demo
demo: build ## start a node with the demo model, stream over NATS and over HTTP, stop it again
	@scripts/demo $(BIN)

.PHONY: serve
serve: build ## start a node with the demo model and leave it up
	@exec $(BIN) serve --config config/demo.toml

.PHONY: test
test: setup ## every test: Rust, C++, and clients as they come from PyPI
	scripts/test

.PHONY: check
check: setup ## every linter, warnings are errors
	scripts/check

.PHONY: bench
bench: setup ## every benchmark of the CPU and of the control plane, and one table at the end (GPUs: make gpu-check)
	scripts/bench

.PHONY: coverage
coverage: setup ## line coverage of the Rust and the C++ code
	scripts/coverage

.PHONY: durable
durable: setup ## 200 streams on three nodes; one is killed, one drained, NATS started again: is any token lost?
	@[ -x $(BIN) ] || $(MAKE) build
	@scripts/durable $(BIN)

.PHONY: soak
soak: setup ## half load and a fault a minute for HOURS (1): what fails, what grows?
	scripts/soak $(or $(HOURS),1)

.PHONY: cluster
cluster: ## three nodes, NATS and Prometheus in containers; requests while nodes, their network and NATS go and come back
	scripts/cluster

.PHONY: cluster-images
cluster-images: ## base images made from Debian's packages, for machines that can pull none
	scripts/cluster-images
