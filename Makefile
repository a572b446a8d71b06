# make demo      set up, then train MobileNetV2 on the embedded digits
# make test      set up, then run the tests but the slow ones
# make test-all  set up, then run every test
# make lint      set up, then check format, lint rules and types
# make parity    set up, install torchvision, timm and Keras beside it, compare all networks, renew docs/weights.md
# make lock      renew requirements.lock (needs Python 3.11, 3.12 and 3.13)
# PYTHON=python3.12 chooses the interpreter; ARGS="..." is handed on to the program that runs.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/v2.py
WORKDIR ?= runs/demo
ARGS ?=
# Two processes: most of a test is Python's tracing and XLA's compiling, which use one core.
TESTS = --timeout=600 --numprocesses=2 --dist=loadgroup
LOCK_PYTHONS ?= python3.11 python3.12 python3.13

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The stamp carries the interpreter's version, so that another PYTHON rebuilds the environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/.installed-$(or $(VERSION),none)

.PHONY: demo test test-all lint parity lock
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(VENV)/bin/python -m mobilenets_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest $(TESTS) -m "not slow" $(ARGS)

test-all: $(STAMP)
	$(VENV)/bin/python -m pytest $(TESTS) $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

parity: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet -e '.[parity]' -c requirements.lock
	$(VENV)/bin/python -m experiments.parity run $(ARGS)
	$(VENV)/bin/python -m experiments.parity table

$(STAMP): requirements.lock
	@case "$(VERSION)" in \
	3.11|3.12|3.13) ;; \
	"") echo "error: '$(PYTHON)' does not run; install Python 3.11, 3.12 or 3.13 and name it as in 'make test PYTHON=python3.12'." >&2; exit 1 ;; \
	*) echo "error: Python 3.11, 3.12 or 3.13 is needed, but '$(PYTHON)' is $(VERSION); name another as in 'make test PYTHON=python3.12'." >&2; exit 1 ;; \
	esac
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.lock
	@touch $@

# One line for each package and version; a marker where the Pythons need different ones.
define MERGE
FNR == 1 { python = FILENAME; sub(".*/", "", python); all = all " " python }
{ pythons[$$0] = pythons[$$0] " " python }
END {
    for (pin in pythons)
        print pin (pythons[pin] == all ? "" : "; python_version in \"" substr(pythons[pin], 2) "\"")
}
endef
export MERGE

lock:
	@set -e; frozen=$$(mktemp -d); trap 'rm -rf "$$frozen"' EXIT; \
	for python in $(LOCK_PYTHONS); do \
	    version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "Resolving for Python $$version"; \
	    $$python -m venv "$$frozen/venv-$$version"; \
	    "$$frozen/venv-$$version/bin/python" -m pip install --quiet '.[dev]'; \
	    "$$frozen/venv-$$version/bin/python" -m pip freeze --exclude mobilenets-jax > "$$frozen/$$version"; \
	done; \
	{ echo "# Exact versions for Python 3.11 to 3.13, development tools included. Renewed by 'make lock'."; \
	  awk "$$MERGE" "$$frozen"/3.* | LC_ALL=C sort -f; } > requirements.lock
