/**
 * Products of float16 on subgroup matrices, which GPUs have units of their own for: a workgroup computes bm × bn elements
 * of the output, a subgroup sm × sn of them in matrices of 16 × 16 that add up in float32. Stages of bk steps of a and b
 * lie in workgroup memory (matmul/subgroup-stages.ts); the next one is loaded into registers meanwhile. Rows and columns past
 * the edge repeat others and are not stored; steps past the end of k are zeros. Matrices have no elements that code could
 * reach: sums go through workgroup memory, 16 rows of each subgroup at a time, to threads that do what follows the
 * product and round.
 *
 * LADDER.md beside this file has the steps on the way here and where the time goes.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul-half.test.ts.
 */

import type { Matrices } from '../../device/matrices.ts'
import { block, i32, type ValuesOf } from '../../wgsl/block.ts'
import type { Binding, Shader } from '../../wgsl/shader.ts'
import {
  bindings,
  declarations,
  type Epilogue,
  enablesOfEpilogue,
  loadExtras,
  places,
  starts,
  store,
} from './epilogue.ts'
import {
  isVectors,
  type MatrixAccess,
  type MatrixStages,
  type MatrixTail,
  type MatrixTile,
  matrixStages,
  outRowOf,
  shift,
  subgroupsOf,
  vectorsOf,
} from './subgroup-stages.ts'

/** All that the code of a product depends on besides its tile. */
export interface MatrixSpec {
  readonly a: MatrixAccess
  readonly b: MatrixAccess
  /** Dims of the batch. */
  readonly dims: number
  /** Only a part of k is added up, and there are others. */
  readonly split: boolean
  readonly tail: MatrixTail
  readonly epilogue: Epilogue
}

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

const params = (matrices: number, dims: number) =>
  block({
    ...{ total: i32, tilesN: i32, tilesM: i32, splits: i32, kStep: i32, m: i32, n: i32, k: i32 },
    ...places(matrices, dims),
  })
type Params = ValuesOf<typeof params>

export function matrixShader(t: MatrixTile, spec: MatrixSpec, has: Matrices): Shader<Params> {
  const { a, b, dims, tail, epilogue: e } = spec
  const { bm, bn, sm, sn } = t
  const threads = subgroupsOf(t) * has.subgroup
  const matrices = 2 + e.outs + e.extras.length
  const inputs: Binding[] = [a, b].map((access, i) => ({
    name: `x${i}`,
    item: isVectors(access) ? 'vec4<u32>' : 'f16',
  }))
  const across = bn / sn
  const [tall, wide] = [sm / 16, sn / 16]
  const code = matrixStages(t, threads, a, b, tail)
  const lines = [
    'let id = i32(wg.x + wg.y * groups.x);',
    'if (id >= p.total) { return; }',
    `let n0 = (id % p.tilesN) * ${bn};`,
    'var item = id / p.tilesN;',
    // Divisions are slow, and nothing begins before them.
    dims === 0 && !spec.split
      ? `let m0 = item * ${bm};`
      : `let m0 = (item % p.tilesM) * ${bm}; item /= p.tilesM;`,
    ...(spec.split ? ['let split = item % p.splits; item /= p.splits;'] : ['let split = 0;']),
    starts(matrices, dims),
    // Partial products lie one after another.
    ...(spec.split ? ['q2 += split * (p.total / (p.tilesN * p.tilesM * p.splits)) * p.m * p.n;'] : []),
    'let kEnd = min(p.k, (split + 1) * p.kStep);',
    'var kl = split * p.kStep;',
    `let t = i32(li); let sub = t / ${has.subgroup};`,
    `let sr = sub / ${across} * ${sm}; let sc = sub % ${across} * ${sn};`,
    code.begin,
    ...range(tall * wide).map((i) => `var c${i}: Sum;`),
    'if (kl < kEnd) {',
    ...(t.ahead ? loopAhead(t, code) : loop(t, code)),
    '}',
    ...end(t, threads, e),
  ]
  return {
    params: params(matrices, dims),
    bindings: [...inputs, ...bindings(e, 2)],
    workgroup: [threads],
    declarations: `alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
${shift}
${declarations(e)}`,
    shared: { name: 's', item: 'vec4<u32>', count: vectorsOf(t, a, b) },
    enables: [...has.enables, ...enablesOfEpilogue(e)],
    body: lines.join('\n'),
  }
}

const multiply = (i: number, j: number, wide: number, left: string, right: string): string =>
  `c${i * wide + j} = subgroupMatrixMultiplyAccumulate(${left}, ${right}, c${i * wide + j});`

