# testcni: `make demo` shows it, `make test` proves it; both set up what they need on Debian 12 or 13.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
NODES ?= 3
MODE ?= host-gw
PROXY ?= iptables
PODS ?= 1
SECONDS := 60
# The folder for files of unit tests, if programs may run there: on a disk that others write to, they wait for it.
TEST_TMPDIR = $(shell [ ! -w /dev/shm ] || grep -q ' /dev/shm .*noexec' /proc/mounts || echo /dev/shm)
# Tests of nodes wait most of the time, so that more of them than cores run side by side.
BESIDE := 4
KEEP ?=
export PYTHONPATH := $(CURDIR)
# Compiled once a clone, and not beside the sources: what tests start begins sooner.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
unexport PYTHONDONTWRITEBYTECODE

# Builds that depend only on a lock live outside the clone, named for its content: a fresh clone finds them again.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/testcni
# Expanded when a recipe runs, not when make starts: a fresh machine has no python3 yet.
VENV = $(CACHE)/venv-$(shell { $(PYTHON) -VV; cat requirements-dev.lock; } | sha256sum | cut -c1-16)
BIN = $(VENV)/bin
# By content as well: its cache knows the packages, and each module of whatever clone as it was. It is for one at a time.
MYPY = flock $(VENV)/mypy.lock $(BIN)/mypy --cache-dir $(VENV)/mypy
DEBS := gcc libc6-dev python3-venv iproute2 nftables iputils-ping procps util-linux mount hostname clang libbpf-dev libbpf1 bird2
DEBS_IMAGE := buildah mmdebstrap ca-certificates
DEBS_DEBIAN13 := mmdebstrap
DEBS_BENCH := sockperf
DEBS_FUZZ := libclang-rt-dev
DEBS_KERNEL := linux-source make flex bison bc xz-utils
DEBS_EMULATION := qemu-system-x86
DEBS_E2E := etcd-server containerd runc busybox-static iptables conntrack openssl curl kmod prometheus

