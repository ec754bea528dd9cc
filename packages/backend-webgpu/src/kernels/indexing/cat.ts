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
import type { Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, walkFields, walkFunction, walkWords } from '../layout.ts'

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
        const words: number[] = []
        let end = 0
        for (const part of some) {
          const nest = inVectors(part.nest, width)
          const count = layout.numel(nest.sizes)
          end += Math.ceil(count / workgroup)
          const starts = [part.x.offset / width, part.to / width]
          words.push(end, count, ...starts, ...walkWords(nest, 0), ...walkWords(nest, 1))
        }
        engine.runWords(kernel, [y, ...some.map(({ x }) => x)].map(bufferOf), words, ...grid(end))
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

function shader(width: 4 | 1, ranks: readonly number[]): Shader {
  const item = width === 4 ? 'vec4<u32>' : 'u32'
  const branches = ranks.map((_, c) => {
    const before = c === 0 ? '0u' : `p.end${c - 1}`
    return `if (number < p.end${c}) {
  let i = (number - ${before}) * ${workgroup}u + li;
  if (i < p.count${c}) { y[p.to${c} + to${c}_at(i)] = x${c}[p.from${c} + from${c}_at(i)]; }
  return;
}`
  })
  return {
    params: ranks.flatMap((rank, c) => [
      `end${c}: u32`,
      `count${c}: u32`,
      `from${c}: i32`,
      `to${c}: i32`,
      ...walkFields(`from${c}_at`, rank),
      ...walkFields(`to${c}_at`, rank),
    ]),
    bindings: [{ name: 'y', item, write: true }, ...ranks.map((_, c) => ({ name: `x${c}`, item }) as const)],
    workgroup: [workgroup],
    declarations: ranks
      .map((rank, c) => `${walkFunction(`from${c}_at`, rank)}\n${walkFunction(`to${c}_at`, rank)}`)
      .join('\n'),
    body: `let number = wg.x + wg.y * groups.x;\n${branches.join('\n')}`,
  }
}
