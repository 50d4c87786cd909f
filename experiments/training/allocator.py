"""The memory allocator of a process that computes on a CPU."""

import ctypes
import platform

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let glibc hand out memory that was freed instead of returning it to the system.

    It returns blocks of 32 MB and more at once, as most activations of a large batch are, and the
    system fills a page with zeros whenever one is touched again: for a `speed_resnet` step of 1,000
    images 248,000 pages, and 0.50 of 2.64 ms of CPU time an image, which this saves. The greatest
    memory in use stays what it is. Elsewhere than on glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
