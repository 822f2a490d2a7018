"""`python -m mmm_core`: the versions, and which backends can run here and why the others cannot."""

import platform
from importlib.metadata import version

import torch

from mmm_core.backends import explain


def main() -> None:
    """Print the report, for the CPU and for every other kind of device that torch sees."""
    print(f"mmm-core {version('mmm-core')}, torch {torch.__version__}, Python {platform.python_version()}")
    accelerator = torch.accelerator.current_accelerator()
    for device in (torch.device("cpu"), accelerator):
        if device is not None:
            print(f"\non {device.type}:\n{explain(torch.empty(0, device=device))}")


if __name__ == "__main__":
    main()
