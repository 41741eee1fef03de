"""glibc's malloc after `keep_freed`: freed memory stays, and threads do not keep heaps of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")

HEAPS = """
import ctypes, sys, tempfile, threading
from tagseg.training.memory import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
ready = threading.Barrier(5)
def one():
    taken = [libc.malloc(100_000) for _ in range(20)]
    ready.wait()
    for place in taken:
        libc.free(place)
threads = [threading.Thread(target=one) for _ in range(4)]
for thread in threads:
    thread.start()
ready.wait()
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
with tempfile.NamedTemporaryFile("r") as file:
    stream = libc.fopen(file.name.encode(), b"w")
    assert libc.malloc_info(0, stream) == 0
    libc.fclose(stream)
    print(file.read().count("<heap nr="))
"""


def heaps(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True).stdout)


def test_threads_share_one_heap_where_freed_memory_is_kept() -> None:
    assert heaps("as it comes") > 1
    assert heaps("kept") == 1
