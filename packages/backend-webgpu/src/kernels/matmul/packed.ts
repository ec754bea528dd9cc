/**
 * Products of up to 8 rows with a weight of 16 bits, or of 8 with a scale for each block of them, and what follows. As in
 * `skinny.ts` all that takes time is to read the weight: 32 to 256 threads share a row of it, each takes two words at a time,
 * of 4 or 8 numbers, and their sums are folded. Sums are float32. Where results have 16 bits, threads have two rows of
 * the weight, so that a word of results is one thread's; where words go over the ends of rows, each sets its half of them.
 *
 * Products of float16 run in `skinny.ts` where the GPU multiplies matrices of it.
 *
 * With `norm` the rows are normalised first, for weights of any type: a step of decoding waits for launches more than for
 * memory, so each group of threads computes the mean and the variance again rather than wait for another kernel. It has
 * the row in registers for that, and asks for its share of the weight before it begins.
 *
 * Reference: `quantized_linear` in core's ops/quantized.ts, `linear` in ops/linear.ts. Test: packed.test.ts,
 * norm-linear.test.ts.
 */

import {
  type DType,
  type KernelOf,
  type LinearAttrs,
  layout,
  type NormLinearAttrs,
  type TypedProgram,
  type View,
} from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, i32, several, type ValuesOf } from '../../wgsl/block.ts'
import { isPacked, type Packed, packings } from '../../wgsl/element.ts'
import { lower } from '../../wgsl/lowering.ts'
import { type MathName, mathCode } from '../../wgsl/math.ts'
import type { Binding, Item, Shader } from '../../wgsl/shader.ts'
import { grid } from '../layout.ts'
import { enablesOf, plus, reduction, subgroupOf, workgroup } from '../rows.ts'

/** With more rows the weight would better be widened once. */
const mostRows = 8
/** Vectors of weights that a thread has under way in a loop. */
const unroll = 4
/** Vectors of a row that a thread holds while it is normalised, and those of all rows. */
const held = { one: 8, all: 16 }

type Float = 'float32' | Packed

/** How rows are normalised: as attributes say, the dtypes of the parameters, and the vectors of four of a thread's share. */
interface Norm {
  readonly kind: NormLinearAttrs['norm']['kind']
  readonly size: number
  readonly eps: number
  readonly params: readonly Float[]
  /** Steps of each thread, all of them in use or not. */
  readonly share: number
  readonly exact: boolean
}

/** All that the code depends on. */
interface Form {
  readonly rows: number
  readonly lanes: number
  readonly subgroup: number
  readonly x: Float
  readonly weight: Float | 'int32'
  /** Numbers to a scale, for weights of 8 bits. */
  readonly blockSize: number
  readonly scales: Float
  readonly outs: readonly Float[]
  /** Rows of results may begin within a word. */
  readonly ragged: boolean
  readonly extras: readonly { readonly dtype: Float; readonly perColumn: boolean }[]
  readonly norm: Norm | null
  readonly program: TypedProgram
}

const isFloat = (dtype: DType): dtype is Float => dtype === 'float32' || isPacked(dtype)

/** Whether elements lie one after another, but for the distance between rows of vectors. */
const hasRows = ({ shape, strides, offset }: View, vector: number): boolean =>
  strides[shape.length - 1] === 1 &&
  offset % vector === 0 &&
  shape[shape.length - 1] % vector === 0 &&
  (shape.length < 2 || strides[shape.length - 2] % vector === 0)

/** A few rows, and a weight whose rows are contiguous and, with scales, end with a block. */
export function takesPacked(engine: Engine, inputs: readonly View[], attrs: LinearAttrs): boolean {
  const { dtype } = inputs[1]
  const own = dtype === 'float32' || (engine.gpu.matrices !== null && dtype === 'float16')
  return !own && takesFew(engine, inputs, attrs)
}

