import type { Names } from '../../checks.ts'
import { expectFloat } from '../../checks.ts'
import type { TensorSpec } from '../../dispatch/placing.ts'
import { ShapeError, show, ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise, fillLike } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import { scan } from '../../primitives/scan.ts'
import { contiguous, expandView, reshapeView, transposeView } from '../../primitives/views.ts'
import { promote } from '../../tensor/dtype.ts'
import { sameShape } from '../../tensor/layout.ts'
import { expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { add, exp } from '../pointwise.ts'
import { cumsum } from '../reduction.ts'
import { cat, narrow, pad, tril } from '../shape.ts'
import { decayedBetween, gatedScores, powerOfTwo } from './triangles.ts'

/**
 * The recurrence behind linear attention and its relatives, computed in chunks of C steps:
 *
 *   Sₜ = diag(αₜ) Sₜ₋₁ + kₜᵀ vₜ,   oₜ = qₜ Sₜ
 *
 * One chunk of all steps is the quadratic form, chunks of one step are the recurrence itself, anything between takes
 * time and memory linear in T.
 */

/** How to compute: all pairs of steps, pairs within chunks and a state between them, or step by step. */
export type LinearForm = 'quadratic' | 'chunked' | 'recurrent'

/** How linear attention is computed; each way gives the same numbers. */
export interface LinearFormOptions {
  /** The form to compute in. Default: the backend's fused kernel where there is one, else 'chunked'. */
  form?: LinearForm
  /** Steps per chunk of the chunked form, a power of two; default 64. */
  chunkSize?: number
}

/** The state that linear attention starts from, and whether it is returned. */
export interface StateOptions {
  /** What steps before the first one left behind: a state that an earlier call returned. Default: zeros. */
  initialState?: Tensor | null
}

/** Options of every form. */
export const FORMS: Names<LinearFormOptions & StateOptions & { returnState?: boolean }> = {
  form: 1,
  chunkSize: 1,
  initialState: 1,
  returnState: 1,
}

/** The steps per chunk of a form; with `whole` they are a power of two even where one chunk holds all. */
export function chunkSteps(
  op: string,
  steps: number,
  { form = 'chunked', chunkSize = 64 }: LinearFormOptions,
  whole: boolean,
): number {
  if (form !== 'quadratic' && form !== 'chunked' && form !== 'recurrent')
    throw new ValueError(`${op}: form must be 'quadratic', 'chunked' or 'recurrent', got '${form}'`)
  if (!Number.isInteger(chunkSize) || chunkSize < 1 || powerOfTwo(chunkSize) !== chunkSize)
    throw new ValueError(`${op}: chunkSize must be a power of two, got ${chunkSize}`)
  const all = Math.max(1, whole ? powerOfTwo(steps) : steps)
  return form === 'quadratic' ? all : form === 'recurrent' ? 1 : Math.min(chunkSize, all)
}

/** Throws unless q (B, H, T, D), k (B, H, S, D) and v (B, H, S, Dv) are floating tensors that fit, with T = S if `causal`. */
export function checkOperands(op: string, q: Tensor, k: Tensor, v: Tensor, causal: boolean): void {
  for (const t of [q, k, v]) {
    expectTensor(op, t)
    expectFloat(op, t.dtype)
    if (t.rank !== 4) throw new ShapeError(`${op}: takes (B, H, T, D), got ${show(t.shape)}`)
  }
  const [b, h, t, d] = q.shape
  const s = k.shape[2]
  if (!sameShape(k.shape, [b, h, s, d]) || !sameShape(v.shape.slice(0, 3), [b, h, s])) {
    throw new ShapeError(
      `${op}: q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)} do not fit; expected (B, H, T, D), (B, H, S, D), (B, H, S, Dv)`,
    )
  }
  if (causal && s !== t)
    throw new ShapeError(`${op}: causal attention needs as many keys as queries, got ${s} and ${t}`)
}

/** Throws unless a state is (B, H, D, columns). */
export function checkState(op: string, state: Tensor | null, q: Tensor, columns: number): void {
  const [b, h, , d] = q.shape
  if (state && !sameShape(state.shape, [b, h, d, columns]))
    throw new ShapeError(
      `${op}: the initial state ${show(state.shape)} must be (B, H, D, Dv) = ${show([b, h, d, columns])}, as an earlier call returned it`,
    )
}

/** What an operator with a state gives: results of the dtype of q, and a state of what all is of, with `more` columns than v. */
export function withState(inputs: readonly Tensor[], more: number): readonly TensorSpec[] {
  const [q, , v] = inputs
  const [b, h, t, d] = q.shape
  const dtype = inputs.map((x) => x.dtype).reduce(promote)
  return [
    { shape: [b, h, t, v.shape[3]], dtype: q.dtype },
    { shape: [b, h, d, v.shape[3] + more], dtype },
  ]
}

/** Makes [v, 1], with which the normaliser is one more column of every product. */
export function withOnes(v: Tensor): Tensor {
  const one = fillLike(v, 1, [1, 1, 1, 1])
  return cat([v, expandView('linear_attention', one, [...v.shape.slice(0, 3), 1])], 3)
}

/** (B, H, T, D) → (B, H, N, C, D), with zeros after the last step. */
export function intoChunks(x: Tensor, size: number): Tensor {
  const [b, h, t, d] = x.shape
  const count = Math.max(1, Math.ceil(t / size))
  const full = count * size === t ? x : pad(x, [0, 0, 0, count * size - t])
  return reshapeView(full, [b, h, count, size, d])
}

/** (B, H, N, C, D) → (B, H, T, D). */
export function fromChunks(x: Tensor, steps: number): Tensor {
  const [b, h, n, c, d] = x.shape
  const full = reshapeView(x, [b, h, n * c, d])
  return n * c === steps ? full : narrow(full, 2, 0, steps)
}

/** x · eᵃ */
const SCALED = program('decay', 2, ([x, a]) => e.mul(x, e.exp(a)))
/** x · eᵃ + y */
const STEP = program('decay_step', 3, ([x, a, y]) => e.add(e.mul(x, e.exp(a)), y))
/** s · e^{a − b} on and below the diagonal; elsewhere the exponent, which may be large, is not taken. */
const MASKED = program('decay_mask', 3, ([s, a, b]) => {
  const seen = e.le(e.coord(-1), e.coord(-2))
  return e.select(seen, e.mul(s, e.exp(e.select(seen, e.sub(a, b), 0))), 0)
})

export const decayed = (x: Tensor, log: Tensor | null): Tensor => (log ? elementwise(SCALED, [x, log]) : x)
export const stepped = (state: Tensor, log: Tensor | null, more: Tensor): Tensor =>
  log ? elementwise(STEP, [state, log, more]) : add(state, more)

/** Scores of queries and keys of one chunk, (…, C, C), zero above the diagonal; `decay` (…, C, 1) adds up along the chunk. */
export function maskedScores(op: string, q: Tensor, k: Tensor, decay: Tensor | null): Tensor {
  const s = matmulPrimitive(op, q, transposeView(k, 3, 4))
  return decay ? elementwise(MASKED, [s, decay, transposeView(decay, 3, 4)]) : tril(s)
}

export interface Recurrence {
  /** (B, H, T, D) */
  readonly q: Tensor
  /** (B, H, T, D) */
  readonly k: Tensor
  /** (B, H, T, Dv) */
  readonly v: Tensor
  /** log α, (B, H, T, 1) or (B, H, T, D); none: α = 1. */
  readonly logDecay: Tensor | null
  /** (B, H, D, Dv) */
  readonly state: Tensor | null
}

/** The recurrence in chunks of `size` steps: outputs (B, H, T, Dv) and, if wanted, the state after the last step. */
export function recur(
  op: string,
  { q, k, v, logDecay, state }: Recurrence,
  size: number,
  wantState: boolean,
): { out: Tensor; state: Tensor | null } {
  const [query, key, value] = [q, k, v].map((x) => intoChunks(x, size))
  // Decay from the chunk's start up to each step, and over all of it.
  const decay = logDecay && cumsum(intoChunks(logDecay, size), 3)
  const total = decay && narrow(decay, 3, size - 1, 1)
  const vector = decay !== null && decay.shape[4] > 1
  const scores = vector ? gatedScores(op, query, key, decay) : maskedScores(op, query, key, decay)
  let out = matmulPrimitive(op, scores, value)
  const single = query.shape[2] === 1
  let after: Tensor | null = null
  if (wantState || state || !single) {
    const late = total && decay ? decayedBetween(key, total, decay) : key
    const added = matmulPrimitive(op, transposeView(late, 3, 4), value)
    const across = total && transposeView(total, 3, 4)
    const states = single ? lone(added, across, state) : series(added, across, state)
    if (states.before) out = add(out, matmulPrimitive(op, decayed(query, decay), states.before))
    if (wantState) after = states.after()
  }
  return { out: fromChunks(out, q.shape[2]), state: after }
}

interface States {
  /** The state before each chunk, (B, H, N, D, Dv); none: zero. */
  readonly before: Tensor | null
  /** The state after the last one, (B, H, D, Dv). */
  readonly after: () => Tensor
}

function lone(added: Tensor, decay: Tensor | null, state: Tensor | null): States {
  const [b, h, , d, dv] = added.shape
  const before = state && reshapeView(state, added.shape)
  return {
    before,
    after: () => reshapeView(before ? stepped(before, decay, added) : added, [b, h, d, dv]),
  }
}

/** Goes through the states of a row of chunks: each one decays and adds its own. */
function series(added: Tensor, decay: Tensor | null, state: Tensor | null): States {
  const [b, h, n, d, dv] = added.shape
  const first = state ? reshapeView(state, [b, h, 1, d, dv]) : fillLike(added, 0, [b, h, 1, d, dv])
  // Moved by one chunk: what each one finds is what those before it left.
  const found = cat([first, narrow(added, 2, 0, n - 1)], 2)
  let before: Tensor
  if (decay) {
    // The factor of the first is multiplied by the nothing before it.
    const moved = exp(cat([narrow(decay, 2, n - 1, 1), narrow(decay, 2, 0, n - 1)], 2))
    // Dense, so that engines scan by whole vectors.
    const factors = contiguous(expandView('scan', moved, found.shape))
    before = scan('affine', [factors, found], 2, false)
  } else before = scan('sum', [found], 2, false)
  const last = (x: Tensor): Tensor => narrow(x, 2, n - 1, 1)
  return {
    before,
    after: () => reshapeView(stepped(last(before), decay && last(decay), last(added)), [b, h, d, dv]),
  }
}
