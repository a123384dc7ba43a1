/**
 * Handlers from a user's module: which export is meant, is it one, and loading it again when its file, or one that it imports
 * by a path, has changed.
 */
import { type Connection, type Datagram, Framing, Handler, type Message } from "@socketserver/core"
import { Console, Effect, Queue } from "effect"
import * as Fs from "node:fs"
import { registerHooks } from "node:module"
import { basename, dirname, join, relative } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"
import { type AnyFraming, named, names } from "./framings.ts"
import { failure, misuse, oneLine, type Problem } from "./problem.ts"

export type Subject = Connection.Connection | Datagram.Datagram | Message.Message<any, any>
export type PlainHandler = (subject: Subject) => Effect.Effect<unknown, unknown, any>
export type PortableHandler = Handler.Portable<any, unknown, unknown, any>

/** What the servers of one command need of a module. */
export interface Wanted {
  /** The export for connections, where there are servers for them. */
  readonly stream: string | undefined
  /** The export for packets; `undefined` where it is not named. */
  readonly datagram: string | undefined
  /** A framing's name, that of the export which is one, or `"none"`; `undefined` where it is not named. */
  readonly framing: string | undefined
  readonly hasStream: boolean
  readonly hasDatagram: boolean
  /** Workers run portable handlers alone. */
  readonly dispatch: string
  readonly portable: boolean
}

export interface Handlers {
  /** With it, there is one handler, of messages, for all servers. */
  readonly framing: AnyFraming | undefined
  readonly stream: PlainHandler | PortableHandler | undefined
  readonly datagram: PlainHandler | PortableHandler | undefined
}

const isHandler = (value: unknown): value is PlainHandler | PortableHandler =>
  typeof value === "function" || Handler.isPortable(value)

const kindOf = (value: unknown): string =>
  value === null || value === undefined
    ? String(value)
    : Array.isArray(value)
    ? "an array"
    : typeof value === "object"
    ? "an object"
    : `a ${typeof value}`