function takesFew(
  engine: Engine,
  [x, weight, ...rest]: readonly View[],
  { epilogue, blockSize = 0 }: LinearAttrs,
): boolean {
  const bytes = weight.dtype === 'int32'
  if (!bytes && !isFloat(weight.dtype)) return false
  const extras = bytes ? rest.slice(1) : rest
  const k = x.shape.at(-1) ?? 0
  const n = weight.shape[0]
  if (k === 0 || weight.shape.length !== 2 || !isFloat(x.dtype) || bytes !== blockSize > 0) return false
  if (epilogue.params.length > 0 || epilogue.usesIndex) return false
  const most = engine.gpu.limits.maxStorageBuffersPerShaderStage
  if (2 + rest.length + epilogue.exprs.length > most || layout.numel(x.shape) > mostRows * k) return false
  if (!hasRows(x, 4) || (x.shape.length > 2 && !layout.isContiguous(x))) return false
  const rows = layout.numel(x.shape) / k
  const fits = bytes
    ? k === 4 * weight.shape[1] &&
      blockSize % 8 === 0 &&
      isFloat(rest[0].dtype) &&
      layout.isContiguous(rest[0])
    : weight.dtype === x.dtype && k % 4 === 0
  return (
    fits &&
    hasRows(weight, bytes ? 2 : 4) &&
    extras.every(
      (v) => isFloat(v.dtype) && layout.isContiguous(v) && [n, n * rows].includes(layout.numel(v.shape)),
    )
  )
}

/** Inputs of `norm_linear`: those of the product, and the parameters of the norm. */
function partsOf(inputs: readonly View[], { norm: { affine } }: NormLinearAttrs) {
  const count = { none: 0, weight: 1, both: 2 }[affine]
  const end = inputs.length - count
  return { product: inputs.slice(0, end), params: inputs.slice(end) }
}

/** A product with few rows, which are normalised first. */
export const normLinear = (engine: Engine): KernelOf<NormLinearAttrs> => ({
  supports(inputs, attrs) {
    const { product, params } = partsOf(inputs, attrs)
    const [x, weight] = product
    const most = engine.gpu.limits.maxStorageBuffersPerShaderStage
    const k = x.shape.at(-1) ?? 0
    const rows = layout.numel(x.shape) / k
    const width = weight.dtype === 'int32' ? 2 : 1
    return (
      inputs.length + attrs.epilogue.exprs.length <= most &&
      takesFew(engine, product, attrs) &&
      params.every((v) => isFloat(v.dtype) && layout.isContiguous(v) && v.offset % 4 === 0) &&
      k <= 4 * workgroup * held.one &&
      // A share has at least one step, of one or two vectors.
      rows * Math.max(width, Math.ceil(k / 4 / workgroup)) <= held.all
    )
  },
  run(outputs, inputs, attrs) {
    const { product, params } = partsOf(inputs, attrs)
    multiplyPacked(engine, 'norm_linear', outputs, product, attrs, { ...attrs.norm, params })
  },
})

/** Computes what `takesPacked` has taken. */
export function multiplyPacked(
  engine: Engine,
  label: string,
  outputs: readonly View[],
  [x, weight, ...rest]: readonly View[],
  { epilogue, blockSize = 0 }: LinearAttrs,
  norm?: NormLinearAttrs['norm'] & { readonly params: readonly View[] },
): void {
  const k = x.shape.at(-1) as number
  const n = weight.shape[0]
  const rows = layout.numel(x.shape) / k
  if (rows * n === 0) return
  const scales = blockSize > 0 ? rest[0] : null
  const extras = scales ? rest.slice(1) : rest
  const width = scales ? 2 : 1
  const steps = k / (4 * width)
  let lanes = lanesOf(engine, n, steps)
  const shareOf = (): number => Math.ceil(steps / lanes)
  if (norm)
    while (lanes < workgroup && (width * shareOf() > held.one || rows * width * shareOf() > held.all))
      lanes *= 2
  const float = (v: View): Float => v.dtype as Float
  const form: Form = {
    ...{ rows, lanes, subgroup: subgroupOf(engine) },
    ...{ x: float(x), weight: weight.dtype as Form['weight'], blockSize },
    scales: scales ? float(scales) : 'float32',
    outs: outputs.map(float),
    ragged: rows > 1 && n % 2 !== 0,
    extras: extras.map((v) => ({ dtype: float(v), perColumn: v.shape.length === 1 || rows === 1 })),
    norm: norm
      ? {
          ...{ kind: norm.kind, size: k, eps: norm.eps, params: norm.params.map(float) },
          ...{ share: shareOf(), exact: shareOf() * lanes === steps },
        }
      : null,
    program: epilogue,
  }
  const { program, ...rest_ } = form
  const kernel = engine.kernel(`mp${program.id}${JSON.stringify(rest_)}`, label, () => shader(form))
  const [buffers, offsets] = [
    [...outputs, ...extras].map(bufferOf),
    [...outputs, ...extras].map((v) => v.offset),
  ]
  const columns = (workgroup / form.lanes) * (isPaired(form) ? 2 : 1)
  const parameters = norm?.params ?? []
  const values = {
    ...{ n, steps, x0: x.offset / 4, xRow: (x.shape.length === 2 ? x.strides[0] : k) / 4 },
    ...{ w0: weight.offset / (scales ? 2 : 4), wRow: weight.strides[0] / (scales ? 2 : 4) },
    ...{ s0: scales ? scales.offset : 0, sRow: scales ? k / blockSize : 0 },
    offsets: [...offsets, ...parameters.map(({ offset }) => offset / 4)],
  }
  const read = [x, weight, ...(scales ? [scales] : [])].map(bufferOf)
  const all = [...read, ...buffers, ...parameters.map(bufferOf)]
  engine.run(kernel, all, values, grid(Math.ceil(n / columns)))
}

