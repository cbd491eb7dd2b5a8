"""Writes numbered blocks to an export and keeps a journal of what was answered when; checks an export against it.

writers.py write URI JOURNAL WRITER WRITERS BLOCKS          until the export is lost or SIGTERM comes
writers.py write-again URI JOURNAL WRITER WRITERS BLOCKS    whenever the export is served, until SIGTERM comes
writers.py check URI JOURNAL...                             exit code 1 when an answered write is missing

Lines of a journal: "sent INDEX NUMBER NANOSECONDS", "done INDEX NUMBER NANOSECONDS".
"""
import os
import random
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
HEAD = struct.Struct("<QQ")
PAUSE_SECONDS = 0.02


def block_of(index, number):
    return HEAD.pack(index + 1, number) * (BLOCK // HEAD.size)


def connected(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def write(uri, journal, writer, writers, blocks, again):
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    log = os.open(journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    choice = random.Random(writer)
    number = 0
    while running:
        try:
            handle = connected(uri)
            while running:
                number += 1
                index = choice.randrange(blocks // writers) * writers + writer
                os.write(log, b"sent %d %d %d\n" % (index, number, time.monotonic_ns()))
                handle.pwrite(block_of(index, number), index * BLOCK)
                os.write(log, b"done %d %d %d\n" % (index, number, time.monotonic_ns()))
        except nbd.Error:
            if not again:
                return
            time.sleep(PAUSE_SECONDS)


def check(uri, journals):
    answered, sent = {}, {}
    for journal in journals:
        for line in open(journal):
            what, index, number, _ = map(str, line.split())
            if what == "done":
                answered[int(index)] = int(number)
            else:
                sent.setdefault(int(index), []).append(int(number))
    handle = connected(uri)
    wrong = 0
    for index in sorted(sent):
        data = bytes(handle.pread(BLOCK, index * BLOCK))
        last = answered.get(index, 0)
        allowed = [block_of(index, number) for number in sent[index] if number >= last]
        if index not in answered:
            allowed.append(bytes(BLOCK))
        if data not in allowed:
            wrong += 1
            print(f"block {index}: answered {last}, sent {sent[index][-1]}, found {HEAD.unpack_from(data)}")
    print(f"{len(answered)} answered blocks, {wrong} wrong")
    return wrong == 0


if sys.argv[1] == "check":
    sys.exit(0 if check(sys.argv[2], sys.argv[3:]) else 1)
write(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7]), sys.argv[1] == "write-again")
