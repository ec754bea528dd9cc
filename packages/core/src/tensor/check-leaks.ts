/** Finds the tensors that a function leaves behind, for tests. */

import { expectFunction, expectOptions } from '../checks.ts'
import { show, TilegradError } from '../errors.ts'
import { type DType, info } from './dtype.ts'
import { live } from './memory.ts'
import { deepStacks, originOf } from './origin.ts'
import { type Scoped, setWatcher, type Watcher, watching } from './scope.ts'
import { showBytes } from './show-bytes.ts'
import { Tensor } from './tensor.ts'

/** A tensor that was left behind. */
export interface Leak {
  /** The operator or factory that made it, or 'view' or 'tensor' where none did. */
  readonly name: string
  /** The size of each dim. */
  readonly shape: readonly number[]
  /** The type of the elements. */
  readonly dtype: DType
  /** The name of the device that holds it. */
  readonly device: string
  /** The bytes that its elements take; views share them with others. */
  readonly bytes: number
  /** The place where the tensor was made: lines of a stack, the innermost first, without those of this library's core. */
  readonly origin: string
  /** The tensor that was left behind. */
  readonly tensor: Tensor
}

/** Options of `checkLeaks`. */
export interface LeakOptions {
  /**
   * Count tensors on which `keep()` was called, too: what the caller keeps, gradients in `.grad`, the state of
   * optimisers, parameters of modules. Default: false.
   */
  kept?: boolean
}

/** Thrown by `checkLeaks`: its message lists what `leaks` holds. */
export class LeakError extends TilegradError {
  override name = 'LeakError'
  /** What was left behind. */
  readonly leaks: readonly Leak[]

  constructor(leaks: readonly Leak[]) {
    const total = leaks.reduce((sum, { bytes }) => sum + bytes, 0)
    const lines = leaks.slice(0, 20).map(({ name, shape, dtype, device, bytes, origin }) => {
      const at = origin.split('\n', 1)[0].trim()
      return `\n  ${dtype} ${show(shape)} from ${name}, ${device}, ${showBytes(bytes)}${at && `, ${at}`}`
    })
    super(
      `checkLeaks: ${leaks.length} ${leaks.length === 1 ? 'tensor was' : 'tensors were'} left behind, ${showBytes(total)}; ` +
        `free what is listed by scope() or dispose(), return it, or call keep() on it:${lines.join('')}` +
        (leaks.length > 20 ? `\n  and ${leaks.length - 20} more` : ''),
    )
    this.leaks = leaks
  }
}

/** Records which tensors are made while a function runs, and where. */
class Recorder implements Watcher {
  /** An error for each tensor, whose stack is only spelled out when it is asked for. */
  readonly tensors = new Map<Tensor, Error>()
  readonly names = new Map<object, string>()
  readonly #outer = watching()
  readonly #endStacks = deepStacks()

  made(t: Scoped): void {
    if (t instanceof Tensor && !this.tensors.has(t)) this.tensors.set(t, new Error())
    this.#outer?.made(t)
  }

  filled(op: string, outputs: readonly object[]): void {
    for (const t of outputs) if (!this.names.has(t)) this.names.set(t, op)
    this.#outer?.filled(op, outputs)
  }

  /** Stops recording: whoever listened before goes on alone. */
  end(): void {
    setWatcher(this.#outer)
    this.#endStacks()
  }

  check<T>(result: T, kept: boolean): T {
    const allowed = live(result)
    const leaks: Leak[] = []
    for (const [tensor, error] of this.tensors) {
      if (tensor.disposed || allowed.has(tensor) || (tensor.kept && !kept)) continue
      const { shape, dtype, device, numel, gradFn, storage } = tensor
      const view = storage.tensors.count > 1 ? 'view' : 'tensor'
      leaks.push({
        name: this.names.get(tensor) ?? gradFn?.name ?? view,
        shape,
        dtype,
        device,
        bytes: numel * info[dtype].bytes,
        origin: originOf(error),
        tensor,
      })
    }
    if (leaks.length > 0) throw new LeakError(leaks)
    return result
  }
}

/**
 * Runs `fn` and throws if tensors that it made are still alive and not part of its result: for tests of code that is to
 * free what it makes. A result may hold tensors anywhere in arrays, maps, sets and objects; the graph behind them and
 * their gradients belong to it. What `keep()` was called on is allowed unless `kept` is set. If `fn` is asynchronous,
 * what others make meanwhile is counted as well.
 *
 * Whatever is listed is not lost: the garbage collector frees it in the end. Until `fn` has ended it is held, however.
 *
 * @param fn the function to check, synchronous or asynchronous; if it throws, so does this.
 * @returns what `fn` returns; for an asynchronous function, a promise of it.
 * @throws LeakError with the operator, shape, dtype, device, bytes and origin of each tensor that was left behind.
 * @example
 * const x = ones([2, 3])
 * checkLeaks(() => scope(() => x.mul(2).sum())).itemSync() // → 12
 * try {
 *   checkLeaks(() => {
 *     x.mul(2)
 *   })
 * } catch (error) {
 *   (error as LeakError).leaks[0]?.name // → mul
 * }
 */
export function checkLeaks<T>(fn: () => T, options: LeakOptions = {}): T {
  expectFunction('checkLeaks', fn)
  const { kept = false } = expectOptions('checkLeaks', options, { kept: 1 })
  const recorder = new Recorder()
  setWatcher(recorder)
  let result: T
  try {
    result = fn()
  } catch (error) {
    recorder.end()
    throw error
  }
  if (result instanceof Promise) {
    return result.finally(() => recorder.end()).then((value: unknown) => recorder.check(value, kept)) as T
  }
  recorder.end()
  return recorder.check(result, kept)
}
