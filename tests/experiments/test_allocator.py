import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from experiments.training.allocator import keep_freed_memory

def page_faults():
    for i in range(24):
        if i == 20:  # until then the heap grows
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MB, which is 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(page_faults())
keep_freed_memory()
print(page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_used_again_without_page_faults():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert returned > 4 * 10_000
    assert kept < 1_000
