# Everything is set up on first use: Debian packages where this runs as root, Python packages in .venv.
PYTHON ?= python3
VENV := .venv
# Tests mostly wait: more of them side by side than there are cores.
JOBS ?= 3
BIN := $(VENV)/bin
PACKAGES := iptables ipset conntrack iproute2 nftables curl openssl procps graphviz
# Without these some tests are skipped, and say so.
TEST_PACKAGES := chromium chromium-driver fonts-dejavu-core
BUILD_PACKAGES := gcc libc6-dev python3-dev python3-venv

.PHONY: demo test lint golden bench bench-plots protobuf image docs setup clean

demo: setup
	@$(BIN)/python -m tests.demo

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: setup
	KPX_GOLDEN=write $(BIN)/python -m pytest -q tests/golden
	$(BIN)/python -m tests.chart.generate

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

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml tests/requirements.lock tests/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" PACKAGES="$(PACKAGES)" BUILD_PACKAGES="$(BUILD_PACKAGES)" TEST_PACKAGES="$(TEST_PACKAGES)" sh tests/setup.sh
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
