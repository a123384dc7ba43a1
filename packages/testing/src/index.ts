/**
 * @since 0.1.0
 */
export * as DispatchSuite from "./DispatchSuite.ts"
export * as StreamTransportSuite from "./StreamTransportSuite.ts"
export * as TestClient from "./TestClient.ts"
