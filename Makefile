# Products are in build/, Python's environment is in .venv, and pip's editable install puts the extension into pygpt/.

CC     ?= cc
PYTHON ?= python3
ARM_CC ?= aarch64-linux-gnu-gcc
ARM_RUN ?= qemu-aarch64 -cpu max

CFLAGS   = -std=c11 -D_GNU_SOURCE -O3 -g -ffp-contract=off -Wall -Wextra -Werror -Icsrc -pthread
SANITIZE = -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all
SOURCES := $(wildcard csrc/*.c csrc/*/*.c)
HEADERS := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.inc)
PROGRAMS := $(basename $(notdir $(wildcard tests/c/*.c)))

.PHONY: help run test check check-arm64 compile lint pytest bench peer variants asan tsan fuzz wheel clean tools
.DEFAULT_GOAL := help

help:
	@echo "make run      set up, convert the bundled checkpoint, write some Shakespeare"
	@echo "make test     set up what the tests need, run them all"
	@echo "make check    every kernel of every instruction set against scalar C, here and for arm64"
	@echo "make bench    every claimed speed in one run, against llama.cpp and the machine's limits"
	@echo "make peer     llama.cpp, which is built for it, computes the same from the files that it knows"
	@echo "make variants trains a model per ambiguity of checkpoints and shows what the converter finds out; 40 minutes"
	@echo "make asan     the C tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make tsan     threads under ThreadSanitizer"
	@echo "make fuzz     20,000 damaged model files under both sanitizers, 5,000 damaged checkpoints; FUZZ_SEED=N"
	@echo "make wheel    a wheel in build/wheels"
	@echo "make clean    remove what was built; .venv stays"

# ---- what must be there ----

tools:
	@command -v $(firstword $(CC)) > /dev/null || { echo "pygpt needs a C compiler, and '$(firstword $(CC))' was not found:" \
	  "install one (Debian, Ubuntu: apt-get install gcc) or name yours with make CC=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || { echo "pygpt needs Python 3.10 or newer, and" \
	  "'$(PYTHON)' is not that ($$($(PYTHON) --version 2>&1 | head -n 1)): install one or name yours with make PYTHON=..." >&2; exit 1; }

# ---- Python: stamps say what was installed, so that nothing is installed twice ----

.venv/bin/python: | tools
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "pygpt needs Python's venv module" \
	  "(Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

.venv/run.stamp: pyproject.toml setup.py $(SOURCES) $(HEADERS) | .venv/bin/python
	.venv/bin/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/test.stamp: pyproject.toml | .venv/run.stamp
	.venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

run: .venv/run.stamp
	@mkdir -p build
	.venv/bin/pygpt convert examples/shakespeare/ckpt.pt -o build/shakespeare.gguf
	.venv/bin/pygpt generate "ROMEO:" -m build/shakespeare.gguf -n 400

bench: .venv/run.stamp .venv/test.stamp build/native/pool_test
	.venv/bin/python bench/run.py

peer: .venv/run.stamp .venv/test.stamp
	PYGPT_PEER="$$(cd bench && ../.venv/bin/python -c 'from peer import peer_python; print(peer_python())' | tail -n 1)" \
	  .venv/bin/pytest -q tests/test_peer.py

variants: .venv/run.stamp .venv/test.stamp
	.venv/bin/python bench/variants.py

wheel: .venv/run.stamp
	.venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheels .
	@ls build/wheels/*.whl

# ---- C: one folder of objects per way of compiling ----

WAYS := native arm64 asan tsan
native_CC = $(CC) $(CFLAGS)
arm64_CC  = $(ARM_CC) $(CFLAGS) -static
asan_CC   = $(CC) $(CFLAGS) $(SANITIZE) -fsanitize=address,undefined,float-cast-overflow
tsan_CC   = $(CC) $(CFLAGS) $(SANITIZE) -fsanitize=thread

define way
build/$(1)/%.o: %.c | tools
	@mkdir -p $$(@D)
	@echo "cc ($(1)) $$<"
	@$$($(1)_CC) -MMD -MP -c $$< -o $$@

$(PROGRAMS:%=build/$(1)/%): build/$(1)/%: build/$(1)/tests/c/%.o $(SOURCES:%.c=build/$(1)/%.o)
	@echo "ld ($(1)) $$@"
	@$$($(1)_CC) $$^ -o $$@ -lm
endef
$(foreach w,$(WAYS),$(eval $(call way,$(w))))

.PRECIOUS: build/%.o
-include $(foreach w,$(WAYS),$(wildcard build/$(w)/csrc/*.d build/$(w)/csrc/*/*.d build/$(w)/tests/c/*.d))

TINY := build/tiny.gguf build/tiny-nanochat.gguf
$(TINY): tests/make_tiny.py | .venv/run.stamp
	@mkdir -p build
	.venv/bin/python tests/make_tiny.py $@

# Kernels take minutes to compile one after the other. Within such a make another shares its processors.
JOBS := $(shell getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)
ALL_AT_ONCE = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))

compile: | tools
	+@$(ALL_AT_ONCE) $(PROGRAMS:%=build/native/%)

# ---- tests ----

test: | tools
	+@$(ALL_AT_ONCE) check asan .venv/test.stamp
	@$(MAKE) --no-print-directory lint pytest
	@echo "all tests passed"

# Each instruction set that this processor has, side by side.
check: compile check-arm64
	build/native/check --list | sed -n 's/^matmul_.*_//p' | sort -u | xargs -P $(JOBS) -n 1 build/native/check --isa

# Sets up a cross compiler and an emulator where it may; says so where it may not.
check-arm64: | tools
	+@have() { command -v $(firstword $(ARM_CC)) && command -v $(firstword $(ARM_RUN)); } > /dev/null; \
	if ! have && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "installing a cross compiler and an emulator for arm64"; \
	  { apt-get -qq update && apt-get -qq install -y gcc-aarch64-linux-gnu qemu-user libc6-dev-arm64-cross; } > /dev/null || true; \
	fi; \
	if have; then \
	  set -ex; $(ALL_AT_ONCE) build/arm64/check; $(ARM_RUN) build/arm64/check --quick; \
	elif [ "$$(uname -m)" != aarch64 ] && [ "$$(uname -m)" != arm64 ]; then \
	  echo "arm64 was NOT checked: that needs $(firstword $(ARM_CC)) and $(firstword $(ARM_RUN))" \
	    "(Debian, Ubuntu: apt-get install gcc-aarch64-linux-gnu qemu-user libc6-dev-arm64-cross)"; \
	fi

asan: $(TINY)
	+@$(ALL_AT_ONCE) $(PROGRAMS:%=build/asan/%)
	build/asan/check --quick
	build/asan/pool_test build/tiny.gguf
	set -e; for model in $(TINY); do build/asan/fuzz_gguf --mutate 1 500 $$model; done

tsan: build/tsan/pool_test build/tiny.gguf
	build/tsan/pool_test build/tiny.gguf

FUZZ_SEED ?= 1
fuzz: build/asan/fuzz_gguf $(TINY) .venv/test.stamp
	set -e; for model in $(TINY); do build/asan/fuzz_gguf --mutate $(FUZZ_SEED) 20000 $$model; done
	.venv/bin/python tests/fuzz_checkpoint.py --seed $(FUZZ_SEED) --count 5000

lint: .venv/run.stamp .venv/test.stamp
	.venv/bin/ruff check

pytest: .venv/run.stamp .venv/test.stamp
	.venv/bin/pytest -q

clean:
	rm -rf build dist *.egg-info pygpt/_core.* .venv/*.stamp
