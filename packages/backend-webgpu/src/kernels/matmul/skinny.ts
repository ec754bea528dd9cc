/**
 * Products with few rows, as a step of decoding has: out[m, n] = Σₖ x[m, k] · w[n, k], m ≤ 8, where both are read along k in
 * vectors of 16 bytes: four elements of float32, or eight of float16, whose sums are float32. All that takes time is to read w once. A tile of a matrix would have a core read 32 columns from one
 * end of k to the other; here 32 to 256 threads share the k of one column, and their sums are folded. A thread that has
 * only some vectors of w asks for all of them at once, and for what its epilogue needs: it waits for memory once.
 *
 * On one H200, 1 × 768 → 3,072 with a bias and GELU: in tiles 53 µs, with what measuring a dispatch adds; reading w takes 2.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts, linear.test.ts.
 */

import type { TypedProgram } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { block, i32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid } from '../layout.ts'
import { enablesOf, plus, reduction, subgroupOf, workgroup } from '../rows.ts'
import {
  bindings,
  declarations,
  type Epilogue,
  enablesOfEpilogue,
  epilogueKey,
  epilogueOf,
  loadExtras,
  places,
  starts,
  store,
} from './epilogue.ts'
import { aligned, type Problem, transposed } from './problem.ts'

/** With more rows tiles read w no more often than needed. */
const mostRows = 8
/** With fewer steps there is little to share. */
const leastSteps = 128
/** Vectors that a thread has under way in a loop; with fewer than `straight` of its own, by so many rows, there is none. */
const unroll = 4
const straight = { vectors: 8, byRows: 16 }

/** Elements of a vector. */
const widthOf = ({ type }: Problem): 4 | 8 => (type === 'f16' ? 8 : 4)

/** The product in the form that the kernel takes, as it is or transposed; null for any other. */
export function skinnyOf(p: Problem): Problem | null {
  const width = widthOf(p)
  const fits = (q: Problem): boolean =>
    q.m <= mostRows &&
    q.a.column === 1 &&
    q.b.row === 1 &&
    aligned(q.a, q.a.row, width) &&
    aligned(q.b, q.b.column, width)
  if (p.type === 'i32' || p.sizes.length > 0 || p.k % width !== 0 || p.k < leastSteps) return null
  if (p.band !== undefined) return null
  if (fits(p)) return p
  const turned = transposed(p)
  return fits(turned) ? turned : null
}

/** Computes a product that `skinnyOf` gave. */
export function skinny(engine: Engine, label: string, p: Problem, program: TypedProgram | undefined): void {
  // Elements are stored one by one.
  const epilogue: Epilogue = { ...epilogueOf(p, program), vectors: false }
  const lanes = lanesOf(engine, p)
  const subgroup = subgroupOf(engine)
  const width = widthOf(p)
  const share = Math.ceil(p.k / width / lanes)
  const held = share <= straight.vectors && share * p.m <= straight.byRows ? share : 0
  const exact = held * lanes * width === p.k
  const key = `ms${width},${p.m},${lanes},${held}${exact ? 'x' : ''}${epilogueKey(epilogue)}`
  const kernel = engine.kernel(key, label, () => shader(width, p.m, lanes, held, exact, subgroup, epilogue))
  const columns = workgroup / lanes
  const matrices = [p.a, p.b, ...p.outs, ...p.extras]
  const buffers = matrices.map((x) => x.buffer)
  const { n, k, sizes } = p
  engine.run(kernel, buffers, { n, k, matrices, sizes }, grid(Math.ceil(n / columns)))
}

/** As many threads to a column as it takes to keep all cores busy. */
function lanesOf({ tuning }: Engine, p: Problem): number {
  const { n, k } = p
  const least = 2 * widthOf(p)
  let lanes = 32
  while (lanes < workgroup && (n * lanes) / workgroup < 2 * tuning.cores && k >= least * lanes) lanes *= 2
  return lanes
}

const params = (matrices: number) => block({ n: i32, k: i32, ...places(matrices, 0) })

