/** Exits on their way from a worker: what arrives is what inline handlers would have ended with. */
import { assert, describe, it } from "@effect/vitest"
import { ConnectionError, DatagramError } from "@socketserver/core"
import { Cause, Context, Data, Duration, Effect, Exit, Option, Redactable, Redacted, Result, Schema } from "effect"
import { NetAddress } from "effect/net"
import { Socket } from "effect/socket"
import { deserialize, serialize } from "node:v8"
import { MessageChannel, receiveMessageOnPort } from "node:worker_threads"
import { decodeExit, encodeExit, type ErrorSchema } from "../src/internal/exits.ts"

/** From a thread; from a process with advanced serialization, messages are serialized by `node:v8`. */
const cross = (exit: Exit.Exit<unknown, unknown>, errorSchema?: ErrorSchema): Exit.Exit<unknown, any> =>
  decodeExit(structuredClone(encodeExit(exit, errorSchema)), errorSchema)
const crossFromProcess = (exit: Exit.Exit<unknown, unknown>): Exit.Exit<unknown, any> =>
  decodeExit(deserialize(serialize(encodeExit(exit))))

const success = (value: unknown): any => Exit.getSuccess(cross(Exit.succeed(value))).pipe(Option.getOrThrow)

const failure = (error: unknown, errorSchema?: ErrorSchema): any => {
  const exit = cross(Exit.fail(error), errorSchema)
  if (Exit.isSuccess(exit)) throw new Error("a success arrived")
  assert.deepStrictEqual(exit.cause.reasons.map((reason) => reason._tag), ["Fail"])
  return exit.cause.reasons.find(Cause.isFailReason)!.error
}

class NotFound
  extends Data.TaggedError("NotFound")<{ readonly key: string; readonly at?: Date; readonly handle?: unknown }>
{
  override get message(): string {
    return `no ${this.key}`
  }
}

class Denied extends Schema.TaggedError<Denied>()("Denied", { user: Schema.String, at: Schema.DateFromString }) {
  get shout() {
    return this.user.toUpperCase()
  }
}

