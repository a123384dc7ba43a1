/**
 * A mail server that takes what it is given and passes nothing on: for tests, and for programs that want to receive mail.
 * SMTP as RFC 5321 has it, with STARTTLS (RFC 3207), SIZE (RFC 1870), 8BITMIME (RFC 6152) and PIPELINING (RFC 2920). Whoever
 * may speak to it may send to anybody; mails wait in an inbox that is bounded, and when it is full their senders are told to
 * come back. Try `swaks --server 127.0.0.1:2525 --to me@example.org`, and, where the environment variables CERT_FILE and
 * KEY_FILE name a certificate and its key, `--tls`.
 */
import { type Connection, Dispatch, Server, type StreamTransport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Config, Console, Context, Effect, Layer, Option, Pull, Queue } from "effect"
import { NetAddress } from "effect/net"
import { isMain, netcat, runServer } from "./run.ts"

export interface Mail {
  /** Who the client says it is. */
  readonly helo: string
  /** Did it come over TLS? */
  readonly encrypted: boolean
  /** Empty for a notice that a mail could not be delivered. */
  readonly from: string
  readonly to: ReadonlyArray<string>
  /** Header and body, lines ending in CRLF. */
  readonly content: Uint8Array
}

export class Inbox extends Context.Service<Inbox, {
  /** `false` where there is no room for it. */
  readonly deliver: (mail: Mail) => Effect.Effect<boolean>
  /** The oldest, as soon as there is one. */
  readonly take: Effect.Effect<Mail>
}>()("@socketserver/examples/Inbox") {
  static readonly layer = (capacity: number) =>
    Layer.effect(
      Inbox,
      Effect.map(Queue.dropping<Mail>(capacity), (queue) => ({
        deliver: (mail: Mail) => Queue.offer(queue, mail),
        take: Queue.take(queue)
      }))
    )
}

export const limits = {
  /** A command without its CRLF: 512 bytes with it, and what SIZE and BODY may add to MAIL. */
  command: 512 - 2 + 26 + 17,
  /** A line of a mail without its CRLF: 1000 bytes with it. */
  textLine: 1000 - 2,
  /** The content of a mail. */
  size: 1024 * 1024,
  recipients: 100,
  /** After so many commands that were wrong, the client has another protocol in mind. */
  errors: 20
} as const

/** The bytes of a mail, in one piece that grows: what a client makes of them costs no more memory than twice the limit. */
class Content {
  private bytes = new Uint8Array(4096)
  private length = 0

  /** A line that begins with a dot has one more than it should (RFC 5321, 4.5.2). */
  addLine(line: Uint8Array): void {
    const text = line[0] === dot ? line.subarray(1) : line
    const end = this.length + text.length + 2
    if (end > this.bytes.length) {
      const grown = new Uint8Array(Math.max(end, 2 * this.bytes.length))
      grown.set(this.bytes.subarray(0, this.length))
      this.bytes = grown
    }
    this.bytes.set(text, this.length)
    this.bytes.set(crlf, end - 2)
    this.length = end
  }

  get size(): number {
    return this.length
  }

  get all(): Uint8Array {
    return this.bytes.slice(0, this.length)
  }
}

const dot = 0x2e
const crlf = Uint8Array.of(13, 10)
const decoder = new TextDecoder("latin1")

/**
 * The next line without its CRLF; `undefined` for one that was longer than `max`, all of which is skipped. A CR or an LF alone
 * ends nothing: those who think that it does can be made to see two mails where others see one.
 */
const readLine = Effect.fnUntraced(function*(connection: Connection.Connection, max: number) {
  for (let skipped = false;; skipped = true) {
    const line = yield* connection.readUntil(crlf, { maxLength: max }).pipe(
      // That the line end does not begin among these bytes is what it has failed for.
      Effect.catchReason(
        "ConnectionError",
        "LimitExceeded",
        () => Effect.as(connection.readExactly(max + 1), undefined)
      )
    )
    if (line !== undefined) return skipped ? undefined : line
  }
})

/** `<a@example.org>`, or with a local part in quotes; a route before it, which nobody uses any more, is left out. */
const path = /^<(?:@[^:<>\s]*:)?((?:"(?:[^"\\]|\\.)*"|[^<>"\s])*)>(?: +(.*))?$/
const printable = /^[ -~]*$/

interface Transaction {
  readonly from: string
  readonly to: Array<string>
}

export interface SmtpOptions {
  /** The server's own name. */
  readonly name: string
  /** May clients ask for TLS? Then the transport has `NodeTransport.startTls`. */
  readonly startTls: boolean
}

