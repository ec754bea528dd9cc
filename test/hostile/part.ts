import { memory, TilegradError } from 'tilegrad'
import { collected } from '../../packages/core/test/support/collected.ts'
import { Random } from './random.ts'
import type { Watchdog } from './watchdog.ts'

/** How the inputs of a part fared. */
export interface Counts {
  tried: number
  /** Gave a value. */
  survived: number
  /** Were refused with words: an error of tilegrad's, or a plain line and an exit code. */
  refused: number
  failures: string[]
  /** What could not be tried here, and why. */
  skipped: string[]
}

/** What a part works with. */
export interface Trial {
  readonly random: Random
  readonly count: number
  readonly counts: Counts
  /**
   * Tries one input: a value or a tilegrad error, in bounded time, with a message of bounded length, and no tensor left
   * behind but those that there were. Everything else is a failure, reported with the input.
   *
   * @param input shown on failure.
   */
  attempt(input: () => string, run: () => unknown): Promise<void>
  /** Counts an input that was tried otherwise. */
  record(outcome: 'survived' | 'refused'): void
  fail(input: string, why: string): void
  skip(what: string): void
}

export interface Part {
  readonly name: string
  readonly about: string
  /** Inputs of a whole run, and of a short one. */
  readonly inputs: readonly [whole: number, quick: number]
  run(trial: Trial): Promise<void>
}

/** No input may take longer, in seconds of processor time. */
const LONGEST = 10
/** No message may have more characters. */
const LONGEST_MESSAGE = 4000

const shorten = (text: string, most = 2000): string =>
  text.length > most ? `${text.slice(0, most)}… (${text.length} characters)` : text

export async function runPart(
  part: Part,
  { seed, count, watchdog }: { seed: number; count: number; watchdog?: Watchdog },
): Promise<Counts> {
  const counts: Counts = { tried: 0, survived: 0, refused: 0, failures: [], skipped: [] }
  /** Tensors after the last input: where the number is another before the next one, there may be garbage. */
  let known = -1
  const trial: Trial = {
    random: new Random(seed),
    count,
    counts,
    record(outcome) {
      counts.tried++
      counts[outcome]++
    },
    fail(input, why) {
      counts.tried++
      counts.failures.push(
        `${part.name}, seed ${seed}, input ${counts.tried}: ${shorten(why)}\n    ${shorten(input)}`,
      )
    },
    skip: (what) => counts.skipped.push(what),
    async attempt(input, run) {
      const number = counts.tried + 1
      if (memory().tensors !== known) await collected()
      const before = memory().tensors
      const start = process.cpuUsage()
      watchdog?.begin(`${part.name}, seed ${seed}, input ${number}`, input)
      let refused = false
      let failure: string | null = null
      try {
        await run()
      } catch (error) {
        refused = error instanceof TilegradError
        if (!refused) failure = error instanceof Error ? `${error.stack}` : `threw ${String(error)}`
        else if ((error as Error).message.length > LONGEST_MESSAGE)
          failure = `a message of ${(error as Error).message.length} characters`
      }
      watchdog?.end()
      const { user, system } = process.cpuUsage(start)
      if ((user + system) / 1e6 > LONGEST) failure ??= `took ${(user + system) / 1e6} s of processor time`
      // What nobody holds any more, as of a constructor that threw, is left to the garbage collector.
      for (let i = 0; i < 3 && memory().tensors > before; i++) await collected()
      known = memory().tensors
      if (known !== before) failure ??= `left ${known - before} tensors behind`
      if (Object.hasOwn(Object.prototype, 'polluted')) failure ??= 'changed Object.prototype'
      if (failure) trial.fail(input(), failure)
      else trial.record(refused ? 'refused' : 'survived')
    },
  }
  await part.run(trial)
  return counts
}
