/**
 * ScatterAdd: each element of the output is x's and the sum, in the order of the index, of the sources that point to
 * it. GPUs have no atomic sums of floats, and those would come in any order: so outputs look for their terms.
 *
 * Small: one thread per output goes through the whole index. Else the index is sorted, stably, once for all the
 * columns that share it (an expanded index, as embeddings have), the start of every destination's terms is looked up
 * by bisection, and one thread per output adds its own.
 *
 * An index out of range adds nothing. Reference: `scatterAdd` in core's reference/kernels.ts. Test: indexing.test.ts.
 */

import { type DType, layout, type Primitives, type View } from '@tilegrad/core'
import { viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, i32, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import { elementOf } from '../../wgsl/element.ts'
import type { Binding, Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, otherDims, pickDims, type Walk, walk, walkFunction, walkOf } from '../layout.ts'
import { sortInto } from '../sort.ts'

const workgroup = 256
/** The most entries, and steps in all, for which going through the index is as good as sorting it. */
const shortIndex = 16
const fewSteps = 2 ** 20

export function scatterAdd(engine: Engine): Primitives['scatterAdd'] {
  return {
    run([out], [x, index, source], { dim }) {
      const [y, base, at] = [out, x, index]
      const from = viewOf(source, at.shape, source.strides)
      const others = otherDims(y, dim)
      // Where the index is smaller than x the rest of x is copied only.
      const narrow = others.some((d) => at.shape[d] !== y.shape[d])
      if (narrow)
        run(
          engine,
          y,
          base,
          viewOf(
            at,
            at.shape.map(() => 0),
            at.strides,
          ),
          from,
          dim,
          'none',
        )
      const target = narrow
        ? viewOf(
            y,
            y.shape.map((n, d) => (d === dim ? n : at.shape[d])),
            y.strides,
          )
        : y
      const length = at.shape[dim] ?? 1
      if (layout.numel(target.shape) === 0 || (narrow && length === 0)) return
      const small = length <= shortIndex || layout.numel(target.shape) * length <= fewSteps
      run(
        engine,
        target,
        narrow ? target : base,
        at,
        from,
        dim,
        length === 0 ? 'none' : small ? 'small' : 'sorted',
      )
    },
  }
}

type How = 'none' | 'small' | 'sorted'

/** `x` may be `y` itself. */
function run(engine: Engine, y: View, x: View, index: View, source: View, dim: number, how: How): void {
  const count = layout.numel(y.shape)
  if (count === 0) return
  const others = otherDims(y, dim)
  const size = y.shape[dim] ?? 1
  const length = index.shape[dim] ?? 1
  // Dims along which the index repeats itself share one sorted copy of it.
  const own = how === 'sorted' ? others.filter((d) => index.strides[d] !== 0 && index.shape[d] !== 1) : []
  const group = own.map((d) => index.shape[d])
  const groups = layout.numel(group)
  const scratch: GpuBuffer[] = []
  const alloc = (n: number): GpuBuffer => {
    const buffer = engine.pool.alloc(n, 'int32')
    scratch.push(buffer)
    return buffer
  }
  let bound: GpuBuffer[] = []
  if (how === 'sorted') {
    const keys = dense(alloc(groups * length), [groups, length])
    const order = dense(alloc(groups * length), [groups, length])
    const flat = pickDims(index, [...own, dim])
    const shaped = (v: View): View => dense(bufferOf(v), flat.shape)
    sortInto(engine, shaped(keys), shaped(order), flat, own.length, false)
    const starts = alloc(groups * (size + 1))
    const kernel = engine.kernel('scatterAdd starts', 'scatterAdd', findStarts)
    const all = groups * (size + 1)
    const values = { count: all, size: size + 1, length }
    engine.run(kernel, [starts, bufferOf(keys)], values, grid(Math.ceil(all / workgroup)))
    bound = [starts, bufferOf(order)]
  } else if (how === 'small') bound = [bufferOf(index)]

  // The output's dims, of which `dim` counts destinations.
  const along = (v: View): View =>
    viewOf(
      v,
      y.shape,
      v.strides.map((s, d) => (d === dim ? 0 : s)),
    )
  const coordinate = viewOf(
    y,
    y.shape,
    y.shape.map((_, d) => Number(d === dim)),
  )
  const strides = dense(null, group).strides
  const groupOf = viewOf(
    y,
    y.shape,
    y.shape.map((_, d) => (own.includes(d) ? strides[own.indexOf(d)] : 0)),
  )
  const terms = how === 'none' ? [] : [along(source), how === 'small' ? along(index) : groupOf]
  const views = [y, x, coordinate, ...terms]
  const nest = nestOf(y.shape, views)
  const rank = nest.sizes.length
  const buffers: GpuBuffer[] = []
  const place = [...[y, x, ...(how === 'none' ? [] : [source])].map(bufferOf), ...bound].map((b) => {
    const at = buffers.indexOf(b)
    return at >= 0 ? at : buffers.push(b) - 1
  })
  const kernel = engine.kernel(`scatterAdd ${how} ${y.dtype} ${rank} ${place}`, 'scatterAdd', () =>
    shader(how, y.dtype, rank, place),
  )
  const at = (n: number): Walk | null => (n < views.length ? walkOf(nest, n) : null)
  const values = {
    ...{ count, y0: y.offset, x0: x.offset, source0: source.offset, index0: index.offset, size, length },
    ...{ source_step: source.strides[dim] ?? 0, index_step: index.strides[dim] ?? 0 },
    ...{ y_at: walkOf(nest, 0), x_at: walkOf(nest, 1), k_at: walkOf(nest, 2) },
    ...{ source_at: at(3), index_at: at(4) },
  }
  engine.run(kernel, buffers, values, grid(Math.ceil(count / workgroup)))
  for (const buffer of scratch) engine.pool.free(buffer)
}

function dense(buffer: GpuBuffer | null, shape: readonly number[]): View {
  const strides = shape.map((_, d) => layout.numel(shape.slice(d + 1)))
  return { buffer: buffer as GpuBuffer, dtype: 'int32', shape, strides, offset: 0 }
}

const startParams = block({ count: u32, size: u32, length: u32 })

/** Finds, for each row of sorted keys and each k, how many keys are below k. */
const findStarts = (): Shader<ValuesOf<typeof startParams>> => ({
  params: startParams,
  bindings: [
    { name: 'starts', item: 'i32', write: true },
    { name: 'keys', item: 'i32' },
  ],
  workgroup: [workgroup],
  body: `let t = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (t >= p.count) { return; }
let row = (t / p.size) * p.length;
let k = i32(t % p.size);
var low = 0u;
var high = p.length;
while (low < high) {
  let mid = (low + high) >> 1u;
  if (keys[row + mid] < k) { low = mid + 1u; } else { high = mid; }
}
starts[t] = i32(low);`,
})

const params = (how: How, rank: number) =>
  block({
    ...{ count: u32, y0: i32, x0: i32, source0: i32, index0: i32, size: i32, length: u32 },
    ...{ source_step: i32, index_step: i32 },
    ...{ y_at: walk(rank), x_at: walk(rank), k_at: walk(rank) },
    source_at: when(how !== 'none', walk(rank)),
    index_at: when(how !== 'none', walk(rank)),
  })

function shader(
  how: How,
  dtype: DType,
  rank: number,
  place: readonly number[],
): Shader<ValuesOf<typeof params>> {
  const { item } = elementOf(dtype)
  const items = [item, item, ...(how === 'none' ? [] : [item]), 'i32', 'i32'] as const
  const bindings = Array.from(
    { length: Math.max(...place) + 1 },
    (_, b): Binding => ({
      name: `b${b}`,
      item: items[place.indexOf(b)] as 'f32' | 'i32',
      ...(b === 0 && { write: true }),
    }),
  )
  const at = (n: number): string => `b${place[n]}`
  const terms = {
    none: '',
    small: `let k = k_at(i);
let start = p.index0 + index_at(i);
for (var j = 0; j < i32(p.length); j++) {
  if (${at(3)}[start + j * p.index_step] == k) { sum += ${at(2)}[source + j * p.source_step]; }
}`,
    sorted: `let row = index_at(i);
let first = ${at(3)}[row * (p.size + 1) + k_at(i)];
let end = ${at(3)}[row * (p.size + 1) + k_at(i) + 1];
for (var j = first; j < end; j++) {
  sum += ${at(2)}[source + ${at(4)}[row * i32(p.length) + j] * p.source_step];
}`,
  }[how]
  return {
    params: params(how, rank),
    bindings,
    workgroup: [workgroup],
    declarations: ['y_at', 'x_at', 'k_at', ...(how === 'none' ? [] : ['source_at', 'index_at'])]
      .map((name) => walkFunction(name, rank))
      .join('\n'),
    body: `let i = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (i >= p.count) { return; }
var sum = ${at(1)}[p.x0 + x_at(i)];
${how === 'none' ? '' : 'let source = p.source0 + source_at(i);'}
${terms}
${at(0)}[p.y0 + y_at(i)] = sum;`,
  }
}
