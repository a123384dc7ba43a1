/**
 * Where the control of a running program is: a socket in the user's own directory, by the program's name. So that it is found
 * without being told.
 */
import { ControlClient } from "@socketserver/node"
import { Effect } from "effect"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { basename, isAbsolute, join, resolve } from "node:path"
import { failure, misuse } from "./problem.ts"

/**
 * `$XDG_RUNTIME_DIR/socketserver`; without one, a directory of this user's among the temporary files. The variable may be that
 * of another session, whose directory is not there any more.
 */
const directory = (): string => {
  const runtime = process.env["XDG_RUNTIME_DIR"]
  return runtime !== undefined && isAbsolute(runtime) && Fs.existsSync(runtime)
    ? join(runtime, "socketserver")
    : join(tmpdir(), `socketserver-${process.getuid?.() ?? 0}`)
}

const instead = "name another place by --control PATH, or none by --control none"

/** The directory, which is this user's alone: in a directory that is everybody's, somebody else may have made it. */
export const ownDirectory = Effect.suspend(() => {
  const path = directory()
  try {
    Fs.mkdirSync(path, { mode: 0o700 })
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code !== "EEXIST") return failure(`cannot make ${path}: ${message}; ${instead}`)
  }
  return isOwn(path)
    ? Effect.succeed(path)
    : failure(`${path} is not a directory of this user's alone: ${instead}`)
})

const isOwn = (path: string): boolean => {
  const found = Fs.lstatSync(path, { throwIfNoEntry: false })
  return found?.isDirectory() === true && found.uid === process.getuid?.() && (found.mode & 0o022) === 0
}

/** A path has a slash, a name has none. */
export const pathOf = (control: string): Effect.Effect<string, never> =>
  Effect.sync(() => control.includes("/") ? resolve(control) : join(directory(), `${control}.sock`))

/** Who is asked: whom `--control` names, or the only one that runs. */
export const find = Effect.fnUntraced(function*(control: string | undefined) {
  if (control?.includes("/") === true) return yield* pathOf(control)
  const place = directory()
  // Whoever answers in another's directory may be anybody.
  const isOurs = yield* Effect.sync(() => isOwn(place))
  if (control !== undefined && isOurs) return yield* pathOf(control)
  const files = yield* Effect.sync(() => isOurs ? Fs.readdirSync(place) : [])
  const running = yield* Effect.filter(
    files.filter((file) => file.endsWith(".sock")).toSorted(),
    // One that takes long, or has no place for us, is there, too: another one is not meant instead of it.
    (file) =>
      ControlClient.request(join(place, file), { do: "servers" }).pipe(
        Effect.timeoutOption("2 seconds"),
        Effect.match({ onSuccess: () => true, onFailure: ({ code }) => code === "Busy" })
      ),
    { concurrency: "unbounded" }
  )
  const [only] = running
  if (only === undefined) {
    return yield* failure(
      `no running server found in ${place}: start one by \`socketserver serve\`, or name its socket by --control PATH`
    )
  }
  if (running.length > 1) {
    const names = running.map((file) => basename(file, ".sock"))
    return yield* misuse(`several programs run: ${names.join(", ")}; choose one by --control NAME`)
  }
  return join(place, only)
})
