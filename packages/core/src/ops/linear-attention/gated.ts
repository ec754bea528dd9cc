import { expectOptions, type Names } from '../../checks.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { DTypeError, ShapeError, show, ValueError } from '../../errors.ts'
import { expandView, reshapeView } from '../../primitives/views.ts'
import { isFloat } from '../../tensor/dtype.ts'
import { sameShape } from '../../tensor/layout.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { tensor } from '../create.ts'
import { add, div, mul } from '../pointwise.ts'
import { narrow } from '../shape.ts'
import {
  checkOperands,
  checkState,
  chunkSteps,
  FORMS,
  type LinearFormOptions,
  recur,
  type StateOptions,
  withOnes,
  withState,
} from './chunks.ts'

/** Inputs: q, k, v and, with `hasDecay`, log α, (B, H, T, 1). */
export interface GatedLinearAttentionAttrs {
  /** Whether there are logarithms of decays among the inputs. */
  hasDecay: boolean
}

/** Attributes of the composed operator: log α may be (B, H, T, D), an initial state may follow, the final one is output 1. */
interface WrittenAttrs extends GatedLinearAttentionAttrs {
  form: LinearFormOptions
  wantState: boolean
}

function written(
  [q, k, v, ...more]: readonly Tensor[],
  { form, hasDecay, wantState }: WrittenAttrs,
): Tensor[] {
  const op = 'gated_linear_attention'
  const logDecay = hasDecay ? more[0] : null
  const initial = more[hasDecay ? 1 : 0] ?? null
  const vector = logDecay !== null && logDecay.shape[3] > 1
  const size = chunkSteps(op, q.shape[2], form, vector)
  const { out, state } = recur(op, { q, k, v, logDecay, state: initial }, size, wantState)
  return state ? [out, state] : [out]
}

declare module '../../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Linear attention with decay (Yang et al. 2024). */
    readonly gated_linear_attention?: KernelOf<GatedLinearAttentionAttrs>
    /** The gradients of linear attention with decay. */
    readonly gated_linear_attentionBackward?: KernelOf<GradientAttrs<GatedLinearAttentionAttrs>>
  }
}

const GATED: Op<GatedLinearAttentionAttrs> = {
  name: 'gated_linear_attention',
  kernel: (kernels) => kernels.gated_linear_attention,
  gradient: (kernels) => kernels.gated_linear_attentionBackward,
  infer: ([q, , v]) => [{ shape: v.shape, dtype: q.dtype }],
  compose: (inputs, attrs) => written(inputs, { ...attrs, form: {}, wantState: false }),
}

/** The operator in a form of the caller's choice, with a decay per row of the state, or with a state: always composed. */
const WRITTEN: Op<WrittenAttrs> = {
  name: 'gated_linear_attention',
  outputs: 2,
  infer: (inputs) => withState(inputs, 0),
  compose: written,
}

/** Options of `gatedLinearAttention`. */
export interface GatedLinearAttentionOptions extends LinearFormOptions, StateOptions {
  /** Multiplies the queries; default 1, as the formula. */
  scale?: number
  /** Divide by Σ (decayed) q·k + eps, as linear attention does; for q and k ≥ 0. The state then has Dv + 1 columns. Default false. */
  normalize?: boolean
  /** Added to the normaliser; default 1e-6. */
  eps?: number
}

/**
 * Linear attention whose state decays: Sₜ = diag(αₜ) Sₜ₋₁ + kₜᵀ vₜ, outₜ = scale · qₜ Sₜ, causal by nature and in time
 * and memory linear in T.
 *
 * - α per head and step: simple gated linear attention (Yang et al. 2024); with log α = Δ · A, k = Δ B and q = C the
 *   state-space duality of Mamba-2 (Dao & Gu 2024); constant in time it is `retention`.
 * - α per head, step and row of the state: gated linear attention (Yang et al. 2024).
 * - null: α = 1, linear attention without a normaliser.
 *
 * @param q (B, H, T, D)
 * @param k (B, H, T, D)
 * @param v (B, H, T, Dv)
 * @param logDecay log α ≤ 0, finite: (B, H, T), (B, H, T, 1) or (B, H, T, D); or null
 * @returns (B, H, T, Dv); with `returnState` [out, S_T], where S_T (B, H, D, Dv) is the `initialState` of what follows.
 * @throws ShapeError for shapes that do not fit, DTypeError for tensors that are not floating, ValueError for an
 * unknown form.
 * @example
 * const [q, k, v] = [randn([1, 2, 5, 4]), randn([1, 2, 5, 4]), randn([1, 2, 5, 3])]
 * const gates = rand([1, 2, 5, 4]).log()
 * gatedLinearAttention(q, k, v, gates).shape // → 1,2,5,3
 */
