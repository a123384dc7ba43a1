/**
 * @since 0.1.0
 */
export * as DatagramTestClient from "./DatagramTestClient.ts"
export * as DatagramTransportSuite from "./DatagramTransportSuite.ts"
export * as DispatchSuite from "./DispatchSuite.ts"
export * as MessageSuite from "./MessageSuite.ts"
export * as StreamTransportSuite from "./StreamTransportSuite.ts"
export * as TestClient from "./TestClient.ts"
