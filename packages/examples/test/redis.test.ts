/** The small Redis: its protocol, what its own clients say about it, and what strangers send. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, FrameError, Framing, MemoryTransport, Server, Transport } from "@socketserver/core"
import { Effect, Layer, Stream } from "effect"
import { TestClock } from "effect/testing"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Channels } from "../src/Channels.ts"
import { KeyValues } from "../src/KeyValues.ts"
import { Redis, serveRedis } from "../src/redis.ts"
import { type Command, copyOf, Failure, type Reply, resp, Status } from "../src/resp.ts"
import { connect, type Program, start, targetOf } from "./utils.ts"

const services = (maxBytes?: number) => Layer.merge(KeyValues.layer({ maxBytes }), Channels.layer)

const OverTcp = Layer.provide(Redis(0), services())

const limits = { maxBulkLength: 1_000, maxArguments: 100, maxLength: 20_000 }
const inMemory = (maxBytes?: number) =>
  serveRedis(MemoryTransport.stream().pipe(Transport.framed(resp(limits)), Dispatch.fiberPerRequest())).pipe(
    Layer.provideMerge(services(maxBytes))
  )

const ok = new Status("OK")

// ---- clients

/** A client in memory, made of the server's framing. */
const open = Effect.gen(function*() {
  const connection = yield* MemoryTransport.connect((yield* Server.Server).address)
  const side = Framing.swap(resp())
  const reader = Framing.reader(side)
  const next: Effect.Effect<Reply, unknown> = Effect.suspend(() => {
    const reply = reader.next()
    if (reply instanceof FrameError.FrameError) return Effect.fail(reply)
    if (reply !== undefined) return Effect.succeed(reply)
    return Effect.flatMap(connection.pull, (chunk) => {
      reader.push(chunk)
      return next
    })
  })
  const send = (...commands: ReadonlyArray<Command>) =>
    Stream.fromIterable(commands).pipe(Framing.encode(side), Stream.run(connection.sink))
  return {
    connection,
    next,
    send,
    ask: (...command: Command) => Effect.andThen(send(command), next),
    /** Words without spaces. */
    say: (line: string) => Effect.andThen(send(line.split(" ")), next)
  }
})

/** The port of the server. */
const port = Effect.map(Server.Server, ({ address }) => {
  const target = targetOf(address)
  return "port" in target ? String(target.port) : assert.fail("a port was expected")
})

/** A program of Redis's that talks to the server. It has to be there: `apt-get install redis-tools`. */
const redis = (program: "redis-cli" | "redis-benchmark", ...args: ReadonlyArray<string>) =>
  Effect.flatMap(port, (port) => start(program, ["-h", "127.0.0.1", "-p", port, ...args]))

/** All that it prints, when it has ended without an error. */
const outputOf = (program: Program) =>
  Effect.gen(function*() {
    const lines = yield* program.rest
    assert.deepStrictEqual([...yield* program.errors], [])
    assert.strictEqual(yield* program.exitCode, 0)
    return lines
  })

const cli = (...args: ReadonlyArray<string>) => Effect.flatMap(redis("redis-cli", ...args), outputOf)

