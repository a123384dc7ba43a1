/**
 * @since 0.1.0
 */
export * as Admission from "./Admission.ts"
export * as CloseReason from "./CloseReason.ts"
export * as Connection from "./Connection.ts"
export * as ConnectionError from "./ConnectionError.ts"
export * as Datagram from "./Datagram.ts"
export * as DatagramError from "./DatagramError.ts"
export * as DatagramTransport from "./DatagramTransport.ts"
export * as Dispatch from "./Dispatch.ts"
export * as ListenError from "./ListenError.ts"
export * as MemoryTransport from "./MemoryTransport.ts"
export * as Server from "./Server.ts"
export * as ServerEvent from "./ServerEvent.ts"
export * as Session from "./Session.ts"
export * as StreamTransport from "./StreamTransport.ts"
export * as Transport from "./Transport.ts"
