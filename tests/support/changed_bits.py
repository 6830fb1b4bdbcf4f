"""Bits that change in files on disk."""

import os


def flip(file, *, bit):
    """Change one bit without changing the file's times, like a bad disk."""
    content, before = bytearray(file.read_bytes()), file.stat()
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
