/**
 * Values on their way between a server and its workers, by structured clone. A clone alone would lose what the other side
 * looks at (an error's `_tag`, the class of an `Option`, the address in a `DatagramError`) and would throw at a function or
 * a socket somewhere inside. So a value is encoded first, into data that can always be cloned: errors, Effect's common data
 * types and addresses as marked objects, which are built again on the other side, and what cannot leave its thread as a
 * string for people.
 *
 * Instances of other classes arrive as what their `toJSON` gives, else as plain objects of their fields, as from a clone;
 * if a field cannot be cloned, the instance becomes a string as a whole. Memory is copied, never shared or transferred.
 */
import * as ConnectionError from "@socketserver/core/ConnectionError"
import * as DatagramError from "@socketserver/core/DatagramError"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Redactable from "effect/Redactable"
import type { StackFrame } from "effect/References"
import * as Result from "effect/Result"
import * as Socket from "effect/socket/Socket"
import { inspect, types } from "node:util"

/** What `encodeValue` returns: primitives, and objects that a structured clone takes. */
export type EncodedValue = unknown

/** Names what a marked object stands for. A user's object that has such a key itself is marked as `Object`. */
const marker = "~socketserver/node/value"

/** Values nested deeper (chains of causes among them) are cut off. */
const maxDepth = 200

/** A data type of Effect's: rebuilt by `make` from the values that `parts` takes it apart into. */
interface DataType<A> {
  readonly is: (value: unknown) => value is A
  readonly parts: (value: A) => ReadonlyArray<unknown>
  readonly make: (parts: ReadonlyArray<any>) => unknown
}
const dataType = <A>(type: DataType<A>): DataType<any> => type

const ipv6 = (parts: ReadonlyArray<number>) => NetAddress.ipv6FromBytesUnsafe(Uint8Array.from(parts))
const ipv4 = (parts: ReadonlyArray<number>) => NetAddress.ipv4FromBytesUnsafe(Uint8Array.from(parts))

const dataTypes: Readonly<Record<string, DataType<any>>> = {
  Done: dataType({
    is: Cause.isDone,
    parts: (done) => [done.value],
    make: ([value]) => Cause.Done(value)
  }),
  Option: dataType({
    is: Option.isOption,
    parts: Option.match({ onNone: () => [], onSome: (value) => [value] }),
    make: (parts) => parts.length === 0 ? Option.none() : Option.some(parts[0])
  }),
  Result: dataType({
    is: Result.isResult,
    parts: (result) => Result.isSuccess(result) ? [true, result.success] : [false, result.failure],
    make: ([success, value]) => success ? Result.succeed(value) : Result.fail(value)
  }),
  Cause: dataType({
    is: Cause.isCause,
    parts: (cause) => cause.reasons,
    make: Cause.fromReasons
  }),
  Reason: dataType({
    is: Cause.isReason,
    parts: (reason) => {
      const annotations = Cause.reasonAnnotations(reason)
      return [
        reason._tag,
        Cause.isFailReason(reason) ? reason.error : Cause.isDieReason(reason) ? reason.defect : reason.fiberId,
        framesOf(Context.getOption(annotations, Cause.StackTrace)),
        framesOf(Context.getOption(annotations, Cause.InterruptorStackTrace))
      ]
    },
    make: ([tag, value, stack, interruptor]) => {
      const reason: Cause.Reason<unknown> = tag === "Fail"
        ? Cause.makeFailReason(value)
        : tag === "Die"
        ? Cause.makeDieReason(value)
        : Cause.makeInterruptReason(value)
      return reason.annotate(
        Context.empty().pipe(
          Context.addOrOmit(Cause.StackTrace, stackFrame(stack)),
          Context.addOrOmit(Cause.InterruptorStackTrace, stackFrame(interruptor))
        )
      )
    }
  }),
  Exit: dataType({
    is: Exit.isExit,
    parts: (exit) => Exit.isSuccess(exit) ? [true, exit.value] : [false, exit.cause],
    make: ([success, value]) => success ? Exit.succeed(value) : Exit.failCause(value)
  }),
  Ipv4Address: dataType({
    is: NetAddress.isIpv4Address,
    parts: NetAddress.ipv4ToOctets,
    make: ipv4
  }),
  Ipv6Address: dataType({
    is: NetAddress.isIpv6Address,
    parts: NetAddress.ipv6ToOctets,
    make: ipv6
  }),
  InetAddress: dataType({
    is: NetAddress.isInetAddress,
    parts: (self) => [self.address, self.port, NetAddress.isInetAddressV6(self) ? self.scopeId : 0],
    make: ([address, port, scopeId]) => NetAddress.inetAddressFromInputUnsafe({ address, port, scopeId })
  }),
  UnixPathAddress: dataType({
    is: NetAddress.isUnixPathAddress,
    parts: (self) => [self.path],
    make: ([path]) => NetAddress.unixPathAddress(path)
  })
}

