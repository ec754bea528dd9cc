/**
 * Rows of a weight (V, D) at int32 indices of any shape, a thread for each vector of four elements, and the gradient of
 * the weight, which indexing/embedding-backward.ts computes. An index out of range reads as 0 and has no gradient.
 *
 * Reference: `EMBEDDING` in core's ops/indexing.ts. Test: embedding.test.ts.
 */

import { type EmbeddingAttrs, type GradientAttrs, type KernelOf, layout, type View } from '@tilegrad/core'
import { denseFrom } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../../wgsl/block.ts'
import { isPacked } from '../../wgsl/element.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, walk, walkFunction, walkOf } from '../layout.ts'
import { widthOf } from '../rows.ts'
import { sumRows } from './embedding-backward.ts'

const workgroup = 256

const dtypes = [['float32'], ['int32'], ['float32']] as const

const isFull = (weight: View, index: View): boolean =>
  layout.numel(weight.shape) > 0 && layout.numel(index.shape) > 0

/** A weight as words of memory, which are moved as they are; null where rows of 16 bits do not begin and end with one. */
function wordsOf(weight: View): View | null {
  if (!isPacked(weight.dtype)) return weight
  const { buffer, dtype, shape, strides, offset } = weight
  const whole = strides[1] === 1 && [shape[1], strides[0], offset].every((n) => n % 2 === 0)
  if (!whole) return null
  return { buffer, dtype, shape: [shape[0], shape[1] / 2], strides: [strides[0] / 2, 1], offset: offset / 2 }
}

export const embedding = (engine: Engine): KernelOf<EmbeddingAttrs> => ({
  supports: ([weight, index]) => isFull(weight, index) && wordsOf(weight) !== null,
  run([y], [table, index]) {
    const weight = wordsOf(table) as View
    const [v, d] = weight.shape
    const width = denseFrom(1, weight) ? widthOf(d, 1, [weight]) : 1
    const nest = nestOf(index.shape, [index])
    const rank = nest.sizes.length
    const kernel = engine.kernel(`embedding:${width}:${rank}`, 'embedding', () => shader(width, rank))
    const units = d / width
    const count = layout.numel(index.shape) * units
    const [row, step] = weight.strides
    const values = {
      ...{ count, units, size: v },
      ...{ w0: weight.offset / width, row: row / width, step },
      ...{ i0: index.offset, index_at: walkOf(nest, 0) },
    }
    engine.run(kernel, [weight, index, y].map(bufferOf), values, grid(Math.ceil(count / workgroup)))
  },
})

const params = (rank: number) =>
  block({
    ...{ count: u32, units: u32, size: i32 },
    ...{ w0: i32, row: i32, step: i32 },
    ...{ i0: i32, index_at: walk(rank) },
  })

function shader(width: 4 | 1, rank: number): Shader<ValuesOf<typeof params>> {
  const item = width === 4 ? 'vec4<u32>' : 'u32'
  return {
    params: params(rank),
    bindings: [
      { name: 'w', item },
      { name: 'index', item: 'i32' },
      { name: 'y', item, write: true },
    ],
    workgroup: [workgroup],
    declarations: walkFunction('index_at', rank),
    body: `let i = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (i >= p.count) { return; }
let k = index[p.i0 + index_at(i / p.units)];
let j = i32(i % p.units);
if (k >= 0 && k < p.size) { y[i] = w[p.w0 + k * p.row + j${width === 4 ? '' : ' * p.step'}]; }
else { y[i] = ${item}(); }`,
  }
}

export const embeddingBackward = (engine: Engine): KernelOf<GradientAttrs<EmbeddingAttrs>> => ({
  adds: true,
  dtypes,
  supports: ([weight, index, , dy], { needs }) =>
    needs[0] === true && denseFrom(dy.shape.length - 1, dy) && isFull(weight, index),
  run([dweight], [, index, , dy, rest], { paddingIdx }) {
    sumRows(engine, dweight, index, dy, rest, paddingIdx ?? -1)
  },
})
