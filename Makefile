# `make demo` and `make test` need Python >= 3.10 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo-installed
	$(BIN)/structsam-export export --model vit_t --rate 0.5 --precision fp32 --out $(OUT)
	$(BIN)/structsam-export predict $(OUT)/vit_t-structsam-r0.50-fp32 structsam_export/assets/coffee.png \
	  --box 172,15,428,328 --box 210,100,368,200 --out $(OUT)/masks

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.demo-installed: pyproject.toml
	$(call install,export cpu)
	@touch $@

$(VENV)/.test-installed: pyproject.toml
	$(call install,export cpu openvino rtx eval serve dev)
	@touch $@ $(VENV)/.demo-installed

# torch and torchvision come from one place in one step, because torchvision is compiled for one
# torch build. UV_TORCH_BACKEND=cpu fetches the much smaller CPU builds where they can be reached.
comma := ,
empty :=
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than 3.10. Install a newer Python, or say make PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { rm -rf $(VENV); echo "error: cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --python $(BIN)/python --editable '.[$(subst $(empty) ,$(comma),$(1))]'
endef

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
