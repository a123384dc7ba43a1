/** What somebody else's error says, in a message of ours. */
export const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)
