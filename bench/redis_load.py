# SPDX-License-Identifier: Apache-2.0
"""Clients of a Redis that know what they must be answered, until standard input ends; then one JSON object.

usage: redis_load.py ADDRESS PORT CONNECTIONS PIPELINE RATE KEYS VALUE_BYTES

Each connection sends batches of PIPELINE requests and waits for the answers: an INCR of a counter of its own, then SETs
and STRLENs of random keys of `DEBUG POPULATE KEYS key VALUE_BYTES`. All of an answer follows from what was acknowledged
before: a request that is lost or done twice is seen. RATE requests per second are sent by all together, 0: as many as
possible. Nothing is made up for: a connection that waits sends nothing.
"""
import json
import random
import select
import socket
import sys
import time

BUCKET_SECONDS = 0.05
LONG_SECONDS = 0.005
END_SECONDS = 30


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


class Connection:
    def __init__(self, number, load):
        self.load, self.counter = load, b"counter:%d" % number
        self.socket = socket.create_connection((load.address, load.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = time.monotonic() + number * load.interval / load.connections
        self.acknowledged = 0
        self.expected = self.got = b""
        self.wrong = None

    def send(self, now):
        load = self.load
        requests, answers = [command(b"INCR", self.counter)], [b":%d\r\n" % (self.acknowledged + 1)]
        for i in range(load.pipeline - 1):
            key = b"key:%d" % random.randrange(load.keys)
            if i % 2:
                requests.append(command(b"STRLEN", key))
                answers.append(b":%d\r\n" % load.value_bytes)
            else:
                requests.append(command(b"SET", key, load.values[random.randrange(len(load.values))]))
                answers.append(b"+OK\r\n")
        self.expected, self.got, self.sent = b"".join(answers), b"", now
        self.due = max(now, self.due + load.interval)
        self.attempt(lambda: self.socket.sendall(b"".join(requests)))

    def receive(self):
        data = self.attempt(lambda: self.socket.recv(1 << 16))
        if data == b"":
            self.wrong = "closed by the server"
        self.got += data or b""
        if self.wrong or not self.expected.startswith(self.got):
            self.wrong = self.wrong or f"answered {self.got[-40:]!r}"
        elif self.got == self.expected:
            self.acknowledged += 1
            self.expected = b""
            self.load.answered(self.sent, time.monotonic())

    def attempt(self, action):
        try:
            return action()
        except OSError as e:
            self.wrong = e.strerror
            return None


class Load:
    def __init__(self, address, port, connections, pipeline, rate, keys, value_bytes):
        self.address, self.port, self.connections = address, int(port), int(connections)
        self.pipeline, self.keys, self.value_bytes = int(pipeline), int(keys), int(value_bytes)
        self.interval = self.connections * self.pipeline / float(rate) if float(rate) else 0
        self.values = [random.randbytes(self.value_bytes) for _ in range(64)]
        self.began = time.monotonic()
        self.buckets, self.long = {}, []
        self.all = [Connection(i, self) for i in range(self.connections)]

    def answered(self, sent, now):
        bucket = int((now - self.began) / BUCKET_SECONDS)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + self.pipeline
        if now - sent > LONG_SECONDS:
            self.long.append((sent, now - sent))

    def turn(self, poll, sending):
        """Sends what is due, and takes what comes in the meantime; whether standard input has ended."""
        now = time.monotonic()
        idle = [c for c in self.all if sending and not c.expected and not c.wrong]
        for connection in idle:
            if connection.due <= now:
                connection.send(now)
        next_due = min((c.due for c in idle if not c.expected), default=now + 0.1)
        ended = False
        for fd, _ in poll.poll(max(0, next_due - time.monotonic())):
            if fd == 0:
                ended = True
                continue
            connection = self.of_fd[fd]
            connection.receive()
            if connection.wrong:
                poll.unregister(fd)
        return ended

    def run(self):
        self.of_fd = {c.socket.fileno(): c for c in self.all}
        poll = select.epoll()
        for fd in (0, *self.of_fd):
            poll.register(fd, select.EPOLLIN)
        while not self.turn(poll, True):
            pass
        poll.unregister(0)
        end = time.monotonic() + END_SECONDS
        while any(c.expected and not c.wrong for c in self.all) and time.monotonic() < end:
            self.turn(poll, False)

    def result(self):
        return {"acknowledged": [c.acknowledged for c in self.all],
                "wrong": [c.wrong for c in self.all if c.wrong],
                "unanswered": sum(bool(c.expected) for c in self.all) * self.pipeline,
                "began": self.began, "bucket_seconds": BUCKET_SECONDS, "buckets": sorted(self.buckets.items()),
                "long": self.long}


def main():
    load = Load(*sys.argv[1:])
    print("connected", flush=True)
    load.run()
    print(json.dumps(load.result()))


main()
