# Every target makes the environment it needs; PYTHON picks the interpreter (3.12+).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := .venv-newest
NEW_ENOUGH := $(PYTHON) -c "import sys; v = sys.version_info; sys.exit(None if v >= (3, 12) else 'Python: expected 3.12 or newer, found %d.%d; set PYTHON=' % v[:2])"

.PHONY: demo test test-fast test-networks test-newest check format clean fuzz docs

demo: $(STAMP)
	$(BIN)/sixbit demo --out out/demo

# Compiled programs are kept in build/test-programs (tests/conftest.py): both processes of
# a run share them, and the next run finds them.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20 --durations-min 10 tests

# For the inner loop, in under two minutes: formats, layers, policies, quantizers, rule
# tables and files, without the tests marked slow and without whole networks.
FAST := $(addprefix tests/sixbit_jax/,formats nn policies quantizers reading report \
	calibration metrics test_files.py test_report_directories.py test_config_schema.py test_checksums.py) \
	$(addprefix tests/convert/,test_rules.py test_values.py test_encoder_tables.py)
test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not exhaustive" $(FAST)

# Every command with every network; `make test` holds each with some of them.
test-networks: $(STAMP)
	$(BIN)/python -m pytest -m "exhaustive or not exhaustive" tests/sixbit_jax/commands/test_every_network.py

# The newest release of everything, instead of the pinned versions of the tests.
test-newest:
	$(NEW_ENOUGH)
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[test,video]"
	$(NEWEST)/bin/python -m pip list
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile tests

# More mutations than the tests make; SEED=s for others, CASES=n for a number of them.
MINUTES ?= 5
SEED ?= 0
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.campaign --minutes $(MINUTES) --seed $(SEED) $(if $(CASES),--cases $(CASES))

# Pages in build/site. A link or a name that leads nowhere is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,video]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) out build
