"""The Mamba-1 extension of mamba_ssm, for comparison: the installed one, or the part that is needed, from its sources.

Its wheels and source distributions no longer hold it by default. `csrc/selective_scan` of its repository does.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

NAME = "selective_scan_cuda"
BUILT = {"bf16": "at::BFloat16", "fp32": "float"}  # for a real A
OTHERS = (("at::Half", "float"), ("at::Half", "complex"), ("at::BFloat16", "complex"), ("float", "complex"))
FLAGS = [
    "-O3",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    *(f"-U__CUDA_NO_{kind}__" for kind in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS")),
    *(f"-U__CUDA_NO_{kind}__" for kind in ("BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS")),
]


def extension(sources: Path | None, build: Path) -> Any:
    """The module, or None where it is not installed and no sources are given.

    Args:
        sources: A clone of mamba_ssm's repository.
        build: Where to build it; what is there from an earlier run is used again.
    """
    if find_spec(NAME) is not None:
        return import_module(NAME)
    if sources is None:
        return None
    from torch.utils import cpp_extension

    folder = sources / "csrc" / "selective_scan"
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there. Give a clone of mamba_ssm's repository.")
    build.mkdir(parents=True, exist_ok=True)
    (build / "lock").unlink(missing_ok=True)  # of a build that was stopped: torch would wait for its end
    written = _write(build)
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", capability)
    return cpp_extension.load(
        NAME,
        [str(folder / "selective_scan.cpp"), *written],
        extra_include_paths=[str(folder)],
        extra_cuda_cflags=FLAGS,
        extra_cflags=["-O3"],
        build_directory=str(build),
    )


def _write(build: Path) -> list[str]:
    """Sources that instantiate the kernels to build, and refuse the others, which take most of the time."""
    texts = {}
    for name, dtype in BUILT.items():
        for way, params in (("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd")):
            texts[f"{way}_{name}.cu"] = (
                f'#include "selective_scan_{way}_kernel.cuh"\n'
                f"template void selective_scan_{way}_cuda<{dtype}, float>({params} &, cudaStream_t);\n"
            )
    refused = [
        f"template <> void selective_scan_{way}_cuda<{dtype}, {kind.replace('complex', 'c10::complex<float>')}>"
        f'({params} &, cudaStream_t) {{ TORCH_CHECK(false, "not built"); }}\n'
        for way, params in (("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd"))
        for dtype, kind in OTHERS
    ]
    declared = [
        f"template <typename input_t, typename weight_t> void selective_scan_{way}_cuda({params} &, cudaStream_t);\n"
        for way, params in (("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd"))
    ]
    includes = ["#include <cuda_runtime.h>\n", "#include <torch/python.h>\n", '#include "selective_scan.h"\n']
    texts["refused.cpp"] = "".join((*includes, *declared, *refused))
    for name, text in texts.items():
        path = build / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
    return [str(build / name) for name in texts]
