#!/usr/bin/env bash
# Starts a vLLM server for VLLMServerEngine on this machine; it runs until it is stopped.
#   bash tools/serve.sh MODEL [PORT] [options of vLLM]        the port is 8000 unless given
#   bash tools/serve.sh Qwen/Qwen2.5-1.5B 8001 --max-model-len 4096 --tensor-parallel-size 2
# MODEL is the folder or hub name of the model that the run trains. The server takes its shape and its tokenizer, and starts
# with random weights: the run sends its own before it asks for the first completion.
# The run updates weights through vLLM's development endpoints, and whoever reaches these can run methods inside the server.
# So it listens on 127.0.0.1 alone; only on a network where every machine is trusted: --host ADDRESS
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = --help ]; then
    sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"
    exit
fi
python="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python"
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("vllm") is None)' 2>/dev/null || { echo "error: vLLM is not installed in .venv; see docs/engines.md" >&2; exit 1; }
model="$1" port=8000
shift
case "${1:-}" in [0-9]*) port="$1"; shift ;; esac

options=(--worker-extension-cls fulgurite.engines.weights.WorkerChecksums)
options+=(--logprobs-mode processed_logprobs) # those of the distribution drawn from
# A tied head is packed once on a CPU and would keep its first weights.
options+=(--load-format dummy --hf-overrides '{"tie_word_embeddings": false}')
# Comes with every answer, so that a restarted server, which has lost the run's weights, is told from the one before.
options+=(--fingerprint-mode custom --fingerprint-value "$port.$$.$(date +%s)")
if ! { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then
    # Without chunks: in pieces, a prompt with a seed of its own ends the server, as the CPU's generator has no offset.
    options+=(--no-enable-chunked-prefill --dtype float32 --enforce-eager --block-size 32 --kv-cache-memory-bytes $((256 << 20)))
    # Bound to cores, as vLLM does by default, every server on this machine would take the first one.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-nobind}"
fi
export VLLM_SERVER_DEV_MODE=1
exec "$python" -m vllm.entrypoints.openai.api_server --model "$model" --host 127.0.0.1 --port "$port" \
    --disable-uvicorn-access-log "${options[@]}" "$@"
