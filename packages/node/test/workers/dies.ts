/** A module that no worker survives. */
process.exit(9)
