/**
 * Any scalar expression over operands that broadcast to one shape. Threads take four consecutive elements each, or one
 * where the expression is long, as those of random numbers are: four copies of it take drivers seconds to minutes to
 * compile, and arithmetic is what takes its time.
 *
 * Where every operand is contiguous or one single number, or at least its rows are, they are loaded and stored as vectors
 * of four; else each element's place is computed from its coordinates. Buffers that appear twice are bound once: a buffer that is
 * written must not be bound a second time.
 *
 * Two elements of 16 bits lie in a word. A thread that writes four writes whole words; where it writes one, its
 * neighbour may be another thread's, and it changes its half of the word by atomic operations.
 *
 * Reference: `elementwise` in core's reference/kernels.ts. Test: elementwise.test.ts.
 */

import { type DType, type Primitives, type TypedProgram, typedPostOrder, type View } from '@tilegrad/core'
import type { Nest } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, numbers, several, u32, type ValuesOf } from '../../wgsl/block.ts'
import {
  type Element,
  elements,
  isPacked,
  itemAt,
  itemOf,
  laneOf,
  packings,
  packingsOf,
  putItem,
} from '../../wgsl/element.ts'
import { lower } from '../../wgsl/lowering.ts'
import { mathCode } from '../../wgsl/math.ts'
import type { Binding, Item, Shader } from '../../wgsl/shader.ts'
import { grid, nestOf } from '../layout.ts'

const workgroup = 256

export function elementwise(engine: Engine): Primitives['elementwise'] {
  return {
    run(outputs, inputs, { kernel }, numbers) {
      const [out] = outputs
      const count = out.shape.reduce((n, s) => n * s, 1)
      if (count === 0) return
      const views = [...outputs, ...inputs]
      // Coordinates count dims of the output as they are; an index needs their order, which merging keeps.
      const { long, coords } = traitsOf(kernel)
      const nest = nestOf(out.shape, views, coords)
      const flat = nest.sizes.length === 1 && !coords
      const rows = !long && !flat && !coords && haveVectors(views, outputs.length, nest)
      const vectors = rows || (!long && flat && isVector(views, outputs.length, nest, count))

      const buffers: GpuBuffer[] = []
      const place = views.map((v) => {
        const buffer = bufferOf(v)
        const at = buffers.indexOf(buffer)
        return at >= 0 ? at : buffers.push(buffer) - 1
      })
      const written = buffers.map((_, i) => place.indexOf(i) < outputs.length)
      const steps =
        flat || rows ? nest.strides.map((own) => own.at(-1)).map((s) => (s === 1 ? 1 : s === 0 ? 0 : 2)) : []
      const key = `e${kernel.id}:${place}:${vectors ? 'v' : 'f'}${flat ? '' : nest.sizes.length}:${steps}`
      const gpuKernel = engine.kernel(key, kernel.name, () => {
        return shader(kernel, views, outputs.length, place, written, nest, flat, vectors, long, steps)
      })

      const groups = grid(Math.ceil(count / ((long ? 1 : 4) * workgroup)))
      engine.run(gpuKernel, buffers, { count, views, nest, a: 0 }, groups, numbers)
    },
  }
}

/** Nodes of an expression from which on a thread takes one element; GELU's gradient has fewer. */
const longest = 64

interface Traits {
  readonly long: boolean
  /** Whether the expression uses coordinates. */
  readonly coords: boolean
}
const known = new WeakMap<TypedProgram, Traits>()
function traitsOf(kernel: TypedProgram): Traits {
  let traits = known.get(kernel)
  if (!traits) {
    const nodes = typedPostOrder(kernel.exprs)
    traits = { long: nodes.length > longest, coords: nodes.some(({ kind }) => kind === 'coord') }
    known.set(kernel, traits)
  }
  return traits
}

