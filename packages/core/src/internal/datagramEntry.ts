/** A datagram as a request. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as CloseReason from "../CloseReason.ts"
import type { Datagram } from "../Datagram.ts"
import type { RemoteDatagram } from "../WorkerDispatch.ts"
import type { Remotable } from "./dispatching.ts"
import { PacketEntry } from "./packetEntry.ts"

/** The entry is the datagram that its handler is given, too: most packets are answered at once, and one object is enough. */
export class DatagramEntry extends PacketEntry implements Datagram, Remotable {
  get kind(): "datagram" {
    return "datagram"
  }

  get subject(): Datagram {
    return this
  }

  get payload(): Uint8Array {
    return this.packet.payload
  }

  get truncated(): boolean {
    return this.packet.truncated
  }

  get reply(): Datagram["reply"] {
    return (payload) => Effect.suspend(() => this.sendBack(payload))
  }

  get send(): Datagram["send"] {
    return (to, payload) => Effect.suspend(() => this.sendTo(to, payload))
  }

  get bytesRead(): number {
    return this.packet.payload.length
  }

  get endedIdle(): boolean {
    return false
  }

  get remote(): RemoteDatagram {
    return {
      _tag: "Datagram",
      datagram: this,
      onKill: (kill) => {
        this.killWorker = kill
      }
    }
  }

  protected closeSubject(): void {}
  protected destroySubject(): void {}
  startDrain(): void {}

  protected reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    return Exit.isSuccess(exit) || this.isEnd(exit.cause) ? CloseReason.Completed : this.failed(exit)
  }
}
