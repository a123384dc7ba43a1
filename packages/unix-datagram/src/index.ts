/**
 * @since 0.1.0
 */
export * as Systemd from "./Systemd.ts"

/**
 * @since 0.1.0
 */
export * as UnixDatagram from "./UnixDatagram.ts"
