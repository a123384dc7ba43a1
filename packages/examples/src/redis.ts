/**
 * A small Redis: strings with a time to live, lists, channels. Its commands are one table, its handler a function from command to
 * reply; `redis-cli` and `redis-benchmark` do not notice. Nothing is saved.
 */
import { Dispatch, type FrameError, type Message, type MessageTransport, Server, Transport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Effect, Layer, Schedule, Stream } from "effect"
import { NetAddress } from "effect/net"
import { Channels } from "./Channels.ts"
import { type Entry, itemOverhead, KeyValues, List } from "./KeyValues.ts"
import { type Command, copyOf, Failure, type Reply, resp, Status } from "./resp.ts"
import { isMain, runServer } from "./run.ts"

type Request = Message.Message<Command, Reply>
type Answer = Reply | Stream.Stream<Reply>

interface CommandSpec {
  /** How many words it has, its name included; at least so many where it is negative. */
  readonly arity: number
  /** May it take more memory? It is refused when there is none left. */
  readonly grows?: true
  /** May one who listens to a channel send it? */
  readonly whileListening?: true
  /** The reply, where that is all. */
  readonly run?: (args: Command, request: Request) => Reply
  /** Otherwise: what is done, and the replies. */
  readonly effect?: (args: Command, request: Request) => Effect.Effect<Answer>
}

const ok = new Status("OK")
const pong = new Status("PONG")
const notAnInteger = "ERR value is not an integer or out of range"
const syntaxError = "ERR syntax error"
/** More than one reply may have: nobody can ask for a value a thousand times at once. */
const maxReply = 2 ** 26
const maxChannels = 1_024
const maxChannelName = 1_024
const maxPattern = 256

const fail = (message: string): never => {
  throw new Failure(message)
}

const wrongType = () => fail("WRONGTYPE Operation against a key holding the wrong kind of value")

// ---- what arguments mean

const int64 = (text: string, error = notAnInteger): bigint => {
  const value = /^(?:0|-?[1-9]\d{0,18})$/.test(text) ? BigInt(text) : undefined
  return value !== undefined && BigInt.asIntN(64, value) === value ? value : fail(error)
}

const integer = (text: string, error?: string): number => Number(int64(text, error))

/** When that is, so many milliseconds from now; a time that is no date any more is none. */
const timeIn = (now: number, millis: number, command: string): number =>
  Math.abs(now + millis) < 8.64e15 ? now + millis : fail(`ERR invalid expire time in '${command}' command`)

/** From and to which item, of so many, negative numbers counting from the end. */
const range = (from: string, to: string, length: number): readonly [number, number] => {
  const absolute = (index: number) => index < 0 ? index + length : index
  return [Math.max(0, absolute(integer(from))), Math.min(length - 1, absolute(integer(to)))]
}

/**
 * What matches a pattern of `*`, `?`, `[a-z]`, `[^a-z]` and `\`. Where a `*` has taken too little, only the last one is tried
 * with more, so the time is at most the product of both lengths, whatever the pattern.
 */
const matcher = (pattern: string): (text: string) => boolean => {
  if (pattern.length > maxPattern) fail("ERR the pattern is too long")
  const parts = pattern.match(/\*+|\[\^?(?:\\[^]|[^\]\\])*\]?|\\[^]|[^]/g)?.map(partOf) ?? []
  return (text) => {
    let [at, i, star, starAt] = [0, 0, -1, 0]
    while (at < text.length) {
      const part = parts[i]
      if (part === "*") [star, starAt] = [i++, at]
      else if (part?.(text[at]!)) [at, i] = [at + 1, i + 1]
      else if (star === -1) return false
      else [i, at] = [star + 1, ++starAt]
    }
    return parts.slice(i).every((part) => part === "*")
  }
}

