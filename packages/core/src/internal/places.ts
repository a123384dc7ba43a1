/**
 * Strategies that can say at once whether there is a place, without a fiber that would wait for one: messages that are answered
 * at once need none. Others are asked as `Strategy` has it.
 */
import type { Strategy } from "../Dispatch.ts"

export interface Places {
  /** Takes a place, if there is one. */
  readonly take: () => boolean
  readonly leave: () => void
}

export const placesOf = new WeakMap<Strategy, Places>()
