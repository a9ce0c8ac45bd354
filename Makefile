# Everything is set up on first use: Debian packages where this runs as root, Python packages in .venv.
PYTHON ?= python3
VENV := .venv
# Tests mostly wait: more of them side by side than there are cores.
JOBS ?= 3
BIN := $(VENV)/bin
# What the demo needs; what tests need besides; what tests are skipped without, and say so.
PACKAGES := iptables iproute2
TEST_PACKAGES := ipset conntrack nftables curl openssl procps
MORE_PACKAGES := chromium chromium-driver fonts-dejavu-core graphviz
BUILD_PACKAGES := gcc libc6-dev python3-dev python3-venv

.PHONY: demo test check cluster-test lint golden pictures bench bench-plots protobuf image docs setup clean

demo: $(VENV)/.demo
	@$(BIN)/python -m tests.demo

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The inner loop: linters, what is pure and quick, with few examples, and packets on each backend.
check: lint
	KPX_QUICK=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "(not kernel and not slow) or smoke"

# A real Kubernetes whose programs are in KUBE_BIN; CLUSTER has further options. See tests/cluster/README.md.
cluster-test: setup
	@$(BIN)/python -m tests.cluster --bin "$(KUBE_BIN)" --check
	@[ -n "$(IMAGE)" ] || $(MAKE) --no-print-directory image
	@$(BIN)/python -m tests.cluster --bin "$(KUBE_BIN)" --image "$(or $(IMAGE),build/kpx-image.tar)" $(CLUSTER)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: setup
	KPX_GOLDEN=write $(BIN)/python -m pytest -q tests/golden
	$(BIN)/python -m tests.chart.generate

pictures: setup
	@$(BIN)/python -m tests.pictures

image:
	@mkdir -p build
	@rm -f build/kpx-image.tar
	@sh charts/image/build.sh archive build/kpx-image.tar

docs: setup
	@$(BIN)/python -m tests.docs build/docs
	@echo "build/docs/index.html"

protobuf: setup
	$(BIN)/pip install -q grpcio-tools
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. kpx/sources/kube.proto

bench: setup
	$(BIN)/python -m tests.bench

bench-plots: setup
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m tests.bench.plots

setup: $(VENV)/.test

INGREDIENTS := pyproject.toml tests/requirements.lock tests/setup.sh
SETUP = PYTHON="$(PYTHON)" VENV="$(VENV)" BUILD_PACKAGES="$(BUILD_PACKAGES)" PACKAGES="$(PACKAGES)" \
	TEST_PACKAGES="$(TEST_PACKAGES)" MORE_PACKAGES="$(MORE_PACKAGES)" sh tests/setup.sh

$(VENV)/.demo: $(INGREDIENTS)
	@$(SETUP) demo
	@touch $@

$(VENV)/.test: $(INGREDIENTS)
	@$(SETUP) test
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
