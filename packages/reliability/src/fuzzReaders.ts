/**
 * Reads of a connection, against what they are said to do. An input is a program: how the bytes arrive (in which pieces; in
 * memory, or in a buffer that is lent and written over afterwards, as sockets have it), which reads are made of them, and the bytes
 * themselves, in which line ends, delimiters and halves of characters are frequent. How the bytes arrive must make no difference.
 */
import { type Connection, Dispatch, MemoryTransport, Server, StreamTransport } from "@socketserver/core"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { proofOf } from "./fuzzing.ts"

// ---- programs

const reads = ["readLine", "readUntil", "readExactly", "readAll", "pull", "pullBorrowed", "lines", "bytes"] as const

interface Step {
  readonly read: typeof reads[number]
  readonly maxLength: number | undefined
  /** For `readExactly`. */
  readonly length: number
  /** For `readUntil`. */
  readonly delimiter: Uint8Array
}

interface Program {
  readonly arrival: "memory" | "owned" | "lent" | "kept"
  readonly steps: ReadonlyArray<Step>
  readonly pieces: ReadonlyArray<Uint8Array>
}

const arrivals = ["memory", "owned", "lent", "kept"] as const
const maxLengths = [undefined, 0, 1, 2, 3, 5, 8, 13, 40, 300, 4_096]
const encoder = new TextEncoder()
const delimiters = ["\n", "\r\n", "ab", "aab", "\r\n\r\n", "é", "a"].map((text) => encoder.encode(text))
// A BOM, characters of two to four bytes, and some that are none.
const parts = ["\n", "\r\n", "\r", "a", "b", "ab", "aab", "é", "€", "😀", "\uFEFF", "\0"].map((text) =>
  encoder.encode(text)
)
parts.push(Uint8Array.of(0xff), Uint8Array.of(0xe2, 0x82), Uint8Array.of(0x80))

/** Every input is a program: what it lacks is zero. */
const parse = (input: Uint8Array): Program => {
  let at = 0
  const byte = () => input[at++] ?? 0
  const arrival = arrivals[byte() % arrivals.length]!
  const steps = Array.from({ length: 1 + byte() % 6 }, (): Step => ({
    read: reads[byte() % reads.length]!,
    maxLength: maxLengths[byte() % maxLengths.length],
    length: byte() % 20,
    delimiter: delimiters[byte() % delimiters.length]!
  }))
  const sizes = Array.from({ length: byte() % 12 }, () => byte())
  const content = input.subarray(at)
  const pieces: Array<Uint8Array> = []
  let from = 0
  for (const size of sizes) {
    if (from < content.length && size > 0) pieces.push(content.subarray(from, from += size))
  }
  if (from < content.length) pieces.push(content.subarray(from))
  return { arrival, steps, pieces }
}

// ---- what must come of them

type Outcome =
  | { readonly got: ReadonlyArray<Uint8Array | string> }
  | { readonly got: ReadonlyArray<Uint8Array | string>; readonly ended: "Done" | "LimitExceeded" | "UnexpectedEnd" }

const text = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8")

const line = (
  rest: Buffer,
  max: number
): { readonly text: string; readonly taken: number } | "LimitExceeded" | "Done" => {
  const end = rest.indexOf(10)
  if (end === -1 && rest.length === 0) return "Done"
  const length = end === -1 ? rest.length : end > 0 && rest[end - 1] === 13 ? end - 1 : end
  if (length > max) return "LimitExceeded"
  return { text: text(rest.subarray(0, length)), taken: end === -1 ? rest.length : end + 1 }
}

/** What a read must have given, and how many bytes it takes with that. Reads that take whatever is there say themselves what. */
const expected = (
  { delimiter, length, maxLength = 65_536, read }: Step,
  rest: Buffer,
  outcome: Outcome
): { readonly outcome: Outcome; readonly taken: number } => {
  const ends = (ended: "Done" | "LimitExceeded" | "UnexpectedEnd") => ({ outcome: { got: [], ended }, taken: 0 })
  const gives = (bytes: Uint8Array, taken = bytes.length) => ({ outcome: { got: [bytes] }, taken })
  switch (read) {
    case "readLine": {
      const next = line(rest, maxLength)
      return typeof next === "string" ? ends(next) : { outcome: { got: [next.text] }, taken: next.taken }
    }
    case "lines": {
      const got: Array<string> = []
      let taken = 0
      while (true) {
        const next = line(rest.subarray(taken), maxLength)
        if (next === "Done") return { outcome: { got }, taken }
        if (next === "LimitExceeded") return { outcome: { got, ended: next }, taken }
        got.push(next.text)
        taken += next.taken
      }
    }
    case "readUntil": {
      const index = rest.indexOf(delimiter)
      if (index !== -1 && index <= maxLength) return gives(rest.subarray(0, index), index + delimiter.length)
      // It must be found behind at most so many bytes.
      if (index !== -1 || rest.length - delimiter.length + 1 > maxLength) return ends("LimitExceeded")
      return ends(rest.length === 0 ? "Done" : "UnexpectedEnd")
    }
    case "readExactly":
      if (length > maxLength) return ends("LimitExceeded")
      if (length <= rest.length) return gives(rest.subarray(0, length))
      return ends(rest.length === 0 ? "Done" : "UnexpectedEnd")
    case "readAll":
      return rest.length > maxLength ? ends("LimitExceeded") : gives(rest)
    case "pull":
    case "pullBorrowed": {
      if (rest.length === 0) return ends("Done")
      const length = Math.min(rest.length, Math.max(1, outcome.got[0]?.length ?? 0))
      return gives(rest.subarray(0, length))
    }
    case "bytes":
      return { outcome: { got: rest.length === 0 ? [] : [rest] }, taken: rest.length }
  }
}

