"""A client of the fault campaign: writes numbered blocks wherever the mirror is served, reads them back, and knows
what it was answered.

client.py INDEX CLIENTS BLOCKS URI...    block b belongs to client b modulo CLIENTS

A block may hold what was answered last, or what was sent since. Commands come as lines: `figures` gives what was done
since the last time, `check` reads every block that was ever written. Each is answered with one line of JSON.
"""
import errno
import json
import random
import select
import struct
import sys
import time

import nbd

BLOCK = 4096
HEAD = struct.Struct("<QQ")
PAUSE_SECONDS = 0.02
# A server that does not answer for so long is frozen: the next one is asked. Longer than any pause that is promised,
# on a busy machine, too.
PATIENCE_SECONDS = 15.0
READ_PERCENT = 20
ERRORS_KEPT = 5


class Lost(Exception):
    """The connection went, or did not answer."""


def block_of(index, number):
    return HEAD.pack(index + 1, number) * (BLOCK // HEAD.size)


class Client:
    def __init__(self, index, clients, blocks, uris):
        self.index, self.clients, self.blocks, self.uris = index, clients, blocks, uris
        self.choice = random.Random(index)
        self.number = 0
        self.answered = {}
        self.sent = {}
        self.handle = None
        self.at = 0
        self.last_answer = time.monotonic()
        self.wrong = []
        self.clear()

    def clear(self):
        self.done = {"writes": 0, "reads": 0, "verified_bytes": 0, "lost_connections": 0,
                     "errors": [], "longest_stall_ms": 0}

    def connect(self):
        """One try at the server that served last, then at the other."""
        handle = nbd.NBD()
        try:
            handle.connect_uri(self.uris[self.at])
        except nbd.Error:
            self.at = (self.at + 1) % len(self.uris)
            return False
        self.handle = handle
        return True

    def finish(self, cookie):
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self.handle.aio_command_completed(cookie):
                if time.monotonic() > deadline:
                    self.note(f"no answer for {PATIENCE_SECONDS} s")
                    raise Lost()
                self.handle.poll(100)
        except nbd.Error as error:
            # An answer with an error on a connection that lives is one that a file system would see. Told apart is
            # a server that says that it is no longer the one to ask.
            if self.handle.aio_is_ready() and error.errnum != errno.ESHUTDOWN:
                self.note(str(error))
            raise Lost() from error
        now = time.monotonic()
        stall = (now - self.last_answer) * 1000
        self.done["longest_stall_ms"] = max(self.done["longest_stall_ms"], int(stall))
        self.last_answer = now

    def note(self, error):
        if len(self.done["errors"]) < ERRORS_KEPT:
            self.done["errors"].append(error)

    def write(self, index):
        self.number += 1
        self.sent.setdefault(index, []).append(self.number)
        data = nbd.Buffer.from_bytearray(bytearray(block_of(index, self.number)))
        self.finish(self.handle.aio_pwrite(data, index * BLOCK))
        self.answered[index] = self.number
        self.sent[index] = [self.number]
        self.done["writes"] += 1

    def read(self, index):
        buffer = nbd.Buffer(BLOCK)
        self.finish(self.handle.aio_pread(buffer, index * BLOCK))
        self.done["reads"] += 1
        self.done["verified_bytes"] += BLOCK
        data = bytes(buffer.to_bytearray())
        allowed = [block_of(index, number) for number in self.sent[index]]
        if index not in self.answered:
            allowed.append(bytes(BLOCK))
        if data not in allowed:
            found = HEAD.unpack_from(data)
            self.wrong.append(f"block {index} on {self.uris[self.at]}: answered {self.answered.get(index)}, "
                              f"sent {self.sent[index]}, found {found}")

    def step(self):
        if self.handle is None and not self.connect():
            time.sleep(PAUSE_SECONDS)
            return
        try:
            if self.sent and self.choice.randrange(100) < READ_PERCENT:
                self.read(self.choice.choice(list(self.sent)) if len(self.sent) < 64 else self.some_block())
            else:
                self.write(self.own_block())
        except (Lost, nbd.Error):
            self.lose()

    def own_block(self):
        return self.choice.randrange(self.blocks // self.clients) * self.clients + self.index

    def some_block(self):
        while True:
            index = self.own_block()
            if index in self.sent:
                return index

    def lose(self):
        self.handle = None
        self.at = (self.at + 1) % len(self.uris)
        self.done["lost_connections"] += 1
        time.sleep(PAUSE_SECONDS)

    def check(self):
        for index in sorted(self.sent):
            while True:
                if self.handle is None and not self.connect():
                    time.sleep(PAUSE_SECONDS)
                    continue
                try:
                    self.read(index)
                    break
                except (Lost, nbd.Error):
                    self.lose()

    def answer(self, command):
        if command == "check":
            self.check()
        told = dict(self.done, wrong=self.wrong, blocks=len(self.sent))
        self.clear()
        print(json.dumps(told), flush=True)


def main():
    client = Client(*map(int, sys.argv[1:4]), sys.argv[4:])
    while True:
        for _ in range(16):
            client.step()
        if select.select([sys.stdin], [], [], 0)[0]:
            command = sys.stdin.readline().strip()
            if not command:
                return
            client.answer(command)


main()