/** One stage after another: stored, multiplied while the next one is on its way. */
function loop(t: MatrixTile, code: MatrixStages): string[] {
  const [tall, wide] = [t.sm / 16, t.sn / 16]
  return [
    code.load(0),
    `for (var k = split * p.kStep; k < kEnd; k += ${t.bk}) {`,
    code.store(0, 0),
    'workgroupBarrier();',
    code.load(0),
    ...range(t.bk / 16).flatMap((kk) => [
      '{',
      ...range(tall).map((i) => `let l${i} = ${code.left(0, kk, i)};`),
      ...range(wide).flatMap((j) => [
        `let r${j} = ${code.right(0, kk, j)};`,
        ...range(tall).map((i) => multiply(i, j, wide, `l${i}`, `r${j}`)),
      ]),
      '}',
    ]),
    'workgroupBarrier();',
    '}',
  ]
}

/**
 * Five stages at a time: one is multiplied, whose matrices are in registers; those of the next one are read from workgroup
 * memory; one is stored there, in the place of the one that is multiplied; and two are on their way to registers.
 */
function loopAhead(t: MatrixTile, code: MatrixStages): string[] {
  const [tall, wide] = [t.sm / 16, t.sn / 16]
  const steps = range(t.bk / 16)
  const lefts = (set: number): string[] =>
    steps.flatMap((kk) => range(tall).map((i) => `l${set}_${kk}_${i} = ${code.left(set, kk, i)};`))
  const right = (set: number, kk: number, j: number): string =>
    `r${set}_${kk}_${j} = ${code.right(set, kk, j)};`
  const phase = (set: number): string[] => [
    'if (k >= kEnd) { break; }',
    code.store(set, set),
    code.load(set),
    ...lefts(1 - set),
    ...steps.flatMap((kk) =>
      range(wide).flatMap((j) => [
        ...range(tall).map((i) => multiply(i, j, wide, `l${set}_${kk}_${i}`, `r${set}_${kk}_${j}`)),
        right(1 - set, kk, j),
      ]),
    ),
    'workgroupBarrier();',
    `k += ${t.bk};`,
  ]
  return [
    ...[0, 1].flatMap((set) =>
      steps.flatMap((kk) => [
        ...range(tall).map((i) => `var l${set}_${kk}_${i}: Left;`),
        ...range(wide).map((j) => `var r${set}_${kk}_${j}: Right;`),
      ]),
    ),
    ...[0, 1].map((set) => code.load(set)),
    ...[0, 1].flatMap((set) => [code.store(set, set), code.load(set)]),
    'workgroupBarrier();',
    ...lefts(0),
    ...steps.flatMap((kk) => range(wide).map((j) => right(0, kk, j))),
    'workgroupBarrier();',
    'var k = split * p.kStep;',
    'loop {',
    ...[0, 1].flatMap(phase),
    '}',
  ]
}

/** Rows that a thread is asked for at a time. */
const atOnce = 4

/** What follows the product, for 16 rows of each subgroup after another. */
function end(t: MatrixTile, threads: number, e: Epilogue): string[] {
  const { bn, bm, sm, sn } = t
  const [tall, wide] = [sm / 16, sn / 16]
  const width = e.vectors ? 4 : 1
  const columns = bn / width
  const [row, part] = [outRowOf(t), 16 * outRowOf(t)]
  const rows = threads / columns
  const times = ((bm / sm) * 16) / rows
  const together = Math.min(atOnce, times)
  const write = range(tall).map(
    (i) =>
      `case ${i}: {\n${range(wide)
        .map((j) => `subgroupMatrixStore<row_major>(&s, sub * ${part} + ${4 * j}, c${i * wide + j}, ${row});`)
        .join('\n')}\n}`,
  )
  const at = `(row >> 4u) * ${(bn / sn) * part} + (row & 15) * ${row} + base`
  const value = e.vectors ? 'bitcast<vec4<f32>>(s[at])' : 'bitcast<f32>(s[at][column & 3])'
  return [
    `let column = t % ${columns}; let n = n0 + column * ${width};`,
    `let base = (column * ${width} / ${sn}) * ${part} + (column * ${width} % ${sn}) / 4;`,
    loadExtras(e, 2, '', 'n', 'a', true, width),
    `for (var part = 0; part < ${tall}; part++) {`,
    'workgroupBarrier();',
    `switch part {\n${write.join('\n')}\ndefault: {}\n}`,
    'workgroupBarrier();',
    `for (var i = 0; i < ${times}; i += ${together}) {`,
    ...range(together).flatMap((j) => [
      `var value${j} = ${e.vectors ? 'vec4<f32>()' : '0.0'}; var m_${j} = 0;`,
      `{ let row = (i + ${j}) * ${rows} + t / ${columns}; let at = ${at}; value${j} = ${value};`,
      `m_${j} = m0 + (row >> 4u) * ${sm} + part * 16 + (row & 15); }`,
      `let last${j} = min(m_${j}, p.m - 1);`,
      loadExtras(e, 2, `last${j}`, 'n', `r${j}`, false, width),
    ]),
    ...range(together).map(
      (j) =>
        `if (m_${j} < p.m && n < p.n) {\n${store(e, 2, `m_${j}`, 'n', `value${j}`, [`r${j}`, 'a'], width)}\n}`,
    ),
    '}',
    '}',
  ]
}
