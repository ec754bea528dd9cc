/**
 * Checks that V8's pairs of 128-bit instructions (level 'revectorized', an experimental flag) compute rightly.
 *
 * V8 has two compilers, and only the optimising one pairs. So every family of kernels is compiled twice when it is
 * first used: as it is, and optimised at once; run on small odd shapes, both must give the same bits. What passed is
 * the code that runs from then on, on all threads: V8 keeps code by the bytes of modules, and workers get it from
 * there. The tests hold the kernels themselves against core's reference; this is about V8 alone.
 */

import {
  applyProgram,
  applyProgramIntoEach,
  type Backend,
  crossEntropy,
  cumsum,
  expr as e,
  embedding,
  enableGrad,
  gatedLinearAttention,
  gather,
  getRngState,
  grad,
  type KernelTable,
  layerNorm,
  linear,
  linearAttention,
  logSoftmax,
  noGrad,
  OutOfMemoryError,
  profile,
  program,
  rmsNorm,
  rotaryEmbedding,
  scaledDotProductAttention,
  scatterAdd,
  scope,
  setRngState,
  softmax,
  type Tensor,
  type TypedArray,
  tensor,
  totalNorm,
  wrapKernels,
} from '@tilegrad/core'
import { uncaptured } from '@tilegrad/core/kernel'
import { optimizedAtOnce } from './machine/features.ts'

/** Pairs of instructions can be checked: `guard-none.ts`, which bundles for browsers get, says no. */
export const canCheck: boolean = true

/** What is run to check a family, on float32 inputs of these shapes. */
interface Family {
  readonly shapes: readonly (readonly number[])[]
  run(inputs: readonly Tensor[]): Tensor | readonly Tensor[]
}

/** Every lane differs, so that lanes that were mixed up show; signs, and values on both sides of 1. */
const fill = (n: number, seed: number): Float32Array =>
  Float32Array.from({ length: n }, (_, i) => 3 * Math.sin(1.7 * i + seed) + 0.01 * seed)

/** Arithmetic, comparisons and all that is made of polynomials. */
const formula = program('guard', 2, ([x, y]) => {
  const functions = [e.exp(x), e.tanh(y), e.erf(x), e.sigmoid(y), e.log(e.abs(x)), e.sin(y), e.floor(x)]
  const sum = functions.reduce((a, b) => e.add(a, b))
  return e.select(e.lt(x, y), e.div(sum, e.sqrt(e.add(1, e.mul(y, y)))), e.max(e.sub(sum, y), e.min(x, 0.5)))
})

const indices = (x: Tensor, values: readonly number[], shape: readonly number[]): Tensor =>
  tensor(Int32Array.from(values), { device: x.backend }).reshape(shape)
/** x and what becomes of it: where both have gradients, that of the result is added to the other. */
const passedBy = (x: Tensor, f: (x: Tensor) => Tensor): Tensor[] => {
  const y = x.narrow(0, 0, x.shape[0])
  return [f(y), y]
}
const matrix = [[5, 37]]
const affine = [[5, 37], [37], [37]]
const heads = [0, 1, 2].map(() => [1, 2, 19, 24])

const forward: Readonly<Partial<Record<keyof KernelTable, Family>>> = {
  elementwise: {
    shapes: [
      [5, 37],
      [5, 37],
      [37, 5],
    ],
    run: ([x, y, z]) => [applyProgram(formula, [x, y]), applyProgram(formula, [x, z.transpose(0, 1)])],
  },
  reduce: { shapes: matrix, run: ([x]) => [x.sum(1), x.sum(0), x.amax(1), x.amin(0)] },
  argReduce: { shapes: matrix, run: ([x]) => x.argmax(1) },
  scan: { shapes: matrix, run: ([x]) => [cumsum(x, 1), cumsum(x, 0)] },
  gather: { shapes: matrix, run: ([x]) => gather(x, 1, indices(x, [3, 36, 0, 9, 1], [5, 1])) },
  scatterAdd: {
    shapes: [...matrix, [5, 1]],
    run: ([x, y]) => scatterAdd(x, 1, indices(x, [3, 36, 0, 9, 1], [5, 1]), y),
  },
  // Tiles with edges, and few rows, with b by rows and by columns; both operands transposed.
  matmul: {
    shapes: [
      [37, 41],
      [41, 70],
    ],
    run: ([x, y]) => {
      const t = y.contiguous().transpose(0, 1)
      const few = [1, 3, 8].flatMap((n) => {
        const rows = x.narrow(0, 0, n)
        return [rows.matmul(y), rows.matmul(t.contiguous().transpose(0, 1))]
      })
      return [x.matmul(y), x.matmul(t.contiguous().transpose(0, 1)), t.matmul(x.transpose(0, 1)), ...few]
    },
  },
  linear: {
    shapes: [[19, 41], [37, 41], [37], [19, 37]],
    run: ([x, w, bias, residual]) => linear(x, w, bias, { activation: 'gelu', residual }),
  },
  foreach: {
    shapes: [[37], [5, 37], [3]],
    run: (tensors) => {
      const copies = tensors.map((t) => t.detach().clone())
      const each = copies.map((t) => ({ outputs: [t], inputs: [t, t] }))
      applyProgramIntoEach(formula, each)
      return copies
    },
  },
  total_norm: { shapes: matrix, run: ([x]) => totalNorm([x, x.narrow(0, 0, 3)]) },
  rotary_embedding: { shapes: [[2, 5, 38]], run: ([x]) => rotaryEmbedding(x) },
  softmax: { shapes: matrix, run: ([x]) => softmax(x, -1) },
  log_softmax: { shapes: matrix, run: ([x]) => logSoftmax(x, -1) },
  layer_norm: {
    shapes: affine,
    run: ([x, w, b]) => [layerNorm(x, [37], w, b), ...passedBy(x, (y) => layerNorm(y, [37], w, b))],
  },
  rms_norm: {
    shapes: affine.slice(0, 2),
    run: ([x, w]) => [rmsNorm(x, [37], w), ...passedBy(x, (y) => rmsNorm(y, [37], w))],
  },
  cross_entropy: { shapes: matrix, run: ([x]) => crossEntropy(x, indices(x, [3, 36, 0, 9, 1], [5])) },
  embedding: { shapes: matrix, run: ([w]) => embedding(indices(w, [3, 0, 3, 1], [4]), w) },
  scaled_dot_product_attention: {
    shapes: heads,
    // Plain, and with everything that adds code of its own; both runs must drop the same weights.
    run: ([q, k, v]) => {
      const state = getRngState()
      const alibi = tensor(Float32Array.of(0.5, 0.25), { device: q.backend })
      const y = scaledDotProductAttention(q, k, v, { isCausal: true, window: 5, alibi, dropoutP: 0.3 })
      setRngState(state)
      return [scaledDotProductAttention(q, k, v, { isCausal: true }), y]
    },
  },
  linear_attention: { shapes: heads, run: ([q, k, v]) => linearAttention(q, k, v, { isCausal: true }) },
  gated_linear_attention: {
    shapes: [...heads, heads[0].slice(0, 3)],
    run: ([q, k, v, log]) => gatedLinearAttention(q, k, v, log.abs().neg()),
  },
}

