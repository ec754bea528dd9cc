import { expectOptions } from '../../checks.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { type Program, program } from '../../expr/program.ts'
import { elementwise } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import { transposeView } from '../../primitives/views.ts'
import { promote } from '../../tensor/dtype.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { add, div } from '../pointwise.ts'
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

/** Feature maps φ as expressions: for operators of their own, and for fusing into kernels. */
export const featureMaps = {
  /** elu(x) + 1. The exponent is 0 where it is not taken, so that the gradient has no 0 · ∞. */
  elu: (x: e.Expr): e.Expr => e.select(e.gt(x, 0), e.add(x, 1), e.exp(e.select(e.gt(x, 0), 0, x))),
  relu: (x: e.Expr): e.Expr => e.select(e.le(x, 0), 0, x),
  exp: (x: e.Expr): e.Expr => e.exp(x),
  identity: (x: e.Expr): e.Expr => x,
}

/** The feature maps that linear attention knows by name. */
export type FeatureMap = keyof typeof featureMaps

const features: ReadonlyMap<FeatureMap, Program> = new Map(
  (Object.keys(featureMaps) as FeatureMap[]).map((name) => [
    name,
    program(`linear_attention.${name}`, 1, ([x]) => featureMaps[name](x)),
  ]),
)

function mapped(x: Tensor, map: FeatureMap): Tensor {
  return map === 'identity' ? x : elementwise(features.get(map) as Program, [x])
}

/** What decides how linear attention is computed, beside its tensors. */
export interface LinearAttentionAttrs {
  /** A query sees only keys up to its own place. */
  causal: boolean
  /** What is added to the normaliser. */
  eps: number
  /** What makes features of queries and keys. */
  featureMap: FeatureMap
}

/** Attributes of the composed operator, which takes an initial state as input 3 and gives the final one as output 1. */
interface WrittenAttrs extends LinearAttentionAttrs {
  form: LinearFormOptions
  wantState: boolean
}

function written(inputs: readonly Tensor[], attrs: WrittenAttrs): Tensor[] {
  const op = 'linear_attention'
  const { causal, eps, featureMap } = attrs
  const pairs = attrs.form.form === 'quadratic'
  const [q, k] = inputs.slice(0, 2).map((x) => mapped(x, featureMap))
  const v = withOnes(inputs[2])
  const state = inputs[3] ?? null
  let out: Tensor
  let after: Tensor | null = null
  if (causal) {
    const size = chunkSteps(op, q.shape[2], attrs.form, false)
    const result = recur(op, { q, k, v, logDecay: null, state }, size, attrs.wantState)
    out = result.out
    after = result.state
  } else {
    const keys = transposeView(k, 2, 3)
    if (!pairs || attrs.wantState) {
      after = matmulPrimitive(op, keys, v)
      if (state) after = add(state, after)
    }
    if (pairs) {
      out = matmulPrimitive(op, matmulPrimitive(op, q, keys), v)
      if (state) out = add(out, matmulPrimitive(op, q, state))
    } else out = matmulPrimitive(op, q, after as Tensor)
  }
  const dv = v.shape[3] - 1
  const mean = div(narrow(out, 3, 0, dv), add(narrow(out, 3, dv, 1), eps))
  return attrs.wantState && after ? [mean, after] : [mean]
}

declare module '../../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Linear attention (Katharopoulos et al. 2020). */
    readonly linear_attention?: KernelOf<LinearAttentionAttrs>
    /** The gradients of linear attention. */
    readonly linear_attentionBackward?: KernelOf<GradientAttrs<LinearAttentionAttrs>>
  }
}

const LINEAR_ATTENTION: Op<LinearAttentionAttrs> = {
  name: 'linear_attention',
  kernel: (kernels) => kernels.linear_attention,
  gradient: (kernels) => kernels.linear_attentionBackward,
  infer: ([q, , v]) => {
    const [b, h, t] = q.shape
    return [
      { shape: [b, h, t, v.shape[3]], dtype: q.dtype },
      // A sum over all keys, which may be beyond what float16 holds.
      { shape: [b, h, t], dtype: promote(q.dtype, 'float32') },
    ]
  },
  // The chunked form takes memory linear in T on every backend; for up to 64 steps it is the quadratic one.
  compose: (inputs, attrs) => written(inputs, { ...attrs, form: {}, wantState: false }),
}

