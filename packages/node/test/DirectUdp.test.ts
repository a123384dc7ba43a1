/** A UDP socket by its handle: what the system does not take at once, and what cannot be given to a handle. */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import * as Dgram from "node:dgram"
import { DirectSocket, directUdp, type Unsent } from "../src/internal/directUdp.ts"

/** A socket whose handle answers with `status` whatever it is to send. */
const makeSocket = (status: number) => {
  const requests: Array<any> = []
  const socket = {
    [Symbol("state symbol")]: {
      handle: {
        send: (request: any, list: ReadonlyArray<unknown>) => {
          requests.push({ request, list, payload: list[0] })
          return status
        }
      }
    }
  }
  return { direct: new DirectSocket(socket as never), requests }
}

const payload = Buffer.from("payload")
const ended = (unsent: true | Unsent | undefined) => {
  const ends: Array<unknown> = []
  assert.isTrue(typeof unsent === "object")
  ;(unsent as Unsent).onEnd((error) => ends.push(error?.code ?? error))
  return ends
}

beforeAll(() =>
  new Promise<void>((resolve) => {
    const socket = Dgram.createSocket({ type: "udp4", lookup: (host, _, done) => done(null, host, 4) })
    socket.bind(0, "127.0.0.1", () => {
      const direct = new DirectSocket(socket)
      assert.strictEqual(direct.trySend(payload, socket.address().port, "127.0.0.1"), true)
      socket.once("message", (received, { port }) => {
        // Nothing else was sent when it was tried out.
        assert.deepStrictEqual([...received], [...payload])
        assert.strictEqual(port, socket.address().port)
        socket.close(() => resolve())
      })
    })
  })
)

describe("this Node", () => {
  it("has what the direct way needs", () => {
    assert.isTrue(directUdp.available)
  })
})

describe("a packet", () => {
  it("that the system takes at once costs no request of its own, and is let go", () => {
    const { direct, requests } = makeSocket(1)
    assert.strictEqual(direct.trySend(payload, 9, "127.0.0.1"), true)
    assert.strictEqual(direct.trySend(payload, 9, "127.0.0.1"), true)
    assert.strictEqual(requests[0].request, requests[1].request)
    assert.isUndefined(requests[0].list[0])
  })

  it("that the system will take later ends when it says so, and is kept until then", () => {
    const { direct, requests } = makeSocket(0)
    const first = ended(direct.trySend(payload, 9, "127.0.0.1"))
    const second = direct.trySend(payload, 9, "127.0.0.1")
    assert.notStrictEqual(requests[0].request, requests[1].request)
    assert.strictEqual(requests[0].request.list[0], payload)
    assert.deepStrictEqual(first, [])
    requests[0].request.oncomplete(0)
    assert.deepStrictEqual(first, [null])
    // It may end before anybody asks.
    requests[1].request.oncomplete(-1)
    assert.deepStrictEqual(ended(second), ["EPERM"])
  })

  it("that the system refuses at once has the error that `socket.send` would have", () => {
    const { direct, requests } = makeSocket(-1)
    const unsent = direct.trySend(payload, 9, "127.0.0.1") as Unsent
    unsent.onEnd((error) => {
      assert.match(error!.message, /^send EPERM 127\.0\.0\.1:9$/)
      assert.strictEqual(error!.syscall, "send")
    })
    assert.deepStrictEqual(ended(unsent), ["EPERM"])
    assert.strictEqual(requests.length, 1)
  })

  it("that a handle does not bear is left to `socket.send`", () => {
    const { direct, requests } = makeSocket(1)
    for (
      const [bytes, port, address] of [
        ["text", 9, "127.0.0.1"],
        [payload, 0, "127.0.0.1"],
        [payload, 65_536, "127.0.0.1"],
        [payload, 1.5, "127.0.0.1"],
        [payload, 9, undefined]
      ] as Array<any>
    ) assert.isUndefined(direct.trySend(bytes, port, address))
    assert.deepStrictEqual(requests, [])
  })

  it("of a socket that is closed, or is not as it was, is left to `socket.send`", () => {
    for (const socket of [{}, { [Symbol("state symbol")]: { handle: null } }, { [Symbol("state symbol")]: {} }]) {
      const direct = new DirectSocket(socket as never)
      assert.isUndefined(direct.trySend(payload, 9, "127.0.0.1"))
      assert.isFalse(direct.receive(() => {}))
    }
  })
})