/** One client, from greeting to QUIT. */
export const smtp = ({ name, startTls }: SmtpOptions) =>
  Effect.fnUntraced(function*(connection: Connection.Connection) {
    const inbox = yield* Inbox
    let helo: string | undefined
    let transaction: Transaction | undefined

    const greet = (argument: string): boolean => {
      if (!/^\S+$/.test(argument)) return false
      helo = argument
      transaction = undefined
      return true
    }

    const mail = (argument: string): string => {
      if (helo === undefined) return "503 5.5.1 who are you? EHLO first"
      if (transaction !== undefined) return "503 5.5.1 one mail at a time"
      const [, from, parameters = ""] = path.exec(argument.replace(/^FROM: */i, "")) ?? []
      if (from === undefined || !/^FROM:/i.test(argument)) return "501 5.5.4 expected MAIL FROM:<address>"
      for (const parameter of parameters.split(" ").filter(Boolean)) {
        const [, size] = /^SIZE=(\d{1,20})$/i.exec(parameter) ?? []
        if (Number(size) > limits.size) return `552 5.3.4 a mail has at most ${limits.size} bytes`
        if (size === undefined && !/^BODY=(7BIT|8BITMIME)$/i.test(parameter)) return "555 5.5.4 unknown parameter"
      }
      transaction = { from, to: [] }
      return "250 2.1.0 go on"
    }

    const recipient = (argument: string): string => {
      if (transaction === undefined) return "503 5.5.1 MAIL first"
      const [, to, parameters] = path.exec(argument.replace(/^TO: */i, "")) ?? []
      if (!to || !/^TO:/i.test(argument)) return "501 5.5.4 expected RCPT TO:<address>"
      if (parameters !== undefined) return "555 5.5.4 unknown parameter"
      if (transaction.to.length === limits.recipients) return "452 4.5.3 too many recipients"
      transaction.to.push(to)
      return "250 2.1.5 go on"
    }

    /** Reads the mail to its end also where it cannot be taken: only then the client listens. */
    const data = Effect.fnUntraced(function*(helo: string, { from, to }: Transaction) {
      yield* connection.write("354 end with a dot on a line of its own\r\n")
      const content = new Content()
      let refusal: string | undefined
      while (true) {
        // A dot more is one that is not of the text.
        const line = yield* readLine(connection, limits.textLine + 1)
        if (line?.length === 1 && line[0] === dot) break
        if (refusal !== undefined) continue
        if (line === undefined || (line.length > limits.textLine && line[0] !== dot)) {
          refusal = `554 5.6.0 a line has at most ${limits.textLine} bytes`
        } else if (line.includes(13) || line.includes(10)) {
          refusal = "554 5.6.0 lines end in CRLF, and neither is found alone"
        } else if (content.size + line.length + 2 > limits.size) {
          refusal = `552 5.3.4 a mail has at most ${limits.size} bytes`
        } else content.addLine(line)
      }
      if (refusal !== undefined) return refusal
      const mail = { helo, encrypted: connection.tls !== undefined, from, to, content: content.all }
      return (yield* inbox.deliver(mail))
        ? "250 2.0.0 it is in the inbox"
        : "452 4.3.1 the inbox is full, come back later"
    })

    const command = Effect.fnUntraced(function*(line: string) {
      const [, verb = "", argument = ""] = /^([A-Za-z]+)(?: +(.*?))? *$/.exec(line) ?? []
      const alone = argument === ""
      switch (verb.toUpperCase()) {
        case "HELO":
          return greet(argument) ? `250 ${name}` : "501 5.5.4 expected HELO and a name"
        case "EHLO": {
          if (!greet(argument)) return "501 5.5.4 expected EHLO and a name"
          const can = ["PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", `SIZE ${limits.size}`]
          if (startTls && connection.tls === undefined) can.push("STARTTLS")
          return [name, ...can].map((text, i) => `250${i === can.length ? " " : "-"}${text}`).join("\r\n")
        }
        case "MAIL":
          return mail(argument)
        case "RCPT":
          return recipient(argument)
        case "DATA": {
          if (!alone) return "501 5.5.4 DATA has no argument"
          if (helo === undefined || transaction === undefined) return "503 5.5.1 MAIL first"
          if (transaction.to.length === 0) return "554 5.5.1 there is nobody to send it to"
          const taken = transaction
          transaction = undefined
          // A server that shuts down waits for the rest of a mail.
          return yield* connection.busy(data(helo, taken))
        }
        case "STARTTLS": {
          if (!alone) return "501 5.5.4 STARTTLS has no argument"
          const refused = yield* connection.upgradeTls("220 2.0.0 go ahead\r\n").pipe(
            Effect.as(undefined),
            Effect.catchTag(
              "TlsUnavailable",
              ({ why }) =>
                Effect.succeed(why === "already" ? "503 5.5.1 this is TLS" : "454 4.7.0 there is no TLS here")
            )
          )
          // What came in clear may have been anybody's (RFC 3207, 4.2).
          if (refused === undefined) helo = transaction = undefined
          return refused
        }
        case "RSET":
          transaction = undefined
          return alone ? "250 2.0.0 forgotten" : "501 5.5.4 RSET has no argument"
        case "NOOP":
          return "250 2.0.0 here"
        case "VRFY":
          return "252 2.5.2 try and see"
        case "QUIT":
          return alone ? "221 2.0.0 bye" : "501 5.5.4 QUIT has no argument"
        case "EXPN":
        case "HELP":
          return "502 5.5.1 not here"
        default:
          return "500 5.5.2 unknown command"
      }
    })

    /** Reads a command and answers it; the answer, if there is one. */
    const turn = Effect.gen(function*() {
      const line = yield* readLine(connection, limits.command)
      const text = line === undefined ? undefined : decoder.decode(line)
      const reply = text === undefined
        ? "500 5.5.2 the line is too long"
        : printable.test(text)
        ? yield* command(text)
        : "500 5.5.2 commands are printable ASCII, and end in CRLF"
      if (reply !== undefined) yield* connection.write(`${reply}\r\n`)
      return reply
    }).pipe(
      // Not silent, but slow, or it does not read what it is told; a mail is a part of its command.
      Effect.timeoutOrElse({
        duration: "10 minutes",
        orElse: () =>
          Effect.as(Effect.timeoutOption(connection.write(`421 4.4.2 ${name} too slow\r\n`), "1 second"), "421")
      })
    )

    yield* connection.write(`220 ${name} ESMTP\r\n`)
    for (let errors = 0; errors < limits.errors;) {
      const reply = yield* turn
      if (reply?.startsWith("221") || reply?.startsWith("421")) return
      if (reply?.startsWith("5")) errors++
    }
    yield* connection.write(`421 4.7.0 ${name} too many errors\r\n`)
  }, (handled, connection) =>
    // The input has ended: by the client, or because the server shuts down, which it is told.
    Pull.catchDone(handled, () =>
      Effect.raceFirst(
        Effect.andThen(connection.draining, connection.write("421 4.3.2 shutting down\r\n")),
        Effect.void
      )))