/** The operator in a form of the caller's choice, or with a state: always composed. */
const WRITTEN: Op<WrittenAttrs> = {
  name: 'linear_attention',
  outputs: 2,
  infer: (inputs) => withState(inputs, 1),
  compose: written,
}

/** Options of `linearAttention`. */
export interface LinearAttentionCallOptions extends LinearFormOptions, StateOptions {
  /** Whether query i sees only keys j ≤ i; default false. */
  isCausal?: boolean
  /** Added to the normaliser; default 1e-6. */
  eps?: number
  /** φ: 'elu' (elu + 1, default), 'relu', 'exp', 'identity', an elementwise program, or any function of a tensor (…, D) → (…, D′). */
  featureMap?: FeatureMap | Program | ((x: Tensor) => Tensor)
}

/**
 * Attention with a feature map φ in place of the softmax's exponential, in time and memory linear in T (Katharopoulos
 * et al. 2020): out_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + eps), over j ≤ i if causal.
 *
 * All that later steps need to know of earlier ones is the state Σ_j φ(k_j)ᵀ [v_j, 1], (B, H, D, Dv + 1): with
 * `returnState` the result is [out, state], and `initialState` continues from there, on this device or another.
 *
 * @param q (B, H, T, D)
 * @param k (B, H, S, D), S = T if causal
 * @param v (B, H, S, Dv)
 * @returns (B, H, T, Dv)
 * @throws ShapeError for shapes that do not fit, DTypeError for tensors that are not floating, ValueError for an
 * unknown feature map or form.
 * @example
 * const [q, k, v] = [randn([1, 2, 5, 4]), randn([1, 2, 5, 4]), randn([1, 2, 5, 3])]
 * linearAttention(q, k, v, { isCausal: true, featureMap: 'relu' }).shape // → 1,2,5,3
 */
export function linearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: LinearAttentionCallOptions & { returnState: true },
): [Tensor, Tensor]
export function linearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: LinearAttentionCallOptions & { returnState?: false },
): Tensor
export function linearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: LinearAttentionCallOptions & { returnState?: boolean } = {},
): Tensor | [Tensor, Tensor] {
  const op = 'linear_attention'
  const {
    isCausal = false,
    eps = 1e-6,
    featureMap = 'elu',
    initialState = null,
    returnState,
  } = expectOptions(op, options, { ...FORMS, isCausal: 1, eps: 1, featureMap: 1 })
  checkOperands(op, q, k, v, isCausal)
  if (typeof featureMap === 'string' && !Object.hasOwn(featureMaps, featureMap))
    throw new ValueError(
      `${op}: featureMap '${featureMap}' is not one of ${Object.keys(featureMaps).join(', ')}; pass a function for another one`,
    )
  const map = typeof featureMap === 'string' ? featureMap : 'identity'
  if (typeof featureMap === 'function') [q, k] = [featureMap(q), featureMap(k)]
  else if (typeof featureMap !== 'string')
    [q, k] = [elementwise(featureMap, [q]), elementwise(featureMap, [k])]
  const attrs: LinearAttentionAttrs = { causal: isCausal, eps, featureMap: map }
  if (!initialState && !options.form) {
    const out = apply(LINEAR_ATTENTION, [q, k, v], attrs)[0]
    if (!returnState) return out
    return [out, matmulPrimitive(op, transposeView(mapped(k, map), 2, 3), withOnes(v))]
  }
  checkState(op, initialState, q, v.shape[3] + 1)
  chunkSteps(op, q.shape[2], options, false)
  const inputs = initialState ? [q, k, v, initialState] : [q, k, v]
  const [out, state] = apply(WRITTEN, inputs, { ...attrs, form: options, wantState: returnState === true })
  return returnState ? [out, state] : out
}