describe("the clients of Redis", () => {
  it.live("redis-cli asks, and understands", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* cli("PING"), ["PONG"])
      assert.deepStrictEqual(yield* cli("--no-raw", "SET", "name", "a value"), ["OK"])
      assert.deepStrictEqual(yield* cli("--no-raw", "GET", "name"), ["\"a value\""])
      assert.deepStrictEqual(yield* cli("--no-raw", "GET", "nothing"), ["(nil)"])
      assert.deepStrictEqual(yield* cli("--no-raw", "RPUSH", "list", "1", "2"), ["(integer) 2"])
      assert.deepStrictEqual(yield* cli("--no-raw", "LRANGE", "list", "0", "-1"), ["1) \"1\"", "2) \"2\""])
      assert.deepStrictEqual(yield* cli("--no-raw", "GET", "list"), [
        "(error) WRONGTYPE Operation against a key holding the wrong kind of value"
      ])
      assert.deepStrictEqual((yield* cli("HELLO", "2")).slice(0, 2), ["server", "redis"])
      assert.include((yield* cli("INFO")).join("\n"), "db0:keys=2")
    }).pipe(Effect.provide(OverTcp)))

  it.live("redis-cli sends commands that it reads, on one connection", () =>
    Effect.gen(function*() {
      const program = yield* redis("redis-cli", "--no-raw")
      yield* program.send(
        "SET bytes \"\\x00\\xff\\r\\n\"\nGET bytes\nSTRLEN bytes\nCLIENT SETNAME me\nCLIENT GETNAME\nNONE a\n"
      )
      yield* program.finish
      assert.deepStrictEqual(yield* outputOf(program), [
        "OK",
        "\"\\x00\\xff\\r\\n\"",
        "(integer) 4",
        "OK",
        "\"me\"",
        "(error) ERR unknown command 'NONE', with args beginning with: 'a' "
      ])
    }).pipe(Effect.provide(OverTcp)))

  it.live("redis-cli --pipe sends as much as it can, and counts the replies", () =>
    Effect.gen(function*() {
      const program = yield* redis("redis-cli", "--pipe")
      yield* program.send("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\0\n\r\n".repeat(5_000))
      yield* program.finish
      assert.include((yield* outputOf(program)).at(-1), "errors: 0, replies: 5000")
    }).pipe(Effect.provide(OverTcp)))

  it.live("redis-cli listens to a channel, and another one publishes", () =>
    Effect.gen(function*() {
      const listener = yield* redis("redis-cli", "--no-raw", "SUBSCRIBE", "news", "weather")
      const first = yield* Effect.replicateEffect(listener.line, 7)
      assert.deepStrictEqual(first.slice(-3), ["1) \"subscribe\"", "2) \"weather\"", "3) (integer) 2"])
      assert.deepStrictEqual(yield* cli("PUBLISH", "weather", "rain"), ["1"])
      assert.deepStrictEqual(yield* cli("PUBLISH", "sports", "rain"), ["0"])
      assert.deepStrictEqual(yield* Effect.replicateEffect(listener.line, 3), [
        "1) \"message\"",
        "2) \"weather\"",
        "3) \"rain\""
      ])
    }).pipe(Effect.provide(OverTcp)))

  it.live("redis-benchmark measures, with pipelining", () =>
    Effect.gen(function*() {
      const benchmark = (...args: ReadonlyArray<string>) =>
        Effect.flatMap(redis("redis-benchmark", "-q", "-c", "10", "-n", "2000", ...args), outputOf)
      const measured = (lines: ReadonlyArray<string>) =>
        lines.join("\n").split(/[\r\n]/).filter((line) => line.includes("requests per second"))
      const tests = "ping,set,get,incr,lpush,rpush,lpop,rpop,mset,lrange_100"
      assert.lengthOf(measured(yield* benchmark("-P", "16", "-t", tests)), 12)
      assert.lengthOf(measured(yield* benchmark("-t", "set,get", "-r", "100")), 2)
    }).pipe(Effect.provide(OverTcp)))
})