/** As many threads to a row of the weight as it takes to keep all cores busy. */
function lanesOf({ tuning }: Engine, n: number, steps: number): number {
  let lanes = 32
  while (lanes < workgroup && (n * lanes) / workgroup < 2 * tuning.cores && steps >= 2 * lanes) lanes *= 2
  return lanes
}

const isPaired = ({ outs, ragged }: Form): boolean => !ragged && outs.some(isPacked)

const params = (operands: number) =>
  block({
    ...{ n: i32, steps: i32, x0: i32, xRow: i32, w0: i32, wRow: i32, s0: i32, sRow: i32 },
    offsets: several(
      () => Array.from({ length: operands }, (_, i) => `at${i}: i32`),
      (offsets: readonly number[]) => offsets,
    ),
  })

/** Functions that read vectors and elements of a dtype, and what follows the product. */
function declarations({ x, weight, scales, extras, outs, norm, program, lanes, subgroup }: Form): string {
  const used = new Set([x, weight, scales, ...outs, ...extras.map((e) => e.dtype), ...(norm?.params ?? [])])
  const packed = [...used].filter((dtype): dtype is Packed => dtype in packings)
  const { code, values, functions } = lower(program.exprs, (node) =>
    node.kind === 'input' ? `z${node.index}` : 'unreachable',
  )
  const names = packed.flatMap((dtype): MathName[] => [packings[dtype].load, packings[dtype].store])
  const args = Array.from({ length: 1 + extras.length }, (_, i) => `z${i}: f32`)
  return `${mathCode([...functions, ...names])}
fn four_float32(w: vec4f) -> vec4f { return w; }
fn one_float32(w: f32, at: i32) -> f32 { return w; }
${packed
  .map(
    (
      dtype,
    ) => `fn four_${dtype}(w: vec2u) -> vec4f { return vec4f(${packings[dtype].load}(w.x), ${packings[dtype].load}(w.y)); }
fn one_${dtype}(w: u32, at: i32) -> f32 { let both = ${packings[dtype].load}(w); return select(both.x, both.y, (at & 1) == 1); }`,
  )
  .join('\n')}
fn four_int32(w: u32) -> vec4f { return vec4f((vec4i(vec4u(w) << vec4u(24u, 16u, 8u, 0u))) >> vec4u(24u)); }
struct Out { ${values.map((_, i) => `r${i}: f32`).join(', ')} }
fn finish(${args.join(', ')}) -> Out {
${code}
return Out(${values.join(', ')});
}
${reduction({ lanes, subgroup }, 'total', 'f32', plus)}
${norm?.kind === 'layer' ? reduction({ lanes, subgroup }, 'moments', 'vec2f', plus) : ''}`
}

/** A binding of vectors of four. */
const vector = (dtype: Float): Item => (dtype === 'float32' ? 'vec4<f32>' : 'vec2<u32>')

/** Whether threads have less than their share at step `u`. */
const isLast = ({ share, exact }: Norm, u: number): boolean => !exact && u === share - 1

/**
 * The code that loads a thread's share of row `m`, as vectors `v{m}_{i}`, and normalises it as norm/layer-norm.ts does; with
 * 16 bits it is rounded as there. Past the end of the row they are 0.
 */
