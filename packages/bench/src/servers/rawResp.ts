/**
 * A small Redis on raw `node:net`, as one would write it by hand: it looks for arrays of bulk strings in the bytes of a chunk,
 * and answers a chunk in one write. It has no bounds, and nothing expires; but what is no command does not end it.
 */
import * as Net from "node:net"
import { stored } from "../workloads.ts"
import { control, ready } from "./control.ts"

const values = new Map<string, string>([[stored.key, stored.value]])

const wrongNumber = "-ERR wrong number of arguments\r\n"

const answer = (args: ReadonlyArray<string>): string => {
  switch (args[0]!.toUpperCase()) {
    case "PING":
      return "+PONG\r\n"
    case "SET":
      if (args.length !== 3) return wrongNumber
      values.set(args[1]!, args[2]!)
      return "+OK\r\n"
    case "GET": {
      if (args.length !== 2) return wrongNumber
      const value = values.get(args[1]!)
      return value === undefined ? "$-1\r\n" : `$${value.length}\r\n${value}\r\n`
    }
    default:
      return `-ERR unknown command '${args[0]}'\r\n`
  }
}

const serve = (socket: Net.Socket) => {
  let rest: Buffer | undefined
  socket.on("data", (chunk: Buffer) => {
    const input = rest === undefined ? chunk : Buffer.concat([rest, chunk])
    let at = 0
    let taken = 0
    let answers = ""

    /** The number behind a type byte; -1 where the line has no end yet, NaN where there is none. */
    const number = (type: number): number => {
      if (input[at] !== type) return Number.NaN
      let value = 0
      let i = at + 1
      for (; i < input.length && input[i] !== 13; i++) {
        const digit = input[i]! - 48
        if (digit < 0 || digit > 9) return Number.NaN
        value = value * 10 + digit
      }
      if (i + 1 >= input.length) return -1
      at = i + 2
      return value
    }
    const isWrong = (): void => {
      socket.end(`${answers}-ERR Protocol error\r\n`, "latin1")
      socket.removeAllListeners("data")
    }

    next: while (at < input.length) {
      const count = number(42)
      if (count === -1) break
      if (!(count > 0)) return isWrong()
      const args: Array<string> = []
      for (let i = 0; i < count; i++) {
        const length = at < input.length ? number(36) : -1
        if (length === -1 || at + length + 2 > input.length) break next
        if (!(length >= 0)) return isWrong()
        args.push(input.toString("latin1", at, at + length))
        at += length + 2
      }
      taken = at
      answers += answer(args)
    }
    rest = taken === input.length ? undefined : input.subarray(taken)
    if (answers !== "" && !socket.write(answers, "latin1")) {
      socket.pause()
      socket.once("drain", () => socket.resume())
    }
  })
}

const server = Net.createServer({ noDelay: true }, (socket) => {
  socket.on("error", () => {})
  serve(socket)
})
control()
server.listen({ host: "127.0.0.1", port: 0 }, () => ready({ port: (server.address() as Net.AddressInfo).port }))