const families = new Map<string, Family>(Object.entries(forward))

/** The family of a kernel: with its gradient's it is one; nothing where nothing is computed that could go wrong. */
const familyOf = (name: string): Family | undefined => families.get(name.replace(/Backward$/, ''))

/** Whether a kernel is checked before its first use. */
export const isGuarded = (name: string): boolean => familyOf(name) !== undefined

/** The bits of everything that a family computes, one result after the other. */
function compute(name: string, backend: Backend): TypedArray[] {
  const backward = name.endsWith('Backward')
  const family = familyOf(name) as Family
  const make = (shape: readonly number[], seed: number): Tensor => {
    const data = fill(
      shape.reduce((p, n) => p * n, 1),
      seed,
    )
    return tensor(data, shape, { device: backend, requiresGrad: backward })
  }
  return scope(() => {
    const inputs = family.shapes.map(make)
    const result = family.run(inputs)
    const results = Array.isArray(result) ? (result as Tensor[]) : [result as Tensor]
    const wanted = backward
      ? grad(results, inputs, { gradOutputs: results.map((y, i) => make(y.shape, 10 + i).detach()) })
      : results
    return wanted.map((y) => y.contiguous().dataSync())
  })
}

/** Whether two engines agree bit by bit on a family; `other` is optimised at once. */
function agrees(name: string, plain: Backend, other: Backend): boolean {
  const run = (backend: Backend): TypedArray[] =>
    // Nobody's tape, nobody's profile, and no part of what is recorded.
    uncaptured(
      () =>
        profile(() => (name.endsWith('Backward') ? enableGrad : noGrad)(() => compute(name, backend))).result,
    )
  try {
    const want = run(plain)
    const got = optimizedAtOnce(() => {
      // In the first run the functions are compiled; the second one is optimised from its beginning.
      run(other)
      return run(other)
    })
    return want.every((w, r) => w.every((value, i) => Object.is(value, got[r]?.[i])))
  } catch (error) {
    if (error instanceof OutOfMemoryError) throw error
    return false
  }
}

/** How `guard` reaches kernels. */
export interface GuardOptions {
  /** The memory of both engines; its kernels do not matter. */
  readonly backend: Backend
  /** Kernels that are never optimised: of an engine that shares no code. */
  readonly plain: () => KernelTable
  /** The kernels to go on with after a failure; called at most once. */
  readonly fallback: (kernel: string) => KernelTable
}

/** A table whose kernels are checked at their first use, each once; after a failure it becomes the fallback. */
export function guard(table: KernelTable, { backend, plain, fallback }: GuardOptions): KernelTable {
  let plainTable: KernelTable | undefined
  const kernels: KernelTable = wrapKernels(table, (kernel, name, same) => {
    if (!isGuarded(name)) return kernel
    let checked = false
    const first: typeof kernel = {
      ...kernel,
      run(outputs, inputs, attrs, numbers) {
        if (!checked) {
          checked = true
          plainTable ??= plain()
          const right = agrees(name, { ...backend, kernels: plainTable }, { ...backend, kernels: table })
          Object.assign(kernels, right ? { [name]: kernel } : fallback(name))
        }
        same(kernels)?.run(outputs, inputs, attrs, numbers)
      },
    }
    return first
  })
  return kernels
}
