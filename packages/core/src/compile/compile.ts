import { gradEnabled, noGrad } from '../autograd/tape.ts'
import { expectFunction, expectOptions, describe as showValue } from '../checks.ts'
import { capturing } from '../dispatch/capturing.ts'
import { casting } from '../dispatch/casting.ts'
import { defaultBackend } from '../dispatch/device.ts'
import { CompileError, show, ValueError } from '../errors.ts'
import { limitOf } from '../offload/offload.ts'
import { type Limit, pager } from '../offload/pager.ts'
import { copy, copyInto } from '../primitives/elementwise.ts'
import { info } from '../tensor/dtype.ts'
import { numel } from '../tensor/layout.ts'
import { live } from '../tensor/memory.ts'
import { shownAs } from '../tensor/printing.ts'
import { refuseAsync, runScope } from '../tensor/scope.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { Capture, describe, difference, type Ref } from './capture.ts'
import { Plan, type PlanInfo } from './plan.ts'
import { kindOf, restored, type Tree, textOf, treeOf } from './tree.ts'

/** Options of `compile`. */
export interface CompileOptions {
  /** So many recordings are kept, for arguments of different shapes; the one unused for longest goes first. Default: 8. */
  maxPlans?: number
  /**
   * Make chains of elementwise operators one (default), which changes results by rounding at most; without it they are the
   * same bits as those of the function itself.
   */
  fuse?: boolean
  /**
   * Where to put what does not fit: 'host' for arrays of the host, or the path of a folder for a file there. What is
   * computed on the way leaves the backend's memory where it is needed again last, and comes back in time; parameters and
   * optimisers' states do if they fill more than half of it. For backends that read at once, which WebGPU is not.
   */
  offload?: 'host' | (string & {})
  /** With `offload`: bytes of the backend's memory that may be in use. Default: all that it has. */
  maxBytes?: number
}

/** A function that is recorded and replayed; see `compile`. */
export interface Compiled<A extends readonly unknown[], R> {
  (...args: A): R
  /** What was recorded so far. */
  readonly plans: readonly PlanInfo[]
  /** The plans as text, kernel by kernel, with shapes and bytes. */
  toString(): string
  /** Frees all plans and their memory; the next call records anew. */
  dispose(): void
  [Symbol.dispose](): void
}

/** How often the function may do something else each time. */
const mostAttempts = 4

/**
 * Makes a function of tensors that is recorded and then replayed: a whole training step with its backward pass and the
 * optimiser's, an evaluation, one step of decoding. A replay runs the kernels alone, in memory that was planned once, with
 * chains of elementwise operators as one; no line of `fn` runs any more. It computes the same as `fn` does.
 *
 * `fn` runs as it is until two runs in a row did the same, three times as a rule. Whatever may change must come in as a
 * tensor: as an argument, or as one that is changed in place (parameters, an optimiser's state). Learning rates, step
 * numbers and random numbers are asked for at each call; modules may be switched between training and evaluation.
 * Arguments are tensors, plain values, and arrays and plain objects of them. Other shapes and other plain values are
 * recorded by themselves. Results come without a graph.
 *
 * @throws CompileError where the function reads a tensor, or does something else each time; it names the operator.
 * GradError for an argument on the tape.
 * @example
 * const w = ones([2], { requiresGrad: true })
 * const step = compile((x: Tensor) => {
 *   const loss = w.mul(x).square().sum()
 *   loss.backward()
 *   noGrad(() => w.sub_(w.grad!.mul(0.1)))
 *   w.grad = null
 *   return loss
 * })
 * for (let i = 0; i < 10; i++) step(tensor([1, 2]))
 * step.plans.length // → 1
 */