/** Whether vectors of four fit: also at the end, where what a last vector of outputs overwrites must be nobody's. */
function isVector(views: readonly View[], outputs: number, nest: Nest, count: number): boolean {
  return views.every((v, i) => {
    const [stride] = nest.strides[i]
    if (stride === 0 && i >= outputs) return true
    const alone = count % 4 === 0 || i >= outputs || (v.offset === 0 && count === bufferOf(v).count)
    return stride === 1 && v.offset % 4 === 0 && alone
  })
}
/** Whether the innermost dim is vectors of four in every operand, or one number per row. */
function haveVectors(views: readonly View[], outputs: number, { sizes, strides }: Nest): boolean {
  const last = sizes.length - 1
  if (sizes[last] % 4 !== 0) return false
  return views.every((v, i) => {
    const own = strides[i]
    if (own[last] === 0) return i >= outputs
    return own[last] === 1 && v.offset % 4 === 0 && own.slice(0, last).every((s) => s % 4 === 0)
  })
}

/** `views` operands over a nest of so many dims; `sized` if the kernel needs the dims' sizes. */
const params = (views: number, rank: number, sized: boolean, kernel: TypedProgram) => {
  const [operands, dims] = [views, rank].map((n) => Array.from({ length: n }, (_, i) => i))
  return block({
    count: u32,
    views: several(
      () => operands.map((i) => `o${i}: i32`),
      (all: readonly View[]) => all.map((v) => v.offset),
    ),
    nest: several(
      () => [
        ...(sized ? dims.map((d) => `n${d}: u32`) : []),
        ...operands.flatMap((i) => dims.map((d) => `s${d}_${i}: i32`)),
      ],
      ({ sizes, strides }: Nest) => [...(sized ? sizes : []), ...strides.flat()],
    ),
    a: numbers(kernel.params),
  })
}

