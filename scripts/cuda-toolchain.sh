#!/bin/sh
# Fetches what `build.rs` needs to compile the CUDA kernels, into the ignored folder .cuda/ of this
# project: NVRTC, ptxas and the headers of CUDA 12.9, as Python wheels from NVIDIA. No GPU and no
# installed CUDA is needed, and nothing outside .cuda/ is touched. About 250 MB.
#
# CUDA 12.9 is the last toolkit that compiles for Volta (sm_70), so its versions are pinned.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
target="$root/.cuda"
python=${PYTHON:-python3}

command -v "$python" >/dev/null 2>&1 || {
    echo "cuda-toolchain.sh: $python is not installed; install Python 3 with pip, or set PYTHON" >&2
    exit 2
}

# A virtual environment of its own, so that no pip of the system is needed or changed.
venv=$(mktemp -d)
incoming="$root/.cuda.incoming"
trap 'rm -rf "$venv" "$incoming"' EXIT
if "$python" -m venv "$venv" >/dev/null 2>&1; then
    python="$venv/bin/python"
elif ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "cuda-toolchain.sh: $python has neither venv nor pip; install python3-venv" >&2
    exit 2
fi

rm -rf "$incoming"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --target "$incoming" \
    nvidia-cuda-nvrtc-cu12==12.9.86 \
    nvidia-cuda-nvcc-cu12==12.9.86 \
    nvidia-cuda-runtime-cu12==12.9.79 \
    nvidia-cuda-cccl-cu12==12.9.27

rm -rf "$target"
mv "$incoming" "$target"
# Cargo reruns the build script.
touch "$root/kernels/manifest.toml"
echo "CUDA 12.9 compiler in $target; the next cargo build compiles the kernels for NVIDIA GPUs"
