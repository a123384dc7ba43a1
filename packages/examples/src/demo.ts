/**
 * What `pnpm start` serves, by the command `socketserver`: lines in upper case. A handler module exports a handler and nothing
 * else; where it listens, and how its requests run, is said to the command. Change this file while it runs: new connections get
 * the new handler.
 */
import { Handler } from "@socketserver/core"
import { LineCount } from "./LineCount.ts"
import { upper } from "./upper.ts"

export default Handler.portable(import.meta.url, "default", upper, { layer: LineCount.layer })
