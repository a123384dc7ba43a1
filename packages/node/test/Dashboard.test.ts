/** The dashboard: its routes by an HTTP client, and its page in a real Chromium. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Framing, Metrics, Server, Transport } from "@socketserver/core"
import { type Control, NodeTransport } from "@socketserver/node"
import * as Dashboard from "@socketserver/node/Dashboard"
import { Context, Deferred, Duration, Effect, Layer, Logger, Redacted, References } from "effect"
import { HttpRouter, HttpServer } from "effect/http"
import { NetAddress } from "effect/net"
import { execFileSync } from "node:child_process"
import { createServer, request } from "node:http"
import { type Browser, chromium, type ConsoleMessage } from "playwright-core"
import { connect, portOf } from "./utils.ts"

const token = "a token of the tests"

/** Lines come back in upper case, and are noted; a line `hold` is answered when the test says so. */
const upper = (name: string, held?: Deferred.Deferred<void>) =>
  NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
    Admission.maxConnections({ max: 100 }),
    Dispatch.fiberPerRequest(),
    Server.serveStream((connection) =>
      Effect.forever(Effect.gen(function*() {
        const line = yield* connection.readLine()
        yield* connection.annotate("user", line)
        if (line === "hold" && held !== undefined) yield* Deferred.await(held)
        yield* connection.write(`${line.toUpperCase()}\n`)
      })), { name, shutdown: { grace: "10 seconds", kill: "1 second" } })
  )

/** Routes, served by themselves on a free port, which this is. */
const serve = <E, R>(routes: Layer.Layer<never, E, R | HttpRouter.HttpRouter>) =>
  HttpRouter.serve(routes, { disableListenLog: true }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { host: "127.0.0.1", port: 0 })),
    Layer.build,
    Effect.map((context) => portOf(Context.get(context, HttpServer.HttpServer)))
  )

const start = Effect.fnUntraced(function*(
  options: { readonly held?: Deferred.Deferred<void>; readonly measured?: boolean; readonly hosts?: Array<string> } = {}
) {
  const layer = upper("upper", options.held)
  const context = yield* Layer.build(options.measured === true ? Layer.provide(layer, Metrics.layer()) : layer)
  const server = Context.get(context, Server.Server)
  const routes = Dashboard.layer({ token: Redacted.make(token), hosts: options.hosts })
  return { server, port: yield* Effect.provideContext(serve(routes), context) }
})

interface Answer {
  readonly status: number
  readonly body: string
  readonly headers: NodeJS.Dict<string | Array<string>>
}

const ask = (
  port: number,
  path: string,
  { bearer = token, body, host, method = body === undefined ? "GET" : "POST" }: {
    readonly bearer?: string | null
    readonly body?: unknown
    readonly host?: string
    readonly method?: string
  } = {}
): Effect.Effect<Answer> =>
  Effect.callback((resume) => {
    const headers = {
      ...bearer === null ? {} : { authorization: `Bearer ${bearer}` },
      ...host === undefined ? {} : { host }
    }
    const sent = request({ host: "127.0.0.1", port, path, method, headers, agent: false }, (response) => {
      const chunks: Array<Buffer> = []
      response.on("data", (chunk: Buffer) => chunks.push(chunk))
      response.on("end", () =>
        resume(Effect.succeed({
          status: response.statusCode!,
          body: Buffer.concat(chunks).toString(),
          headers: response.headers
        })))
    })
    sent.on("error", (error) => resume(Effect.die(error)))
    sent.end(body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body))
  })

const data = (port: number, query = "") =>
  Effect.map(ask(port, `/dashboard/data${query}`), ({ body, status }) => {
    assert.strictEqual(status, 200)
    return JSON.parse(body) as Dashboard.Data
  })

const tell = (port: number, body: unknown) =>
  Effect.map(ask(port, "/dashboard/do", { body }), (answer) => ({
    status: answer.status,
    answer: JSON.parse(answer.body) as Control.Answer
  }))