describe("commands", () => {
  /** Asks one after the other, and compares the replies. */
  const dialogue = (...exchanges: ReadonlyArray<readonly [string, Reply]>) =>
    Effect.gen(function*() {
      const { say } = yield* open
      for (const [line, reply] of exchanges) assert.deepStrictEqual(yield* say(line), reply, line)
    }).pipe(Effect.provide(inMemory()))

  const notAnInteger = new Failure("ERR value is not an integer or out of range")
  const syntaxError = new Failure("ERR syntax error")

  it.effect("of strings", () =>
    dialogue(
      ["SET a 1", ok],
      ["set a 2 NX", null],
      ["SET a 2 XX", ok],
      ["SET b 2 XX", null],
      ["SET a 3 NX XX", syntaxError],
      ["SET a 3 EX", syntaxError],
      ["SET a 3 EX 0", new Failure("ERR invalid expire time in 'set' command")],
      ["SET a 3 EX 9223372036854775807", new Failure("ERR invalid expire time in 'set' command")],
      ["GET a", "2"],
      ["APPEND a 345", 4],
      ["APPEND new x", 1],
      ["STRLEN a", 4],
      ["STRLEN none", 0],
      ["MSET a 1 b 2 c 3", ok],
      ["MSET a 1 b", new Failure("ERR wrong number of arguments for 'mset' command")],
      ["MGET a none c", ["1", null, "3"]],
      ["GET", new Failure("ERR wrong number of arguments for 'get' command")]
    ))

  it.effect("of numbers, of 64 bits", () =>
    dialogue(
      ["INCR n", 1],
      ["INCRBY n 9223372036854775806", 9223372036854775807n],
      ["INCR n", new Failure("ERR increment or decrement would overflow")],
      ["SET n -5", ok],
      ["DECR n", -6],
      ["INCRBY n 1.5", notAnInteger],
      ["INCRBY n 9223372036854775808", notAnInteger],
      ["SET n 01", ok],
      ["INCR n", notAnInteger]
    ))

  it.effect("of lists", () =>
    dialogue(
      ["RPUSH l 3 4 5", 3],
      ["LPUSH l 2 1", 5],
      ["LRANGE l 0 -1", ["1", "2", "3", "4", "5"]],
      ["LRANGE l -2 100", ["4", "5"]],
      ["LRANGE l 3 2", []],
      ["LPOP l", "1"],
      ["RPOP l 2", ["5", "4"]],
      ["RPOP l", "3"],
      ["LLEN l", 1],
      ["RPOP l", "2"],
      ["LLEN l", 0],
      ["EXISTS l", 0],
      ["LPOP l", null],
      ["LPUSH l a", 1],
      ["APPEND l b", new Failure("WRONGTYPE Operation against a key holding the wrong kind of value")],
      ["RPOP l -1", new Failure("ERR value is out of range, must be positive")]
    ))

  it.effect("of keys, by patterns too", () =>
    dialogue(
      ["MSET aa 1 ab 1 b* 1 [x] 1", ok],
      ["RPUSH list 1", 1],
      ["TYPE list", new Status("list")],
      ["TYPE aa", new Status("string")],
      ["TYPE none", new Status("none")],
      ["KEYS a?", ["aa", "ab"]],
      ["KEYS *", ["aa", "ab", "b*", "[x]", "list"]],
      ["KEYS *[^ab]", ["b*", "[x]", "list"]],
      ["KEYS [a-c]\\*", ["b*"]],
      ["KEYS \\[*]", ["[x]"]],
      ["KEYS l*s*", ["list"]],
      ["KEYS l*x*", []],
      ["SCAN 0 MATCH a* COUNT 10", ["0", ["aa", "ab"]]],
      ["DEL aa ab none", 2],
      ["EXISTS b* b* none", 2],
      ["DBSIZE", 3],
      ["FLUSHALL", ok],
      ["DBSIZE", 0]
    ))

  it.effect("a pattern of many stars takes no time", () =>
    dialogue([`SET ${"a".repeat(900)} 1`, ok], [`KEYS ${"a*".repeat(100)}b`, []]))

  it.effect("of the connection", () =>
    dialogue(
      ["PING", new Status("PONG")],
      ["PING hello", "hello"],
      ["ECHO hello", "hello"],
      ["SELECT 0", ok],
      ["SELECT 1", new Failure("ERR DB index is out of range")],
      ["HELLO 3", new Failure("NOPROTO unsupported protocol version")],
      ["CLIENT SETINFO LIB-NAME x", ok],
      ["CLIENT NONE", new Failure("ERR unknown subcommand 'NONE'. Try CLIENT HELP.")],
      ["CONFIG GET s*", ["save", ""]],
      ["COMMAND DOCS", []],
      ["toString", new Failure("ERR unknown command 'toString', with args beginning with: ")]
    ))

  it.effect("QUIT is answered, and the connection closed behind it", () =>
    Effect.gen(function*() {
      const client = yield* open
      yield* client.send(["SET", "a", "1"], ["QUIT"], ["SET", "a", "2"])
      assert.deepStrictEqual(yield* client.next, ok)
      assert.deepStrictEqual(yield* client.next, ok)
      yield* Effect.flip(client.next)
      assert.strictEqual(yield* (yield* open).say("GET a"), "1")
    }).pipe(Effect.provide(inMemory())))

  it.effect("a full store takes no more, until something is removed", () =>
    Effect.gen(function*() {
      const { ask, say } = yield* open
      const oom = new Failure("OOM command not allowed when used memory > 'maxmemory'.")
      for (let i = 0; i < 10; i++) assert.deepStrictEqual(yield* ask("SET", `key${i}`, "v".repeat(900)), ok)
      for (const line of ["SET a 1", "APPEND key1 1", "INCR n", "LPUSH l 1", "MSET a 1"]) {
        assert.deepStrictEqual(yield* say(line), oom, line)
      }
      assert.strictEqual(yield* say("DEL key1 key2"), 2)
      assert.deepStrictEqual(yield* say("SET a 1"), ok)
      yield* say("FLUSHDB")
      assert.strictEqual(yield* KeyValues.useSync(({ bytes }) => bytes), 0)
    }).pipe(Effect.provide(inMemory(10_000))))

  it.effect("what is pushed, appended, popped and replaced is accounted for", () =>
    Effect.gen(function*() {
      const { say } = yield* open
      for (const line of ["RPUSH l 1 22", "LPOP l", "SET l x", "APPEND l yz", "SET l z EX 9", "RPUSH m 1", "LPOP m"]) {
        yield* say(line)
      }
      const before = yield* KeyValues.useSync(({ bytes }) => bytes)
      yield* say("SET k z")
      assert.strictEqual(yield* KeyValues.useSync(({ bytes }) => bytes), 2 * before)
      yield* say("DEL l k")
      assert.strictEqual(yield* KeyValues.useSync(({ bytes }) => bytes), 0)
    }).pipe(Effect.provide(inMemory())))
})

