/**
 * Gather: one thread per element of the output. An index out of range reads as 0.
 *
 * Reference: `gather` in core's reference/kernels.ts. Test: indexing.test.ts.
 */

import { layout, type Primitives } from '@tilegrad/core'
import { viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../../wgsl/block.ts'
import { elementOf } from '../../wgsl/element.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, walk, walkFunction, walkOf } from '../layout.ts'

const workgroup = 256

const params = (rank: number) =>
  block({
    ...{ count: u32, y0: u32, x0: i32, i0: i32 },
    ...{ size: i32, step: i32 },
    ...{ index_at: walk(rank), x_at: walk(rank) },
  })

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
      const kernel = engine.kernel(
        `gather ${y.dtype} ${rank} ${shared}`,
        'gather',
        (): Shader<ValuesOf<typeof params>> => {
          const { item } = elementOf(y.dtype)
          const from = shared ? 'x' : 'index'
          return {
            params: params(rank),
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
        },
      )
      const values = {
        ...{ count, y0: y.offset, x0: source.offset, i0: at.offset },
        ...{ size: source.shape[dim] ?? 1, step: source.strides[dim] ?? 0 },
        ...{ index_at: walkOf(nest, 0), x_at: walkOf(nest, 1) },
      }
      const groups = grid(Math.ceil(count / workgroup))
      engine.run(kernel, shared ? buffers.slice(0, 2) : buffers, values, groups)
    },
  }
}
