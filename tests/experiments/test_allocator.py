import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from experiments.training.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for i in range(24):
    if i == 20:  # until then the heap grows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB, which is 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kept: str) -> int:
    command = [sys.executable, "-c", PROGRAM, kept]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_used_again_without_page_faults():
    assert page_faults("returned") > 4 * 10_000
    assert page_faults("kept") < 1_000
