"""Takes away what a test leaves in the kernel, and its folder.

cleaner.py FOLDER    begins when its standard input ends; a line there says that nothing of the test runs any more

It runs beside a test and outlives it, however that ends. Programs that name a file below FOLDER are killed: one that was
just being started when the test died was not told of it. What is mounted below FOLDER is unmounted. Loop devices belong
to no machine and outlive them all: each was made on a file below FOLDER; once the machine that it was made in is gone,
the file has no path but "/", and its server answers no more.
"""
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import signal
import sys
import time

LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
STATUS_BYTES = 232
MNT_DETACH = 2
PAUSE_SECONDS = 0.1
LIMIT_SECONDS = 60
# What a test that was killed had running takes a moment to die, and may attach something in it.
LOOKS_WITHOUT_WORD = 20

libc = ctypes.CDLL(None, use_errno=True)


def kill_programs(folder):
    """Those with a word of their command line below the folder; whether there were any."""
    below = (folder + "/").encode()
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        pid = int(path.split("/")[2])
        try:
            words = open(path, "rb").read()
            if below in words and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
                found.append(pid)
        except OSError:
            pass
    return found


def mounts(folder):
    """Those below the folder, the innermost first: place, and whether a program serves it."""
    found = []
    for line in open("/proc/self/mountinfo"):
        front, _, back = line.partition(" - ")
        place = front.split(" ")[4]
        if place.startswith(folder + "/"):
            found.insert(0, (place, back.startswith("fuse")))
    return found


def unmount(folder, served):
    """Whether there was something to unmount."""
    places = [place for place, is_served in mounts(folder) if is_served == served]
    for place in places:
        libc.umount2(place.encode(), MNT_DETACH)
    return places


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


def detach_all(folder):
    names = [path.split("/")[3] for path in glob.glob("/sys/block/loop*/loop")]
    candidates = [name for name in names if may_be_left(name, folder)]
    return [name for name in candidates if detach(name, folder)]


def left(folder):
    # A device is detached from a file that is in sight, or its file would have no path.
    return kill_programs(folder) + unmount(folder, False) + detach_all(folder) + unmount(folder, True)


folder = os.path.realpath(sys.argv[1])
looks = 1 if sys.stdin.read() else LOOKS_WITHOUT_WORD
end = time.monotonic() + LIMIT_SECONDS
while looks > 0:
    names = left(folder)
    if time.monotonic() > end:
        sys.exit(f"programs, mounts or loop devices are left that nobody can take away: {names}")
    if not names:
        looks -= 1
    if looks > 0:
        time.sleep(PAUSE_SECONDS)
shutil.rmtree(folder, ignore_errors=True)
