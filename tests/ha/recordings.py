"""Records heartbeats where they pass, and sends them again: as they were, back to where they came from, on the other
path, altered and cut short; and some that were never any."""

import json
import os
import random
import socket
import sys
import time

PORT = 29002
ETH_P_ALL = 3
ETHERTYPE_IPV4 = b"\x08\x00"
UDP = 17
# Between two datagrams. A heartbeat comes every 100 ms.
PAUSE_SECONDS = 0.001
# Of the oldest and of the newest lines of the tape in each round, and at most so many between them: it grows all the
# time, and a round must end.
ALWAYS = 200
SOMETIMES = 200


def record(tape):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    count = 0
    with open(tape, "w", buffering=1) as out:
        while True:
            frame = wire.recv(65535)
            packet = frame[14:]
            if frame[12:14] != ETHERTYPE_IPV4 or packet[9] != UDP:
                continue
            datagram = packet[(packet[0] & 15) * 4 :]
            ports = [int.from_bytes(datagram[at : at + 2], "big") for at in (0, 2)]
            # What this script sends has another source port.
            if ports != [PORT, PORT]:
                continue
            entry = {
                "from": socket.inet_ntoa(packet[12:16]),
                "to": socket.inet_ntoa(packet[16:20]),
                "bytes": datagram[8:].hex(),
            }
            out.write(json.dumps(entry) + "\n")
            count += 1
            if count % 20 == 0:
                print("recorded", count, flush=True)


def other_path(address):
    return address.replace("10.77.0.", "x").replace("10.77.1.", "10.77.0.").replace("x", "10.77.1.")


def altered(beat):
    at = random.randrange(len(beat))
    return beat[:at] + bytes([beat[at] ^ (1 << random.randrange(8))]) + beat[at + 1 :]


def send(tape, victim):
    """What bears on the victim, all the time, and what is recorded meanwhile too."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    hosts = ["10.77.0." + victim, "10.77.1." + victim]
    rounds = 0
    while True:
        with open(tape) as lines:
            whole = [line for line in lines if line.endswith("\n")]
        middle = whole[ALWAYS:-ALWAYS]
        drawn = random.sample(middle, min(SOMETIMES, len(middle)))
        for line in whole[:ALWAYS] + drawn + whole[ALWAYS:][-ALWAYS:]:
            entry = json.loads(line)
            beat = bytes.fromhex(entry["bytes"])
            if entry["to"] in hosts:
                to = entry["to"]
                forged = beat[:8] + os.urandom(len(beat) - 8)
                sent = [
                    (to, beat),
                    (other_path(to), beat),
                    (to, altered(beat)),
                    (to, beat[: random.randrange(len(beat))]),
                    (to, forged),
                ]
            else:
                sent = [(entry["from"], beat)]
            for to, payload in sent:
                # A path that is down carries nothing.
                try:
                    out.sendto(payload, (to, PORT))
                except OSError:
                    pass
                time.sleep(PAUSE_SECONDS)
        rounds += 1
        print("round", rounds, flush=True)


if __name__ == "__main__":
    {"record": record, "send": send}[sys.argv[1]](*sys.argv[2:])
