/**
 * A UDP socket by its handle, without what `node:dgram` does around it (bench "udp 64 B × 64": CPU 1.08 of raw node:dgram,
 * 1.19 without it).
 *
 * `socket.send` tells what became of a packet on a later tick, and the fiber that sends is suspended meanwhile, though the
 * system nearly always took or refused the packet at once. The handle says it at once. A `message` event costs an emitter and
 * one more property on every sender's address; the handle calls a function.
 *
 * None of this is documented. So it is tried out on the first socket, without sending anything, and where a thing is not as it
 * must be, nothing is done, and the documented ways are taken. Nothing else in the project knows of any of this.
 */
import type * as Dgram from "node:dgram"

export type Errno = NodeJS.ErrnoException

/** A packet that the system has not taken: it will take it later, or has refused it. */
export interface Unsent {
  readonly onEnd: (done: (error: Errno | null) => void) => void
}

/** What `node:dgram` hands to a socket's handle with a packet. */
interface Request {
  list: ReadonlyArray<unknown>
  address: string
  port: number
  callback: (error: Errno | null) => void
  oncomplete: (status: number) => void
}

interface Handle {
  /** Above 0 if the system has the packet, 0 if it will have it later, an error's number below. */
  send?: (
    request: Request,
    list: ReadonlyArray<unknown>,
    count: number,
    port: number,
    address: string,
    hasCallback: boolean
  ) => number
  onmessage?: (count: number, handle: Handle, payload: Buffer, from: Dgram.RemoteInfo) => void
}

interface Inside {
  readonly Request: new() => Request
  /** Calls the request's `callback`, with an error where the status is one. */
  readonly onComplete: Request["oncomplete"]
}

/** Tests look at `available`, and switch it off with `enabled` to run the way without it; nothing else does. */
export const directUdp: { available: boolean | undefined; enabled: boolean } = { available: undefined, enabled: true }

let inside: Inside | undefined

export class DirectSocket {
  /** What the socket keeps its handle in, until it is closed. */
  private readonly state: { readonly handle?: Handle | null } | undefined
  /** Used again for the next packet, as long as the system takes them at once: then nobody keeps them. */
  private request: Request | undefined
  private list: Array<unknown> = []

  /** `socket` must be bound, and take addresses as they are. */
  constructor(socket: Dgram.Socket) {
    const symbol = Object.getOwnPropertySymbols(socket).find(({ description }) => description === "state symbol")
    this.state = symbol === undefined ? undefined : (socket as any)[symbol]
    if (directUdp.available === undefined) {
      inside = lookInside(socket, this.state?.handle)
      directUdp.available = inside !== undefined
    }
  }

  private get handle(): Handle | undefined {
    return directUdp.enabled && inside !== undefined ? this.state?.handle ?? undefined : undefined
  }

  /** Has `onMessage` called instead of `message` events; or says `false`, and leaves those. */
  receive(onMessage: (payload: Buffer, from: Dgram.RemoteInfo) => void): boolean {
    const { handle } = this
    if (handle === undefined) return false
    // An error of receiving is the socket's, which belongs to no packet.
    // oxlint-disable-next-line unicorn/prefer-add-event-listener -- a handle has nothing but this
    handle.onmessage = (count, _, payload, from) => {
      if (count >= 0) onMessage(payload, from)
    }
    return true
  }

  /** `true` if the system has the packet; `undefined` if nothing was tried. */
  trySend(payload: Uint8Array, port: number, address: string): true | Unsent | undefined {
    const { handle } = this
    // The handle ends the process for what `socket.send` would refuse.
    if (
      handle === undefined || inside === undefined || !ArrayBuffer.isView(payload) ||
      !Number.isInteger(port) || port < 1 || port > 65_535 || typeof address !== "string"
    ) return undefined
    const request = this.request ??= new inside.Request()
    const { list } = this
    list[0] = payload
    const status = handle.send!(request, list, 1, port, address, true)
    if (status > 0) {
      list[0] = undefined
      return true
    }
    this.request = undefined
    this.list = []
    request.list = list
    request.address = address
    request.port = port
    request.oncomplete = inside.onComplete
    const unsent = new Ending(request)
    if (status < 0) request.oncomplete(status)
    return unsent
  }
}

/** The end of a packet that was not sent at once: it may come before anybody asks. */
class Ending implements Unsent {
  private outcome: Errno | null | undefined
  private done: ((error: Errno | null) => void) | undefined

  constructor(request: Request) {
    request.callback = (error) => {
      this.outcome = error
      this.done?.(error)
    }
  }

  onEnd(done: (error: Errno | null) => void): void {
    if (this.outcome !== undefined) return done(this.outcome)
    this.done = done
  }
}

/** Looks at what `socket.send` hands to the handle, which is kept from it. */
const lookInside = (socket: Dgram.Socket, handle: Handle | null | undefined): Inside | undefined => {
  if (typeof handle?.send !== "function" || handle.onmessage?.length !== 4) return undefined
  const own = Object.getOwnPropertyDescriptor(handle, "send")
  let found: Inside | undefined
  const to = { port: 9, address: "192.0.2.1" }
  try {
    handle.send = (request, list, count, port, address, hasCallback) => {
      if (
        Array.isArray(list) && list.length === 1 && count === 1 && ArrayBuffer.isView(list[0]) &&
        hasCallback &&
        port === to.port && address === to.address && typeof request?.oncomplete === "function" &&
        typeof request.callback === "function" && request.address === address && request.port === port
      ) {
        const Request = request.constructor as Inside["Request"]
        const onComplete = request.oncomplete
        if (answersAsItMust(Request, onComplete)) found = { Request, onComplete }
      }
      return 1
    }
    socket.send("", to.port, to.address, () => {})
  } catch {
    found = undefined
  } finally {
    if (own === undefined) delete handle.send
    else Object.defineProperty(handle, "send", own)
  }
  return found
}

const answersAsItMust = (Request: Inside["Request"], onComplete: Request["oncomplete"]): boolean => {
  const answers: Array<unknown> = []
  const request = new Request()
  request.address = "192.0.2.1"
  request.port = 9
  request.callback = (error) => answers.push(error)
  request.oncomplete = onComplete
  request.oncomplete(0)
  request.oncomplete(-1)
  const [none, error] = answers
  return answers.length === 2 && none === null && error instanceof Error && typeof (error as Errno).code === "string"
}