describe("values", () => {
  it("data arrives as it was", () => {
    const shared = { a: 1 }
    const values: ReadonlyArray<unknown> = [
      undefined,
      null,
      "x",
      1n,
      Number.NaN,
      -0,
      [1, [undefined, 2]],
      { a: { b: null }, c: undefined },
      new Uint8Array([1, 2]),
      new Float64Array([0.5]),
      new Map<unknown, unknown>([[{ k: 1 }, new Set([1, "x"])]]),
      new Date(5),
      /x/gi,
      { "~socketserver/node/value": "Error", "parts": 1 },
      JSON.parse(`{ "__proto__": { "admin": true } }`),
      [shared, shared]
    ]
    for (const value of values) assert.deepStrictEqual(success(value), value)
    const [first, second] = success([shared, shared])
    assert.strictEqual(first, second)
  })

  it("cycles stay cycles", () => {
    const value: any = { list: [], map: new Map() }
    value.list.push(value)
    value.map.set("self", value)
    const arrived = success(value)
    assert.strictEqual(arrived.list[0], arrived)
    assert.strictEqual(arrived.map.get("self"), arrived)
  })

  it("parts of a buffer arrive without the rest of it", () => {
    const arrived = success(Buffer.from("hello").subarray(1, 3))
    assert.deepStrictEqual([...arrived], [101, 108])
    assert.strictEqual(arrived.buffer.byteLength, 2)
    assert.strictEqual(success(new DataView(new ArrayBuffer(8), 2, 3)).buffer.byteLength, 3)
    assert.deepStrictEqual(success(new Uint8Array(new SharedArrayBuffer(2))), new Uint8Array(2))
  })

  it("Effect's data types and addresses are rebuilt", () => {
    const address = NetAddress.inetAddressFromStringUnsafe("[fe80::1%2]:80")
    for (
      const value of [
        Option.none(),
        Option.some([Option.some(1)]),
        Result.succeed(1),
        Result.fail("no"),
        Exit.succeed(1),
        Exit.fail("no"),
        Cause.combine(Cause.fail("a"), Cause.die("b")),
        address,
        NetAddress.inetAddressFromStringUnsafe("1.2.3.4:5"),
        NetAddress.unixPathAddress("/run/x")
      ]
    ) {
      assert.deepStrictEqual(success({ value }), { value })
    }
    assert.isTrue(Option.isSome(success(Option.some(1))))
  })

  it("instances of other classes arrive as data, those that cannot as text", () => {
    class Point {
      readonly x = 1
      readonly nested = new Map([[
        "a",
        new (class Inner {
          readonly y = 2
        })()
      ]])
    }
    class Handle {
      readonly id = 1
      readonly close = () => {}
    }
    assert.deepStrictEqual(success(new Point()), { x: 1, nested: new Map([["a", { y: 2 }]]) })
    assert.match(success(new Handle()), /Handle \{ id: 1/)
    assert.match(success({ inner: [new Handle()] }).inner[0], /Handle/)
    assert.match(success(Promise.resolve(1)), /Promise/)
    assert.deepStrictEqual(success(Duration.seconds(1)), Duration.seconds(1).toJSON())
    assert.strictEqual(success(new URL("http://x/")), "http://x/")
    assert.deepStrictEqual(success({ f: () => 1, ok: 1 }).ok, 1)
    assert.match(success(new Proxy({ a: 1 }, {})), /a: 1/)
  })

  it("what is to be redacted arrives redacted", () => {
    const card = { number: "secret", [Redactable.symbolRedactable]: () => ({ number: "***" }) }
    assert.deepStrictEqual(success([card]), [{ number: "***" }])
    assert.notInclude(JSON.stringify(success({ password: Redacted.make("secret") })), "secret")
  })

  it("an instance that turns out not to be cloneable leaves no halves of itself behind", () => {
    const shared: { list: Array<unknown>; self?: unknown } = { list: [() => 1, 2] }
    shared.self = shared
    class Handle {
      readonly shared = shared
    }
    const [handle, arrived, again] = success([new Handle(), shared, shared])
    assert.isString(handle)
    assert.deepStrictEqual(arrived.list, ["[Function (anonymous)]", 2])
    assert.strictEqual(arrived.self, arrived)
    assert.strictEqual(again, arrived)
  })
})

describe("failures", () => {
  it("primitives and plain objects survive", () => {
    for (const error of ["x", undefined, null, 1n, { _tag: "Plain", a: [1] }, new Uint8Array([1])]) {
      assert.deepStrictEqual(failure(error), error)
    }
  })

  it("end of input stays end of input", () => {
    assert.isTrue(Cause.isDone(failure(Cause.Done())))
    assert.strictEqual(failure(Cause.Done("left")).value, "left")
  })

  it("all reasons arrive in order", () => {
    const cause = Cause.fromReasons<unknown>([
      Cause.makeDieReason(new TypeError("defect")),
      Cause.makeInterruptReason(7),
      Cause.makeFailReason("a"),
      Cause.makeInterruptReason()
    ])
    const exit = cross(Exit.failCause(cause))
    assert.isTrue(Exit.isFailure(exit))
    const { reasons } = (exit as Exit.Failure<never, unknown>).cause
    assert.deepStrictEqual(reasons.map((reason) => reason._tag), ["Die", "Interrupt", "Fail", "Interrupt"])
    assert.instanceOf((reasons[0] as Cause.Die).defect, TypeError)
    assert.strictEqual((reasons[1] as Cause.Interrupt).fiberId, 7)
  })

  it.effect("a user's tagged error is caught by its tag, and can be yielded", () =>
    Effect.gen(function*() {
      const error = new NotFound({ key: "a", at: new Date(1) })
      const arrived: NotFound = failure(error)
      assert.isTrue(Error.prototype.isPrototypeOf(arrived))
      assert.strictEqual(arrived.name, "NotFound")
      assert.strictEqual(arrived.message, "no a")
      assert.strictEqual(arrived.stack, error.stack)
      assert.deepStrictEqual(arrived.at, new Date(1))
      const yielded = Effect.gen(function*() {
        return yield* arrived
      })
      const caught = yielded.pipe(Effect.catchTag("NotFound", (error) => Effect.succeed(error.key)))
      assert.strictEqual(yield* caught, "a")
    }))

  it("an error keeps its name, message, stack, causes and fields", () => {
    const root = Object.assign(new RangeError("root"), { code: "E1" })
    const error = new AggregateError([root, "x"], "many", { cause: new Error("middle", { cause: root }) })
    error.name = "Custom"
    const arrived = failure(error)
    assert.isTrue(AggregateError.prototype.isPrototypeOf(arrived))
    assert.strictEqual(arrived.stack, error.stack)
    assert.strictEqual(String(arrived), "Custom: many")
    assert.instanceOf(arrived.errors[0], RangeError)
    assert.strictEqual(arrived.cause.cause.code, "E1")
    assert.strictEqual(arrived.cause.cause, arrived.errors[0])
    assert.deepStrictEqual(Object.keys(arrived.cause), [])
  })

  it("an error that refers to itself does so again", () => {
    const error: any = new Error("x")
    error.cause = error
    error.list = [error]
    const arrived = failure(error)
    assert.strictEqual(arrived.cause, arrived)
    assert.strictEqual(arrived.list[0], arrived)
  })

  it("a field that cannot leave the worker is told as text, the others stay", () => {
    const arrived = failure(new NotFound({ key: "a", handle: () => 1 }))
    assert.strictEqual(arrived.key, "a")
    assert.match(arrived.handle, /Function/)
  })

  it("errors of connections are instances of their classes", () => {
    const reasons = [
      new ConnectionError.Reset(),
      new ConnectionError.Closed({ what: "output" }),
      new ConnectionError.Timeout({ deadline: "idleTimeout" }),
      new ConnectionError.LimitExceeded({ operation: "readLine", limit: 5 }),
      new ConnectionError.UnexpectedEnd({ operation: "readExactly", received: 5 }),
      new ConnectionError.Failed({ cause: Object.assign(new Error("no route"), { code: "EHOSTUNREACH" }) })
    ]
    for (const reason of reasons) {
      const error = new ConnectionError.ConnectionError({ reason, connection: 3, peer: "1.2.3.4:5" })
      const arrived = failure(error)
      assert.instanceOf(arrived, ConnectionError.ConnectionError)
      assert.instanceOf(arrived.reason, reason.constructor as any)
      assert.deepStrictEqual([arrived.message, arrived.stack], [error.message, error.stack])
      assert.deepStrictEqual(Object.keys(arrived), Object.keys(error))
      assert.deepStrictEqual(arrived, error)
    }
  })

  it("errors of datagrams are instances of their classes, with an address", () => {
    const reasons = [
      new DatagramError.NoReturnAddress(),
      new DatagramError.TooLarge({ length: 70_000 }),
      new DatagramError.Unreachable({ cause: new Error("x") }),
      new DatagramError.Closed(),
      new DatagramError.Failed({ cause: "x" })
    ]
    for (const reason of reasons) {
      const peer = NetAddress.inetAddressFromStringUnsafe("[fe80::1%2]:80")
      const error = new DatagramError.DatagramError({ reason, peer })
      const arrived = failure(error)
      assert.instanceOf(arrived, DatagramError.DatagramError)
      assert.instanceOf(arrived.reason, reason.constructor as any)
      assert.isTrue(NetAddress.isInetAddress(arrived.peer))
      assert.strictEqual(arrived.message, error.message)
    }
  })

  it("errors of Effect are recognized", () => {
    assert.isTrue(Cause.isTimeoutError(failure(new Cause.TimeoutError("late"))))
    assert.instanceOf(failure(new Cause.UnknownError(new Error("x"), "y")), Cause.UnknownError)
    const error = failure(new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1000 }) }))
    assert.isTrue(Socket.isSocketError(error))
    assert.instanceOf(error, Socket.SocketError)
    assert.strictEqual(error.reason._tag, "SocketCloseError")
  })

  it.effect("a pretty cause names the spans that the failure went through", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.fail(new NotFound({ key: "x" })).pipe(
        Effect.withSpan("inner"),
        Effect.withSpan("outer"),
        Effect.exit
      )
      const pretty = (exit: Exit.Exit<unknown, unknown>) => Exit.isFailure(exit) ? Cause.pretty(exit.cause) : ""
      assert.include(pretty(exit), "inner")
      assert.strictEqual(pretty(cross(exit)), pretty(exit))
    }))
})