describe("time to live", () => {
  it.effect("a key is gone when its time is over, to the millisecond", () =>
    Effect.gen(function*() {
      const { say } = yield* open
      yield* say("SET a 1 PX 1500")
      assert.strictEqual(yield* say("PTTL a"), 1_500)
      assert.strictEqual(yield* say("TTL a"), 2)
      yield* TestClock.adjust(1_499)
      assert.strictEqual(yield* say("GET a"), "1")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* say("GET a"), null)
      assert.strictEqual(yield* say("TTL a"), -2)
    }).pipe(Effect.provide(inMemory())))

  it.effect("it can be given, taken, kept by what changes a value, and lost with it", () =>
    Effect.gen(function*() {
      const { say } = yield* open
      yield* say("SET n 1")
      assert.strictEqual(yield* say("TTL n"), -1)
      assert.strictEqual(yield* say("EXPIRE n 10"), 1)
      assert.strictEqual(yield* say("INCR n"), 2)
      assert.strictEqual(yield* say("APPEND n 0"), 2)
      assert.strictEqual(yield* say("TTL n"), 10)
      assert.strictEqual(yield* say("PERSIST n"), 1)
      assert.strictEqual(yield* say("PERSIST n"), 0)
      assert.strictEqual(yield* say("TTL n"), -1)
      assert.strictEqual(yield* say("PEXPIRE n 10"), 1)
      assert.deepStrictEqual(yield* say("SET n 1"), ok)
      assert.strictEqual(yield* say("TTL n"), -1)
      assert.strictEqual(yield* say("EXPIRE n -1"), 1)
      assert.strictEqual(yield* say("EXISTS n"), 0)
      assert.strictEqual(yield* say("EXPIRE n 10"), 0)
    }).pipe(Effect.provide(inMemory())))

  it.effect("keys that nobody asks for are swept, a bounded number at a time", () =>
    Effect.gen(function*() {
      const store = yield* KeyValues
      yield* TestClock.adjust(100)
      for (let i = 0; i < 1_500; i++) store.set(`short${i}`, "1", store.now() + 50)
      store.set("long", "1", store.now() + 60_000)
      store.set("forever", "1")
      yield* TestClock.adjust(100)
      assert.strictEqual(store.size, 502)
      yield* TestClock.adjust(100)
      assert.strictEqual(store.size, 2)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual([...store.keys()], ["forever"])
    }).pipe(Effect.provide(inMemory())))
})

