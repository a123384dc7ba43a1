/** Framings that `--framing` names, for modules that bring none of their own. */
import { FrameError, Framing } from "@socketserver/core"
import { Schema } from "effect"

export type AnyFraming = Framing.Framing<any, any>

/** Handlers of a user's module may be untyped: a reply of another type would become bytes of no meaning. */
const expecting = (name: string, type: string, is: (reply: unknown) => boolean, framing: AnyFraming): AnyFraming => ({
  ...framing,
  replies: {
    ...framing.replies,
    encode: (reply) => {
      if (is(reply)) return framing.replies.encode(reply)
      const given = typeof reply === "object" ? reply?.constructor?.name ?? "object" : typeof reply
      throw new FrameError.FrameError({
        framing: name,
        reason: new FrameError.Unencodable({ detail: `a reply is a ${type} under --framing ${name}, not a ${given}` })
      })
    }
  }
})

const bytes = (name: string, framing: Framing.Framing<Uint8Array>): AnyFraming =>
  expecting(name, "Uint8Array", (reply) => reply instanceof Uint8Array, framing)

const builtIn: Readonly<Record<string, (name: string) => AnyFraming>> = {
  "lines": (name) => expecting(name, "string", (reply) => typeof reply === "string", Framing.lines()),
  "ndjson": () => Framing.ndjson({ request: Schema.Any, reply: Schema.Any }),
  "netstring": (name) => bytes(name, Framing.netstring()),
  "length-prefixed": (name) => bytes(name, Framing.lengthPrefixed({ bytes: 4 })),
  "length-prefixed:1": (name) => bytes(name, Framing.lengthPrefixed({ bytes: 1 })),
  "length-prefixed:2": (name) => bytes(name, Framing.lengthPrefixed({ bytes: 2 })),
  "length-prefixed:4": (name) => bytes(name, Framing.lengthPrefixed({ bytes: 4 })),
  "length-prefixed:varint": (name) => bytes(name, Framing.lengthPrefixed({ bytes: "varint" })),
  "whole": (name) => bytes(name, Framing.whole())
}

/** For people. */
export const names = "lines, ndjson, netstring, length-prefixed[:1|2|4|varint], whole"

export const named = (name: string): AnyFraming | undefined =>
  Object.hasOwn(builtIn, name) ? builtIn[name]!(name) : undefined

/**
 * The framing that `current` gives, for servers that go on when it changes: a connection has the new one from its next message
 * on.
 */
export const changing = (current: () => AnyFraming): AnyFraming => {
  const first = current()
  return {
    ...first,
    messages: {
      ...first.messages,
      decoder: () => {
        let framing = current()
        let decoder = framing.messages.decoder()
        /** Has it taken nothing of the next message yet? */
        let isAtStart = true
        const upToDate = () => {
          if (isAtStart && framing !== current()) {
            framing = current()
            decoder = framing.messages.decoder()
          }
          return decoder
        }
        return {
          read: (input) => {
            const before = input.length
            const message = upToDate().read(input)
            isAtStart = message !== undefined || (isAtStart && input.length === before)
            return message
          },
          end: (input) => upToDate().end?.(input)
        }
      }
    },
    replies: { ...first.replies, encode: (reply) => current().replies.encode(reply) }
  }
}