export const Smtp = <E, R>(
  options: SmtpOptions,
  transport: Layer.Layer<StreamTransport.StreamTransport, E, R>
) =>
  transport.pipe(
    Dispatch.fiberPerRequest({ maxInFlight: 100 }),
    Server.serveStream(smtp(options), {
      idleTimeout: "5 minutes",
      onTimeout: (connection) => connection.write(`421 4.4.2 ${options.name} too silent\r\n`)
    })
  )

if (isMain(import.meta)) {
  // It ends up on a terminal: no control characters but line ends.
  const print = ({ content, encrypted, from, helo, to }: Mail) =>
    Console.log(
      [
        `mail from <${from}> to <${to.join(">, <")}>, by ${helo}${encrypted ? " over TLS" : ""}:`,
        new TextDecoder().decode(content)
      ]
        .join("\n").replace(/[^\P{Cc}\n]/gu, "")
    )
  const Printer = Layer.effectDiscard(
    Effect.forkScoped(Effect.forever(Inbox.use((inbox) => Effect.flatMap(inbox.take, print))))
  )
  const files = Config.option(Config.all({ certFile: Config.String("CERT_FILE"), keyFile: Config.String("KEY_FILE") }))
  runServer(
    "smtp",
    2525,
    (port) =>
      Layer.unwrap(Effect.map(files, (files) => {
        const tcp = NodeTransport.tcp({ host: "127.0.0.1", port })
        const options = { name: "localhost", startTls: Option.isSome(files) }
        return Smtp(options, Option.isSome(files) ? NodeTransport.startTls(files.value)(tcp) : tcp)
      })).pipe(Layer.provideMerge(Printer), Layer.provide(Inbox.layer(100))),
    (address) =>
      NetAddress.isInetAddress(address)
        ? `swaks --server ${NetAddress.formatHost(address)}:${address.port} --to me@example.org`
        : netcat(address)
  )
}
