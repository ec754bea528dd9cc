/**
 * Tensors of any strides joined along a dim, as many in a launch as the device can bind. A workgroup finds its tensor
 * by its number and copies 256 vectors of four elements, where all tensors allow them, or 256 elements.
 *
 * Reference: the copies in core's ops/shape.ts. Test: cat.test.ts.
 */

import { type DimAttrs, type KernelOf, layout, type View } from '@tilegrad/core'
import { type Nest, viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, i32, list, u32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, walk, walkFunction, walkOf } from '../layout.ts'

const workgroup = 256
/** The most tensors of a launch, with which code grows. */
const mostParts = 8

interface Part {
  readonly x: View
  /** The place in the output that the first element goes to. */
  readonly to: number
  readonly nest: Nest
}

export const cat = (engine: Engine): KernelOf<DimAttrs> => {
  const atOnce = Math.min(mostParts, engine.gpu.limits.maxStorageBuffersPerShaderStage - 1)
  return {
    supports: (inputs) => inputs.every((x) => x.dtype === inputs[0].dtype),
    run([y], inputs, { dim }) {
      let to = y.offset
      const parts: Part[] = []
      for (const x of inputs) {
        const nest = nestOf(x.shape, [x, viewOf(y, x.shape, y.strides, 0)])
        if (layout.numel(x.shape) > 0) parts.push({ x, to, nest })
        to += x.shape[dim] * y.strides[dim]
      }
      const width = parts.every(takesVectors) ? 4 : 1
      for (let i = 0; i < parts.length; i += atOnce) {
        const some = parts.slice(i, i + atOnce)
        const ranks = some.map(({ nest }) => nest.sizes.length)
        const kernel = engine.kernel(`cat:${width}:${ranks}`, 'cat', () => shader(width, ranks))
        let end = 0
        const values = some.map((part) => {
          const nest = inVectors(part.nest, width)
          const count = layout.numel(nest.sizes)
          end += Math.ceil(count / workgroup)
          const places = { from: part.x.offset / width, to: part.to / width }
          return { end, count, ...places, from_at: walkOf(nest, 0), to_at: walkOf(nest, 1) }
        })
        engine.run(kernel, [y, ...some.map(({ x }) => x)].map(bufferOf), { parts: values }, grid(end))
      }
    },
  }
}

function takesVectors({ x, to, nest: { sizes, strides } }: Part): boolean {
  const last = sizes.length - 1
  if (x.offset % 4 !== 0 || to % 4 !== 0 || sizes[last] % 4 !== 0) return false
  return strides.every((own) => own.every((step, d) => (d === last ? step === 1 : step % 4 === 0)))
}

const inVectors = ({ sizes, strides }: Nest, width: 4 | 1): Nest => ({
  sizes: sizes.map((n, d) => (d === sizes.length - 1 ? n / width : n)),
  strides: strides.map((own) => own.map((step, d) => (d === sizes.length - 1 ? step : step / width))),
})

const params = (ranks: readonly number[]) => {
  const one = { end: u32, count: u32, from: i32, to: i32 }
  return block({ parts: list(ranks.map((rank) => ({ ...one, from_at: walk(rank), to_at: walk(rank) }))) })
}

function shader(width: 4 | 1, ranks: readonly number[]): Shader<ValuesOf<typeof params>> {
  const item = width === 4 ? 'vec4<u32>' : 'u32'
  const branches = ranks.map((_, c) => {
    const before = c === 0 ? '0u' : `p.end${c - 1}`
    return `if (number < p.end${c}) {
  let i = (number - ${before}) * ${workgroup}u + li;
  if (i < p.count${c}) { y[p.to${c} + to_at${c}(i)] = x${c}[p.from${c} + from_at${c}(i)]; }
  return;
}`
  })
  return {
    params: params(ranks),
    bindings: [{ name: 'y', item, write: true }, ...ranks.map((_, c) => ({ name: `x${c}`, item }) as const)],
    workgroup: [workgroup],
    declarations: ranks
      .map((rank, c) => `${walkFunction(`from_at${c}`, rank)}\n${walkFunction(`to_at${c}`, rank)}`)
      .join('\n'),
    body: `let number = wg.x + wg.y * groups.x;\n${branches.join('\n')}`,
  }
}
