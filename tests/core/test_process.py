"""What the native library leaves as it found it: denormals, the OpenMP runtime, and processes that fork.

What may hang or must start fresh runs in a process of its own.
"""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from mmm_core import selective_scan
from mmm_core.testing import ScanCase

TINY = 1e-40  # no normal float32
START = """
import os, sys, torch
from mmm_core import explain, native_library, selective_scan
from mmm_core.testing import ScanCase

inputs = ScanCase(b=4, l=64, e=256, n=16).inputs()
ones = torch.ones(4, 64, 256)

# A forked child runs this: no operator of torch's own may use threads in it, since those would hang there.
def scan():
    out = selective_scan(**inputs, delta_softplus=True, backend="native")
    return (out.detach(), *torch.autograd.grad(out, list(inputs.values()), ones))

def same(results, others):
    pieces = [[piece for x in tensors for piece in x.flatten().split(4096)] for tensors in (results, others)]
    return all(map(torch.equal, *pieces))

torch.set_num_threads(4)
before = scan()
"""


def run(program: str) -> str:
    """What a program printed; it starts with `START`, and is killed with its children where it hangs."""
    code = START + textwrap.dedent(program)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes) as process:
        try:
            printed, complaints = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, complaints
    return printed


def scan():
    inputs = ScanCase(b=4, l=64, e=256, n=16).inputs()
    out = selective_scan(**inputs, backend="native")
    out.sum().backward()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 4])
def test_denormals_stay_as_the_process_has_them(count):
    torch.set_num_threads(count)
    scan()
    assert torch.tensor(TINY) * 1 > 0
    assert (torch.full((1 << 20,), TINY) * 1 > 0).all()  # large enough for every thread of the pool


def test_denormals_stay_off_where_the_process_has_them_off():
    assert torch.set_flush_denormal(True)
    try:
        scan()
        assert torch.tensor(TINY) * 1 == 0
    finally:
        torch.set_flush_denormal(False)


def test_the_process_keeps_one_openmp_runtime():
    printed = run("""
        paths = {line.split()[-1] for line in open("/proc/self/maps")}
        names = {os.path.basename(path) for path in paths}
        print(any(name == native_library.NAME for name in names))
        print(sum(name.startswith(("libgomp", "libomp", "libiomp")) for name in names))
    """)
    assert printed.split() == ["True", "1"]


def test_a_forked_child_scans_on_one_thread_and_does_not_hang():
    printed = run("""
        child = os.fork()
        if child == 0:
            print(same(scan(), before), str(explain()).splitlines()[2], flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(same(scan(), before), str(explain()).splitlines()[2])
    """)
    forked, parent = printed.splitlines()
    assert forked.startswith("True native     chosen (")
    assert forked.endswith(", one thread: this process was forked)")
    assert parent.startswith("True native     chosen (")
    assert parent.endswith(", torch's threads)")


@pytest.mark.parametrize("count", [1, 4])
def test_the_workers_of_a_data_loader_scan(count):
    printed = run(f"""
        class Scans(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                torch.set_num_threads({count})
                return scan()[0]

        loader = torch.utils.data.DataLoader(Scans(), batch_size=None, num_workers=2, multiprocessing_context="fork")
        print(all(torch.equal(out, before[0]) for out in loader), same(scan(), before))
    """)
    assert printed.split() == ["True", "True"]
