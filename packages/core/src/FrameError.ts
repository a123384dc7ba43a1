/**
 * What is wrong with a frame: of the bytes that a peer has sent, or of a value that cannot be sent as one. One tagged error
 * with a `reason`. After `Invalid` the next frame can still be read; after the others nobody knows where it would begin.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import { messageOf } from "./internal/causes.ts"

/**
 * The peer has sent more than one frame may have, or has announced to do so; or its packet did not fit the transport.
 *
 * @category errors
 * @since 0.1.0
 */
export class TooLong extends Data.TaggedError("TooLong")<{
  /** In bytes. */
  readonly limit: number
}> {
  override get message(): string {
    return `more than ${this.limit} bytes; raise \`maxLength\` if that is legitimate`
  }
}

/**
 * The bytes are no frame.
 *
 * @category errors
 * @since 0.1.0
 */
export class Malformed extends Data.TaggedError("Malformed")<{
  readonly detail: string
}> {
  override get message(): string {
    return this.detail
  }
}

/**
 * The input ended in the middle of a frame.
 *
 * @category errors
 * @since 0.1.0
 */
export class Incomplete extends Data.TaggedError("Incomplete")<{
  /** How many bytes of it were there. */
  readonly received: number
}> {
  override get message(): string {
    return `the input ended after ${this.received} bytes of a frame`
  }
}

/**
 * The frame is whole, but what it contains is not what its schema says. `cause` is the schema's error. The frames behind it can
 * still be read.
 *
 * @category errors
 * @since 0.1.0
 */
export class Invalid extends Data.TaggedError("Invalid")<{
  readonly cause: unknown
}> {
  override get message(): string {
    return messageOf(this.cause)
  }
}

/**
 * A value cannot be sent as one frame: a line with a line end in it, or more bytes than a prefix can count. Its peer would read
 * something else. That is a mistake of the program that sends it.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unencodable extends Data.TaggedError("Unencodable")<{
  readonly detail: string
}> {
  override get message(): string {
    return this.detail
  }
}

/**
 * What is wrong with a frame.
 *
 * @category errors
 * @since 0.1.0
 */
export class FrameError extends Data.TaggedError("FrameError")<{
  readonly reason: TooLong | Malformed | Incomplete | Invalid | Unencodable
  /** The framing's name, for people. */
  readonly framing: string
}> {
  override get message(): string {
    return `${this.framing}: ${this.reason.message}`
  }

  /** Can the frames behind this one still be read? */
  get isRecoverable(): boolean {
    return this.reason._tag === "Invalid"
  }
}
