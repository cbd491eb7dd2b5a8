"""Writes numbered blocks and keeps a journal of what was answered; checks blocks against such a journal.

writers.py write URI JOURNAL WRITER WRITERS BLOCKS    until the export is lost or SIGTERM comes
writers.py check URI JOURNAL...                       exit code 1 when an answered write is missing
"""
import os
import random
import signal
import struct
import sys

import nbd

BLOCK = 4096
HEAD = struct.Struct("<QQ")


def block_of(index, number):
    return HEAD.pack(index + 1, number) * (BLOCK // HEAD.size)


def connected(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def write(uri, journal, writer, writers, blocks):
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    log = os.open(journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    handle = connected(uri)
    choice = random.Random(writer)
    number = 0
    while running:
        number += 1
        index = choice.randrange(blocks // writers) * writers + writer
        os.write(log, b"sent %d %d\n" % (index, number))
        try:
            handle.pwrite(block_of(index, number), index * BLOCK)
        except nbd.Error:
            return
        os.write(log, b"done %d %d\n" % (index, number))


def check(uri, journals):
    answered, sent = {}, {}
    for journal in journals:
        for line in open(journal):
            what, index, number = line.split()
            (answered if what == "done" else sent)[int(index)] = int(number)
    handle = connected(uri)
    wrong = 0
    for index in sorted(sent):
        data = bytes(handle.pread(BLOCK, index * BLOCK))
        allowed = [block_of(index, sent[index])]
        allowed.append(block_of(index, answered[index]) if index in answered else bytes(BLOCK))
        if data not in allowed:
            wrong += 1
            print(f"block {index}: answered {answered.get(index)}, sent {sent[index]}, "
                  f"found {HEAD.unpack_from(data)}")
    print(f"{len(answered)} answered blocks, {wrong} wrong")
    return wrong == 0


if sys.argv[1] == "write":
    write(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7]))
elif not check(sys.argv[2], sys.argv[3:]):
    sys.exit(1)
