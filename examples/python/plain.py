"""A cache entry that is never left stale, without a library: plain entries of
Lethe (docs/protocol.md), read with GET and filled with two commands.

Copy what you need: `read` is all of it, on any client of Redis that can send
bytes. The loader must read the PRIMARY, and must begin to when it is called.

    python3 plain.py 127.0.0.1:6379 shop:rating:42

plays it through: on a miss you are the database, and type the value.
"""

import os
import socket
import sys

TICKET_SECONDS = 60

# Redis before 7.0 refuses SET with NX and GET together: the same as a script.
BEGIN = """local had = redis.call('GET', KEYS[1])
if had then return had end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return false"""

# The value is stored while the ticket is the one that was taken.
FILL = """if redis.call('GETRANGE', KEYS[1], 2, 9) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1"""


def read(redis, name, load, ttl_ms=3_600_000):
    """Returns the value of a key, and how: "hit", "filled" or "refused".

    "refused" says that something was committed while the loader ran: the value
    is right for this caller, it just is not cached. Nothing is to be retried.
    """
    value = redis.command("GET", name)
    if value is not None:
        return value, "hit"
    incarnation = begin(redis, name)  # before the database is read
    value = load()
    stored = redis.command("EVAL", FILL, 2, ticket(name), name, incarnation, value, ttl_ms)
    return value, "filled" if stored == 1 else "refused"


def begin(redis, name):
    """Takes the ticket, or shares one that somebody else has taken."""
    mine = b"\x01E" + os.urandom(8)
    try:
        theirs = redis.command("SET", ticket(name), mine, "NX", "GET", "EX", TICKET_SECONDS)
    except RedisError as err:
        if "syntax" not in str(err):
            raise
        theirs = redis.command("EVAL", BEGIN, 1, ticket(name), mine, TICKET_SECONDS)
    return (mine if theirs is None else theirs)[2:10]


def ticket(name):
    """The key of the ticket: beside the value, in the same slot of a cluster."""
    opened = name.find("{")
    closed = name.find("}", opened + 1) if opened >= 0 else -1
    if closed > opened + 1:
        return name + ":t"  # it has a hash tag of its own
    if "}" in name or not name:
        raise ValueError(f"{name!r}: no ticket can stand beside it (see docs/entry.md)")
    return "{" + name + "}:t"


class RedisError(Exception):
    """An error that the server has answered."""


class Redis:
    """As much of a client as this needs; yours will do as well."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=5)
        self.replies = self.socket.makefile("rb")

    def command(self, *args):
        parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        line = self.replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"+":
            return rest
        raise RedisError(rest.decode() if kind == b"-" else f"unexpected reply {line!r}")


def main():
    address, name = sys.argv[1:]
    host, port = address.rsplit(":", 1)

    def load():
        print(f"miss: what does the database have for {name}?", flush=True)
        return sys.stdin.readline().rstrip("\n").encode()

    value, how = read(Redis(host, int(port)), name, load)
    print(f"{how}: {value.decode()}", flush=True)


if __name__ == "__main__":
    main()
