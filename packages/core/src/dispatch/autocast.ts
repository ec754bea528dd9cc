/**
 * Mixed precision (Micikevicius et al. 2018): products of 16 bits, everything that sums or grows in float32, weights in
 * float32. The policy is `POLICY`, a table; how operators come by it is in casting.ts.
 */

import { noGrad, record, shouldRecord } from '../autograd/tape.ts'
import { amongKnown, describe, expectFunction } from '../checks.ts'
import { DTypeError, ValueError } from '../errors.ts'
import { copy } from '../primitives/elementwise.ts'
import { type DType, isFloat, isHalf, promote } from '../tensor/dtype.ts'
import { type Layout, sameLayout } from '../tensor/layout.ts'
import { refuseAsync } from '../tensor/scope.ts'
import type { Storage } from '../tensor/storage.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { type Casting, casting, withCasting } from './casting.ts'
import type { Precision } from './op.ts'

/** The dtypes that `autocast` takes. */
export type AutocastDType = 'float16' | 'bfloat16' | 'float32'

/**
 * What composed operators and products want, by the name that profiles call them: so many of their first operands are multiplied
 * and have 16 bits, or their results are float32. What is not here takes what it gets and promotes.
 */
const POLICY: ReadonlyMap<string, Precision> = new Map([
  ...list(2, 'matmul mm bmm einsum linear'),
  ...list(3, 'scaled_dot_product_attention linear_attention gated_linear_attention'),
  // Squares and sums on the way are beyond 65504, or too many to count in 8 bits.
  ...list('float32', 'logsumexp var std total_norm layer_norm rms_norm group_norm'),
  // What loses its digits near where it is read.
  ...list('float32', 'softmax log_softmax cross_entropy nll_loss binary_cross_entropy'),
  // Solves a triangular system in each chunk.
  ...list('float32', 'delta_rule'),
  // Its weight has 8 bits, and its result is of what x is of: nothing in it is cast.
  ...list(0, 'quantized_linear'),
])

/** Elementwise operators and reductions whose results are float32, for the same reasons. */
const WIDE: ReadonlySet<string> = new Set(
  (
    'sum prod mean cumsum cumprod square pow exp expm1 log log1p softplus reciprocal rsqrt ' +
    'mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy_with_logits kl_div hinge_embedding_loss soft_margin_loss'
  ).split(' '),
)

function list(precision: Precision, names: string): [string, Precision][] {
  return names.split(' ').map((name) => [name, precision])
}

/** A weight of 16 bits: which view of its storage it is of, as it was when. */
interface Cast {
  readonly layout: Layout
  readonly version: number
  readonly half: Tensor
  readonly ref: WeakRef<Tensor>
}

class Caster implements Casting {
  readonly dtype: DType
  /** Weak, so that a weight that nobody has any more goes, and what was made of it. */
  readonly #casts = new WeakMap<Storage, Cast[]>()
  readonly #all = new Set<WeakRef<Tensor>>()
  #last: { readonly of: WeakRef<Tensor>; readonly version: number; readonly half: Tensor } | null = null

  constructor(dtype: DType) {
    this.dtype = dtype
  }

  run<R>(
    op: { readonly name: string; readonly precision?: Precision },
    inputs: readonly Tensor[],
    go: (inputs: readonly Tensor[], wide: boolean) => R,
  ): R {
    const precision = op.precision ?? POLICY.get(op.name)
    if (precision === undefined) return go(inputs, false)
    const wide = precision === 'float32'
    const operands = wide ? inputs : this.#halves(inputs, precision)
    // What it is composed of computes with what it is given.
    return withCasting(null, () => go(operands, wide))
  }

  operands(op: string, inputs: readonly Tensor[]): readonly Tensor[] {
    const precision = POLICY.get(op)
    return typeof precision === 'number' ? this.#halves(inputs, precision) : inputs
  }

  results(op: string, inputs: readonly Tensor[]): readonly DType[] | undefined {
    if (!WIDE.has(op)) return undefined
    const floats = inputs.map((t) => t.dtype).filter(isFloat)
    return floats.length > 0 && isHalf(floats.reduce(promote)) ? ['float32'] : undefined
  }

  afresh<T>(fn: () => T): T {
    const again = new Caster(this.dtype)
    try {
      return withCasting(again, fn)
    } finally {
      again.end()
    }
  }