/** The spans that a failure went through, as far as Effect prints them. Their stacks are computed when printed: so here. */
const framesOf = (
  frame: Option.Option<StackFrame>
): ReadonlyArray<readonly [name: string, stack: string | undefined]> => {
  const frames: Array<readonly [string, string | undefined]> = []
  let current = Option.getOrUndefined(frame)
  while (current !== undefined && frames.length < 10) {
    frames.push([current.name, current.stack()])
    current = current.parent
  }
  return frames
}

const stackFrame = (
  frames: ReadonlyArray<readonly [name: string, stack: string | undefined]>
): Option.Option<StackFrame> =>
  Option.fromUndefinedOr(
    frames.reduceRight<StackFrame | undefined>(
      (parent, [name, stack]) => ({ name, stack: () => stack, parent }),
      undefined
    )
  )

/** Errors that are instances of their classes on the other side too. `Data` stands for any other error of Effect's. */
const errorClasses: Readonly<Record<string, { readonly prototype: Error }>> = {
  ...prefixed("ConnectionError/", ConnectionError),
  ...prefixed("DatagramError/", DatagramError),
  SocketError: Socket.SocketError,
  SocketReadError: Socket.SocketReadError,
  SocketWriteError: Socket.SocketWriteError,
  SocketOpenError: Socket.SocketOpenError,
  SocketUpgradeError: Socket.SocketUpgradeError,
  SocketCloseError: Socket.SocketCloseError,
  NoSuchElementError: Cause.NoSuchElementError,
  TimeoutError: Cause.TimeoutError,
  IllegalArgumentError: Cause.IllegalArgumentError,
  ExceededCapacityError: Cause.ExceededCapacityError,
  UnknownError: Cause.UnknownError,
  Data: Data.Error,
  AggregateError,
  EvalError,
  RangeError,
  ReferenceError,
  SyntaxError,
  TypeError,
  URIError
}

function prefixed<A>(prefix: string, module: Readonly<Record<string, A>>): Readonly<Record<string, A>> {
  return Object.fromEntries(Object.entries(module).map(([name, value]) => [prefix + name, value]))
}

const nameOfClass = new Map(Object.entries(errorClasses).map(([name, { prototype }]) => [prototype, name]))

/** The nearest of those classes, so that a user's `class extends TypeError` arrives as a `TypeError`. */
const errorClassOf = (error: object): string | undefined => {
  for (let prototype = Object.getPrototypeOf(error); prototype !== null; prototype = Object.getPrototypeOf(prototype)) {
    const name = nameOfClass.get(prototype)
    if (name !== undefined) return name
  }
  return undefined
}

/** Properties of errors that are usually not enumerable, and kept nevertheless. */
const hiddenProperties = ["cause", "errors"]

interface MarkedError {
  readonly [marker]: "Error"
  readonly class: string | undefined
  readonly name: unknown
  readonly message: unknown
  readonly stack: unknown
  readonly fields: Record<string, EncodedValue>
  readonly hidden: Record<string, EncodedValue>
}

const setProperty = (target: object, key: string, value: unknown, enumerable = true): void => {
  Object.defineProperty(target, key, { value, enumerable, writable: true, configurable: true })
}

/** `key` may be `__proto__`, which an assignment would take for the prototype. */
const setField = (target: Record<string, unknown>, key: string, value: unknown): void => {
  if (key === "__proto__") setProperty(target, key, value)
  else target[key] = value
}

const getOr = (orElse: unknown, object: any, key: string): unknown => {
  try {
    return object[key]
  } catch {
    return orElse
  }
}

const describe = (value: unknown): string => {
  try {
    return inspect(value)
  } catch {
    return `[${typeof value} that cannot be shown]`
  }
}

const sliceArray: (this: NodeJS.TypedArray) => NodeJS.TypedArray = Object.getPrototypeOf(Uint8Array.prototype).slice

