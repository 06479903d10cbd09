#!/usr/bin/env bash
# SIMPLER on a machine without a GPU: Debian 12, Python 3.11, as root. 1.2 GB.
#     bash docs/simpler_cpu/setup.sh FOLDER && source FOLDER/env.sh
# Clone SimplerEnv and ManiSkill2_real2sim yourself (docs/robots_simpler.md), and add them to PYTHONPATH.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
mkdir -p "${1:?usage: setup.sh FOLDER}"
work=$(readlink -f "$1")
mkdir -p "$work"/apt/{lists/partial,cache/archives/partial,etc,debs} "$work/layer"
cd "$work"
apt-get update -q
apt-get install -y -q mesa-vulkan-drivers libvulkan1 libvulkan-dev libegl1 libgl1 gcc

# 1. lavapipe 25 from bookworm-backports, unpacked aside: SAPIEN refuses Debian 12's own 22.3.
mirror=$( (cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true) |
  grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror bookworm-backports main" > apt/etc/sources.list
options="-oDir::Etc::sourcelist=$work/apt/etc/sources.list -oDir::Etc::sourceparts=- \
  -oDir::State::Lists=$work/apt/lists -oDir::Cache=$work/apt/cache"
apt-get $options update -q
(cd apt/debs && apt-get $options download mesa-vulkan-drivers/bookworm-backports)
dpkg -x apt/debs/mesa-vulkan-drivers_25*bpo12*.deb mesa25
sed "s#\"library_path\": \".*\"#\"library_path\": \"$work/mesa25/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so\"#" \
  mesa25/usr/share/vulkan/icd.d/lvp_icd.json > lvp25.json

# 2. the layer that takes out the extension which lavapipe 25 lacks. Its manifest must offer it, or the loader refuses.
gcc -O2 -fPIC -shared -o layer/libvk_strip.so "$here/strip.c"
cat > layer/VkLayer_strip.json <<J
{"file_format_version": "1.1.2", "layer": {"name": "VK_LAYER_SELFFLOW_strip", "type": "GLOBAL",
 "library_path": "$work/layer/libvk_strip.so", "api_version": "1.3.0", "implementation_version": "1",
 "description": "drop VK_KHR_external_semaphore_fd where the device lacks it",
 "device_extensions": [{"name": "VK_KHR_external_semaphore_fd", "spec_version": "1", "entrypoints": []}]}}
J

# 3. an environment of its own.
python3.11 -m venv venv
venv/bin/pip install -q "setuptools<70" "numpy<2" sapien==2.2.2 "gymnasium>=0.28.1,<1.0" opencv-python-headless h5py \
  pyyaml tqdm GitPython tabulate transforms3d imageio trimesh rtree ruckig scipy matplotlib
cat > env.sh <<T
export VK_ICD_FILENAMES=$work/lvp25.json VK_LAYER_PATH=$work/layer VK_INSTANCE_LAYERS=VK_LAYER_SELFFLOW_strip DISPLAY=
export SELFFLOW_SIMPLER_PYTHON=$work/venv/bin/python
T
echo "ready: source $work/env.sh"