/** A client that has said who it is; `ended` is when its socket has closed. */
const join = Effect.fnUntraced(function*(server: { readonly address: NetAddress.SocketAddress }, user: string) {
  const socket = yield* connect(server.address)
  const ended = new Promise<void>((resolve) => socket.once("close", () => resolve()))
  socket.on("end", () => socket.end())
  yield* Effect.callback<void>((resume) => {
    socket.once("data", () => resume(Effect.void))
    socket.write(`${user}\n`)
  })
  return { socket, peer: `127.0.0.1:${socket.localPort}`, ended: Effect.promise(() => ended) }
})

describe("Dashboard, its routes", () => {
  it.live("says nothing to who has not the token, and does not fill the log", () => {
    const lines: Array<unknown> = []
    const Listening = Logger.layer([Logger.make(({ logLevel, message }) => {
      if (logLevel !== "Debug") lines.push(message)
    })])
    return Effect.gen(function*() {
      const { port, server } = yield* start()
      const client = yield* join(server, "ada")
      const wrong = [null, "", "another token of tests", token.slice(0, -1), `${token}!`]
      for (const bearer of wrong) {
        for (const options of [{}, { body: { do: "close", where: {} } }]) {
          const path = "body" in options ? "/dashboard/do" : "/dashboard/data"
          const { body, headers, status } = yield* ask(port, path, { bearer, ...options })
          assert.deepStrictEqual([status, body, headers["www-authenticate"]], [401, "", "Bearer"], String(bearer))
        }
      }
      assert.strictEqual((yield* server.stats).open, 1)
      yield* data(port)
      client.socket.destroy()
      assert.deepStrictEqual(lines.flat().filter((line) => !String(line).startsWith("listening")), [])
    }).pipe(Effect.provide(Listening), Effect.provideService(References.MinimumLogLevel, "Debug"))
  })

  it.live("the page is the same for everybody, and may do nothing but its own", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start()
      yield* join(server, "<script>alert(1)</script>")
      const { body, headers, status } = yield* ask(port, "/dashboard", { bearer: null })
      assert.strictEqual(status, 200)
      assert.notInclude(body, "alert(1)")
      assert.notMatch(body, /(src|href)=(?!"data:)|https?:|innerHTML|cookie/)
      const policy = String(headers["content-security-policy"])
      assert.match(policy, /^default-src 'none'; script-src 'sha256-/)
      assert.notInclude(policy, "unsafe")
      assert.isUndefined(headers["set-cookie"])
      assert.isUndefined(headers["access-control-allow-origin"])
      assert.strictEqual(headers["cache-control"], "no-store")
    }))

  it.live("answers by its own names only, so that no other site's name leads here", () =>
    Effect.gen(function*() {
      const { port } = yield* start()
      for (const path of ["/dashboard", "/dashboard/data"]) {
        for (
          const host of ["evil.example", `evil.example:${port}`, "localhost.evil.example", "127.0.0.1.evil.example"]
        ) {
          const { body, status } = yield* ask(port, path, { host })
          assert.deepStrictEqual([status, body], [403, ""], host)
        }
        for (const host of ["localhost", `LOCALHOST:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`]) {
          assert.strictEqual((yield* ask(port, path, { host })).status, 200, host)
        }
      }
    }))

  it.live("has the names that it is told", () =>
    Effect.gen(function*() {
      const { port } = yield* start({ hosts: ["ops.example.com"] })
      assert.strictEqual((yield* ask(port, "/dashboard/data", { host: "ops.example.com:9090" })).status, 200)
      assert.strictEqual((yield* ask(port, "/dashboard/data", { host: "localhost" })).status, 403)
    }))

  it.live("does not start with names that no browser would come with", () =>
    Effect.gen(function*() {
      const token = Redacted.make("0123456789abcdef")
      for (const host of ["ops.example.com:443", "https://ops.example.com", "::1", ""]) {
        const error = yield* serve(Dashboard.routes({}, { token, hosts: [host] })).pipe(Effect.flip)
        assert.include(error.message, `option \`hosts\` is ${JSON.stringify(host)}: expected names`)
      }
      yield* serve(Dashboard.routes({}, { token, hosts: ["ops.example.com", "[::1]", "10.0.0.1"] }))
    }))

  it.live("does not start with a token that is soon guessed", () =>
    Effect.gen(function*() {
      const error = yield* serve(Dashboard.routes({}, { token: Redacted.make("secret") })).pipe(Effect.flip)
      assert.match(error.message, /token/)
      assert.notInclude(error.message, "secret")
    }))

  it.live("says what the servers have, as a control does", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start()
      const client = yield* join(server, "<script>alert(1)</script>")
      const { servers: [one, ...others] } = yield* data(port)
      assert.deepStrictEqual(others, [])
      const { connections, latency, stats, ...view } = one!
      assert.deepStrictEqual(view, {
        name: "upper",
        address: NetAddress.formatInet(server.address as NetAddress.InetAddress),
        transport: "tcp",
        strategy: "fiberPerRequest",
        status: "ready",
        limits: { maxConnections: 100 },
        pid: process.pid
      })
      assert.deepStrictEqual(stats, yield* server.stats)
      assert.isNull(latency)
      assert.strictEqual(connections?.total, 1)
      assert.deepStrictEqual({ ...connections?.shown[0], ageMs: 0 }, {
        id: 1,
        peer: client.peer,
        local: view.address,
        state: "handling",
        ageMs: 0,
        bytesRead: 26,
        bytesWritten: 26,
        annotations: { user: "<script>alert(1)</script>" }
      })
    }))

  it.live("has the durations that metrics measure", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start({ measured: true })
      const before = (yield* data(port)).servers[0]!.latency
      assert.deepStrictEqual(before, { bounds: [], counts: [], count: 0, max: 0 })
      const client = yield* join(server, "ada")
      client.socket.end()
      yield* client.ended
      yield* server.awaitIdle
      const after = (yield* data(port)).servers[0]!.latency!
      assert.strictEqual(after.count, 1)
      assert.strictEqual(after.counts.at(-1), 1)
      assert.strictEqual(after.bounds.length, after.counts.length)
      assert.isAbove(after.max, 0)
    }))

  it.live("shows 200 connections, those that are asked for", () =>
    Effect.gen(function*() {
      const { server } = yield* start()
      const list = Effect.succeed(Array.from({ length: 300 }, (_, i): Server.ConnectionInfo => ({
        id: i + 1,
        peer: server.address,
        local: server.address,
        state: "handling",
        age: Duration.seconds(300 - i),
        bytesRead: (i * 7) % 300,
        bytesWritten: 0,
        annotations: new Map()
      })))
      const port = yield* serve(
        Dashboard.routes({ many: { ...server, connections: { ...server.connections, list } } }, {
          token: Redacted.make(token)
        })
      )
      const first = (query: string) =>
        Effect.map(data(port, query), ({ servers: [one] }) => {
          assert.deepStrictEqual([one!.connections!.total, one!.connections!.shown.length], [300, 200])
          return one!.connections!.shown[0]!
        })
      assert.strictEqual((yield* first("")).id, 1)
      assert.strictEqual((yield* first("?sort=newest")).id, 300)
      assert.strictEqual((yield* first("?sort=most")).bytesRead, 299)
      assert.strictEqual((yield* first("?sort=least")).bytesRead, 0)
    }))

  it.live("kill ends that connection, and no other", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start()
      const ada = yield* join(server, "ada")
      const grace = yield* join(server, "grace")
      const { id } = (yield* server.connections.list).find(({ annotations }) => annotations.get("user") === "ada")!
      assert.deepStrictEqual(yield* tell(port, { do: "close", id }), { status: 200, answer: { ok: true, value: 1 } })
      yield* ada.ended
      assert.isFalse(grace.socket.destroyed)
      assert.deepStrictEqual((yield* tell(port, { do: "close", id })).answer, { ok: true, value: 0 })
    }))

  it.live("suspends, resumes, drains", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start()
      const statusOf = Effect.map(data(port), ({ servers: [one] }) => one!.status)
      assert.isTrue((yield* tell(port, { do: "suspend" })).answer.ok)
      assert.strictEqual(yield* statusOf, "suspended")
      assert.isTrue((yield* tell(port, { do: "resume" })).answer.ok)
      assert.strictEqual(yield* statusOf, "ready")
      const client = yield* join(server, "ada")
      const { answer } = yield* tell(port, { do: "drain" })
      assert.isTrue(answer.ok)
      yield* client.ended
      assert.strictEqual(yield* statusOf, "stopped")
    }))

  it.live("what is no request is answered, and what is too long is not read", () =>
    Effect.gen(function*() {
      const { port } = yield* start()
      for (const body of ["{", "[]", { do: "explode" }, { do: "close" }, { do: "top" }, { do: "events" }]) {
        const { answer, status } = yield* tell(port, body)
        assert.deepStrictEqual([status, answer.ok, answer.ok || answer.code], [400, false, "InvalidRequest"])
      }
      const { body, status } = yield* ask(port, "/dashboard/do", { body: `"${"x".repeat(65_536)}"` })
      assert.deepStrictEqual([status, body], [413, ""])
    }))

  it.live("has several servers by their names, at a path of one's own", () => {
    class One extends Server.Service<One>()("One") {}
    class Two extends Server.Service<Two>()("Two") {}
    return Effect.gen(function*() {
      const one = yield* One
      const two = yield* Two
      const ada = yield* join(one, "ada")
      const grace = yield* join(two, "grace")
      const port = yield* serve(
        Dashboard.layer({ token: Redacted.make(token), servers: [One, Two], path: "/" })
      )
      const { body } = yield* ask(port, "/data?server=same-2")
      const { servers } = JSON.parse(body) as Dashboard.Data
      assert.deepStrictEqual(servers.map(({ name }) => name), ["same", "same-2"])
      assert.deepStrictEqual(servers.map(({ connections }) => connections?.shown[0]?.annotations), [
        undefined,
        { user: "grace" }
      ])
      assert.strictEqual((yield* ask(port, "/")).status, 200)
      yield* ask(port, "/do", { body: { do: "close", server: "same-2", id: 1 } })
      yield* grace.ended
      assert.isFalse(ada.socket.destroyed)
    }).pipe(Effect.provide(Layer.merge(Server.as(One)(upper("same")), Server.as(Two)(upper("same")))))
  })
})

