/** A framing at work: the reader of one stream's messages. */
import { FrameError } from "../FrameError.ts"
import type { Decoder, Framing, Reader } from "../Framing.ts"
import { InputBuffer } from "./inputBuffer.ts"

export class FrameReader<Message> implements Reader<Message> {
  private readonly input = new InputBuffer()
  private readonly decoder: Decoder<Message>
  private failure: FrameError | undefined
  /** Has a part of a message been taken? */
  private isInside = false

  constructor(framing: Framing<Message, any>) {
    this.decoder = framing.messages.decoder()
  }

  push(chunk: Uint8Array): void {
    if (chunk.length > 0 && this.failure === undefined) this.input.push(chunk, undefined)
  }

  /** Is nothing left? */
  get isAtEnd(): boolean {
    return this.input.length === 0
  }

  next(): Message | FrameError | undefined {
    if (this.failure !== undefined) return this.failure
    const before = this.input.length
    const message = this.decoder.read(this.input)
    this.isInside = message === undefined && (this.isInside || this.input.length < before)
    return this.checked(message)
  }

  end(): Message | FrameError | undefined {
    return this.failure ?? (this.isAtEnd && !this.isInside ? undefined : this.endOfPacket())
  }

  /** Which may have been empty. */
  endOfPacket(): Message | FrameError | undefined {
    const message = this.checked(this.decoder.end?.(this.input))
    this.isInside = false
    this.input.clear()
    return message
  }

  /** Nothing behind a frame that is none can be understood, or is kept. */
  private checked(message: Message | FrameError | undefined): Message | FrameError | undefined {
    if (message instanceof FrameError && !message.isRecoverable) {
      this.failure = message
      this.input.clear()
    }
    return message
  }
}
