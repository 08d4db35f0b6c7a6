#!/bin/sh
# Count what LiteRT's own wheel for aarch64 (XNNPACK, with dot products) executes for a .tflite on a
# Cortex-A76 of QEMU, per inference: what 100 more of them take, divided by 100.
#
# usage: litert.sh MODEL.tflite FOLDER      (root; needs debootstrap, qemu-user, binfmt, gcc, pip)
#
# FOLDER receives a Debian user land of arm64 and the wheels; it is made once and used again. XNNPACK
# asks Linux which processor it is on, so /proc/cpuinfo in there says so.
set -eu
model=$(realpath "$1") root=$2/arm64 site=$2/site here=$(dirname "$(realpath "$0")")
mkdir -p "$2"
[ -e "$root/usr/bin/python3.11" ] ||
    debootstrap --arch=arm64 --variant=minbase --include=python3 bookworm "$root" >&2
[ -e "$site" ] || pip install -q --target "$site" --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 \
    --only-binary=:all: --no-deps 'numpy<2' ai-edge-litert
mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
cat > "$root/proc/cpuinfo" <<CPU
processor	: 0
Features	: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0b
CPU revision	: 1

CPU
echo 0 > "$root/sys/devices/system/cpu/possible"
echo 0 > "$root/sys/devices/system/cpu/present"
cat > "$2/loop.py" <<PYTHON
import sys
sys.path.insert(0, "$site")
import numpy as np
from ai_edge_litert.interpreter import Interpreter

model = Interpreter(model_path="$model", num_threads=1)
model.allocate_tensors()
entry = model.get_input_details()[0]
codes = np.random.default_rng(0).integers(-128, 128, entry["shape"]).astype(np.int8)
model.set_tensor(entry["index"], codes)
for _ in range(2 + int(sys.argv[1])):
    model.invoke()
PYTHON
gcc -shared -fPIC -O2 -o "$2/count.so" "$here/count.c"
count() {
    qemu-aarch64 -L "$root" -cpu cortex-a76 -plugin "$2/count.so" \
        "$root/usr/bin/python3.11" "$2/loop.py" "$1" 2>&1 >&2 | sed -n 's/^instructions //p'
}
few=$(count 0 "$2") many=$(count 100 "$2")
echo "{\"target\": \"cortex-a76\", \"runtime\": \"litert\", \"instructions\": $(((many - few) / 100))}"