export function compile<A extends readonly unknown[], R>(
  fn: (...args: A) => R,
  options: CompileOptions = {},
): Compiled<A, R> {
  expectFunction('compile', fn)
  const {
    maxPlans = 8,
    fuse = true,
    offload,
    maxBytes,
  } = expectOptions('compile', options, { maxPlans: 1, fuse: 1, offload: 1, maxBytes: 1 })
  if (!Number.isInteger(maxPlans) || maxPlans < 1)
    throw new ValueError(`compile: maxPlans must be a whole number ≥ 1, got ${showValue(maxPlans)}`)
  if (maxBytes !== undefined && offload === undefined)
    throw new ValueError(
      "compile: maxBytes says when offload moves tensors; pass offload: 'host' or a folder as well",
    )
  /** What went before it was ever replayed. */
  let inVain = 0
  const recordings = new Map<string, Recordings>()
  const call = (...args: A): R => {
    // Within another one it is a part of that.
    if (capturing()) return fn(...args)
    if (offload === undefined) return called(args, null)
    const limit = limitOf('compile', 'offload', offload, maxBytes)
    return pager.within(limit, () => called(args, limit))
  }
  const called = (args: A, limit: Limit | null): R => {
    const given: Tensor[] = []
    const tree = treeOf('an argument', args, (t) => {
      const at = given.indexOf(t)
      return at >= 0 ? at : given.push(t) - 1
    })
    const key = `${textOf(tree)} ${given.map(kindOf).join()} ${gradEnabled()} ${casting.now?.dtype} ${idOf(defaultBackend())}`
    let found = recordings.get(key)
    recordings.delete(key)
    found ??= new Recordings(tree, given, fuse, maxPlans, limit)
    recordings.set(key, found)
    for (const [old, other] of recordings) {
      if (recordings.size <= maxPlans) break
      if (other.plans.length === 0 && ++inVain === 2 * maxPlans)
        console.warn(
          `tilegrad: compile: arguments of more than maxPlans = ${maxPlans} kinds come in turns, so that nothing is replayed; raise it, or pass numbers that change as tensors`,
        )
      other.release()
      recordings.delete(old)
    }
    return found.call(fn as (...args: readonly unknown[]) => unknown, given) as R
  }
  const plans = (): Plan[] => [...recordings.values()].flatMap((r) => r.plans)
  const text = (): string =>
    plans()
      .map((plan) => String(plan))
      .join('\n\n') || 'compile: nothing is recorded yet'
  const dispose = (): void => {
    for (const r of recordings.values()) r.release()
    recordings.clear()
  }
  const compiled = Object.defineProperties(
    shownAs(call, () => `Compiled(${fn.name || 'function'}, plans=${plans().length})`),
    {
      plans: { get: () => plans().map((plan) => plan.info) },
      [Symbol.dispose]: { value: () => dispose() },
      toString: { value: text },
      dispose: { value: () => dispose() },
    },
  )
  return compiled as unknown as Compiled<A, R>
}

const ids = new WeakMap<object, number>()
let count = 0
const idOf = (value: object): number => {
  const id = ids.get(value) ?? ++count
  ids.set(value, id)
  return id
}

interface Ready {
  readonly plan: Plan
  readonly tree: Tree
}

/** A run that was recorded, and how many before it, in the same circumstances, did something else. */
interface Recorded {
  readonly capture: Capture
  readonly tree: Tree
  readonly attempts: number
  readonly why: string
}

/** What was recorded for arguments of one kind. */
class Recordings {
  readonly #tree: Tree
  readonly #fuse: boolean
  readonly #most: number
  readonly #limit: Limit | null
  /** What the function is given: copies of the arguments, always in the same memory; leaves as they are. */
  readonly #inputs: readonly Tensor[]
  readonly #ready: Ready[] = []
  /** The latest run of each kind of circumstances: modules that train or not, gradients that are there or not. */
  readonly #latest = new Map<string, Recorded>()
  readonly #watched = new Map<object, () => string>()

  constructor(tree: Tree, given: readonly Tensor[], fuse: boolean, most: number, limit: Limit | null) {
    this.#tree = tree
    this.#limit = limit
    this.#most = most
    this.#fuse = fuse
    this.#inputs = given.map((t) => (t.requiresGrad ? t : allocate(t.backend, t.shape, t.dtype).keep()))
  }

  get plans(): Plan[] {
    return this.#ready.map(({ plan }) => plan)
  }

