# make demo    the main job on real data, in a virtual environment of this folder
# make test    everything that CI checks (./check)
# make clean   remove what these two made
#
# PYTHON=python3.12 make demo    chooses the interpreter (3.11 or newer)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test install install-dev clean

demo: install
	$(BIN)/lilliput compress digits-cnn

test: install-dev
	./check

install: .venv/installed
install-dev: .venv/installed-dev

# A stamp is renewed only when the requirements changed; the package itself is editable. The larger set is the smaller one too.
.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e ".[all]"
	@touch $@

# aeon brings one data file (JapaneseVowels), and heavy dependencies that nothing here needs.
.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e ".[all,dev]"
	$(BIN)/pip install -q -c constraints.txt --no-deps aeon
	@touch $@ .venv/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'Lilliput needs Python 3.11 or newer; "$(PYTHON)" is '"$$($(PYTHON) --version 2>&1 | head -n 1)"'.' >&2; \
	  echo 'Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo 'Could not create .venv; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

clean:
	rm -rf .venv .hypothesis .import_linter_cache .pytest_cache .ruff_cache build dist
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
