/** Raw `node:dgram`: the `message` event and `socket.send`. The yardstick for datagrams. */
import * as Dgram from "node:dgram"
import { control, ready } from "./control.ts"

const socket = Dgram.createSocket("udp4")
socket.on("message", (message, { address, port }) => socket.send(message, port, address))
control()
socket.bind(0, "127.0.0.1", () => ready({ port: socket.address().port }))
