import type { GradNode } from '../autograd/tape.ts'
import type { ScanAttrs } from '../dispatch/kernels.ts'
import type { Primitive } from '../dispatch/primitive.ts'
import * as e from '../expr/expr.ts'
import { type Program, program } from '../expr/program.ts'
import { sliceLayout } from '../tensor/layout.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { backendOf } from './common.ts'
import { elementwise } from './elementwise.ts'
import { perform } from './perform.ts'
import { embed, part } from './views.ts'

/** Multiplies two tensors. */
export const MUL = program('mul', 2, ([a, b]) => e.mul(a, b))

const SCAN: Primitive<ScanAttrs> = { kernel: (kernels) => kernels.scan, backward }

/**
 * Inclusive scan along `dim`: running sum or product of one input, or h[i] = a[i]·h[i−1] + b[i] of two inputs of one
 * shape. Differentiable; no gradient divides by an element, so zeros are fine.
 */
export function scan(
  kind: ScanAttrs['kind'],
  inputs: readonly Tensor[],
  dim: number,
  reverse: boolean,
): Tensor {
  const backend = backendOf(`cum${kind}`, inputs)
  const x = inputs[0]
  const out = allocate(backend, x.shape, x.dtype)
  perform(SCAN, `cum${kind}`, backend, [out], inputs, { kind, dim, reverse })
  return out
}

function backward(node: GradNode<ScanAttrs>, [d]: readonly (Tensor | null)[]): (Tensor | null)[] {
  if (!d) return node.inputs.map(() => null)
  const { kind, dim, reverse } = node.attrs
  if (kind === 'sum') return [scan('sum', [d], dim, !reverse)]
  const a = node.input(0)
  // What reaches h[i] from later steps: g[i] = d[i] + a[i+1]·g[i+1].
  const g = scan('affine', [shift(a, dim, !reverse, 0), d], dim, !reverse)
  if (kind === 'affine') return [elementwise(MUL, [g, shift(node.output(0), dim, reverse, 0)]), g]
  const before = scan('prod', [shift(a, dim, reverse, 1)], dim, reverse)
  return [elementwise(MUL, [before, g])]
}

const firsts = new Map<string, Program>()

/** x moved one step along `dim` (towards the start if `reverse`), with `fill` in the place that becomes free. */
export function shift(x: Tensor, dim: number, reverse: boolean, fill: 0 | 1): Tensor {
  const n = x.shape[dim] ?? 1
  if (x.numel === 0) return x
  const [from, to] = reverse ? ([1, n] as const) : ([0, n - 1] as const)
  const kept = part('narrow', x, (l) => sliceLayout('narrow', l, dim, from, to, 1))
  const moved = embed(kept, x.shape, (l) =>
    sliceLayout('narrow', l, dim, reverse ? 0 : 1, reverse ? n - 1 : n, 1),
  )
  if (fill === 0) return moved
  const free = reverse ? n - 1 : 0
  const key = `${dim - x.rank},${free}`
  let p = firsts.get(key)
  if (!p) {
    p = program('shift', 1, ([v]) => e.select(e.eq(e.coord(dim - x.rank), free), 1, v))
    firsts.set(key, p)
  }
  return elementwise(p, [moved])
}
