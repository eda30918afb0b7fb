// A cache entry that is never left stale, without a library: plain entries of
// Lethe (docs/protocol.md), read with GET and filled with two commands.
//
// Copy what you need: `read` is all of it, on any client of Redis that can send
// and return Buffers. The loader must read the PRIMARY, and must begin to when
// it is called.
//
//   node plain.mts 127.0.0.1:6379 shop:rating:42
//
// plays it through: on a miss you are the database, and type the value. (Node
// runs TypeScript from 22.18 on; before, compile it with tsc.)

import { randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";
import { createInterface } from "node:readline";

const ticketSeconds = 60;

// Redis before 7.0 refuses SET with NX and GET together: the same as a script.
const beginScript = `local had = redis.call('GET', KEYS[1])
if had then return had end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return false`;

// The value is stored while the ticket is the one that was taken.
const fillScript = `if redis.call('GETRANGE', KEYS[1], 2, 9) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1`;

/** "refused" says that something was committed while the loader ran: the value
 * is right for this caller, it just is not cached. Nothing is to be retried. */
export type How = "hit" | "filled" | "refused";

/** Returns the value of a key, and how it was come by. */
export async function read(
  redis: Redis, name: string, load: () => Promise<Buffer>, ttlMs = 3_600_000,
): Promise<{ value: Buffer; how: How }> {
  const cached = await redis.command("GET", name);
  if (Buffer.isBuffer(cached)) return { value: cached, how: "hit" };
  const incarnation = await begin(redis, name); // before the database is read
  const value = await load();
  const stored = await redis.command("EVAL", fillScript, 2, ticket(name), name, incarnation, value, ttlMs);
  return { value, how: stored === 1 ? "filled" : "refused" };
}

/** Takes the ticket, or shares one that somebody else has taken. */
async function begin(redis: Redis, name: string): Promise<Buffer> {
  const mine = Buffer.concat([Buffer.from("\x01E"), randomBytes(8)]);
  let theirs: Reply;
  try {
    theirs = await redis.command("SET", ticket(name), mine, "NX", "GET", "EX", ticketSeconds);
  } catch (err) {
    if (!String(err).includes("syntax")) throw err;
    theirs = await redis.command("EVAL", beginScript, 1, ticket(name), mine, ticketSeconds);
  }
  return (Buffer.isBuffer(theirs) ? theirs : mine).subarray(2, 10);
}

/** The key of the ticket: beside the value, in the same slot of a cluster. */
export function ticket(name: string): string {
  const opened = name.indexOf("{");
  const closed = opened < 0 ? -1 : name.indexOf("}", opened + 1);
  if (closed > opened + 1) return name + ":t"; // it has a hash tag of its own
  if (name === "" || name.includes("}")) throw new Error(`${name}: no ticket can stand beside it (see docs/entry.md)`);
  return `{${name}}:t`;
}

type Reply = Buffer | string | number | null;

/** As much of a client as this needs; yours will do as well. */
export class Redis {
  private readonly socket: Socket;
  private rest = Buffer.alloc(0);
  private readonly waiting: { resolve: (r: Reply) => void; reject: (e: Error) => void }[] = [];

  constructor(host: string, port: number) {
    this.socket = connect(port, host);
    this.socket.on("data", (chunk: Buffer) => {
      this.rest = Buffer.concat([this.rest, chunk]);
      while (this.reply());
    });
    const fail = (e: Error) => this.waiting.splice(0).forEach((w) => w.reject(e));
    this.socket.on("error", fail).on("close", () => fail(new Error("the connection is closed")));
  }

  command(...args: (string | number | Buffer)[]): Promise<Reply> {
    const parts = args.flatMap((a) => {
      const b = Buffer.isBuffer(a) ? a : Buffer.from(String(a));
      return [Buffer.from(`$${b.length}\r\n`), b, Buffer.from("\r\n")];
    });
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.socket.write(Buffer.concat([Buffer.from(`*${args.length}\r\n`), ...parts]));
    });
  }

  close(): void {
    this.socket.end();
  }

  /** Hands out one reply; false if it has not come whole. */
  private reply(): boolean {
    const end = this.rest.indexOf("\r\n");
    if (end < 0) return false;
    const kind = String.fromCharCode(this.rest[0]);
    const line = this.rest.toString("utf8", 1, end);
    let next = end + 2;
    let value: Reply = line;
    if (kind === ":") value = Number(line);
    if (kind === "$" && line === "-1") value = null;
    else if (kind === "$") {
      next += Number(line) + 2;
      if (this.rest.length < next) return false;
      value = this.rest.subarray(end + 2, next - 2);
    }
    this.rest = this.rest.subarray(next);
    const w = this.waiting.shift();
    if (kind === "-") w?.reject(new Error(line));
    else w?.resolve(value);
    return true;
  }
}

async function main(address: string, name: string): Promise<void> {
  const colon = address.lastIndexOf(":");
  const redis = new Redis(address.slice(0, colon), Number(address.slice(colon + 1)));
  const { value, how } = await read(redis, name, async () => {
    console.log(`miss: what does the database have for ${name}?`);
    const input = createInterface({ input: process.stdin });
    const line = await input[Symbol.asyncIterator]().next();
    input.close();
    return Buffer.from(line.value ?? "");
  });
  console.log(`${how}: ${value.toString()}`);
  redis.close();
}

if (process.argv.length === 4) await main(process.argv[2], process.argv[3]);
