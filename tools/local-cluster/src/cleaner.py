"""Takes away what the machines of a cluster leave in the kernel, and their folder.

cleaner.py FOLDER    begins when its standard input ends; a line there says that all machines are off

It runs beside a test and outlives it, however that ends. Loop devices belong to no machine and outlive them all. Each
was made on a file below FOLDER; once that machine is gone it has no path but "/", and its server answers no more.
"""
import errno
import fcntl
import glob
import os
import shutil
import sys
import time

LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
STATUS_BYTES = 232
PAUSE_SECONDS = 0.1
LIMIT_SECONDS = 60
# Machines of a test that was killed take a moment to die, and may attach something in it.
LOOKS_WITHOUT_WORD = 20


def backing_of(name):
    try:
        return open(f"/sys/block/{name}/loop/backing_file").read().rstrip("\n")
    except OSError:
        return ""


def may_be_left(name, folder):
    backing = backing_of(name)
    return backing == "/" or backing.startswith(folder + "/")


def is_left(name, opened, folder):
    if backing_of(name).startswith(folder + "/"):
        return True
    try:
        fcntl.ioctl(opened, LOOP_GET_STATUS64, bytearray(STATUS_BYTES))
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(name, folder):
    """Whether there was something to detach."""
    try:
        opened = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    # While it is open here it cannot become another file's device, as its number may in between.
    try:
        if not (may_be_left(name, folder) and is_left(name, opened, folder)):
            return False
        fcntl.ioctl(opened, LOOP_CLR_FD)
    except OSError:
        pass
    finally:
        os.close(opened)
    return True


def left(folder):
    names = [path.split("/")[3] for path in glob.glob("/sys/block/loop*/loop")]
    candidates = [name for name in names if may_be_left(name, folder)]
    return [name for name in candidates if detach(name, folder)]


folder = os.path.realpath(sys.argv[1])
looks = 1 if sys.stdin.read() else LOOKS_WITHOUT_WORD
end = time.monotonic() + LIMIT_SECONDS
while looks > 0:
    names = left(folder)
    if time.monotonic() > end:
        sys.exit(f"loop devices that nobody can detach are left: {names}")
    if not names:
        looks -= 1
    if looks > 0:
        time.sleep(PAUSE_SECONDS)
shutil.rmtree(folder, ignore_errors=True)