/** A view is cloned with all of its buffer: of Node's pool, with what others have there. So views of parts are copied. */
const encodeView = (view: ArrayBufferView): EncodedValue => {
  const buffer = encodeBuffer(view.buffer)
  if (buffer === view.buffer && view.byteLength === buffer.byteLength) return view
  if (!types.isDataView(view)) return sliceArray.call(view as NodeJS.TypedArray)
  return new DataView(buffer.slice(view.byteOffset, view.byteOffset + view.byteLength))
}

const encodeBuffer = (buffer: ArrayBufferLike): ArrayBuffer => {
  if (types.isSharedArrayBuffer(buffer)) return new Uint8Array(buffer).slice().buffer
  // One that was transferred away throws here, instead of in the clone.
  buffer.slice(0, 0)
  return buffer
}

/** Thrown while the fields of a class instance are walked through: the instance has something that cannot be cloned. */
const notCloneable = Symbol("notCloneable")

class Encoder {
  /** What objects have become, for cycles and for what is referred to twice. */
  private readonly seen = new Map<object, EncodedValue>()
  /** The keys of `seen` in order: what an instance's fields added is taken back when they turn out not to be cloneable. */
  private readonly trail: Array<object> = []
  private depth = 0
  private inInstance = false

  encode(value: unknown): EncodedValue {
    if (typeof value === "function" || typeof value === "symbol") return this.giveUp(value)
    if (typeof value !== "object" || value === null) return value
    if (types.isProxy(value)) return this.giveUp(value)
    if (this.seen.has(value)) return this.seen.get(value)
    if (this.depth >= maxDepth) return "[nested too deeply]"
    this.depth++
    try {
      return this.encodeObject(value)
    } catch (error) {
      if (error === notCloneable) throw error
      return this.remember(value, this.giveUp(value))
    } finally {
      this.depth--
    }
  }

  private giveUp(value: unknown): string {
    if (this.inInstance) throw notCloneable
    return describe(value)
  }

  private remember<A>(value: object, encoded: A): A {
    if (!this.seen.has(value)) this.trail.push(value)
    this.seen.set(value, encoded)
    return encoded
  }

  private encodeObject(value: object): EncodedValue {
    if (types.isNativeError(value) || value instanceof Error) return this.encodeError(value)
    // A logger on the other side could not redact it any more.
    if (Redactable.isRedactable(value)) {
      return this.remember(value, this.encode(Redactable.getRedacted(value)))
    }
    if (Array.isArray(value)) {
      const encoded: Array<EncodedValue> = this.remember(value, [])
      for (let i = 0; i < value.length; i++) encoded.push(this.encode(value[i]))
      return encoded
    }
    const prototype = Object.getPrototypeOf(value)
    if (ArrayBuffer.isView(value)) return this.remember(value, encodeView(value))
    if (types.isAnyArrayBuffer(value)) return this.remember(value, encodeBuffer(value))
    if (types.isDate(value) || types.isRegExp(value)) return value
    if (types.isBoxedPrimitive(value)) return types.isSymbolObject(value) ? this.giveUp(value) : value
    if (types.isMap(value)) {
      const encoded = this.remember(value, new Map<EncodedValue, EncodedValue>())
      Map.prototype.forEach.call(value, (item, key) => encoded.set(this.encode(key), this.encode(item)))
      return encoded
    }
    if (types.isSet(value)) {
      const encoded = this.remember(value, new Set<EncodedValue>())
      Set.prototype.forEach.call(value, (item) => encoded.add(this.encode(item)))
      return encoded
    }
    for (const kind in dataTypes) {
      const { is, parts } = dataTypes[kind]!
      if (!is(value)) continue
      // They are made of their parts, so a cycle through one cannot be built again.
      this.remember(value, "[Circular]")
      return this.remember(value, { [marker]: kind, parts: parts(value).map((part) => this.encode(part)) })
    }
    if (prototype === null || prototype === Object.prototype) {
      const encoded = this.remember(value, {})
      if (!Object.hasOwn(value, marker)) return this.encodeFields(value, encoded)
      return Object.assign(encoded, { [marker]: "Object", fields: this.encodeFields(value, {}) })
    }
    return this.encodeInstance(value)
  }

  private encodeFields(value: object, encoded: Record<string, EncodedValue>, except?: ReadonlyArray<string>) {
    for (const key of Object.keys(value)) {
      if (except?.includes(key) !== true) {
        setField(encoded, key, this.encode(getOr("[its getter threw]", value, key)))
      }
    }
    return encoded
  }

