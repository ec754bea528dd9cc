/** What became of one case. */
export type Outcome =
  | { readonly status: 'passed' }
  | { readonly status: 'failed'; readonly why: string }
  | { readonly status: 'skipped'; readonly why: string }

export const PASSED: Outcome = { status: 'passed' }
export const failed = (why: string): Outcome => ({ status: 'failed', why })
export const skipped = (why: string): Outcome => ({ status: 'skipped', why })

/** Counts outcomes and prints what is worth reading: failures at once, reasons of skipping together at the end. */
export class Report {
  readonly #print: (line: string) => void
  readonly #skips = new Map<string, number>()
  passed = 0
  failed = 0
  skipped = 0

  constructor(print: (line: string) => void) {
    this.#print = print
  }

  say(line: string): void {
    this.#print(line)
  }

  add(name: string, outcome: Outcome): void {
    this[outcome.status]++
    if (outcome.status === 'failed') this.#print(`FAIL ${name}: ${outcome.why}`)
    if (outcome.status === 'skipped') this.#skips.set(outcome.why, (this.#skips.get(outcome.why) ?? 0) + 1)
  }

  end(): void {
    for (const [why, n] of this.#skips) this.#print(`skipped ${n}: ${why}`)
    this.#print(`${this.passed} passed, ${this.failed} failed, ${this.skipped} skipped`)
  }
}
