import { expectOptions } from '../../checks.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { fillLike } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import { reshapeView, transposeView } from '../../primitives/views.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { add, mul, sub } from '../pointwise.ts'
import { cumsum } from '../reduction.ts'
import { narrow, stack, unbind } from '../shape.ts'
import {
  checkOperands,
  checkState,
  chunkSteps,
  decayed,
  FORMS,
  fromChunks,
  intoChunks,
  type LinearFormOptions,
  maskedScores,
  type StateOptions,
  stepped,
  withState,
} from './chunks.ts'
import { checkPerStep } from './gated.ts'
import { decayedBetween, unitLowerInverse } from './triangles.ts'

interface DeltaAttrs {
  form: LinearFormOptions
  hasDecay: boolean
  wantState: boolean
}

const op = 'delta_rule'

const DELTA_RULE: Op<DeltaAttrs> = {
  name: op,
  outputs: 2,
  infer: (inputs) => withState(inputs, 0),
  compose: ([q, k, v, beta, ...more], { form, hasDecay, wantState }) => {
    const logDecay = hasDecay ? more[0] : null
    const initial = more[hasDecay ? 1 : 0] ?? null
    const [b, h, t, d] = q.shape
    const dv = v.shape[3]
    const size = chunkSteps(op, t, form, true)
    const [query, key, value, rate] = [q, k, v, beta].map((x) => intoChunks(x, size))
    const decay = logDecay && cumsum(intoChunks(logDecay, size), 3)
    const total = decay && narrow(decay, 3, size - 1, 1)
    const strong = mul(key, rate)
    // What each step writes, u, depends on what the steps before it in the chunk wrote: a triangular system, solved
    // for the values and for the state that the chunk finds.
    const inverse = unitLowerInverse(op, maskedScores(op, strong, key, decay))
    const own = matmulPrimitive(op, inverse, mul(value, rate))
    const found = matmulPrimitive(op, inverse, decayed(strong, decay))
    const late = total && decay ? decayedBetween(key, total, decay) : key
    const written = states(own, found, transposeView(late, 3, 4), total, initial)
    const scores = maskedScores(op, query, key, decay)
    let out = matmulPrimitive(op, scores, written.rows)
    if (written.before) out = add(out, matmulPrimitive(op, decayed(query, decay), written.before))
    const result = fromChunks(out, t)
    return wantState ? [result, reshapeView(written.after, [b, h, d, dv])] : [result]
  },
}

interface Written {
  /** u of every step, (B, H, N, C, Dv). */
  readonly rows: Tensor
  /** The state before each chunk; none: zero. */
  readonly before: Tensor | null
  readonly after: Tensor
}

/** Goes through one chunk after the other: U = own − found S, then S ← e^{total} S + lateᵀ U. */
function states(
  own: Tensor,
  found: Tensor,
  late: Tensor,
  total: Tensor | null,
  initial: Tensor | null,
): Written {
  const count = own.shape[2]
  if (count === 1 && !initial) {
    const after = matmulPrimitive(op, late, own)
    return { rows: own, before: null, after }
  }
  const [owns, founds, lates] = [own, found, late].map((x) => unbind(x, 2))
  const totals = total && unbind(total, 2)
  const [b, h, d] = [late.shape[0], late.shape[1], late.shape[3]]
  let state = initial ?? fillLike(own, 0, [b, h, d, own.shape[4]])
  const [rows, before]: [Tensor[], Tensor[]] = [[], []]
  for (let n = 0; n < count; n++) {
    before.push(state)
    const u = sub(owns[n], matmulPrimitive(op, founds[n], state))
    rows.push(u)
    state = stepped(state, totals?.[n] ?? null, matmulPrimitive(op, lates[n], u))
  }
  return { rows: stack(rows, 2), before: stack(before, 2), after: state }
}

/** Options of `deltaRule`. */
export interface DeltaRuleOptions extends LinearFormOptions, StateOptions {
  /** The logarithm of the decays, log α ≤ 0, finite: (B, H, T) or (B, H, T, 1). Default: no decay. */
  logDecay?: Tensor | null
  /** Multiplies the queries; default 1, as the formula. */
  scale?: number
}

/**
 * Linear attention that overwrites instead of adding up (DeltaNet, Yang et al. 2024): each step moves what the state
 * recalls for its key towards its value, by a step of gradient descent of rate β on ½|kₜ Sₜ₋₁ − vₜ|²,
 *
 *   Sₜ = Pₜ + βₜ kₜᵀ (vₜ − kₜ Pₜ),   Pₜ = αₜ Sₜ₋₁,   outₜ = scale · qₜ Sₜ,
 *
 * with α = 1, or with `logDecay` as gated DeltaNet (Yang et al. 2025). Causal by nature, in time and memory linear in
 * T. Stable for |k| = 1 and β in 0 … 2: normalise the keys.
 *
 * @param q (B, H, T, D)
 * @param k (B, H, T, D)
 * @param v (B, H, T, Dv)
 * @param beta (B, H, T) or (B, H, T, 1)
 * @returns (B, H, T, Dv); with `returnState` [out, S_T], where S_T (B, H, D, Dv) is the `initialState` of what follows.
 * @throws ShapeError for shapes that do not fit, DTypeError for tensors that are not floating, ValueError for an
 * unknown form.
 * @example
 * const [q, k, v] = [randn([1, 2, 5, 4]), randn([1, 2, 5, 4]), randn([1, 2, 5, 3])]
 * deltaRule(q, k.mul(0.5), v, rand([1, 2, 5])).shape // → 1,2,5,3
 */
export function deltaRule(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  beta: Tensor,
  options: DeltaRuleOptions & { returnState: true },
): [Tensor, Tensor]
export function deltaRule(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  beta: Tensor,
  options?: DeltaRuleOptions & { returnState?: false },
): Tensor
export function deltaRule(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  beta: Tensor,
  options: DeltaRuleOptions & { returnState?: boolean } = {},
): Tensor | [Tensor, Tensor] {
  const {
    logDecay = null,
    scale = 1,
    initialState = null,
    returnState = false,
  } = expectOptions(op, options, { ...FORMS, logDecay: 1, scale: 1 })
  checkOperands(op, q, k, v, true)
  checkState(op, initialState, q, v.shape[3])
  chunkSteps(op, q.shape[2], options, true)
  const inputs = [scale === 1 ? q : mul(q, scale), k, v, checkPerStep(op, 'beta', beta, q, false)]
  if (logDecay) inputs.push(checkPerStep(op, 'logDecay', logDecay, q, false))
  if (initialState) inputs.push(initialState)
  const attrs: DeltaAttrs = { form: options, hasDecay: logDecay !== null, wantState: returnState }
  const [out, state] = apply(DELTA_RULE, inputs, attrs)
  return returnState ? [out, state] : out
}
