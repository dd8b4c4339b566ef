# Two commands: `make run` serves, `make test` tests. Both work on a fresh machine with Python 3.11.
PORT ?= 8000
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run fleet test lint bench bench-redis soak clean

run: $(VENV)/.installed
	@$(BIN)/python manage.py migrate --verbosity 0
	@$(BIN)/python manage.py ensure_admin
	@echo "Backchannel: http://localhost:$(PORT)/  (admin: http://localhost:$(PORT)/admin/)"
	@exec $(BIN)/uvicorn project.asgi:application --host $${HOST:-127.0.0.1} --port $(PORT) \
		--loop uvloop --http httptools --timeout-graceful-shutdown 15 --ws-max-size 67108864 --ws-per-message-deflate false

# A whole fleet in the foreground: two web processes (PORT and the next one), two workers, a recorder, and Valkey unless
# REDIS_URL names one. Needs a PostgreSQL, named by DATABASE_URL.
fleet: $(VENV)/.installed-dev
	@exec $(BIN)/python -m project.fleet --host $${HOST:-127.0.0.1} --port $(PORT)

test: $(VENV)/.installed-dev
	@tests/provision.sh
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

# Takes some ten minutes, on a quiet machine; writes benchmarks/RESULTS.md.
bench: $(VENV)/.installed-dev
	@$(BIN)/python -m benchmarks.run --write

# A fleet under load and restarts for so many minutes; needs a PostgreSQL (POSTGRES_URL) where it may make a database.
MINUTES ?= 5
soak: $(VENV)/.installed-dev
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Backchannel needs Python 3.11; name it with PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-bench: requirements.txt requirements-dev.txt requirements-bench.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/.installed

# Takes some forty minutes, on a quiet machine; writes benchmarks/RESULTS-REDIS.md.
bench-redis: $(VENV)/.installed-bench
	@benchmarks/provision.sh
	@$(BIN)/python -m benchmarks.run_redis --write $(ARGS)

clean:
	rm -rf $(VENV) var staticfiles .pytest_cache .mypy_cache .ruff_cache .hypothesis