const show = (outcome: Outcome): string =>
  JSON.stringify({
    got: outcome.got.map((value) => typeof value === "string" ? value : Buffer.from(value).toString("latin1")),
    ...("ended" in outcome ? { ended: outcome.ended } : {})
  })

// ---- running them

const execute = (step: Step, connection: Connection.Connection): Effect.Effect<Outcome> => {
  const options = { maxLength: step.maxLength }
  const got: Array<Uint8Array | string> = []
  const one = <E>(read: Effect.Effect<Uint8Array | string, E>): Effect.Effect<void, E> =>
    Effect.map(read, (value) => {
      got.push(value)
    })
  const run = (): Effect.Effect<void, unknown> => {
    switch (step.read) {
      case "readLine":
        return one(connection.readLine(options))
      case "readUntil":
        return one(connection.readUntil(step.delimiter, options))
      case "readExactly":
        return one(connection.readExactly(step.length, options))
      case "readAll":
        return one(connection.readAll(options))
      case "pull":
        return one(connection.pull)
      case "pullBorrowed":
        // They are the connection's again at the next read.
        return one(Effect.map(connection.pullBorrowed, (bytes) => new Uint8Array(bytes)))
      case "lines":
        return Stream.runForEach(connection.lines(options), (line) => Effect.sync(() => void got.push(line)))
      case "bytes":
        return Effect.map(
          Stream.runCollect(connection.bytes),
          (all) => all.length === 0 ? undefined : void got.push(Buffer.concat(all))
        )
    }
  }
  return Effect.matchCauseEffect(Effect.suspend(run), {
    onSuccess: () => Effect.succeed({ got }),
    onFailure: (cause) => {
      const error = Cause.squash(cause) as { readonly _tag?: string; readonly reason?: { readonly _tag: string } }
      const ended = Cause.isDone(error) ? "Done" : error.reason?._tag
      return ended === "Done" || ended === "LimitExceeded" || ended === "UnexpectedEnd"
        ? Effect.succeed({ got, ended })
        : Effect.die(error)
    }
  })
}

/** Makes the reads again and again until the input has ended, or none of them can take any more; says what was wrong. */
const check = Effect.fnUntraced(function*({ pieces, steps }: Program, connection: Connection.Connection) {
  let rest = Buffer.concat(pieces)
  const given: Array<readonly [Uint8Array, string]> = []
  for (let round = 0; round < 40; round++) {
    const before = rest.length
    for (const step of steps) {
      const outcome = yield* execute(step, connection)
      const must = expected(step, rest, outcome)
      if (show(outcome) !== show(must.outcome)) {
        return `${JSON.stringify({ ...step, delimiter: text(step.delimiter) })} of ${
          JSON.stringify(rest.toString("latin1"))
        } gave ${show(outcome)} instead of ${show(must.outcome)}`
      }
      for (const value of outcome.got) {
        if (typeof value !== "string") given.push([value, Buffer.from(value).toString("latin1")])
      }
      rest = rest.subarray(must.taken)
    }
    if (rest.length === 0 || rest.length === before) break
  }
  // What a read has returned belongs to its caller for good.
  const changed = given.find(([bytes, was]) => Buffer.from(bytes).toString("latin1") !== was)
  return changed === undefined ? undefined : `${JSON.stringify(changed[1])} was given and has changed since`
})

/** A wire whose pieces come one by one, when there is time, in a buffer that is written over afterwards if it is lent. */
class PiecesWire implements StreamTransport.Wire {
  readonly peer: NetAddress.SocketAddress
  readonly local = NetAddress.unixPathAddress("pieces")
  readonly unsent = 0
  bytesRead = 0
  bytesWritten = 0
  private receiver!: StreamTransport.Receiver
  private flowing = false
  private scheduled = false
  private closed = false
  private ended = false
  private next = 0
  private readonly pieces: ReadonlyArray<Uint8Array>
  private readonly arrival: Program["arrival"]

  constructor(name: string, { arrival, pieces }: Program) {
    this.peer = NetAddress.unixPathAddress(name)
    this.pieces = pieces
    this.arrival = arrival
  }

