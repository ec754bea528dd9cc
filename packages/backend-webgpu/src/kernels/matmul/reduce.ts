/**
 * The end of a product whose k was split: adds up the parts, always in the same order, and does what follows the
 * product. A thread has four neighbours in a row, or one element where rows are no multiples of four long.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import type { TypedProgram } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { block, i32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid } from '../layout.ts'
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
  type Width,
} from './epilogue.ts'
import type { Matrix, Problem } from './problem.ts'

/** Has `compute` compute so many parts of k apart, into memory of their own, and adds them up. */
export function inParts(
  engine: Engine,
  label: string,
  p: Problem,
  program: TypedProgram | undefined,
  splits: number,
  compute: (parts: Problem) => void,
): void {
  const part = p.items * p.m * p.n
  const buffer = engine.pool.alloc(splits * part, p.type === 'i32' ? 'int32' : 'float32')
  const batch: number[] = []
  p.sizes.reduceRight((step, size) => {
    batch.unshift(step)
    return step * size
  }, p.m * p.n)
  const parts: Matrix = { buffer, offset: 0, row: p.n, column: 1, batch }
  compute({ ...p, outs: [parts], extras: [] })

  const epilogue = epilogueOf(p, program)
  const dims = p.sizes.length
  const width = reduceWidth(p.n)
  const kernel = engine.kernel(`mr${dims}${width}${epilogueKey(epilogue)}`, label, () =>
    reduceShader(epilogue, dims, width),
  )
  const matrices = [parts, ...p.outs, ...p.extras]
  const wide = p.n / width
  const total = p.items * p.m * wide
  const { m, n, sizes } = p
  const values = { total, tilesN: wide, splits, kStep: part, m, n, matrices, sizes }
  const buffers = matrices.map((x) => x.buffer)
  engine.run(kernel, buffers, values, grid(Math.ceil(total / reduceThreads)))
  engine.pool.free(buffer)
}

const reduceThreads = 256

/** Parts that are asked for at a time: one by one, each would be waited for. */
const atOnce = 8

/** Columns per thread: vectors where the parts' rows are multiples of four long. */
const reduceWidth = (n: number): Width => (n % 4 === 0 ? 4 : 1)

const params = (matrices: number, dims: number) =>
  block({
    ...{ total: i32, tilesN: i32, splits: i32, kStep: i32, m: i32, n: i32 },
    ...places(matrices, dims),
  })

function reduceShader(e: Epilogue, dims: number, width: Width): Shader<ValuesOf<typeof params>> {
  const matrices = 1 + e.outs + e.extras.length
  const v = width === 4 ? (`vec4<${e.type}>` as const) : e.type
  const some = Array.from({ length: atOnce }, (_, j) => j)
  const part = (i: string): string => {
    const at = `q0 + m * p.r0 + n + (${i}) * p.kStep`
    return width === 4 ? `x0[(${at}) >> 2u]` : `x0[${at}]`
  }
  const body = [
    `let id = i32((wg.x + wg.y * groups.x) * ${reduceThreads}u + li);`,
    'if (id >= p.total) { return; }',
    `let n = (id % p.tilesN) * ${width};`,
    'var item = id / p.tilesN;',
    'let m = item % p.m; item /= p.m;',
    starts(matrices, dims),
    `var sum = ${v}(); var i = 0;`,
    `for (; i + ${atOnce} <= p.splits; i += ${atOnce}) {`,
    ...some.map((j) => `let part${j} = ${part(`i + ${j}`)};`),
    ...some.map((j) => `sum += part${j};`),
    '}',
    `for (; i < p.splits; i++) { sum += ${part('i')}; }`,
    loadExtras(e, 1, 'm', 'n', 'a', true, width),
    loadExtras(e, 1, 'm', 'n', 'r', false, width),
    store(e, 1, 'm', 'n', 'sum', ['r', 'a'], width),
  ]
  return {
    params: params(matrices, dims),
    bindings: [{ name: 'x0', item: v }, ...bindings(e, 1)],
    workgroup: [reduceThreads],
    declarations: declarations(e),
    enables: enablesOfEpilogue(e),
    body: body.join('\n'),
  }
}
