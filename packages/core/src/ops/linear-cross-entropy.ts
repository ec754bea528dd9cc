import { grad } from '../autograd/backward.ts'
import { checkpoint } from '../autograd/checkpoint.ts'
import { customFunction } from '../autograd/custom.ts'
import { enableGrad, gradEnabled } from '../autograd/tape.ts'
import { expectFloat, expectInt, expectOptions, expectReduction } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { copy } from '../primitives/elementwise.ts'
import { alias, reshapeView } from '../primitives/views.ts'
import { sameShape } from '../tensor/layout.ts'
import { scope } from '../tensor/memory.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { add_, copy_ } from './inplace.ts'
import { linear } from './linear.ts'
import { crossEntropy, type LossReduction } from './loss.ts'
import { add, div, mul, ne } from './pointwise.ts'
import { sum } from './reduction.ts'
import { cat, narrow } from './shape.ts'

/** Options of `linearCrossEntropy`. */
export interface LinearCrossEntropyOptions {
  /** A bias (V) that is added to the logits. */
  bias?: Tensor | null
  /** The target that does not count. Default −100. */
  ignoreIndex?: number
  /** The reduction of the rows' losses. Default 'mean'. */
  reduction?: LossReduction
  /** Rows whose logits exist at a time; default as many as make about 2²¹ logits, at least 256. */
  chunkSize?: number
}

const NAME = 'linear_cross_entropy'
/** Logits at a time: 8 MiB. */
const budget = 2 ** 21
/** Products of fewer rows are slower: measured with V = 32,768, K = 256 on 2 cores, 64 rows cost 15 %, 256 cost 2 %. */
const fewest = 256

/**
 * `crossEntropy(linear(x, weight, bias), targets)` without ever storing all logits: rows go through the product, the
 * loss and both their gradients in chunks, so that (N, V) becomes (chunkSize, V). For large vocabularies this is most
 * of the memory of a training step.
 *
 * Gradients of the loss are computed along with it, as one number scales them later: three products, as without chunks
 * (Liger Kernel, Hsu et al. 2024; compare Cut Your Losses, Wijmans et al. 2024). With `reduction: 'none'` each chunk
 * is a `checkpoint`: four products. A gradient that is to be differentiated again is computed with all logits.
 *
 * @param x (…, K)
 * @param weight (V, K)
 * @param targets int32 classes (…); `ignoreIndex` does not count
 * @returns a scalar, or the losses (…) with `reduction: 'none'`
 * @throws ShapeError, DTypeError, ValueError for arguments that do not fit, and for classes outside 0 … V − 1 as
 * `crossEntropy`.
 * @example
 * const [x, weight] = [randn([6, 4]), randn([1000, 4], { requiresGrad: true })]
 * const loss = linearCrossEntropy(x, weight, randint(0, 1000, [6]), { chunkSize: 2 })
 * loss.backward()
 * weight.grad?.shape // → 1000,4
 */