describe("channels", () => {
  it.effect("a listener hears what is published, may ask little else, and can stop", () =>
    Effect.gen(function*() {
      const listener = yield* open
      const speaker = yield* open
      yield* listener.send(["SUBSCRIBE", "a", "b"], ["PING"], ["GET", "x"])
      assert.deepStrictEqual(yield* listener.next, ["subscribe", "a", 1])
      assert.deepStrictEqual(yield* listener.next, ["subscribe", "b", 2])
      assert.deepStrictEqual(yield* listener.next, ["pong", ""])
      assert.deepStrictEqual(
        yield* listener.next,
        new Failure(
          "ERR Can't execute 'get': only SUBSCRIBE / UNSUBSCRIBE / PING / QUIT are allowed in this context"
        )
      )
      assert.strictEqual(yield* speaker.say("PUBLISH a 1"), 1)
      assert.strictEqual(yield* speaker.say("PUBLISH b 2"), 1)
      assert.deepStrictEqual(yield* listener.next, ["message", "a", "1"])
      assert.deepStrictEqual(yield* listener.next, ["message", "b", "2"])
      yield* listener.send(["UNSUBSCRIBE"])
      assert.deepStrictEqual(yield* listener.next, ["unsubscribe", "a", 1])
      assert.deepStrictEqual(yield* listener.next, ["unsubscribe", "b", 0])
      assert.strictEqual(yield* speaker.say("PUBLISH a 1"), 0)
      assert.strictEqual(yield* listener.say("GET x"), null)
    }).pipe(Effect.provide(inMemory())))

  it.effect("a listener that is gone is forgotten", () =>
    Effect.gen(function*() {
      const listener = yield* open
      const speaker = yield* open
      yield* listener.say("SUBSCRIBE a")
      yield* listener.send(["QUIT"])
      yield* listener.next
      yield* Effect.flip(listener.next)
      const left = yield* Effect.repeat(speaker.say("PUBLISH a 1"), { until: (count) => count === 0, times: 1_000 })
      assert.strictEqual(left, 0)
    }).pipe(Effect.provide(inMemory())))

  it.effect("a listener that does not read is disconnected, and nobody waits for it", () =>
    Effect.gen(function*() {
      const listener = yield* open
      const speaker = yield* open
      yield* listener.say("SUBSCRIBE a")
      const text = "x".repeat(1_000)
      let published = 0
      while (published < 20_000 && (yield* speaker.ask("PUBLISH", "a", text)) === 1) published++
      assert.isBelow(published * text.length, 2 ** 24)
      // It reads at last what was sent before.
      const read = yield* Effect.flip(Effect.forever(listener.next))
      assert.isDefined(read)
      assert.strictEqual((yield* (yield* Server.Server).stats).open, 1)
    }).pipe(Effect.provide(inMemory())))
})