describe("failures with a schema", () => {
  it("come back as instances of the user's class", () => {
    const error = new Denied({ user: "ada", at: new Date(5) })
    const arrived = failure(error, Denied)
    assert.instanceOf(arrived, Denied)
    assert.strictEqual(arrived.shout, "ADA")
    assert.deepStrictEqual(arrived.at, new Date(5))
    assert.strictEqual(arrived.stack, error.stack)
  })

  it("that the schema does not cover cross as without one", () => {
    assert.strictEqual(failure(new NotFound({ key: "a" }), Denied)._tag, "NotFound")
    assert.isTrue(Cause.isDone(failure(Cause.Done(), Denied)))
  })

  it("that do not decode are defects", () => {
    const encoded = structuredClone(encodeExit(Exit.fail("x"), Schema.String))
    const exit = decodeExit(encoded, Schema.Number)
    assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause) && !Cause.hasFails(exit.cause))
  })

  it("whose codec throws cross as without one", () => {
    const Throwing = Schema.declare((_u): _u is string => {
      throw new Error("bad codec")
    })
    assert.strictEqual(failure("x", Throwing), "x")
  })
})

describe("whatever there is", () => {
  const throwing = () => {
    throw new Error("no")
  }
  const endless = (): object =>
    new Proxy({}, {
      get: endless,
      ownKeys: () => ["a", "b"],
      getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true, value: 1 })
    })
  const deep = (levels: number): unknown => {
    let value: any = {}
    for (let i = 0; i < levels; i++) value = i % 2 === 0 ? { value } : new Error("deep", { cause: value })
    return value
  }
  const detached = () => {
    const buffer = new ArrayBuffer(8)
    const view = new Uint8Array(buffer)
    structuredClone(buffer, { transfer: [buffer] })
    return [buffer, view, new DataView(new ArrayBuffer(1))]
  }
  const hostile: ReadonlyArray<() => unknown> = [
    () => () => 1,
    () => NotFound,
    () => Symbol("s"),
    () => Object(Symbol("s")),
    () => new Proxy({}, { get: throwing, ownKeys: throwing, getPrototypeOf: throwing, has: throwing }),
    () => new Proxy(new Error("x"), { get: throwing, getPrototypeOf: throwing }),
    () => new Proxy(throwing, { get: throwing }),
    endless,
    () => Object.create(new Proxy({}, { get: throwing, getPrototypeOf: throwing, has: throwing })),
    () => ({
      get a() {
        return throwing()
      },
      b: 1
    }),
    () =>
      new (class {
        toJSON = throwing
      })(),
    () => Object.assign(new Error("x"), { toJSON: throwing, toString: throwing }),
    () =>
      Object.defineProperties(new Error("x"), {
        message: { get: throwing },
        stack: { get: throwing },
        name: { get: throwing }
      }),
    () => Object.assign(new Error("x"), { name: Symbol("n"), message: () => 1, stack: new Proxy({}, {}) }),
    () => Object.assign(new Error("x"), { stack: "at x\n".repeat(100_000) }),
    () => ({ [Symbol.toStringTag]: "X", [Symbol.iterator]: throwing, [Symbol.toPrimitive]: throwing, f: throwing }),
    () => ({
      get [Symbol.toStringTag]() {
        return throwing()
      }
    }),
    () => Object.create(null),
    () => Object.create({ constructor: null }),
    () => deep(10_000),
    () => detached(),
    () => new WeakMap(),
    () => Promise.resolve(1),
    () => (function*() {})(),
    () => globalThis,
    () => process.stdout,
    () => new MessageChannel().port1,
    () => new Map<unknown, unknown>([[throwing, throwing]]),
    () => Effect.succeed(1),
    () => Context.empty(),
    () => new AbortController().signal,
    () => new DOMException("x", "AbortError"),
    () => Redacted.make("secret")
  ]

  /** The same sequence in every run. */
  const random = (seed: number) => (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fffffff
    return (seed >> 8) % below
  }

  const generate = (next: (below: number) => number, known: Array<unknown>, depth: number): unknown => {
    const part = () => generate(next, known, depth - 1)
    const made = ((): unknown => {
      switch (depth === 0 ? next(3) : next(11)) {
        case 0:
          return hostile[next(hostile.length)]!()
        case 1:
          return known.length === 0 ? next(100) : known[next(known.length)]
        case 2:
          return [undefined, "x", 1n, new Date(), Cause.Done()][next(5)]
        case 3:
          return { a: part(), b: part(), ["~socketserver/node/value"]: part() }
        case 4:
          return [part(), part()]
        case 5:
          return new Map([[part(), part()]])
        case 6:
          return new Error("x", { cause: part() })
        case 7:
          return new NotFound({ key: "k", handle: part() })
        case 8:
          return Option.some(part())
        case 9:
          return Cause.fromReasons([Cause.makeFailReason(part()), Cause.makeDieReason(part())])
        default: {
          const cyclic: any = new (class Node {
            readonly child = part()
          })()
          cyclic.self = [cyclic]
          return cyclic
        }
      }
    })()
    known.push(made)
    return made
  }

  it("crosses without throwing, each kind in each place", () => {
    for (const make of hostile) {
      for (
        const exit of [
          Exit.succeed(make()),
          Exit.fail(make()),
          Exit.die(make()),
          Exit.fail(new NotFound({ key: "k", handle: make() })),
          Exit.die(new Error("x", { cause: make() }))
        ]
      ) {
        assert.strictEqual(cross(exit)._tag, exit._tag)
        assert.strictEqual(crossFromProcess(exit)._tag, exit._tag)
        assert.strictEqual(cross(exit, Schema.Union([Denied, Schema.Unknown]))._tag, exit._tag)
      }
    }
  })

  it("crosses without throwing, in any combination", () => {
    for (let seed = 1; seed <= 300; seed++) {
      const value = generate(random(seed), [], 4)
      assert.doesNotThrow(() => cross(Exit.succeed(value)), `seed ${seed}`)
      assert.doesNotThrow(() => crossFromProcess(Exit.failCause(Cause.die(value))), `seed ${seed}`)
    }
  })

  it("arrives the same through a port as through a clone", () => {
    const { port1, port2 } = new MessageChannel()
    const error = new ConnectionError.ConnectionError({ reason: new ConnectionError.Reset(), connection: 1, peer: "x" })
    port1.postMessage(encodeExit(Exit.fail(error)))
    const exit = decodeExit(receiveMessageOnPort(port2)!.message)
    assert.deepStrictEqual(exit, cross(Exit.fail(error)))
    port1.close()
  })
})