describe("Dashboard, its page in Chromium", () => {
  let browser: Browser
  beforeAll(async () => {
    let executablePath: string
    try {
      executablePath = execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim()
    } catch {
      throw new Error("these tests need the program chromium: apt-get install chromium")
    }
    // The root user of a container has no sandbox to make.
    browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] })
  }, 60_000)
  afterAll(() => browser?.close())

  /** A tab at the dashboard; what it complains about, and what it asks of others. */
  const open = Effect.fnUntraced(function*(port: number, fragment = `#token=${encodeURIComponent(token)}`) {
    const context = yield* Effect.acquireRelease(
      Effect.promise(() => browser.newContext({ colorScheme: "light" })),
      (context) => Effect.promise(() => context.close())
    )
    const page = yield* Effect.promise(() => context.newPage())
    const url = `http://127.0.0.1:${port}/dashboard`
    const complaints: Array<string> = []
    page.on("console", (line: ConsoleMessage) => complaints.push(`console: ${line.text()}`))
    page.on("pageerror", (error) => complaints.push(`error: ${error.message}`))
    page.on("dialog", (dialog) => complaints.push(`dialog: ${dialog.message()}`))
    page.on("request", (asked) => {
      if (!asked.url().startsWith(url) && !asked.url().startsWith("data:")) complaints.push(`request: ${asked.url()}`)
    })
    yield* Effect.promise(() => page.goto(`${url}${fragment}`))
    const awaitText = (selector: string, text: string) =>
      Effect.promise(() => page.locator(selector, { hasText: text }).first().waitFor())
    return { page, context, complaints, awaitText, url }
  })

  it.live("shows a client as it comes, draws, and kills it", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start({ measured: true })
      const { awaitText, complaints, context, page, url } = yield* open(port)
      yield* awaitText("#status", "ready")
      yield* awaitText("#empty", "No connection is open.")
      const user = "<script>window.hurt = 1</script><img src=x onerror=\"window.hurt = 1\">"
      const ada = yield* join(server, user)
      const grace = yield* join(server, "grace")

      const row = page.locator("#connections tr", { hasText: ada.peer })
      yield* Effect.promise(() => row.waitFor())
      assert.strictEqual(yield* Effect.promise(() => row.locator("td.notes").textContent()), `user=${user}`)
      assert.strictEqual(yield* Effect.promise(() => page.locator("#connections :is(script, img)").count()), 0)

      yield* Effect.promise(() => row.getByRole("button", { name: "Kill" }).click())
      yield* ada.ended
      yield* Effect.promise(() => row.waitFor({ state: "detached" }))
      yield* awaitText("#notice", "was closed")
      yield* awaitText("#reasons", "Killed1")
      assert.isFalse(grace.socket.destroyed)

      // Each plot has a line by now, that of latencies too: in its first colour, or below the second one.
      yield* Effect.promise(() =>
        page.waitForFunction(() => {
          const plots = Array.from(document.querySelectorAll("canvas"))
          const isDrawn = (plot: HTMLCanvasElement) => {
            const { data } = plot.getContext("2d")!.getImageData(0, 0, plot.width, plot.height)
            for (let i = 0; i < data.length; i += 4) {
              if (data[i + 3]! > 200 && Math.abs(data[i]! - data[i + 2]!) > 80) return true
            }
            return false
          }
          return plots.length === 5 && plots.every(isDrawn)
        })
      )
      assert.strictEqual(yield* Effect.promise(() => page.evaluate("window.hurt")), undefined)
      assert.strictEqual(page.url(), url)
      assert.deepStrictEqual(yield* Effect.promise(() => context.cookies()), [])
      assert.deepStrictEqual(complaints, [])
    }))

  it.live("suspends, resumes, and drains at the second click", () =>
    Effect.gen(function*() {
      const held = Deferred.makeUnsafe<void>()
      const { port, server } = yield* start({ held })
      const { awaitText, complaints, page } = yield* open(port)
      const click = (name: string) => Effect.promise(() => page.getByRole("button", { name, exact: true }).click())
      yield* awaitText("section", "Not measured: provide Metrics.layer()")
      yield* click("Suspend")
      yield* awaitText("#status", "suspended")
      yield* click("Resume")
      yield* awaitText("#status", "ready")

      const busy = yield* connect(server.address)
      const ended = new Promise<void>((resolve) => busy.once("close", () => resolve()))
      busy.on("end", () => busy.end()).resume()
      busy.write("hold\n")
      yield* awaitText("#connections td", "user=hold")
      yield* click("Drain")
      assert.strictEqual(yield* server.status, "ready")
      yield* click("Really drain?")
      yield* awaitText("#status", "draining")
      yield* Deferred.succeed(held, undefined)
      yield* Effect.promise(() => ended)
      yield* awaitText("#status", "stopped")
      yield* awaitText("#notice", "Drained in")
      assert.deepStrictEqual(complaints, [])
    }))

  it.live("takes the token by its form, and keeps it for the tab", () =>
    Effect.gen(function*() {
      const { port } = yield* start()
      const { awaitText, complaints, page } = yield* open(port, "")
      const enter = (text: string) =>
        Effect.promise(async () => {
          await page.getByLabel("token").fill(text)
          await page.getByRole("button", { name: "Open" }).click()
        })
      yield* enter("not the right one")
      yield* awaitText("#why", "This token is not the one.")
      assert.strictEqual(complaints.length, 1)
      assert.include(complaints[0], "401")
      yield* enter(token)
      yield* awaitText("#status", "ready")
      yield* Effect.promise(() => page.reload())
      yield* awaitText("#status", "ready")
      assert.strictEqual(complaints.length, 1)
    }))

  it.live("fits a narrow window: nothing but the table is wider, and what can be clicked is in sight", () =>
    Effect.gen(function*() {
      const { port, server } = yield* start({ measured: true })
      const { awaitText, complaints, page } = yield* open(port)
      const ada = yield* join(server, "ada has a name that is longer than a narrow window is wide")
      const row = page.locator("#connections tr", { hasText: ada.peer })
      yield* Effect.promise(() => row.waitFor())
      for (const [width, columns] of [[1_280, 3], [768, 2], [320, 1]] as const) {
        yield* Effect.promise(() => page.setViewportSize({ width, height: 640 }))
        const seen = yield* Effect.promise(() =>
          page.evaluate(() => {
            const plots = Array.from(document.querySelectorAll("#plots > *"))
            return {
              wide: document.documentElement.scrollWidth,
              columns: new Set(plots.map((plot) => plot.getBoundingClientRect().left)).size,
              outside: Array.from(document.querySelectorAll("button:not([hidden])"), (button) => ({
                name: button.textContent,
                right: button.getBoundingClientRect().right
              })).filter(({ name, right }) => right > innerWidth && !/bytes|age/.test(name))
            }
          })
        )
        // Drawn anew, in the next frame.
        yield* Effect.promise(() =>
          page.waitForFunction(() =>
            Array.from(document.querySelectorAll("canvas")).every((plot) => plot.width === plot.clientWidth)
          )
        )
        assert.deepStrictEqual(seen, { wide: width, columns, outside: [] })
      }
      yield* Effect.promise(() => row.getByRole("button", { name: "Kill" }).click())
      yield* ada.ended
      yield* awaitText("#notice", "was closed")
      const notice = yield* Effect.promise(() => page.locator("#notice").boundingBox())
      assert.isAtLeast(notice!.width, 250)
      assert.isBelow(notice!.height, 30)
      assert.deepStrictEqual(complaints, [])
    }))

  it.live("switches between servers: shows and operates the one that is chosen", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(upper("upper"))
      const messages = yield* Layer.build(
        NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          Transport.framed(Framing.lines()),
          Dispatch.fiberPerRequest(),
          Server.serveMessage(
            ({ payload, sender }) => Effect.as(sender.annotate("user", payload), payload),
            { name: "messages" }
          ),
          Layer.provide(Metrics.layer())
        )
      )
      const [one, two] = [Context.get(context, Server.Server), Context.get(messages, Server.Server)]
      const port = yield* serve(Dashboard.routes({ one, two }, { token: Redacted.make(token) }))
      const ada = yield* join(one, "ada")
      const grace = yield* join(two, "grace")
      const { awaitText, complaints, page } = yield* open(port)
      const click = (name: string) => Effect.promise(() => page.getByRole("button", { name, exact: true }).click())
      const row = (user: string) => page.locator("#connections tr", { hasText: `user=${user}` })
      const chosen = Effect.promise(() => page.locator("#servers [aria-pressed=true]").allTextContents())
      yield* Effect.promise(() => row("ada").waitFor())
      assert.deepStrictEqual(yield* chosen, ["one"])
      assert.strictEqual(yield* Effect.promise(() => page.title()), "one: ready")
      assert.strictEqual(yield* Effect.promise(() => row("grace").count()), 0)

      // The question was about the other one.
      yield* click("Drain")
      yield* awaitText("#drain", "Really drain?")
      yield* click("two")
      yield* Effect.promise(() => row("grace").waitFor())
      yield* click("Drain")
      yield* awaitText("#drain", "Really drain?")
      assert.deepStrictEqual([yield* one.status, yield* two.status], ["ready", "ready"])
      assert.deepStrictEqual(yield* chosen, ["two"])
      assert.strictEqual(yield* Effect.promise(() => page.title()), "two: ready")
      assert.strictEqual(yield* Effect.promise(() => row("ada").count()), 0)
      yield* awaitText("#facts", portOf(two).toString())

      // Its requests are its messages: none of its connections has ended.
      const talking = setInterval(() => grace.socket.write("grace\ngrace\n"), 20)
      const requestsDone = Effect.promise(() =>
        page.waitForFunction(() =>
          Array.from(document.querySelectorAll(".now > div"), ({ textContent }) => textContent)
            .some((text) => text.endsWith("requests done") && parseFloat(text) > 0)
        )
      )
      yield* Effect.ensuring(requestsDone, Effect.sync(() => clearInterval(talking)))

      yield* Effect.promise(() => row("grace").getByRole("button", { name: "Kill" }).click())
      yield* grace.ended
      yield* awaitText("#notice", "was closed")
      yield* click("Suspend")
      yield* awaitText("#status", "suspended")
      yield* click("one")
      yield* Effect.promise(() => row("ada").waitFor())
      yield* awaitText("#status", "ready")
      assert.strictEqual(yield* Effect.promise(() => page.locator("#notice").textContent()), "")
      assert.deepStrictEqual([yield* one.status, yield* two.status], ["ready", "suspended"])
      assert.isFalse(ada.socket.destroyed)
      assert.deepStrictEqual(complaints, [])
    }))
})