describe("strangers", () => {
  const cases: ReadonlyArray<readonly [string, string, string]> = [
    ["a length that is not true", "*1\r\n$3\r\nPINGER\r\n", "no end behind a bulk string"],
    ["a bulk string that is too long", "*1\r\n$1001\r\n", "invalid bulk length"],
    ["a length without an end", `*1\r\n$${"9".repeat(100)}`, "invalid bulk length"],
    ["a negative length", "*1\r\n$-1\r\n", "invalid bulk length"],
    ["no number", "*1\r\n$1x\r\n", "invalid bulk length"],
    ["too many arguments", "*101\r\n", "invalid multibulk length"],
    ["a count without an end", `*${"0".repeat(100)}`, "invalid multibulk length"],
    ["arrays in arrays", "*1\r\n*1\r\n*1\r\n", "expected '$', got '*'"],
    ["a line without an end", "x".repeat(70_000), "too big inline request"],
    [
      "arguments that are too much together",
      `*100\r\n${`$999\r\n${"x".repeat(999)}\r\n`.repeat(50)}`,
      "more than 20000 bytes"
    ],
    ["quotes that do not match", "SET \"a b\r\n", "unbalanced quotes in request"]
  ]
  for (const [what, bytes, detail] of cases) {
    it.effect(`${what} is said to be wrong, and closes that connection only`, () =>
      Effect.gen(function*() {
        const other = yield* open
        const client = yield* open
        yield* client.connection.write(`PING\r\n${bytes}`)
        assert.deepStrictEqual(yield* client.next, new Status("PONG"))
        const failure = yield* client.next
        assert.include(failure instanceof Failure ? failure.message : "", `ERR Protocol error: `)
        assert.include(failure instanceof Failure ? failure.message : "", detail)
        yield* Effect.flip(client.next)
        assert.deepStrictEqual(yield* other.say("PING"), new Status("PONG"))
        const { closed } = yield* (yield* Server.Server).stats
        assert.deepStrictEqual(closed, { InvalidFrame: 1 })
      }).pipe(Effect.provide(inMemory())))
  }

  it.effect("a browser that is made to post here says nothing that is listened to", () =>
    Effect.gen(function*() {
      const client = yield* open
      yield* client.connection.write("POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n")
      assert.instanceOf(yield* client.next, Failure)
      yield* Effect.flip(client.next)
      assert.strictEqual(yield* (yield* open).say("GET a"), null)
    }).pipe(Effect.provide(inMemory())))

  it.effect("one that announces much, and sends nothing, takes no memory", () =>
    Effect.gen(function*() {
      const reader = Framing.reader(resp())
      const before = process.memoryUsage().heapUsed
      reader.push(new TextEncoder().encode("*1048576\r\n$16777216\r\n"))
      assert.isUndefined(reader.next())
      assert.isBelow(process.memoryUsage().heapUsed - before, 1_000_000)
    }))

  it.live("a line that was typed is a command, with words in quotes", () =>
    Effect.gen(function*() {
      const client = yield* connect(targetOf((yield* Server.Server).address))
      yield* client.send("\r\n  SET  'a b' \"\\x41\\n\\\"\" \n*0\r\nSTRLEN \"a b\"\nGET 'it\\'s'\n")
      yield* client.finish
      assert.deepStrictEqual(yield* client.rest, ["+OK", ":3", "$-1"])
    }).pipe(Effect.provide(OverTcp)))
})

/** The same numbers each time, so a failure can be seen again. */
const randomOf = (seed: number) => (below: number) => {
  seed = (seed + 0x6d2b79f5) | 0
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) % below
}
type Random = ReturnType<typeof randomOf>

const list = <A>(random: Random, most: number, make: () => A): Array<A> =>
  Array.from({ length: random(most + 1) }, make)
const randomBytes = (random: Random) => String.fromCharCode(...list(random, 40, () => random(256)))
const randomLine = (random: Random) => String.fromCharCode(...list(random, 20, () => 32 + random(224)))

const randomCommand = (random: Random): Command => [randomBytes(random), ...list(random, 5, () => randomBytes(random))]

const randomReply = (random: Random, depth = 0): Reply => {
  switch (random(depth < 4 ? 7 : 6)) {
    case 0:
      return random(1_000) - 500
    case 1:
      return 2n ** 53n * BigInt(1 + random(1_000))
    case 2:
      return null
    case 3:
      return new Status(randomLine(random))
    case 4:
      return new Failure(randomLine(random))
    case 5:
      return randomBytes(random)
    default:
      return list(random, 4, () => randomReply(random, depth + 1))
  }
}

const encoder = new TextEncoder()

/** Everything that a reader finds in pieces of up to so many bytes; an error is the last. */
const readAll = (framing: Framing.Framing<any, any>, bytes: Uint8Array, random: Random, most: number) => {
  const reader = Framing.reader(framing)
  const read: Array<unknown> = []
  for (let at = 0; at < bytes.length;) {
    const size = 1 + random(most)
    reader.push(bytes.slice(at, at + size))
    at += size
    for (let next = reader.next(); next !== undefined; next = reader.next()) {
      read.push(next)
      if (next instanceof FrameError.FrameError) return read
    }
  }
  return read
}