export function linearCrossEntropy(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: LinearCrossEntropyOptions = {},
): Tensor {
  const {
    bias = null,
    ignoreIndex = -100,
    reduction = 'mean',
  } = expectOptions('linear_cross_entropy', options, { bias: 1, ignoreIndex: 1, reduction: 1, chunkSize: 1 })
  check(x, weight, targets, options)
  const [v, k] = weight.shape
  const n = targets.numel
  const rows = reshapeView(x, [n, k])
  const t = reshapeView(targets, [n])
  const size = options.chunkSize ?? Math.max(fewest, Math.floor(budget / Math.max(1, v)))
  const chunks = Array.from({ length: Math.max(1, Math.ceil(n / size)) }, (_, i) => {
    const from = i * size
    return [from, Math.min(size, n - from)] as const
  })
  const loss = (rows: Tensor, t: Tensor, w: Tensor, b: Tensor | null, reduction: LossReduction): Tensor =>
    crossEntropy(linear(rows, w, b), t, { ignoreIndex, reduction })
  if (chunks.length === 1) {
    const out = loss(rows, t, weight, bias, reduction)
    return reduction === 'none' ? reshapeView(out, targets.shape) : out
  }
  if (reduction === 'none') {
    const each = chunks.map(([from, count]) => {
      const part = (x: Tensor, t: Tensor): Tensor =>
        loss(narrow(x, 0, from, count), narrow(t, 0, from, count), weight, bias, 'none')
      return scope(() => checkpoint(part, rows, t))
    })
    return reshapeView(cat(each, 0), targets.shape)
  }

  const summed = customFunction({
    name: NAME,
    forward(ctx, rows, t, ...parameters) {
      const needs = [ctx.needsInputGrad[0], ...ctx.needsInputGrad.slice(2)]
      const dx = needs[0] ? allocate(rows.backend, rows.shape, rows.dtype) : null
      const sums: (Tensor | null)[] = [dx, ...parameters.map(() => null)]
      let total: Tensor | null = null
      for (const [from, count] of chunks) {
        const { value, grads } = scope(() =>
          enableGrad(() => {
            const leaves = [narrow(rows, 0, from, count), ...parameters].map((p, i) => {
              const leaf = p.detach()
              leaf.requiresGrad = needs[i]
              return leaf
            })
            const value = loss(leaves[0], narrow(t, 0, from, count), leaves[1], leaves[2] ?? null, 'sum')
            const wanted = leaves.filter((leaf) => leaf.requiresGrad)
            const found = wanted.length > 0 ? grad(value, wanted) : []
            return { value, grads: leaves.map((leaf) => found[wanted.indexOf(leaf)] ?? null) }
          }),
        )
        total = total ? add(total, value) : value
        grads.forEach((g, i) => {
          const sum = sums[i]
          if (!g) return
          if (i === 0) copy_(narrow(sum as Tensor, 0, from, count), g)
          else if (sum) add_(sum, g)
          // A view, as what grad() returns is the caller's and not the graph's to free.
          else sums[i] = g.detach()
          g.dispose()
        })
      }
      const counted = reduction === 'mean' ? sum(copy(ne(t, ignoreIndex), rows.dtype)) : null
      ctx.save(...(sums.filter(Boolean) as Tensor[]), ...(counted ? [counted] : []))
      return counted ? div(total as Tensor, counted) : (total as Tensor)
    },
    backward(ctx, d) {
      const needs = ctx.needsInputGrad
      const wanted = inputs.filter((_, i) => needs[i])
      let grads: readonly Tensor[]
      if (gradEnabled()) {
        // The tape must see how the gradient depends on everything: with all logits, through inputs of its own.
        const [x, t, w, b] = inputs.map((input, i) => (needs[i] ? alias(input) : input))
        const again = [x, t, w, b].filter((_, i) => needs[i])
        grads = grad(loss(x, t, w, b ?? null, reduction), again, { gradOutputs: [d], createGraph: true })
      } else {
        const scale = reduction === 'mean' ? div(d, ctx.saved[wanted.length]) : d
        grads = wanted.map((_, i) => mul(ctx.saved[i], scale))
      }
      let next = 0
      return needs.map((need) => (need ? grads[next++] : null))
    },
  })
  const inputs = bias ? [rows, t, weight, bias] : [rows, t, weight]
  return summed(...inputs)
}

function check(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  { bias, reduction = 'mean', chunkSize }: LinearCrossEntropyOptions,
): void {
  for (const t of [x, weight]) expectFloat(NAME, t.dtype)
  expectInt(NAME, 'class targets', targets.dtype)
  const k = x.shape[x.rank - 1]
  if (x.rank === 0 || weight.rank !== 2 || weight.shape[1] !== k)
    throw new ShapeError(
      `${NAME}: input ${show(x.shape)} and weight ${show(weight.shape)} do not fit; expected weight [classes, ${k ?? 'features'}]`,
    )
  if (!sameShape(targets.shape, x.shape.slice(0, -1)))
    throw new ShapeError(
      `${NAME}: targets ${show(targets.shape)} do not fit input ${show(x.shape)}; expected ${show(x.shape.slice(0, -1))}`,
    )
  if (bias && !sameShape(bias.shape, [weight.shape[0]]))
    throw new ShapeError(
      `${NAME}: bias ${show(bias.shape)} does not fit weight ${show(weight.shape)}; expected [${weight.shape[0]}]`,
    )
  expectReduction(NAME, reduction)
  if (chunkSize !== undefined && !(Number.isInteger(chunkSize) && chunkSize > 0))
    throw new ValueError(`${NAME}: chunkSize must be a positive whole number, got ${chunkSize}`)
}
