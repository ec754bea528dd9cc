/** Spreads work over time, so that it takes at most a hundredth of it. */
export class Pace {
  readonly #began = performance.now()
  readonly #least: (since: number) => number
  #next = 0

  /** @param least the shortest pause in milliseconds, when so many have passed since the beginning. */
  constructor(least: (since: number) => number) {
    this.#least = least
  }

  /** Whether the pause after the last time is over. */
  get due(): boolean {
    return performance.now() >= this.#next
  }

  /** Does the work, and begins the pause that it calls for. */
  async run(work: () => Promise<void>): Promise<void> {
    const start = performance.now()
    await work()
    const end = performance.now()
    this.#next = end + Math.max(this.#least(end - this.#began), 100 * (end - start))
  }
}