const written = <A>(format: Framing.Format<A>, values: ReadonlyArray<A>): Uint8Array =>
  new Uint8Array(Buffer.concat(values.map((value) => {
    const frame = format.encode(value)
    return typeof frame === "string" ? encoder.encode(frame) : frame
  })))

describe("the framing", () => {
  const framing = resp()

  it("reads what it writes, on both sides, however it is cut", () => {
    for (let seed = 0; seed < 500; seed++) {
      const random = randomOf(seed)
      const most = 1 + random(60)
      const commands = list(random, 5, () => randomCommand(random))
      assert.deepStrictEqual(readAll(framing, written(framing.messages, commands), random, most), commands)
      const replies = list(random, 5, () => randomReply(random))
      assert.deepStrictEqual(readAll(Framing.swap(framing), written(framing.replies, replies), random, most), replies)
    }
  })

  it("takes any bytes without an exception, and finds the same however they are cut", () => {
    for (let seed = 0; seed < 2_000; seed++) {
      const random = randomOf(seed)
      const noise = Uint8Array.from(
        list(random, 60, () => random(3) === 0 ? random(256) : "*$+-:0123\r\n\r\n '\"".charCodeAt(random(17)))
      )
      for (const side of [framing, Framing.swap(framing)]) {
        const whole = readAll(side as typeof framing, noise, () => 100, 1)
        assert.deepStrictEqual(readAll(side as typeof framing, noise, random, 4), whole)
      }
    }
  })

  it("reads arguments of any length among others, whatever was decoded together with them", () => {
    for (let seed = 0; seed < 50; seed++) {
      const random = randomOf(seed)
      const long = () => randomBytes(random).padEnd([0, 1_024, 1_025, 4_096, 9_000][random(5)]!, "v\u00ff")
      const commands = list(random, 20, () => ["SET", randomBytes(random), ...list(random, 3, long)])
      for (const most of [10, 3_000, 100_000]) {
        assert.deepStrictEqual(readAll(framing, written(framing.messages, commands), random, most), commands)
      }
    }
  })

  it("gives arguments of which copies can be kept, that keep nothing else alive", () => {
    setFlagsFromString("--expose-gc")
    const collect: () => void = runInNewContext("gc")
    const kept: Array<string> = []
    const reader = Framing.reader(framing)
    const read = (count: number) => {
      for (let i = 0; i < count; i++) {
        reader.push(written(framing.messages, [["ECHO", `a value of 20 ${1e5 + i}`, "\0".repeat(1_000)]]))
        kept.push(copyOf((reader.next() as Command)[1]!))
      }
      collect()
      return process.memoryUsage().heapUsed
    }
    const before = read(1_000)
    assert.isBelow((read(10_000) - before) / 10_000, 300)
    assert.strictEqual(kept.at(-1), "a value of 20 109999")
  })

  it("reads a megabyte that comes in drips in linear time", () => {
    const reader = Framing.reader(framing)
    reader.push(encoder.encode("*2\r\n$4\r\nECHO\r\n$1000000\r\n"))
    const drip = encoder.encode("x".repeat(10))
    const began = process.cpuUsage()
    for (let i = 0; i < 100_000; i++) {
      reader.push(drip.slice())
      assert.isUndefined(reader.next())
    }
    reader.push(encoder.encode("\r\n"))
    assert.strictEqual((reader.next() as Command)[1]!.length, 1_000_000)
    assert.isBelow(process.cpuUsage(began).user, 5_000_000)
  })

  it("refuses to read replies that are arrays in arrays without end", () => {
    const reader = Framing.reader(Framing.swap(resp()))
    reader.push(encoder.encode("*1\r\n".repeat(1_000)))
    assert.instanceOf(reader.next(), FrameError.FrameError)
  })

  it("writes a reply as one line, whatever a client has put into it", () => {
    assert.strictEqual(framing.replies.encode(new Failure("ERR \r\n+OK")), "-ERR   +OK\r\n")
  })

  it("refuses to write a character that is no byte", () => {
    assert.throws(() => framing.replies.encode("\u20ac"), FrameError.FrameError)
  })
})
