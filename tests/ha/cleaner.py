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
import subprocess
import sys
import time

LOOP_GET_STATUS64 = 0x4C05
STATUS_BYTES = 232
PAUSE_SECONDS = 0.1
LIMIT_SECONDS = 60
# Machines of a test that was killed take a moment to die, and may attach something in it.
LOOKS_WITHOUT_WORD = 20


def is_left(backing, device, folder):
    if backing.startswith(folder + "/"):
        return True
    if backing != "/":
        return False
    try:
        opened = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(opened, LOOP_GET_STATUS64, bytearray(STATUS_BYTES))
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        os.close(opened)
    return False


def left(folder):
    devices = []
    for name in glob.glob("/sys/block/loop*/loop/backing_file"):
        device = "/dev/" + name.split("/")[3]
        try:
            backing = open(name).read().rstrip("\n")
        except OSError:
            continue
        if is_left(backing, device, folder):
            devices.append(device)
    return devices


folder = sys.argv[1]
looks = 1 if sys.stdin.read() else LOOKS_WITHOUT_WORD
end = time.monotonic() + LIMIT_SECONDS
while looks > 0:
    devices = left(folder)
    for device in devices:
        subprocess.run(["losetup", "--detach", device], stderr=subprocess.DEVNULL)
    if time.monotonic() > end:
        sys.exit(f"loop devices that nobody can detach are left: {devices}")
    if not devices:
        looks -= 1
    if looks > 0:
        time.sleep(PAUSE_SECONDS)
shutil.rmtree(folder, ignore_errors=True)