.PHONY: help
help: ## this text
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: deps
deps: build/.debs
	@test -e $(BIN)/.done || { \
	  echo "installing the Python packages of requirements-dev.lock"; \
	  $(PYTHON) -m venv --clear $(VENV); \
	  tests/thrice.sh $(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock; \
	  $(MYPY) >/dev/null || true; \
	  touch $(BIN)/.done; }

build/.debs: WANTED = $(DEBS)
build/.debs-image: WANTED = $(DEBS_IMAGE)
build/.debs-debian13: WANTED = $(DEBS_DEBIAN13)
build/.debs-e2e: WANTED = $(DEBS_E2E)
build/.debs-bench: WANTED = $(DEBS_BENCH)
build/.debs-fuzz: WANTED = $(DEBS_FUZZ)
build/.debs-kernel: WANTED = $(DEBS_KERNEL)
build/.debs-emulation: WANTED = $(DEBS_EMULATION)
# Packages of services are wanted for their programs: policy-rc.d keeps them from being started.
build/.debs build/.debs-image build/.debs-debian13 build/.debs-e2e build/.debs-bench build/.debs-fuzz build/.debs-kernel build/.debs-emulation: Makefile
	@mkdir -p build
	@missing=$$(for p in $(WANTED); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing" $$missing; \
	  policy=/usr/sbin/policy-rc.d; \
	  [ -e $$policy ] || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; }; \
	  export DEBIAN_FRONTEND=noninteractive; tests/thrice.sh apt-get update -qq; \
	  tests/thrice.sh apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $$missing >/dev/null; fi
	@touch $@

.PHONY: plugin
plugin: build/testcni ## the static CNI plugin, build/testcni

build/testcni: $(wildcard cni-bin/*) agent/__init__.py | build/.debs
	@$(MAKE) -s -C cni-bin OUT=$(CURDIR)/build

.PHONY: ebpf
ebpf: deps build/ebpf/.done ## the eBPF objects, build/ebpf/*.o, and what the verifier makes of them
	@$(BIN)/python -m tests.netns.verify

build/ebpf/.done: $(wildcard ebpf/*) | build/.debs
	@$(MAKE) -s -C ebpf OUT=$(CURDIR)/build/ebpf
	@touch $@

.PHONY: check
check: deps ## ruff, mypy, import-linter, unit tests
	@test -e build/pycache || $(BIN)/pytest -q --collect-only tests/unit >/dev/null 2>&1 || true # before four compile the same
	@{ $(BIN)/ruff check -q . || bad=1; $(BIN)/ruff format -q --check . || bad=1; $(MYPY) || bad=1; \
	  $(BIN)/lint-imports --no-cache --no-logo || bad=1; exit $${bad:-0}; } > build/static.log 2>&1 & static=$$!; \
	$(if $(TEST_TMPDIR),TMPDIR=$(TEST_TMPDIR)) EXAMPLES=$(if $(filter test,$(MAKECMDGOALS)),all,few) \
	  $(BIN)/pytest -q -n 4 --dist loadgroup -o tmp_path_retention_policy=failed tests/unit || failed=1; \
	wait $$static || failed=1; cat build/static.log; exit $${failed:-0}

.PHONY: test
test: check plugin build/ebpf/.done ## everything: the quick checks, then plugin, kernel, lab and conformance tests
	@$(BIN)/python -m tests.lab.gotools
	@$(BIN)/pytest -q -n $(BESIDE) --dist loadgroup -m 'not scale and not alone' tests/lab tests/netns # the longest first
	@$(BIN)/pytest -q -m alone tests/netns tests/lab

.PHONY: test-kernel
test-kernel: deps plugin build/ebpf/.done build/.debs-kernel ## tests on a kernel with ipip, ipvlan, macvlan (User Mode Linux; TESTS=)
	@$(BIN)/python -m tests.kernel $(TESTS)

.PHONY: test-debian13
test-debian13: build/.debs-debian13 ## demo, quick checks and kernel tests on a fresh Debian 13 (on this machine's kernel)
	@tests/debian13.sh

.PHONY: test-scale
test-scale: deps plugin build/ebpf/.done ## ipip with 60 and 200 nodes in full mesh: what is rendered, memory, a node that joins
	@$(BIN)/pytest -q -s -m scale tests/lab

.PHONY: ebpf-kernels
ebpf-kernels: deps build/ebpf/.done build/.debs-emulation ## what the verifiers of Debian's other kernels make of the objects (qemu)
	@$(BIN)/python -m tests.kernel.verifier

.PHONY: fuzz
fuzz: build/.debs build/.debs-fuzz ## the plugin by libFuzzer (SECONDS=60)
	@$(MAKE) -s -C cni-bin OUT=$(CURDIR)/build libfuzzer
	@mkdir -p build/fuzz && cd build/fuzz && ../libfuzzer_testcni -max_total_time=$(SECONDS) -rss_limit_mb=2048 -print_final_stats=1 .

.PHONY: fuzz-agent
fuzz-agent: deps ## the agent's readers by hypothesis, with new texts each time (SECONDS=60)
	@end=$$(($$(date +%s) + $(SECONDS))); while [ $$(date +%s) -lt $$end ]; do \
	  FUZZ_EXAMPLES=200 $(BIN)/pytest -q -n 4 --timeout 600 tests/unit/test_fuzz_*.py; done

.PHONY: demo
demo: deps plugin build/ebpf/.done ## nodes, pods and who reaches whom (NODES=3 MODE=host-gw PODS=1 KEEP=)
	@$(BIN)/python -m tests.lab demo --nodes $(NODES) --mode $(MODE) --pods $(PODS) $(if $(KEEP),--keep)

.PHONY: demo-down
demo-down: ## end what KEEP=1 kept
	@$(BIN)/python -m tests.lab down

.PHONY: bench
bench: deps plugin build/ebpf/.done ## side by side with the reference plugins bridge and host-local (needs Go)
	@$(BIN)/python -m tests.bench

.PHONY: bench-rtt
bench-rtt: deps plugin build/ebpf/.done build/.debs-bench ## vxlan side by side with a bridge and the kernel's own vxlan: round trips, CPU, ADD
	@$(BIN)/python -m tests.bench.rtt

.PHONY: bench-ipip
bench-ipip: deps plugin build/ebpf/.done build/.debs-bench ## ipip by eBPF side by side with the kernel's own vxlan: round trips, CPU
	@$(BIN)/python -m tests.bench.rtt --mode ipip

.PHONY: bench-pods
bench-pods: deps build/.debs-e2e image ## how long a pod takes to run in Kubernetes, by turns with bridge + host-local (needs Go)
	@$(BIN)/python -m tests.bench.pods

IMAGE ?= localhost/testcni:dev
BASE ?= localhost/debian:bookworm
# Behind a proxy with a CA of its own, the build needs it too; nothing of it gets into the image.
CA := $(wildcard $(PIP_CERT))

.PHONY: image
image: build/.debs-image ## the container image, build/testcni.tar, by buildah; BASE= where a registry has Debian
ifeq ($(BASE),localhost/debian:bookworm)
	@tests/image/base.sh $(BASE)
endif
# By its id, as another clone may give the tag to its own image meanwhile; and others may still read the old archive.
	@id=$$(tests/thrice.sh buildah build --quiet --layers --isolation chroot --network host --timestamp 0 --build-arg BASE=$(BASE) \
	  --label org.opencontainers.image.version=$$($(MAKE) -s -C cni-bin version) \
	  $(if $(CA),--volume $(CA):/run/ca.crt:ro --build-arg PIP_CERT=/run/ca.crt) -t $(IMAGE) .); \
	new=build/testcni.$$$$.tar; trap "rm -f $$new" EXIT; \
	buildah push --quiet $$id docker-archive:$$new:$(IMAGE); mv $$new build/testcni.tar

.PHONY: manifests
manifests: deps ## render manifests/testcni.yaml from base and overlay (needs Go)
	@$(BIN)/python -c 'from tests.e2e import programs; print(programs.build("kubectl"))' > build/.kube
	@$$(cat build/.kube)/kubectl kustomize manifests/overlays/host-gw > manifests/testcni.yaml

.PHONY: reference
reference: deps ## write pages of docs/reference from the code and the CRDs
	@$(BIN)/python -m tests.reference

.PHONY: e2e
e2e: deps build/.debs-e2e image ## a real Kubernetes with two nodes on this machine (MODE=host-gw PROXY=iptables; needs Go)
	@$(BIN)/python -m tests.e2e.programs
	@MODE=$(MODE) PROXY=$(PROXY) $(BIN)/pytest tests/e2e --ignore-glob='*/test_0_*' --timeout 600 --durations 15 -s

.PHONY: test-api
test-api: deps build/.debs-e2e image ## CRDs, rights and admission policies against a real API server, and what the image holds (needs Go)
	@$(BIN)/python -m tests.e2e.programs
	@$(BIN)/pytest tests/e2e/test_0_*.py --timeout 600 --durations 15

.PHONY: conformance
conformance: deps build/.debs-e2e image ## upstream's 47 [sig-network] Conformance cases (MODE=host-gw PROXY=iptables; needs Go)
	@$(BIN)/python -m tests.e2e.programs
	@BASE=$(BASE) $(BIN)/python -m tests.conformance --mode $(MODE) --proxy $(PROXY)

.PHONY: built
built: deps build/.debs-e2e build/.debs-kernel build/.debs-debian13 image ## what slower tests need and is built once a machine (20 minutes)
	@$(BIN)/python -m tests.e2e.programs
	@BASE=$(BASE) $(BIN)/python -m tests.conformance.build
	@$(BIN)/python -c 'from tests.kernel import uml; uml.build(print)'
	@tests/debian13.sh true

.PHONY: clean
clean: ## what was built in this clone
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