function shader(
  kernel: TypedProgram,
  views: readonly View[],
  outputs: number,
  place: readonly number[],
  written: readonly boolean[],
  nest: Nest,
  flat: boolean,
  vectors: boolean,
  long: boolean,
  steps: readonly number[],
): Shader<ValuesOf<typeof params>> {
  const rank = nest.sizes.length
  const bindings = written.map((write, b): Binding => {
    const { dtype } = views[place.indexOf(b)]
    return { name: `b${b}`, item: boundAs(dtype, vectors, write), ...(write && { write }) }
  })
  const inputs = views.slice(outputs)

  // The expressions as one function of an element: WGSL computes it once for each of four.
  const { code, values, functions } = lower(kernel.exprs, (node) => {
    if (node.kind === 'input') return `x${node.index}`
    if (node.kind === 'param') return computedAs(node.dtype).load(`p.a_${node.slot}`)
    return node.kind === 'index' ? 'i32(i)' : `c${rank + node.dim}`
  })
  const { coords } = traitsOf(kernel)
  const args = [
    'i: u32',
    ...inputs.map((v, k) => `x${k}: ${computedAs(v.dtype).value}`),
    ...(coords ? Array.from({ length: rank }, (_, d) => `c${d}: i32`) : []),
  ]
  const results = kernel.exprs.map((t) => computedAs(t.dtype).value)
  const used = new Set([
    ...functions,
    ...packingsOf(
      inputs.map(({ dtype }) => dtype),
      kernel.exprs.map(({ dtype }) => dtype),
    ),
  ])
  const declarations = `${mathCode(used)}
struct Out { ${results.map((t, i) => `r${i}: ${t}`).join(', ')} }
fn f(${args.join(', ')}) -> Out {
${code}
return Out(${values.join(', ')});
}`

  const call = (i: string, elements: readonly string[], at = ''): string =>
    `f(${[i, ...elements, ...(coords ? Array.from({ length: rank }, (_, d) => `i32(k${d}${at})`) : [])].join(', ')})`
  const lines = [
    `let first = ((wg.x + wg.y * groups.x) * ${workgroup}u + li) * ${long ? 1 : 4}u;`,
    'if (first >= p.count) { return; }',
  ]
  if (vectors) {
    // The first element's coordinates, of which only the innermost one moves within a vector.
    if (!flat) {
      lines.push('var rest = first;')
      for (let d = rank - 1; d >= 0; d--) {
        if (d > 0) lines.push(`let k${d} = i32(rest % p.n${d}); rest = rest / p.n${d};`)
        else lines.push('let k0 = i32(rest);')
      }
    }
    const at = (i: number): string => {
      const moves = steps[i] === 1
      if (flat) return moves ? `u32(p.o${i}) + first` : `u32(p.o${i})`
      const dims = Array.from({ length: moves ? rank : rank - 1 }, (_, d) => ` + k${d} * p.s${d}_${i}`)
      return `u32(p.o${i}${dims.join('')})`
    }
    inputs.forEach((v, k) => {
      const name = `b${place[outputs + k]}`
      lines.push(`let at${k} = ${at(outputs + k)};`)
      lines.push(`let w${k} = ${vectorAt(v.dtype, name, `at${k}`, steps[outputs + k] === 0)};`)
    })
    for (let j = 0; j < 4; j++) {
      const elements = inputs.map((v, k) => computedAs(v.dtype).load(`w${k}[${j}]`))
      lines.push(`let r${j} = ${call(`first + ${j}u`, elements)};`)
    }
    kernel.exprs.forEach(({ dtype }, o) => {
      const parts = [0, 1, 2, 3].map((j) => `r${j}.r${o}`)
      lines.push(`b${place[o]}[(${at(o)}) >> 2u] = ${vectorOf(dtype, parts)};`)
    })
  } else {
    if (long) lines.push('{', 'let i = first;')
    else lines.push('for (var j = 0u; j < 4u; j++) {', 'let i = first + j;', 'if (i >= p.count) { break; }')
    if (!flat) {
      lines.push('var rest = i;')
      for (let d = rank - 1; d >= 0; d--) {
        if (d > 0) lines.push(`let k${d} = rest % p.n${d}; rest = rest / p.n${d};`)
        else lines.push('let k0 = rest;')
      }
    }
    const at = (i: number): string => {
      const terms = flat
        ? steps[i] === 0
          ? []
          : [steps[i] === 1 ? 'i32(i)' : `i32(i) * p.s0_${i}`]
        : Array.from({ length: rank }, (_, d) => `i32(k${d}) * p.s${d}_${i}`)
      return [`p.o${i}`, ...terms].join(' + ')
    }
    inputs.forEach((v, k) => {
      const b = place[outputs + k]
      lines.push(
        `let x${k} = ${computedAs(v.dtype).load(itemAt(v.dtype, `b${b}`, at(outputs + k), written[b]))};`,
      )
    })
    const elements = inputs.map((_, k) => `x${k}`)
    lines.push(`let r = ${call('i', elements)};`)
    kernel.exprs.forEach(({ dtype }, o) => {
      lines.push(putItem(dtype, `b${place[o]}`, at(o), computedAs(dtype).store(`r.r${o}`)))
    })
    lines.push('}')
  }
  return {
    params: params(views.length, rank, !flat, kernel),
    bindings,
    workgroup: [workgroup],
    declarations,
    body: lines.join('\n'),
  }
}

const computedAs = (dtype: DType): Element => elements[laneOf(dtype)]

/** What is bound of a buffer: vectors of four elements, or one; of 16 bits the words of these. */
const boundAs = (dtype: DType, vectors: boolean, write: boolean): Item =>
  !vectors
    ? itemOf(dtype, write)
    : isPacked(dtype)
      ? 'vec2<u32>'
      : (`vec4<${computedAs(dtype).item}>` as Item)

/** Four items from element `at` on of a binding of vectors, or four times the one there. */
function vectorAt(dtype: DType, name: string, at: string, repeated: boolean): string {
  const vector = `${name}[${at} >> 2u]`
  if (!isPacked(dtype)) return repeated ? `vec4(${vector}[${at} & 3u])` : vector
  const { load } = packings[dtype]
  if (repeated) return `vec4(${load}(${vector}[(${at} >> 1u) & 1u])[${at} & 1u])`
  return `vec4(${load}(${vector}[0]), ${load}(${vector}[1]))`
}

/** What four values are stored as. */
function vectorOf(dtype: DType, values: readonly string[]): string {
  if (!isPacked(dtype)) return `vec4(${values.map(computedAs(dtype).store).join(', ')})`
  const { store } = packings[dtype]
  const [a, b, c, d] = values
  return `vec2(${store}(vec2(${a}, ${b})), ${store}(vec2(${c}, ${d})))`
}