const withoutQuery = (url: string): string => url.replace(/[?#].*$/, "")

/** A module, which can be loaded again. */
export class UserModule {
  /** For people. */
  readonly name: string
  private readonly url: string
  /** Its file, and those that it imports by paths, directly or not: packages are not looked at. */
  readonly files = new Set<string>()
  private loads = 0
  private hooks: ReturnType<typeof registerHooks> | undefined

  constructor(path: string) {
    const below = relative("", path)
    this.name = below.startsWith("..") ? path : `./${below}`
    this.url = pathToFileURL(path).href
    this.files.add(path)
  }

  /**
   * Node keeps a module that it has loaded; by another query it is another module. From now on a module that is loaded again
   * gets all that it imports by paths anew.
   */
  readonly reloading = Effect.acquireRelease(
    Effect.sync(() => {
      this.hooks = registerHooks({
        resolve: (specifier, context, next) => {
          const isOurs = /^(\.{0,2}\/|file:)/.test(specifier) && context.parentURL?.startsWith("file:") === true &&
            this.files.has(fileURLToPath(withoutQuery(context.parentURL)))
          // Also one that is not there yet.
          if (isOurs) this.files.add(fileURLToPath(new URL(withoutQuery(specifier), context.parentURL)))
          const found = next(specifier, context)
          if (!isOurs || !found.url.startsWith("file:")) return found
          this.files.add(fileURLToPath(withoutQuery(found.url)))
          return this.loads <= 1 ? found : { ...found, url: `${withoutQuery(found.url)}?load=${this.loads}` }
        }
      })
    }),
    () => Effect.sync(() => this.hooks?.deregister())
  )

  load(wanted: Wanted): Effect.Effect<Handlers, Problem> {
    return Effect.gen({ self: this }, function*() {
      const { name, url } = this
      const path = fileURLToPath(url)
      if (!Fs.existsSync(path)) return yield* failure(`cannot find ${name}: there is no such file`)
      if (Fs.statSync(path).isDirectory()) {
        return yield* failure(`${name} is a directory: name the module in it that exports the handler`)
      }
      this.loads++
      const exports = yield* Effect.tryPromise({
        try: () => import(this.loads === 1 ? url : `${url}?load=${this.loads}`) as Promise<Record<string, unknown>>,
        catch: (error) => failure(`cannot load ${name}: ${whereOf(error)}${oneLine(error)}`)
      })
      const choose = (exported: string, option: string, what: string) =>
        Effect.gen({ self: this }, function*() {
          const value = Object.hasOwn(exports, exported) ? exports[exported] : undefined
          if (value === undefined) {
            const others = Object.keys(exports).filter((key) => isHandler(exports[key]))
            return yield* failure(
              `${name} has no ${exported === "default" ? "default export" : `export \`${exported}\``}: ` +
                (others.length > 0
                  ? `choose a handler by ${option}: ${others.join(", ")}`
                  : `it exports no handler at all; try \`export default (${what}) => …\``)
            )
          }
          if (!isHandler(value)) {
            return yield* failure(
              `${name}: ${exported === "default" ? "the default export" : `\`${exported}\``} is ${
                kindOf(value)
              }, not a handler: ` +
                `it takes a function from a ${what} to an Effect, or what Handler.portable makes`
            )
          }
          if (wanted.portable && !Handler.isPortable(value)) {
            return yield* failure(
              `${name}: --dispatch ${wanted.dispatch} runs handlers in workers, and \`${exported}\` is a plain function, which cannot ` +
                `travel there: make it by Handler.portable(import.meta.url, "${exported}", …), or choose --dispatch fiber`
            )
          }
          return Handler.isPortable(value) ? value : checked(name, exported, value)
        })
      const stream = wanted.stream ?? "default"
      const framing = yield* framingOf(name, exports, wanted.framing)
      if (framing !== undefined) {
        if (wanted.datagram !== undefined) {
          return yield* misuse(
            `${name}: --datagram-handler is for packets without a framing; with one, --handler has all messages`
          )
        }
        const handler = yield* choose(stream, "--handler", "message")
        return { framing, stream: handler, datagram: handler }
      }
      const datagram = wanted.datagram ??
        (Object.hasOwn(exports, "datagram") ? "datagram" : wanted.hasStream ? undefined : stream)
      if (wanted.hasDatagram && datagram === undefined) {
        return yield* misuse(
          `${name}: connections and packets have handlers of their own; export the one for packets as \`datagram\`, or name it by --datagram-handler`
        )
      }
      return {
        framing,
        stream: wanted.hasStream ? yield* choose(stream, "--handler", "connection") : undefined,
        datagram: wanted.hasDatagram
          ? yield* choose(datagram!, wanted.hasStream ? "--datagram-handler" : "--handler", "packet")
          : undefined
      }
    })
  }

  /** Waits for the next change of one of the files; those that come shortly after it belong to it. */
  readonly changes = Effect.gen({ self: this }, function*() {
    const queue = yield* Queue.sliding<void>(1)
    const watched = new Map<string, Fs.FSWatcher | undefined>()
    yield* Effect.addFinalizer(() => Effect.sync(() => watched.forEach((watcher) => watcher?.close())))
    // Editors replace files: it is the directory that tells.
    const watchOne = (folder: string) =>
      Effect.try({
        try: () =>
          Fs.watch(folder, (_, file) => {
            if (file === null || this.files.has(join(folder, basename(file)))) Queue.offerUnsafe(queue, undefined)
          }).on("error", () => {}),
        catch: oneLine
      }).pipe(
        Effect.catch((message) =>
          Effect.as(Console.error(`cannot watch ${folder}, changes there go unnoticed: ${message}`), undefined)
        ),
        Effect.map((watcher) => watched.set(folder, watcher))
      )
    const watch = Effect.suspend(() => {
      const folders = new Set(Array.from(this.files, (file) => dirname(file)))
      const fresh = Array.from(folders).filter((folder) => !watched.has(folder) && Fs.existsSync(folder))
      return Effect.forEach(fresh, watchOne, { discard: true })
    })
    return Effect.gen(function*() {
      yield* watch
      yield* Queue.take(queue)
      yield* Effect.sleep("100 millis")
      yield* Queue.clear(queue)
    })
  })
}

/** By its name, or by that of an export; by default the export `framing`, if there is one. */
const framingOf = (module: string, exports: Record<string, unknown>, wanted: string | undefined) =>
  Effect.gen(function*() {
    if (wanted === "none") return undefined
    const builtIn = wanted === undefined ? undefined : named(wanted)
    if (builtIn !== undefined) return builtIn
    const exported = wanted ?? "framing"
    const value = Object.hasOwn(exports, exported) ? exports[exported] : undefined
    if (Framing.isFraming(value)) return value
    if (value === undefined) {
      return wanted === undefined
        ? undefined
        : yield* failure(`--framing ${wanted}: ${module} has no export \`${wanted}\`, and these have a name: ${names}`)
    }
    return yield* failure(
      `${module}: \`${exported}\` is ${kindOf(value)}, not a framing: it is what Framing.lines() and its like make` +
        (wanted === undefined ? "; with --framing none it is not looked at" : "")
    )
  })

/** A syntax error says where it is in the first line of its stack. */
const whereOf = (error: unknown): string => {
  const [line = ""] = error instanceof SyntaxError ? error.stack?.split("\n") ?? [] : []
  const [, path, at] = /^(?:file:\/\/)?(\/.*?)(?:\?load=\d+)?:(\d+)$/.exec(line) ?? []
  return path === undefined ? "" : `${path}:${at}: `
}

/** JavaScript lets a handler return anything. */
const checked = (module: string, exported: string, handler: PlainHandler): PlainHandler => (subject) => {
  const effect: unknown = handler(subject)
  return Effect.isEffect(effect)
    ? effect as Effect.Effect<unknown, unknown, any>
    : Effect.die(
      new Error(
        `${module}: the handler \`${exported}\` has returned ${
          effect instanceof Promise ? "a promise" : kindOf(effect)
        }, not an Effect`
      )
    )
}
