/**
 * The workloads: what a client does, on how many connections, and which service it needs. One table, read by the load
 * generator, the servers and the report.
 */
export interface Workload {
  readonly name: string
  /**
   * `echo` gives back every byte; `lines` answers every line with that line, `compute` with what takes 5 ms to compute from
   * it; `datagrams` gives back every packet; `resp` is a small Redis.
   */
  readonly service: "echo" | "lines" | "compute" | "datagrams" | "resp"
  readonly transport: "tcp" | "unix" | "udp" | "unix datagram"
  readonly connections: number
  /** The bytes of one request; its answer has as many, if `texts` does not say what they are. */
  readonly size: number
  readonly texts?: { readonly request: string; readonly answer: string } | undefined
  /** How many requests are under way on a connection at a time. */
  readonly depth: number
  /** How many more connections exchange all the while, unmeasured. */
  readonly busy: number
  /** `exchange` goes on for ever, `churn` has a connection for every request, `bulk` counts bytes. */
  readonly kind: "exchange" | "churn" | "bulk"
  /** Only for servers with workers, and those that they are compared with: on one core or on all. */
  readonly workers?: "one core" | "all cores" | undefined
}

const exchange = (
  name: string,
  options: Partial<Workload> & { readonly connections: number }
): Workload => ({ name, service: "echo", transport: "tcp", size: 64, depth: 1, busy: 0, kind: "exchange", ...options })

/** What the servers of `resp` have before they are asked for it. */
export const stored = { key: "key:000000000042", value: "v".repeat(64) }

const bulk = (text: string) => `$${text.length}\r\n${text}\r\n`

/** With and without pipelining. */
const resp = (command: ReadonlyArray<string>, answer: string): ReadonlyArray<Workload> => {
  const texts = { request: `*${command.length}\r\n${command.map(bulk).join("")}`, answer }
  return [
    exchange(`resp ${command[0]} × 64`, { connections: 64, service: "resp", texts }),
    exchange(`resp ${command[0]} pipelined 16 × 64`, { connections: 64, depth: 16, service: "resp", texts })
  ]
}

export const workloads: ReadonlyArray<Workload> = [
  exchange("ping-pong 64 B × 1", { connections: 1 }),
  exchange("ping-pong 64 B × 64", { connections: 64 }),
  exchange("ping-pong 64 B × 1000", { connections: 1_000 }),
  exchange("ping-pong 64 B × 64 unix", { connections: 64, transport: "unix" }),
  exchange("16 KiB × 64", { connections: 64, size: 16_384 }),
  exchange("pipelined 16 × 64", { connections: 64, depth: 16 }),
  exchange("lines × 64", { connections: 64, service: "lines" }),
  exchange("lines pipelined 16 × 64", { connections: 64, depth: 16, service: "lines" }),
  ...resp(["PING"], "+PONG\r\n"),
  ...resp(["SET", stored.key, stored.value], "+OK\r\n"),
  ...resp(["GET", stored.key], bulk(stored.value)),
  exchange("churn × 32", { connections: 32, kind: "churn" }),
  exchange("churn × 32 beside 1000", { connections: 32, kind: "churn", busy: 1_000 }),
  exchange("bulk × 1", { connections: 1, size: 65_536, depth: 16, kind: "bulk" }),
  exchange("bulk × 4", { connections: 4, size: 65_536, depth: 16, kind: "bulk" }),
  exchange("udp 64 B × 64", { connections: 64, service: "datagrams", transport: "udp" }),
  exchange("unix datagram 64 B × 64", { connections: 64, service: "datagrams", transport: "unix datagram" }),
  exchange("workers: 5 ms of computation × 8", { connections: 8, service: "compute", workers: "all cores" }),
  exchange("workers: 5 ms of computation × 8, churn", {
    connections: 8,
    service: "compute",
    kind: "churn",
    workers: "all cores"
  }),
  exchange("workers: churn × 32", { connections: 32, kind: "churn", workers: "all cores" }),
  exchange("workers: ping-pong 64 B × 64", { connections: 64, workers: "one core" }),
  exchange("workers: ping-pong 64 B × 64, all cores", { connections: 64, workers: "all cores" })
]