export function gatedLinearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  logDecay: Tensor | null,
  options: GatedLinearAttentionOptions & { returnState: true },
): [Tensor, Tensor]
export function gatedLinearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  logDecay: Tensor | null,
  options?: GatedLinearAttentionOptions & { returnState?: false },
): Tensor
export function gatedLinearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  logDecay: Tensor | null,
  options: GatedLinearAttentionOptions & { returnState?: boolean } = {},
): Tensor | [Tensor, Tensor] {
  const op = 'gated_linear_attention'
  expectOptions(op, options, GATES)
  checkOperands(op, q, k, v, true)
  const log = logDecay && checkPerStep(op, 'logDecay', logDecay, q, true)
  return gated(op, q, k, v, log, options)
}

const GATES: Names<GatedLinearAttentionOptions & { returnState?: boolean }> = {
  ...FORMS,
  scale: 1,
  normalize: 1,
  eps: 1,
}

function gated(
  op: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  log: Tensor | null,
  options: GatedLinearAttentionOptions & { returnState?: boolean },
): Tensor | [Tensor, Tensor] {
  const { scale = 1, normalize = false, eps = 1e-6, initialState = null, returnState = false } = options
  const dv = v.shape[3]
  checkState(op, initialState, q, normalize ? dv + 1 : dv)
  chunkSteps(op, q.shape[2], options, false)
  const inputs = [scale === 1 ? q : mul(q, scale), k, normalize ? withOnes(v) : v]
  if (log) inputs.push(log)
  if (initialState) inputs.push(initialState)
  const hasDecay = log !== null
  const isPlain =
    !initialState && !returnState && options.form === undefined && options.chunkSize === undefined
  const [raw, state] =
    isPlain && (!log || log.shape[3] === 1)
      ? apply(GATED, inputs, { hasDecay })
      : apply(WRITTEN, inputs, { hasDecay, form: options, wantState: returnState })
  const out = normalize ? div(narrow(raw, 3, 0, dv), add(narrow(raw, 3, dv, 1), eps)) : raw
  return returnState ? [out, state] : out
}

/** A number per head and step as (B, H, T, 1), or if `vector` a row of D; throws for another shape. */
export function checkPerStep(op: string, name: string, x: Tensor, q: Tensor, vector: boolean): Tensor {
  if (!isFloat(x.dtype)) throw new DTypeError(`${op}: ${name} must be floating, not ${x.dtype}`)
  const [b, h, t, d] = q.shape
  if (sameShape(x.shape, [b, h, t])) return reshapeView(x, [b, h, t, 1])
  if (sameShape(x.shape, [b, h, t, 1]) || (vector && sameShape(x.shape, q.shape))) return x
  const rows = vector ? ` or ${show([b, h, t, d])}` : ''
  throw new ShapeError(
    `${op}: ${name} ${show(x.shape)} must be (B, H, T) = ${show([b, h, t])}, ${show([b, h, t, 1])}${rows}`,
  )
}

/**
 * Retention's decays of H heads: γ_h = 1 − 2^(−5−h), h from 0 (Sun et al. 2023).
 *
 * @example
 * retentionDecays(2).length // → 2
 */
export const retentionDecays = (heads: number): number[] =>
  Array.from({ length: heads }, (_, h) => 1 - 2 ** (-5 - h))

/** Options of `retention`. */
export interface RetentionOptions extends GatedLinearAttentionOptions {
  /** γ of each head, in (0, 1]; default 1 − 2^(−5−h). */
  decays?: readonly number[]
}

/**
 * Retention (Sun et al. 2023): outₜ = scale · Σ_{j ≤ t} γ^{t−j} (qₜ·k_j) v_j with one constant γ per head, in time and
 * memory linear in T. The recurrence of `gatedLinearAttention`, whose options it takes.
 *
 * @param q (B, H, T, D)
 * @param k (B, H, T, D)
 * @param v (B, H, T, Dv)
 * @returns (B, H, T, Dv); with `returnState` [out, state (B, H, D, Dv)].
 * @throws ValueError unless there is one decay in (0, 1] per head; else as gatedLinearAttention.
 * @example
 * const [q, k, v] = [randn([1, 2, 5, 4]), randn([1, 2, 5, 4]), randn([1, 2, 5, 3])]
 * retention(q, k, v, { scale: 0.5, decays: [0.9, 0.99] }).shape // → 1,2,5,3
 */
export function retention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RetentionOptions & { returnState: true },
): [Tensor, Tensor]
export function retention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: RetentionOptions & { returnState?: false },
): Tensor
export function retention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RetentionOptions & { returnState?: boolean } = {},
): Tensor | [Tensor, Tensor] {
  const op = 'retention'
  expectOptions(op, options, { ...GATES, decays: 1 })
  checkOperands(op, q, k, v, true)
  const [b, h, t] = q.shape
  const { decays = retentionDecays(h) } = options
  if (decays.length !== h || !decays.every((x) => x > 0 && x <= 1))
    throw new ValueError(
      `${op}: decays must be ${h} numbers in (0, 1], one per head, got ${decays.join(', ')}`,
    )
  const logs = tensor(
    decays.map((x) => Math.log(x)),
    [1, h, 1, 1],
    { device: q.backend, dtype: q.dtype },
  )
  return gated(op, q, k, v, expandView(op, logs, [b, h, t, 1]), options)
}
