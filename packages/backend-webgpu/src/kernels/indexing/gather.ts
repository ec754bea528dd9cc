/**
 * Gather: one thread per element of the output. An index out of range reads as 0.
 *
 * Reference: `gather` in core's reference/kernels.ts. Test: indexing.test.ts.
 */

import { layout, type Primitives } from '@tilegrad/core'
import { viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { elementOf } from '../../wgsl/element.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, walkFields, walkFunction, walkWords } from '../layout.ts'

const workgroup = 256

export function gather(engine: Engine): Primitives['gather'] {
  return {
    run([out], [x, index], { dim }) {
      const [y, source, at] = [out, x, index]
      const count = layout.numel(y.shape)
      if (count === 0) return
      // x without the dim that is looked up.
      const rest = viewOf(
        source,
        at.shape,
        source.strides.map((s, d) => (d === dim ? 0 : s)),
      )
      const nest = nestOf(y.shape, [at, rest])
      const rank = nest.sizes.length
      const buffers = [y, source, at].map(bufferOf)
      const shared = source.buffer === at.buffer
      const kernel = engine.kernel(`gather ${y.dtype} ${rank} ${shared}`, 'gather', (): Shader => {
        const { item } = elementOf(y.dtype)
        const from = shared ? 'x' : 'index'
        return {
          params: [
            'count: u32',
            'y0: u32',
            'x0: i32',
            'i0: i32',
            'size: i32',
            'step: i32',
            ...walkFields('index_at', rank),
            ...walkFields('x_at', rank),
          ],
          bindings: [
            { name: 'y', item, write: true },
            { name: 'x', item },
            ...(shared ? [] : [{ name: 'index', item: 'i32' as const }]),
          ],
          workgroup: [workgroup],
          declarations: `${walkFunction('index_at', rank)}\n${walkFunction('x_at', rank)}`,
          body: `let i = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (i >= p.count) { return; }
let k = ${from}[p.i0 + index_at(i)];
var v = ${item}(0);
if (k >= 0 && k < p.size) { v = x[p.x0 + x_at(i) + k * p.step]; }
y[p.y0 + i] = v;`,
        }
      })
      const words = [
        count,
        y.offset,
        source.offset,
        at.offset,
        source.shape[dim] ?? 1,
        source.strides[dim] ?? 0,
        ...walkWords(nest, 0),
        ...walkWords(nest, 1),
      ]
      const [gx, gy] = grid(Math.ceil(count / workgroup))
      engine.runWords(kernel, shared ? buffers.slice(0, 2) : buffers, words, gx, gy)
    },
  }
}
