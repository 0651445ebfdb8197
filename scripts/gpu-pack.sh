#!/bin/sh
# Packs what a run on a machine with an NVIDIA GPU needs into one folder of at most 60 MB: the release
# binary with the kernels' machine code, the kernel benches and the probes, stripped and compressed; the
# reference cases; the PyTorch peers with the Python packages that they need beside PyTorch; and the
# script that unpacks and runs it all there.
#
#   scripts/gpu-pack.sh [FOLDER]        (default: target/gpu-run)
#   there: python3 FOLDER/run.py --out results
#
# Neither Rust nor CUDA 12 is needed there, only the driver; PyTorch for the peers.
set -eu

most_mb=60
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
pack=${1:-$root/target/gpu-run}
python=${PYTHON:-python3}
cd "$root"

fail() {
    echo "gpu-pack.sh: $1" >&2
    exit 2
}

[ -e .cuda ] || [ -e "${CUDA_HOME:-/usr/local/cuda-12}" ] ||
    fail "there is no CUDA 12 compiler; run scripts/cuda-toolchain.sh first"
if [ -e "$pack" ] && [ ! -e "$pack/pack.json" ]; then
    fail "$pack is there and is no pack; name another folder"
fi

cargo build --release --bin cyanea
executable() { # the path of a bench's binary, whose name ends with a hash
    cargo build --release --bench "$1" --message-format=json |
        sed -n "s|.*\"executable\":\"\([^\"]*/deps/$1-[^\"]*\)\".*|\1|p" | tail -n 1
}

rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/cases" "$pack/peers"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
add_binary() { # its name in the pack, and where cargo left it
    [ -n "$2" ] || fail "cargo built no $1"
    strip -o "$work/$1" "$2"
    "$python" -c 'import lzma, sys; sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read()))' \
        < "$work/$1" > "$pack/bin/$1.xz"
}
target/release/cyanea kernels --json | grep -q '"arch": "sm_' ||
    fail "the binary has no machine code for GPUs; touch build.rs and try again"
add_binary cyanea target/release/cyanea
add_binary kernels "$(executable kernels)"
add_binary probes "$(executable probes)"
cp tests/fixtures/*.safetensors "$pack/cases/"
cp benches/peers/*.py "$pack/peers/"
cp scripts/gpu-run.py "$pack/run.py"
cp scripts/gpu_readings.py "$pack/"

# diffusers is pure Python; what it imports beside PyTorch's own needs comes with it.
diffusers=$(sed -n 's/^\(diffusers==.*\)/\1/p' tests/reference/requirements.txt)
if "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --target "$work/python" "$diffusers" importlib_metadata zipp; then
    tar -C "$work" -czf "$pack/python.tar.gz" python
else
    echo "gpu-pack.sh: $diffusers can't be fetched: the peers need it installed there" >&2
fi

dirty=$([ -z "$(git status --porcelain)" ] && echo false || echo true)
cat > "$pack/pack.json" <<JSON
{
 "commit": "$(git rev-parse HEAD)",
 "uncommitted_changes": $dirty,
 "packed": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
 "compiler": "$(target/release/cyanea doctor | sed -n 's/^kernels *//p')"
}
JSON

(cd "$pack" && du -k bin/* cases peers python.tar.gz 2>/dev/null) |
    awk '{ printf "%8.1f MB  %s\n", $1 * 1024 / 1000000, $2 }'
bytes=$(($(du -sk "$pack" | cut -f 1) * 1024))
echo "$pack: $((bytes / 1000000)) MB of at most $most_mb MB"
[ "$bytes" -le $((most_mb * 1000000)) ] || fail "the pack is too large"