function normalised({ lanes, x, weight, outs, extras }: Form, norm: Norm, m: number): string {
  const width = weight === 'int32' ? 2 : 1
  const each = Array.from({ length: norm.share * width }, (_, i) => i)
  const at = (i: number): string => {
    const step = `lane + ${Math.floor(i / width) * lanes}`
    return width === 2 ? `2 * (${step}) + ${i % 2}` : step
  }
  const inside = (i: number): string =>
    isLast(norm, Math.floor(i / width)) ? `${at(i)} < ${norm.size / 4}` : ''
  const within = (i: number, value: string): string =>
    inside(i) ? `select(vec4f(), ${value}, ${inside(i)})` : value
  const v = (i: number): string => `v${m}_${i}`
  const sum = (value: (i: number) => string): string => each.map((i) => within(i, value(i))).join(' + ')
  const hsum = (name: string): string => `((${name}.x + ${name}.y) + (${name}.z + ${name}.w))`
  const from = outs.length + extras.length
  const parameter = (g: number, i: number): string =>
    `four_${norm.params[g]}(g${g}[p.at${from + g} + min(${at(i)}, ${norm.size / 4 - 1})])`
  const round = (value: string): string =>
    x === 'float32'
      ? value
      : `four_${x}(vec2u(${packings[x].store}((${value}).xy), ${packings[x].store}((${value}).zw)))`
  const share = 1 / norm.size
  const layer = norm.kind === 'layer'
  const normal = (i: number): string =>
    layer ? `((${v(i)} - rough${m}) - both${m}.y) * rstd${m}` : `${v(i)} * rstd${m}`
  const affine = (i: number): string => {
    const [scaled, shifted] = norm.params
    const weighted = scaled ? `${normal(i)} * ${parameter(0, i)}` : normal(i)
    return shifted ? `${weighted} + ${parameter(1, i)}` : weighted
  }
  return `${each
    .map((i) =>
      inside(i)
        ? `var ${v(i)} = vec4f(); if (${inside(i)}) { ${v(i)} = four_${x}(x[row${m} + ${at(i)}]); }`
        : `var ${v(i)} = four_${x}(x[row${m} + ${at(i)}]);`,
    )
    .join('\n')}
${
  layer
    ? `let first${m} = four_${x}(x[row${m}]).x;
let part${m} = ${sum((i) => `(${v(i)} - first${m})`)};
let rough${m} = first${m} + total(${hsum(`part${m}`)}, li) * ${share};
let rest${m} = ${sum((i) => `(${v(i)} - rough${m})`)};
let squares${m} = ${sum((i) => `(${v(i)} - rough${m}) * (${v(i)} - rough${m})`)};
let both${m} = moments(vec2f(${hsum(`squares${m}`)}, ${hsum(`rest${m}`)}), li) * ${share};
let rstd${m} = 1.0 / sqrt((both${m}.x - both${m}.y * both${m}.y) + ${norm.eps});`
    : `let squares${m} = ${sum((i) => `${v(i)} * ${v(i)}`)};
let rstd${m} = 1.0 / sqrt(total(${hsum(`squares${m}`)}, li) * ${share} + ${norm.eps});`
}
${each.map((i) => `{ let z = ${affine(i)}; ${v(i)} = ${round('z')}; }`).join('\n')}`
}

/** The code of element `at` of a binding. */
const element = (name: string, dtype: Float, at: string): string =>
  dtype === 'float32' ? `${name}[${at}]` : `one_${dtype}(${name}[(${at}) >> 1u], ${at})`