  call(fn: (...args: readonly unknown[]) => unknown, given: readonly Tensor[]): unknown {
    for (const { capture, attempts, why } of this.#latest.values())
      if (attempts >= mostAttempts && capture.isAsNow())
        throw new CompileError(
          `compile: the function did something else in each of ${mostAttempts + 1} runs: ${why}. It is tried again after dispose()`,
        )
    noGrad(() => {
      for (let i = 0; i < given.length; i++)
        if (given[i] !== this.#inputs[i]) copyInto(this.#inputs[i], given[i])
    })
    const versions = this.#inputs.map((t) => t.storage.version)
    const result = this.#replay() ?? this.#record(fn, given)
    noGrad(() => {
      for (let i = 0; i < given.length; i++)
        if (given[i] !== this.#inputs[i] && this.#inputs[i].storage.version !== versions[i]) {
          if (given.some((t, j) => j !== i && t.storage === given[i].storage))
            throw new CompileError(
              `compile: the function changes an argument ${show(given[i].shape)} that shares memory with another one, and arguments are copied; pass one of them as a clone()`,
            )
          copyInto(given[i], this.#inputs[i])
        }
    })
    return result.value
  }

  #replay(): { value: unknown } | null {
    for (let i = 0; i < this.#ready.length; i++) {
      const { plan, tree } = this.#ready[i]
      if (plan.stale) {
        plan.release()
        this.#ready.splice(i--, 1)
      } else if (plan.matches()) {
        const results = plan.run()
        return { value: noGrad(() => restored(tree, (index) => copy(results[index]))) }
      }
    }
    return null
  }

  #record(fn: (...args: readonly unknown[]) => unknown, given: readonly Tensor[]): { value: unknown } {
    const capture = new Capture(this.#watched)
    const refs: Ref[] = []
    let tree: Tree = { kind: 'value', value: undefined }
    const value = runScope(
      () => {
        const found: Tensor[] = []
        capture.run(() => {
          const args = restored(this.#tree, (index) => this.#inputs[index]) as readonly unknown[]
          // A replay casts weights as they are then: what was cast outside is none of the function's.
          const result = casting.now ? casting.now.afresh(() => fn(...args)) : fn(...args)
          refuseAsync('compile', result, 'a compiled function is synchronous. Await outside')
          tree = treeOf('the result', result, (t) => {
            const at = found.indexOf(t)
            if (at >= 0) return at
            refs.push(capture.ref(t))
            return found.push(t) - 1
          })
        })
        // The function's own may be arguments, or parameters.
        const copies = noGrad(() => found.map((t) => copy(t)))
        return restored(tree, (index) => copies[index])
      },
      live,
      'compile()',
    )
    this.#refuseShared(capture, given)
    const circumstances = capture.circumstances()
    const last = this.#latest.get(circumstances)
    const why =
      last === undefined
        ? 'it ran once'
        : (difference(last.capture, capture) ??
          resultDifference(last.tree, tree) ??
          leftBehind(capture, refs))
    this.#latest.delete(circumstances)
    if (why !== null) {
      const attempts = last === undefined ? 0 : last.attempts + 1
      this.#latest.set(circumstances, { capture, tree, attempts, why })
      const [oldest] = this.#latest.keys()
      if (this.#latest.size > this.#most) this.#latest.delete(oldest)
      return { value }
    }
    if (this.#ready.length >= this.#most) this.#ready.shift()?.plan.release()
    const passing = [...given.filter((t, i) => t !== this.#inputs[i]), ...refs].reduce(
      (n, { dtype, shape }) => n + numel(shape) * info[dtype].bytes,
      0,
    )
    if (capture.backend)
      this.#ready.push({
        plan: new Plan(capture.backend, capture, refs, this.#fuse, this.#limit, passing),
        tree,
      })
    return { value }
  }

  /** Throws where an argument, of which the function gets a copy, lies in memory that it uses by itself as well. */
  #refuseShared({ slots }: Capture, given: readonly Tensor[]): void {
    for (const [i, t] of given.entries()) {
      if (
        t === this.#inputs[i] ||
        !slots.some(({ outer, storage }) => outer !== null && storage === t.storage)
      )
        continue
      throw new CompileError(
        `compile: an argument ${show(t.shape)} shares memory with a tensor that the function uses by itself, and arguments are copied; leave it out of the arguments, or pass a clone()`,
      )
    }
  }

  release(): void {
    for (const { plan } of this.#ready) plan.release()
    this.#ready.length = 0
    this.#latest.clear()
    for (const t of this.#inputs) if (!t.requiresGrad) t.dispose()
  }
}

const resultDifference = (a: Tree, b: Tree): string | null =>
  textOf(a) === textOf(b) ? null : `it returned ${textOf(a)}, then ${textOf(b)}, where each # is a tensor`

/** Memory that the function made and that outlives it, other than its results and gradients: a replay would not make it. */
function leftBehind({ slots, grads, steps, wereGrads }: Capture, results: readonly Ref[]): string | null {
  const known = new Set([...wereGrads, ...[...grads.values()].map(({ after }) => after)])
  for (const { slot } of results) known.add(slots[slot].storage)
  for (const [i, { storage, outer }] of slots.entries()) {
    if (outer !== null || storage.buffer === null || known.has(storage)) continue
    const step = steps.find((s) => (s.kind === 'call' ? s.outputs : [s.to]).some(({ slot }) => slot === i))
    return `a tensor of ${describe(step)} outlives it; return it, or make it outside`
  }
  return null
}
