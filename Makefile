# Two commands: `make run` shows a whole study on this machine, `make test` tries everything.
# ARGS is passed on:  make test ARGS="-k ledger"   make run ARGS="--set seed=7"

BIN := .venv/bin
ARGS ?=

.PHONY: run test check setup docs clean

run: setup
	@$(BIN)/swarm run configs/laptop.toml $(ARGS)

test: setup
	@scripts/test $(ARGS)

check: setup
	@scripts/check

setup:
	@scripts/setup

docs: setup
	@$(BIN)/python scripts/docs

clean:  # studies/ is kept: it holds results
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build
	find swarm node coordinator tests -name __pycache__ -type d -prune -exec rm -rf {} +