const partOf = (part: string): "*" | ((character: string) => boolean) => {
  if (part[0] === "*") return "*"
  if (part === "?") return () => true
  if (part[0] !== "[") return (character) => character === part.at(-1)
  const isNegative = part[1] === "^"
  const ranges = [...part.slice(isNegative ? 2 : 1).replace(/(?<!\\)\]$/, "").matchAll(/(\\?[^])(?:-(\\?[^]))?/g)]
    .map(([, from, to]) => [from!.at(-1)!, (to ?? from)!.at(-1)!].toSorted())
  return (character) => ranges.some(([from, to]) => from! <= character && character <= to!) !== isNegative
}

// ---- the commands

const typeOf = (entry: Entry | undefined): Status =>
  new Status(entry === undefined ? "none" : typeof entry.value === "string" ? "string" : "list")

const count = (keys: Command, isOne: (key: string) => boolean): number =>
  keys.slice(1).reduce((sum, key) => sum + (isOne(key) ? 1 : 0), 0)

/** A reply for each, one behind the other. */
const each = (names: Command, answer: (name: string) => Reply): Effect.Effect<Answer> =>
  Effect.succeed(Stream.fromIterable(names.map(answer)))

const commandsOf = (store: KeyValues["Service"], channels: Channels["Service"]): Record<string, CommandSpec> => {
  const text = (key: string): string | null => {
    const value = store.get(key)?.value ?? null
    return value instanceof List ? wrongType() : value
  }
  const list = (key: string): List | undefined => {
    const value = store.get(key)?.value
    return typeof value === "string" ? wrongType() : value
  }

  const set = (args: Command): Reply => {
    const key = args[1]!
    const value = args[2]!
    let expiresAt = Infinity
    let condition: string | undefined
    for (let i = 3; i < args.length; i++) {
      const option = args[i]!.toUpperCase()
      if ((option === "EX" || option === "PX") && expiresAt === Infinity && i + 1 < args.length) {
        const time = integer(args[++i]!)
        if (time <= 0) fail("ERR invalid expire time in 'set' command")
        expiresAt = timeIn(store.now(), option === "EX" ? time * 1_000 : time, "set")
      } else if ((option === "NX" || option === "XX") && condition === undefined) condition = option
      else fail(syntaxError)
    }
    if (condition !== undefined && (store.get(key) !== undefined) !== (condition === "XX")) return null
    store.set(key, value, expiresAt)
    return ok
  }

  const add = (key: string, by: bigint): bigint => {
    const entry = store.get(key)
    const sum = int64(text(key) ?? "0") + by
    if (BigInt.asIntN(64, sum) !== sum) fail("ERR increment or decrement would overflow")
    store.set(key, String(sum), entry?.expiresAt)
    return sum
  }

  const append = (key: string, more: string): number => {
    const before = text(key)
    const entry = store.get(key)
    if (before === null || entry === undefined) return store.set(key, more).value.length
    if (before.length + more.length > maxReply) {
      fail("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    }
    entry.value = before + copyOf(more)
    store.grow(entry, more.length + itemOverhead)
    return entry.value.length
  }

  const push = (end: "pushFirst" | "pushLast") => ([, key, ...items]: Command): number => {
    const found = list(key!) ?? new List()
    const entry = store.get(key!) ?? store.set(key!, found)
    for (const item of items) {
      found[end](item)
      store.grow(entry, item.length + itemOverhead)
    }
    return found.length
  }

  const pop = (end: "popFirst" | "popLast") => ([, key, count]: Command): Reply => {
    const most = count === undefined ? 1 : integer(count, "ERR value is out of range, must be positive")
    if (most < 0) fail("ERR value is out of range, must be positive")
    const found = list(key!)
    if (found === undefined) return null
    const items: Array<string> = []
    while (items.length < most && found.length > 0) items.push(found[end]()!)
    const entry = store.get(key!)!
    for (const item of items) store.grow(entry, -(item.length + itemOverhead))
    // An empty list is none.
    if (found.length === 0) store.delete(key!)
    return count === undefined ? items[0]! : items
  }

  const expire = (name: string, unit: number) => ([, key, time]: Command): number => {
    const at = timeIn(store.now(), integer(time!) * unit, name)
    const entry = store.get(key!)
    if (entry === undefined) return 0
    if (at <= store.now()) store.delete(key!)
    else store.expire(entry, at)
    return 1
  }

  const ttl = (unit: number) => ([, key]: Command): number => {
    const entry = store.get(key!)
    if (entry === undefined) return -2
    return entry.expiresAt === Infinity ? -1 : Math.round((entry.expiresAt - store.now()) / unit)
  }

  const keysLike = (pattern: string): Array<string> => [...store.keys()].filter(matcher(pattern))

  /** All at once: the cursor that is returned says that there is no more. */
  const scan = ([, cursor, ...options]: Command): Reply => {
    integer(cursor!, "ERR invalid cursor")
    let pattern = "*"
    for (let i = 0; i < options.length; i += 2) {
      const [option, value = fail(syntaxError)] = [options[i]!.toUpperCase(), options[i + 1]]
      if (option === "MATCH") pattern = value
      else if (option !== "COUNT" || integer(value) < 1) fail(syntaxError)
    }
    return ["0", cursor === "0" ? keysLike(pattern) : []]
  }

  const mget = ([, ...keys]: Command): Reply => {
    let size = 0
    return keys.map((key) => {
      const value = store.get(key)?.value
      if (typeof value !== "string") return null
      size += value.length
      return size > maxReply ? fail("ERR the reply would be too long") : value
    })
  }

  const mset = ([, ...pairs]: Command): Reply => {
    if (pairs.length % 2 === 1) fail("ERR wrong number of arguments for 'mset' command")
    for (let i = 0; i < pairs.length; i += 2) store.set(pairs[i]!, pairs[i + 1]!)
    return ok
  }

  const subscribe = ([, ...names]: Command, { sender }: Request): Effect.Effect<Answer> => {
    if (names.some((name) => name.length > maxChannelName)) fail("ERR the name of a channel is too long")
    if (channels.of(sender).size + names.length > maxChannels) fail("ERR too many channels")
    return each(names, (name) => {
      channels.join(sender, name)
      return ["subscribe", name, channels.of(sender).size]
    })
  }

  const unsubscribe = ([, ...names]: Command, { sender }: Request): Effect.Effect<Answer> => {
    const left = names.length > 0 ? names : [...channels.of(sender)]
    if (left.length === 0) return Effect.succeed(["unsubscribe", null, 0])
    return each(left, (name) => {
      channels.leave(sender, name)
      return ["unsubscribe", name, channels.of(sender).size]
    })
  }

  const ping = (args: Command, { sender }: Request): Reply =>
    channels.of(sender).size > 0 ? ["pong", args[1] ?? ""] : args[1] ?? pong

  const hello = ([, version = "2"]: Command, { sender }: Request): Reply =>
    version === "2"
      ? [
        "server",
        "redis",
        "version",
        "7.0.0",
        "proto",
        2,
        "id",
        sender.id,
        "mode",
        "standalone",
        "role",
        "master",
        "modules",
        []
      ]
      : fail("NOPROTO unsupported protocol version")

  const names = new WeakMap<Request["sender"], string>()

  const client = ([, subcommand, value]: Command, { sender }: Request): Effect.Effect<Answer> => {
    switch (subcommand!.toUpperCase()) {
      case "ID":
        return Effect.succeed(sender.id)
      case "GETNAME":
        return Effect.succeed(names.get(sender) ?? null)
      case "SETINFO":
        return Effect.succeed(ok)
      case "SETNAME":
        if (value === undefined) return fail("ERR wrong number of arguments for 'client|setname' command")
        if (!/^[!-~]{0,64}$/.test(value)) {
          return fail("ERR Client names cannot contain spaces, newlines or special characters.")
        }
        names.set(sender, copyOf(value))
        // For whoever looks at the server's connections.
        return Effect.as(sender.annotate("name", copyOf(value)), ok)
      default:
        return fail(`ERR unknown subcommand '${subcommand!.slice(0, 128)}'. Try CLIENT HELP.`)
    }
  }

  const settings: Readonly<Record<string, string>> = { appendonly: "no", databases: "1", save: "" }

  const config = ([, subcommand, ...patterns]: Command): Reply =>
    subcommand!.toUpperCase() === "GET"
      ? Object.entries(settings).filter(([name]) => patterns.some((pattern) => matcher(pattern)(name))).flat()
      : fail(`ERR unknown subcommand '${subcommand!.slice(0, 128)}'. Try CONFIG HELP.`)

  const info = (): Reply =>
    [
      "# Server",
      "redis_version:7.0.0",
      "redis_mode:standalone",
      "# Memory",
      `used_memory:${store.bytes}`,
      "# Keyspace",
      `db0:keys=${store.size}`,
      ""
    ].join("\r\n")

  const flush = () => {
    store.clear()
    return ok
  }

  /** A browser that was made to post to this port: what follows is not to be read as commands. */
  const misled: CommandSpec = {
    arity: -1,
    effect: (_, { sender }) => Effect.as(sender.close, new Failure("ERR this is no web server"))
  }

  return {
    "PING": { arity: -1, whileListening: true, run: ping },
    "ECHO": { arity: 2, run: ([, text]) => text! },
    "QUIT": { arity: -1, whileListening: true, effect: (_, { sender }) => Effect.as(sender.close, ok) },
    "SELECT": { arity: 2, run: ([, index]) => integer(index!) === 0 ? ok : fail("ERR DB index is out of range") },
    "HELLO": { arity: -1, run: hello },
    "CLIENT": { arity: -2, effect: client },
    "CONFIG": { arity: -2, run: config },
    "COMMAND": { arity: -1, run: () => [] },
    "INFO": { arity: -1, run: info },
    "POST": misled,
    "HOST:": misled,

    "SET": { arity: -3, grows: true, run: set },
    "GET": { arity: 2, run: (args) => text(args[1]!) },
    "MSET": { arity: -3, grows: true, run: mset },
    "MGET": { arity: -2, run: mget },
    "APPEND": { arity: 3, grows: true, run: ([, key, more]) => append(key!, more!) },
    "STRLEN": { arity: 2, run: ([, key]) => text(key!)?.length ?? 0 },
    "INCR": { arity: 2, grows: true, run: (args) => add(args[1]!, 1n) },
    "DECR": { arity: 2, grows: true, run: (args) => add(args[1]!, -1n) },
    "INCRBY": { arity: 3, grows: true, run: ([, key, by]) => add(key!, int64(by!)) },

    "LPUSH": { arity: -3, grows: true, run: push("pushFirst") },
    "RPUSH": { arity: -3, grows: true, run: push("pushLast") },
    "LPOP": { arity: -2, run: pop("popFirst") },
    "RPOP": { arity: -2, run: pop("popLast") },
    "LLEN": { arity: 2, run: ([, key]) => list(key!)?.length ?? 0 },
    "LRANGE": {
      arity: 4,
      run: ([, key, start, stop]) => {
        const found = list(key!)
        const [from, to] = range(start!, stop!, found?.length ?? 0)
        return Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => found!.at(from + i))
      }
    },

    "DEL": { arity: -2, run: (args) => count(args, store.delete) },
    "EXISTS": { arity: -2, run: (args) => count(args, (key) => store.get(key) !== undefined) },
    "TYPE": { arity: 2, run: ([, key]) => typeOf(store.get(key!)) },
    "EXPIRE": { arity: 3, run: expire("expire", 1_000) },
    "PEXPIRE": { arity: 3, run: expire("pexpire", 1) },
    "TTL": { arity: 2, run: ttl(1_000) },
    "PTTL": { arity: 2, run: ttl(1) },
    "PERSIST": {
      arity: 2,
      run: ([, key]) => {
        const entry = store.get(key!)
        if (entry === undefined || entry.expiresAt === Infinity) return 0
        store.expire(entry, Infinity)
        return 1
      }
    },
    "KEYS": { arity: 2, run: ([, pattern]) => keysLike(pattern!) },
    "SCAN": { arity: -2, run: scan },
    "DBSIZE": { arity: 1, run: () => store.size },
    "FLUSHDB": { arity: -1, run: flush },
    "FLUSHALL": { arity: -1, run: flush },

    "PUBLISH": { arity: 3, run: ([, channel, text]) => channels.publish(channel!, text!) },
    "SUBSCRIBE": { arity: -2, whileListening: true, effect: subscribe },
    "UNSUBSCRIBE": { arity: -1, whileListening: true, effect: unsubscribe }
  }
}

// ---- the server

const quoted = (args: Command): string =>
  args.slice(0, 20).map((arg) => `'${arg.slice(0, 128)}' `).join("").slice(0, 128)

const handlerOf = (store: KeyValues["Service"], channels: Channels["Service"]) => {
  const commands = new Map(Object.entries(commandsOf(store, channels)))

  const answer = (request: Request): Effect.Effect<Answer> => {
    const args = request.payload
    const name = args[0]!
    const command = commands.get(name) ?? commands.get(name.slice(0, 128).toUpperCase())
    if (command === undefined) {
      return fail(`ERR unknown command '${name.slice(0, 128)}', with args beginning with: ${quoted(args.slice(1, 21))}`)
    }
    if (command.arity < 0 ? args.length < -command.arity : args.length !== command.arity) {
      return fail(`ERR wrong number of arguments for '${name.toLowerCase()}' command`)
    }
    if (command.grows && store.isFull) return fail("OOM command not allowed when used memory > 'maxmemory'.")
    if (!command.whileListening && channels.of(request.sender).size > 0) {
      return fail(
        `ERR Can't execute '${name.toLowerCase()}': only SUBSCRIBE / UNSUBSCRIBE / PING / QUIT are allowed in this context`
      )
    }
    return command.run === undefined ? command.effect!(args, request) : Effect.succeed(command.run(args, request))
  }

  return (request: Request): Effect.Effect<Answer> => {
    try {
      return answer(request)
    } catch (error) {
      if (error instanceof Failure) return Effect.succeed(error)
      throw error
    }
  }
}

const protocolError = ({ reason }: FrameError.FrameError): Failure =>
  new Failure(`ERR Protocol error: ${reason._tag === "Malformed" ? reason.detail : reason.message}`)

type Transported = Layer.Layer<MessageTransport.MessageTransport<Command, Reply> | Dispatch.Dispatch>

export const serveRedis = (transported: Transported) =>
  Layer.unwrap(Effect.gen(function*() {
    const store = yield* KeyValues
    return transported.pipe(
      Server.serveMessage(handlerOf(store, yield* Channels), {
        onInvalid: (error) => Effect.succeed(protocolError(error)),
        maxConnections: 10_000,
        readTimeout: "1 minute",
        writeTimeout: "10 seconds"
      }),
      Server.every(Schedule.spaced("100 millis"), Effect.sync(store.sweep))
    )
  }))

export const framing = resp()

export const Redis = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Transport.framed(framing),
    Dispatch.fiberPerRequest({ maxInFlight: 1_024 }),
    serveRedis
  )

if (isMain(import.meta)) {
  runServer(
    "redis",
    6390,
    (port) => Layer.provide(Redis(port), [KeyValues.layer(), Channels.layer]),
    (address) => `redis-cli -p ${NetAddress.isInetAddress(address) ? address.port : 6390}`
  )
}
