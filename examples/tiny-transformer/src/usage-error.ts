/** Something the person at the command line can put right: shown as one line, exit code 2. */
export class UsageError extends Error {
  override name = 'UsageError'
}

/** A run that cannot go on, for no fault of the program: shown as one line, exit code 1. */
export class RunError extends Error {
  override name = 'RunError'
}