  private encodeInstance(value: object): EncodedValue {
    const toJSON = getOr(undefined, value, "toJSON")
    if (typeof toJSON === "function") {
      this.remember(value, "[Circular]")
      return this.remember(value, this.encode(toJSON.call(value)))
    }
    const encoded: Record<string, EncodedValue> = {}
    if (this.inInstance) return this.encodeFields(value, this.remember(value, encoded))
    const { length } = this.trail
    this.inInstance = true
    try {
      this.encodeFields(value, this.remember(value, encoded))
    } catch {
      for (const object of this.trail.splice(length)) this.seen.delete(object)
      return this.remember(value, describe(value))
    } finally {
      this.inInstance = false
    }
    // What has no fields at all keeps what it is behind other walls: a `Promise`, a `Blob`.
    return Object.keys(encoded).length > 0 ? encoded : this.remember(value, describe(value))
  }

  private encodeError(error: Error): MarkedError {
    const encoded: MarkedError = this.remember(error, {
      [marker]: "Error",
      class: errorClassOf(error) ?? (Effect.isEffect(error) ? "Data" : undefined),
      name: this.encode(getOr("Error", error, "name")),
      message: this.encode(getOr("[its message cannot be read]", error, "message")),
      stack: this.encode(getOr(undefined, error, "stack")),
      fields: {},
      hidden: {}
    })
    // The fields of an error are looked at one by one: a failed request keeps its `code` when it has a socket too.
    const { inInstance } = this
    this.inInstance = false
    this.encodeFields(error, encoded.fields, ["stack"])
    for (const key of hiddenProperties) {
      if (Object.hasOwn(error, key) && !Object.hasOwn(encoded.fields, key)) {
        encoded.hidden[key] = this.encode(getOr(undefined, error, key))
      }
    }
    this.inInstance = inInstance
    return encoded
  }
}

class Decoder {
  private readonly seen = new Map<object, unknown>()

  decode(value: EncodedValue): any {
    if (typeof value !== "object" || value === null) return value
    if (this.seen.has(value)) return this.seen.get(value)
    const decoded = this.decodeObject(value)
    this.seen.set(value, decoded)
    return decoded
  }

  private decodeObject(value: any): unknown {
    if (Array.isArray(value)) {
      const decoded: Array<unknown> = []
      this.seen.set(value, decoded)
      for (const item of value) decoded.push(this.decode(item))
      return decoded
    }
    if (value instanceof Map) {
      const decoded = new Map<unknown, unknown>()
      this.seen.set(value, decoded)
      for (const [key, item] of value) decoded.set(this.decode(key), this.decode(item))
      return decoded
    }
    if (value instanceof Set) {
      const decoded = new Set<unknown>()
      this.seen.set(value, decoded)
      for (const item of value) decoded.add(this.decode(item))
      return decoded
    }
    if (Object.getPrototypeOf(value) !== Object.prototype) return value
    const kind = Object.hasOwn(value, marker) ? value[marker] : undefined
    if (kind === "Error") return this.decodeError(value)
    if (kind !== undefined && kind !== "Object") {
      return dataTypes[kind]!.make(value.parts.map((part: EncodedValue) => this.decode(part)))
    }
    const decoded: Record<string, unknown> = {}
    this.seen.set(value, decoded)
    const fields = kind === "Object" ? value.fields : value
    for (const key of Object.keys(fields)) setField(decoded, key, this.decode(fields[key]))
    return decoded
  }

  /** A true error (its stack is shown, it can be cloned again) that only then becomes an instance of its class. */
  private decodeError(encoded: MarkedError): Error {
    const error = new Error()
    this.seen.set(encoded, error)
    Object.setPrototypeOf(error, (errorClasses[encoded.class!] ?? Error).prototype)
    for (const key of Object.keys(encoded.fields)) setProperty(error, key, this.decode(encoded.fields[key]))
    for (const key of Object.keys(encoded.hidden)) setProperty(error, key, this.decode(encoded.hidden[key]), false)
    // A class may compute these, from the fields.
    for (const key of ["name", "message"] as const) {
      if (getOr(undefined, error, key) !== encoded[key]) setProperty(error, key, this.decode(encoded[key]), false)
    }
    setProperty(error, "stack", this.decode(encoded.stack), false)
    return error
  }
}

/** Never throws, whatever the value is. */
export const encodeValue = (value: unknown): EncodedValue =>
  typeof value === "number" || typeof value === "string" || value === undefined ? value : new Encoder().encode(value)

/** What `encodeValue` took apart, built again. */
export const decodeValue = (encoded: EncodedValue): any => new Decoder().decode(encoded)
