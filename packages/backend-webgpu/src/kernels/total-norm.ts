/**
 * The Euclidean norm of many tensors together. Workgroups add up the squares of blocks of 16,384 elements, of as many
 * tensors at once as the device can bind; one more adds the blocks' sums. No atomics: the result is the same every time.
 *
 * Reference: `TOTAL_NORM` in core's ops/total-norm.ts. Test: total-norm.test.ts.
 */

import { type KernelOf, layout, type View } from '@tilegrad/core'
import type { Engine } from '../commands/queue.ts'
import { bufferOf } from '../device/buffers.ts'
import { block, list, u32, type ValuesOf } from '../wgsl/block.ts'
import type { Shader } from '../wgsl/shader.ts'
import { grid } from './layout.ts'
import { enablesOf, plus, reduction, subgroupOf } from './rows.ts'

const workgroup = 256
/** Vectors of a block: 16 for every thread. */
const vectors = 16 * workgroup
/** The most tensors of a dispatch, with which code grows. */
const mostTensors = 15

export const totalNorm = (engine: Engine): KernelOf<object> => {
  const atOnce = Math.min(mostTensors, engine.gpu.limits.maxStorageBuffersPerShaderStage - 1)
  const subgroup = subgroupOf(engine)
  return {
    dtypes: [['float32']],
    supports: (inputs) => inputs.every(layout.isContiguous),
    run([out], inputs) {
      const some = inputs.filter((x) => layout.numel(x.shape) > 0)
      const blocksOf = (x: View): number => {
        const first = Math.floor(x.offset / 4)
        return Math.ceil((Math.ceil((x.offset + layout.numel(x.shape)) / 4) - first) / vectors)
      }
      const blocks = some.reduce((n, x) => n + blocksOf(x), 0)
      const sums = engine.pool.alloc(blocks, 'float32')
      let base = 0
      for (let i = 0; i < some.length; i += atOnce) {
        const group = some.slice(i, i + atOnce)
        const kernel = engine.kernel(`total_norm:${group.length}`, 'total_norm', () =>
          blocksShader(group.length, subgroup),
        )
        let end = 0
        const tensors = group.map((x) => {
          end += blocksOf(x)
          return { blocks: end, from: x.offset, end: x.offset + layout.numel(x.shape) }
        })
        engine.run(kernel, [sums, ...group.map(bufferOf)], { base, tensors }, grid(end))
        base += end
      }
      const kernel = engine.kernel('total_norm.finish', 'total_norm', () => finishShader(subgroup))
      engine.run(kernel, [bufferOf(out), sums], { blocks }, [1])
      engine.pool.free(sums)
    },
  }
}

const params = (tensors: number) =>
  block({
    base: u32,
    tensors: list(Array.from({ length: tensors }, () => ({ blocks: u32, from: u32, end: u32 }))),
  })

/** Elements [from, end) of each tensor; those before and after in the same vector do not count. */
function blocksShader(tensors: number, subgroup: number): Shader<ValuesOf<typeof params>> {
  const all = { lanes: workgroup, subgroup }
  const ids = Array.from({ length: tensors }, (_, c) => c)
  const branches = ids.map((c) => {
    const before = c === 0 ? '0u' : `p.blocks${c - 1}`
    return `if (number >= ${before} && number < p.blocks${c}) {
  let first = (p.from${c} >> 2u) + (number - ${before}) * ${vectors}u;
  let last = min(first + ${vectors}u, (p.end${c} + 3u) >> 2u);
  for (var j = first + li; j < last; j += ${workgroup}u) {
    let at = vec4(4u * j) + vec4(0u, 1u, 2u, 3u);
    let v = select(vec4f(), x${c}[j], (at >= vec4(p.from${c})) & (at < vec4(p.end${c})));
    part += v * v;
  }
}`
  })
  return {
    params: params(tensors),
    bindings: [
      { name: 'sums', item: 'f32', write: true },
      ...ids.map((c) => ({ name: `x${c}`, item: 'vec4<f32>' }) as const),
    ],
    workgroup: [workgroup],
    ...enablesOf(all),
    declarations: reduction(all, 'group_sum', 'f32', plus),
    body: `let number = wg.x + wg.y * groups.x;
var part = vec4f();
${branches.join('\n')}
let sum = group_sum((part.x + part.y) + (part.z + part.w), li);
if (li == 0u && number < p.blocks${tensors - 1}) { sums[p.base + number] = sum; }`,
  }
}

const finishParams = block({ blocks: u32 })

function finishShader(subgroup: number): Shader<ValuesOf<typeof finishParams>> {
  const all = { lanes: workgroup, subgroup }
  return {
    params: finishParams,
    bindings: [
      { name: 'norm', item: 'f32', write: true },
      { name: 'sums', item: 'f32' },
    ],
    workgroup: [workgroup],
    ...enablesOf(all),
    declarations: reduction(all, 'group_sum', 'f32', plus),
    body: `var part = 0.0;
for (var i = li; i < p.blocks; i += ${workgroup}u) { part += sums[i]; }
let sum = group_sum(part, li);
if (li == 0u) { norm[0] = sqrt(sum); }`,
  }
}