  start(receiver: StreamTransport.Receiver): void {
    this.receiver = receiver
  }

  resume(): void {
    this.flowing = true
    this.schedule()
  }

  pause(): void {
    this.flowing = false
  }

  private schedule(): void {
    if (this.scheduled || this.ended) return
    this.scheduled = true
    queueMicrotask(() => {
      this.scheduled = false
      if (!this.flowing || this.closed || this.ended) return
      this.deliver()
      this.schedule()
    })
  }

  private deliver(): void {
    const piece = this.pieces[this.next++]
    if (piece === undefined) {
      this.ended = true
      return this.receiver.onEnd()
    }
    this.bytesRead += piece.length
    const chunk = new Uint8Array(piece)
    if (this.arrival === "owned") return this.receiver.onData(chunk)
    let kept = false
    const keep = () => {
      kept = true
    }
    this.receiver.onData(chunk, {
      copy: (bytes) => new Uint8Array(bytes),
      ...(this.arrival === "kept" ? { keep } : {})
    })
    // The next input comes into the same memory.
    if (!kept) chunk.fill(0x21)
  }

  write(chunk: Uint8Array | string): boolean {
    this.bytesWritten += chunk.length
    return true
  }

  end(): void {}

  close(): void {
    this.destroy()
  }

  destroy(): void {
    if (this.closed) return
    this.closed = true
    this.receiver.onClose()
  }
}

/** A transport of such wires; `accept` has a client connect. */
const piecesTransport = () => {
  let onConnection: (wire: StreamTransport.Wire) => void = () => {}
  const address = NetAddress.unixPathAddress("pieces")
  const layer = Layer.succeed(StreamTransport.StreamTransport, {
    name: "pieces",
    steps: [],
    listen: (accept) =>
      Effect.sync(() => {
        onConnection = accept
        return { address }
      })
  })
  return { layer, accept: (wire: StreamTransport.Wire) => onConnection(wire) }
}

export const fuzzReaders = proofOf({
  name: "fuzz-readers",
  claim: "reads give what they are said to, however the bytes come",
  short: 5_000,
  lanes: 8,
  generate: (random) => {
    const input = [...random.bytes(2 + 6 * 4)]
    const sizes = random.integer(12)
    input.push(sizes, ...Array.from({ length: sizes }, () => random.integer(random.pick([2, 4, 20, 255]))))
    const length = random.integer(random.pick([4, 30, 30, 400]))
    // Long lines are rare where every line end is as likely as a letter.
    const chosen = random.chance(0.5) ? parts : Array.from({ length: 4 }, () => random.pick(parts))
    for (let i = 0; i < length; i++) input.push(...random.pick(chosen))
    return Uint8Array.from(input)
  },
  start: async () => {
    const scope = Effect.runSync(Scope.make())
    // By the client's address.
    const programs = new Map<
      string,
      { readonly program: Program; readonly done: (wrong: string | undefined) => void }
    >()
    const serve = async (transport: Layer.Layer<StreamTransport.StreamTransport>) => {
      const layer = transport.pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream((connection) => {
          const { done, program } = programs.get((connection.peer as NetAddress.UnixPathAddress).path)!
          return Effect.onExit(
            check(program, connection),
            (exit) => Effect.sync(() => done(Exit.isSuccess(exit) ? exit.value : String(Cause.squash(exit.cause))))
          )
        })
      )
      return Context.get(await Effect.runPromise(Layer.buildWithScope(layer, scope)), Server.Server)
    }
    const inMemory = await serve(MemoryTransport.stream())
    const pieces = piecesTransport()
    const inPieces = await serve(pieces.layer)

    const connectInMemory = (name: string, program: Program) =>
      Effect.gen(function*() {
        const connection = yield* MemoryTransport.connect(inMemory.address, { from: NetAddress.unixPathAddress(name) })
        for (const piece of program.pieces) {
          yield* connection.write(piece)
          if (piece.length % 2 === 0) yield* Effect.yieldNow
        }
        yield* connection.end
        yield* Effect.ignore(connection.readAll())
      }).pipe(Effect.ignore, Effect.scoped, Effect.runPromise)

    let last = 0
    return {
      run: async (input) => {
        const program = parse(input)
        const name = `client ${++last}`
        const outcome = new Promise<string | undefined>((done) => programs.set(name, { program, done }))
        if (program.arrival === "memory") await connectInMemory(name, program)
        else pieces.accept(new PiecesWire(name, program))
        const wrong = await outcome
        programs.delete(name)
        return wrong
      },
      end: async () => {
        for (const server of [inMemory, inPieces]) {
          const { accepted, closed, open } = await Effect.runPromise(Effect.andThen(server.awaitIdle, server.stats))
          if (open !== 0 || (closed.Completed ?? 0) !== accepted) {
            throw new Error(`of ${accepted} connections ${JSON.stringify(closed)} closed, and ${open} are open`)
          }
        }
        await Effect.runPromise(Scope.close(scope, Exit.void))
      }
    }
  }
})