function shader(form: Form): Shader<ValuesOf<typeof params>> {
  const { rows, lanes, x, weight, blockSize, scales, outs, ragged, extras, norm } = form
  const paired = isPaired(form)
  const columns = paired ? [0, 1] : [0]
  const all = Array.from({ length: rows }, (_, m) => m)
  const bytes = weight === 'int32'
  const each = (code: (c: number, m: number) => string): string =>
    columns.flatMap((c) => all.map((m) => code(c, m))).join(' ')
  const place = (u: number): string => (u === 0 ? 'j' : `j + ${u * lanes}`)
  const loads = (u: number): string =>
    columns.map((c) => `let w${c}_${u} = w[base${c} + ${place(u)}];`).join(' ')
  const add = (u: number): string => {
    const inputs = all.map((m) =>
      norm
        ? `let a${m} = v${m}_${bytes ? 2 * u : u};${bytes ? ` let b${m} = v${m}_${2 * u + 1};` : ''}`
        : bytes
          ? `let a${m} = four_${x}(x[row${m} + 2 * (${place(u)})]); let b${m} = four_${x}(x[row${m} + 2 * (${place(u)}) + 1]);`
          : `let a${m} = four_${x}(x[row${m} + ${place(u)}]);`,
    )
    const weights = columns.map((c) =>
      bytes
        ? `let at${c} = scale${c} + 8 * (${place(u)}) / ${blockSize}; let by${c} = ${element('s', scales, `at${c}`)};
let u${c} = four_int32(w${c}_${u}.x); let v${c} = four_int32(w${c}_${u}.y);`
        : `let u${c} = four_${weight}(w${c}_${u});`,
    )
    const sums = each((c, m) =>
      bytes
        ? `t${c}_${m} += by${c} * (dot(a${m}, u${c}) + dot(b${m}, v${c}));`
        : `t${c}_${m} += dot(a${m}, u${c});`,
    )
    return `{ ${inputs.join('\n')}\n${weights.join('\n')}\n${sums} }`
  }
  const group = Array.from({ length: norm?.share ?? unroll }, (_, u) => u)
  const products = norm
    ? `let j = lane;
${group.map((u) => (isLast(norm, u) ? loads(u).replaceAll(place(u), `min(${place(u)}, p.steps - 1)`) : loads(u))).join('\n')}
${all.map((m) => normalised(form, norm, m)).join('\n')}
${group.map((u) => (isLast(norm, u) ? `if (${place(u)} < p.steps) ${add(u)}` : add(u))).join('\n')}`
    : `var j = lane;
for (; j + ${(unroll - 1) * lanes} < p.steps; j += ${unroll * lanes}) {
${group.map(loads).join('\n')}
${group.map(add).join('\n')}
}
for (; j < p.steps; j += ${lanes}) { ${loads(0)} ${add(0)} }`
  const item = (dtype: Float): Binding['item'] => (dtype === 'float32' ? 'f32' : 'u32')
  const results = (m: number): string => {
    const values = columns.map((c) => {
      const read = extras.map(({ dtype, perColumn }, i) => {
        const at = `p.at${outs.length + i} + ${perColumn ? '' : `${m} * p.n + `}n${c}`
        return element(`y${i}`, dtype, at)
      })
      return `let f${c} = finish(${[`sum${c}_${m}`, ...read].join(', ')});`
    })
    const stores = outs.map((dtype, o) => {
      const at = `p.at${o} + ${m} * p.n + n0`
      if (dtype === 'float32')
        return columns
          .map((c) => `${c === 1 ? 'if (n0 + 1 < p.n) ' : ''}{ o${o}[${at} + ${c}] = f${c}.r${o}; }`)
          .join(' ')
      if (ragged)
        return `{ let at = u32(${at}); let shift = 16u * (at & 1u);
atomicAnd(&o${o}[at >> 1u], ~(0xffffu << shift));
atomicOr(&o${o}[at >> 1u], (${packings[dtype].store}(vec2f(f0.r${o}, 0.0)) & 0xffffu) << shift); }`
      // Behind a last one without a neighbour is nobody's half of a word, or another tensor's element.
      return `let word${o} = ${packings[dtype].store}(vec2f(f0.r${o}, f1.r${o})); let place${o} = (${at}) >> 1u;
if (n0 + 1 < p.n) { o${o}[place${o}] = word${o}; } else { o${o}[place${o}] = (o${o}[place${o}] & 0xffff0000u) | (word${o} & 0xffffu); }`
    })
    return `{ ${values.join('\n')}\n${stores.join('\n')} }`
  }
  return {
    params: params(outs.length + extras.length + (norm?.params.length ?? 0)),
    bindings: [
      { name: 'x', item: vector(x) },
      { name: 'w', item: bytes ? 'vec2<u32>' : vector(weight) },
      ...(bytes ? [{ name: 's', item: item(scales) }] : []),
      ...outs.map((dtype, i): Binding => {
        const word = ragged && isPacked(dtype) ? 'atomic<u32>' : item(dtype)
        return { name: `o${i}`, item: word, write: true }
      }),
      ...extras.map(({ dtype }, i) => ({ name: `y${i}`, item: item(dtype) })),
      ...(norm?.params ?? []).map((dtype, i) => ({ name: `g${i}`, item: vector(dtype) })),
    ],
    workgroup: [workgroup],
    ...enablesOf(form),
    declarations: declarations(form),
    body: `let lane = i32(li % ${lanes}u);
let first = ${paired ? '2 * ' : ''}i32((wg.x + wg.y * groups.x) * ${workgroup / lanes}u + li / ${lanes}u);
let n0 = min(first, p.n - 1);
${paired ? 'let n1 = min(n0 + 1, p.n - 1);' : ''}
${columns.map((c) => `let base${c} = p.w0 + n${c} * p.wRow; let scale${c} = p.s0 + n${c} * p.sRow;`).join('\n')}
${all.map((m) => `let row${m} = p.x0 + ${m} * p.xRow;`).join(' ')}
${each((c, m) => `var t${c}_${m} = 0.0;`)}
${products}
${each((c, m) => `let sum${c}_${m} = total(t${c}_${m}, li);`)}
if (lane == 0 && first < p.n) {
${all.map(results).join('\n')}
}`,
  }
}