const dotOfHalves = `fn dot_halves(x: vec4<u32>, y: vec4<u32>) -> f32 {
return dot(unpack2x16float(x.x), unpack2x16float(y.x)) + dot(unpack2x16float(x.y), unpack2x16float(y.y))
+ dot(unpack2x16float(x.z), unpack2x16float(y.z)) + dot(unpack2x16float(x.w), unpack2x16float(y.w));
}`

/** `held`: the vectors of w of a thread, 0 if there may be more; `exact` if all threads have so many. */
function shader(
  width: 4 | 8,
  rows: number,
  lanes: number,
  held: number,
  exact: boolean,
  subgroup: number,
  epilogue: Epilogue,
): Shader<ValuesOf<typeof params>> {
  const all = Array.from({ length: rows }, (_, m) => m)
  const ks = Array.from({ length: unroll }, (_, k) => k)
  const shift = width === 8 ? 3 : 2
  const product = width === 8 ? 'dot_halves' : 'dot'
  const at = (k: number): string => (k === 0 ? 'j' : `j + ${k * lanes}`)
  const load = (k: number): string => `let w${k} = x1[base + ${at(k)}];`
  const add = (k: number): string =>
    all.map((m) => `s${m} += ${product}(x0[row${m} + ${at(k)}], w${k});`).join(' ')
  const last = exact ? -1 : held - 1
  const place = (k: number): string =>
    k === last ? `min(lane + ${k * lanes}, vectors - 1)` : `lane + ${k * lanes}`
  const own = Array.from({ length: held }, (_, k) => k)
  const addOwn = (k: number): string =>
    all
      .map((m) => {
        const sum = `s${m} + ${product}(x0[row${m} + ${place(k)}], w${k})`
        return `s${m} = ${k === last ? `select(s${m}, ${sum}, lane + ${k * lanes} < vectors)` : sum};`
      })
      .join(' ')
  const products =
    held > 0
      ? `${own.map((k) => `let w${k} = x1[base + ${place(k)}];`).join(' ')}
${own.map(addOwn).join('\n')}`
      : `var j = lane;
for (; j + ${(unroll - 1) * lanes} < vectors; j += ${unroll * lanes}) {
${ks.map(load).join(' ')}
${ks.map(add).join('\n')}
}
for (; j < vectors; j += ${lanes}) { ${load(0)} ${add(0)} }`
  const item = width === 8 ? 'vec4<u32>' : 'vec4<f32>'
  const folded = { lanes, subgroup }
  return {
    params: params(2 + epilogue.outs + epilogue.extras.length),
    bindings: [{ name: 'x0', item }, { name: 'x1', item }, ...bindings(epilogue, 2)],
    workgroup: [workgroup],
    enables: [...(enablesOf(folded).enables ?? []), ...enablesOfEpilogue(epilogue)],
    declarations: `${width === 8 ? dotOfHalves : ''}
${declarations(epilogue)}
${reduction(folded, 'total', 'f32', plus)}`,
    body: `let lane = i32(li % ${lanes}u);
let column = i32((wg.x + wg.y * groups.x) * ${workgroup / lanes}u + li / ${lanes}u);
let n = min(column, p.n - 1);
${starts(2 + epilogue.outs + epilogue.extras.length, 0)}
let base = (q1 + n * p.c1) >> ${shift}u;
${all.map((m) => `let row${m} = (q0 + ${m} * p.r0) >> ${shift}u; var s${m} = 0.0;`).join('\n')}
let vectors = p.k >> ${shift}u;
${loadExtras(epilogue, 2, '0', 'n', 'a', true, 1)}
${all.map((m) => loadExtras(epilogue, 2, `${m}`, 'n', `r${m}`, false, 1)).join('\n')}
${products}
${all.map((m) => `let t${m} = total(s${m}, li);`).join('\n')}
if (lane == 0 && column < p.n) {
${all
  .map(
    (m) => `{
${store(epilogue, 2, `${m}`, 'n', `t${m}`, [`r${m}`, 'a'], 1)}
}`,
  )
  .join('\n')}
}`,
  }
}
