import { existsSync, rmSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import type { Tensor } from 'tilegrad'
import type { Corpus } from './corpus.ts'
import { keepIn, WriteError, writeElsewhere, writeWhole } from './files.ts'
import { describedBy, describedWeights } from './model.ts'
import type { Options } from './options.ts'
import type { Run } from './train.ts'

const MODEL = 'model.safetensors'
/** Weights in the middle of a run: left behind only by one that failed or was killed. */
const CHECKPOINT = 'checkpoint.safetensors'
/** Inside the folder of results: those of the last run that reached its end, when a run that did not replaces them. */
const EARLIER = 'earlier'
/** Inside it as well: the checkpoint that a run left behind, when the next one writes its own. */
const UNFINISHED = 'unfinished'
const REPORT = 'run.json'

/** The order in which files are listed. */
const ORDER = ['loss.svg', 'sample.txt', MODEL, REPORT, EARLIER]

/**
 * The files of a run. What an earlier run left is replaced file by file, each at one moment, when the new one is whole;
 * the weights first, with all that is needed to use them inside.
 */
export class Results {
  readonly #folder: string
  readonly #corpus: Corpus
  readonly #options: Options
  readonly #written: [file: string, what: string][] = []
  #checkpointed = false

  constructor(folder: string, corpus: Corpus, options: Options) {
    this.#folder = folder
    this.#corpus = corpus
    this.#options = options
  }

  /** The path of a file of results. */
  #at(name: string): string {
    return join(this.#folder, name)
  }

  #bytes(weights: Readonly<Record<string, Tensor>>, steps: number): Promise<Uint8Array> {
    const { name: corpus, alphabet } = this.#corpus
    return describedWeights(weights, { corpus, alphabet, options: this.#options, steps })
  }

  /** Weights in the middle of the run, beside those of an earlier run. @throws WriteError */
  async checkpoint(weights: Readonly<Record<string, Tensor>>, steps: number): Promise<void> {
    const file = this.#at(CHECKPOINT)
    const bytes = await this.#bytes(weights, steps)
    writeWhole(file, bytes, () => {
      // One that is there already is all that there is of a run that failed or was killed.
      if (!this.#checkpointed && existsSync(file)) keepIn(this.#folder, UNFINISHED, [CHECKPOINT])
    })
    this.#checkpointed = true
  }

  /**
   * Puts the run's weights in the place of an earlier run's. If this one was stopped and that one reached its end, the
   * files of that one are kept in a folder of their own. A run that failed replaces nothing: its last good weights are a
   * checkpoint where there are results of an earlier run.
   *
   * @returns where the weights are.
   * @throws WriteError if they cannot be written, saying where they are instead.
   */
  async keep({ model, steps, failure }: Run): Promise<string> {
    if (failure !== null && (existsSync(this.#at(MODEL)) || existsSync(this.#at(REPORT)))) {
      await this.checkpoint(model.stateDict(), steps)
      return this.#at(CHECKPOINT)
    }
    const bytes = await this.#bytes(model.stateDict(), steps)
    try {
      this.#replace(bytes, steps)
    } catch (error) {
      if (!(error instanceof WriteError)) throw error
      const elsewhere = writeElsewhere(MODEL, bytes)
      const { message } = error
      const checkpoint = `${message}; weights of an earlier step are in ${this.#at(CHECKPOINT)}`
      if (!elsewhere) throw new WriteError(this.#checkpointed ? checkpoint : message)
      // Safe there: the checkpoint may make room.
      this.#dropCheckpoint()
      try {
        this.#replace(bytes, steps)
        rmSync(dirname(elsewhere), { recursive: true })
      } catch {
        throw new WriteError(`${message}; the weights are in ${elsewhere}`)
      }
    }
    this.#written.push([this.#at(MODEL), 'the weights'])
    this.#dropCheckpoint()
    return this.#at(MODEL)
  }

  #replace(bytes: Uint8Array, steps: number): void {
    writeWhole(this.#at(MODEL), bytes, () => {
      if (steps === this.#options.steps || !existsSync(this.#at(MODEL))) return
      const before = describedBy(this.#at(MODEL))
      if (before && before.steps < before.options.steps) return
      const kept = keepIn(this.#folder, EARLIER, ORDER.slice(0, 4))
      this.#written.push([kept, 'the results of the run before, which reached its end'])
    })
  }

  #dropCheckpoint(): void {
    if (this.#checkpointed) rmSync(this.#at(CHECKPOINT), { force: true })
    this.#checkpointed = false
  }

  /** Writes another file. @throws WriteError saying which and why. */
  write(name: string, content: string, what: string): void {
    const file = this.#at(name)
    writeWhole(file, content)
    this.#written.push([file, what])
  }

  /** Writes the report of the run whose weights are there, if that goes. What does not is tried again at the end, and told then. */
  tryReport(content: string): void {
    try {
      writeWhole(this.#at(REPORT), content)
    } catch (error) {
      if (!(error instanceof WriteError)) throw error
    }
  }

  /** A line for each file. */
  list(): string[] {
    const place = ([file]: readonly [string, string]): number => ORDER.indexOf(basename(file))
    return this.#written.sort((a, b) => place(a) - place(b)).map(([file, what]) => `  ${file}  ${what}`)
  }
}
