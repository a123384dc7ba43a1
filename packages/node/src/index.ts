/**
 * @since 0.1.0
 */
export * as Control from "./Control.ts"
export * as ControlClient from "./ControlClient.ts"
export * as Exec from "./Exec.ts"
export * as NodeDispatch from "./NodeDispatch.ts"
export * as NodeTransport from "./NodeTransport.ts"
export * as WorkerPool from "./WorkerPool.ts"