  /** The first `count` operands in this dtype, unless one of them is none that this concerns: float64 and integers stay. */
  #halves(inputs: readonly Tensor[], count: number): readonly Tensor[] {
    const products = inputs.slice(0, count)
    if (!products.every(({ dtype }) => dtype === 'float32' || isHalf(dtype))) return inputs
    return [...products.map((t) => this.#half(t)), ...inputs.slice(count)]
  }

  #half(t: Tensor): Tensor {
    if (t.dtype === this.dtype) return t
    if (t.dtype !== 'float32') return copy(t, this.dtype)
    const half = t.isLeaf && t.requiresGrad ? this.#weight(t) : this.#newest(t)
    // Each use is on the tape by itself: gradients add up in float32, and a function that runs again records the same.
    const view = half.viewAs(half)
    if (shouldRecord([t])) record('copy', [t], [view], null, (_, [d]) => [d])
    return view
  }

  /** What was cast last, if it is this one: several layers that read it share what is made of it. */
  #newest(t: Tensor): Tensor {
    const { of, version, half } = this.#last ?? {}
    if (of?.deref() === t && version === t.storage.version && half && !half.disposed) return half
    half?.dispose()
    const next = noGrad(() => copy(t, this.dtype)).keep()
    this.#last = { of: new WeakRef(t), version: t.storage.version, half: next }
    return next
  }

  /** A weight in this dtype, converted at its first use, and again where it has changed since. */
  #weight(t: Tensor): Tensor {
    const { storage, shape, strides, offset } = t
    const { version } = storage
    const casts = this.#casts.get(storage) ?? []
    this.#casts.set(storage, casts)
    const at = casts.findIndex(({ layout }) => sameLayout(layout, t))
    const known = casts[at]
    if (known?.version === version && !known.half.disposed) return known.half
    if (known) {
      this.#all.delete(known.ref)
      known.half.dispose()
    }
    const half = noGrad(() => copy(t, this.dtype)).keep()
    const ref = new WeakRef(half)
    casts[at < 0 ? casts.length : at] = { layout: { shape, strides, offset }, version, half, ref }
    this.#all.add(ref)
    return half
  }

  /** Frees what was cast: what a graph needs of it has views of its own. */
  end(): void {
    for (const ref of this.#all) ref.deref()?.dispose()
    this.#all.clear()
    this.#last?.half.dispose()
    this.#last = null
  }
}

/**
 * Runs `fn` in mixed precision: products of float32 tensors (`matmul`, `linear`, `einsum`, the attentions) take their operands
 * in `dtype` and give it; softmax, norms, losses, sums, exponentials and powers give float32 of whatever they get; everything
 * else computes with what it is given, by promotion. float64, integers and bools stay as they are.
 *
 * Weights stay in float32, and so do their gradients: what is cast is a copy on the tape. A weight is cast once for each call
 * of `autocast`, and again if it changes meanwhile. The backward pass computes in the dtypes of the forward pass, wherever
 * `backward()` is called; a checkpoint runs again as it ran first. Calls nest: inside, `'float32'` switches it off.
 *
 * float16 overflows at 65504 and loses gradients below 6·10⁻⁸: train with a `GradScaler`. bfloat16 has the range of float32 and
 * needs none (Micikevicius et al. 2018; the policy is PyTorch's but for what docs/half-precision.md argues).
 *
 * @param dtype 'float16', 'bfloat16', or 'float32' for none.
 * @returns what `fn` returns.
 * @throws DTypeError for another dtype; GradError if `fn` is asynchronous: compute inside, await the reads outside.
 * @example
 * const [x, w] = [randn([4, 8]), randn([8, 2], { requiresGrad: true })]
 * const y = autocast('bfloat16', () => x.matmul(w))
 * y.dtype // → bfloat16
 * y.sum().backward()
 * w.grad?.dtype // → float32
 */
export function autocast<T>(dtype: AutocastDType, fn: () => T): T {
  if (typeof dtype !== 'string')
    throw new ValueError(
      `autocast: takes a dtype and a function, as autocast('bfloat16', () => …), got ${describe(dtype)} first`,
    )
  const meant = SHORT[dtype]
  if (!DTYPES.includes(dtype))
    throw new DTypeError(
      `autocast: computes in float16 or bfloat16, or in float32 to switch it off, not in ${describe(dtype)}${meant ? `; did you mean '${meant}'?` : amongKnown(dtype, DTYPES)}`,
    )
  expectFunction('autocast', fn)
  const run = (): T => {
    const result = fn()
    refuseAsync('autocast', result, 'the mode ends when it returns. Await outside')
    return result
  }
  if (dtype === 'float32') return withCasting(null, run)
  return casting.now?.dtype === dtype ? run() : new Caster(dtype).afresh(run)
}

const DTYPES: readonly string[] = ['float16', 'bfloat16', 'float32']
/** Abbreviations, from which no distance leads to the name. */
const SHORT: Readonly<Record<string, string>> = { fp16: 'float16', f16: 'float16', bf16: 'bfloat16' }
