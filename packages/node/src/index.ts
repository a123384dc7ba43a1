/**
 * @since 0.1.0
 */
export * as NodeDispatch from "./NodeDispatch.ts"
export * as NodeTransport from "./NodeTransport.ts"
export * as WorkerPool from "./WorkerPool.ts"
