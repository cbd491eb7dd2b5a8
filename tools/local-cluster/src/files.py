"""Appends numbered records to a file on a mounted file system whenever it is mounted, and keeps a journal
of those that fsync confirmed.

files.py MOUNT_POINT NAME JOURNAL

Every record is a file opened, written, synced and closed, so that nothing holds the mount for long.
"""
import os
import sys
import time

PAUSE_SECONDS = 0.02

mount, name, journal = sys.argv[1:4]
log = os.open(journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
number = sum(1 for _ in open(journal))
while True:
    number += 1
    try:
        if not os.path.ismount(mount):
            raise OSError("not mounted")
        file = os.open(os.path.join(mount, name), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(file, b"%015d\n" % number)
            os.fsync(file)
        finally:
            os.close(file)
        # Mounted all the while, or else it went to the folder below.
        if os.path.ismount(mount):
            os.write(log, b"%015d\n" % number)
    except OSError:
        time.sleep(PAUSE_SECONDS)
