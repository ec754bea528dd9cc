/**
 * The end of a product whose k was split: adds up the parts, always in the same order, and does what follows the
 * product. A thread has four neighbours in a row.
 */

import type { Shader } from '../shader.ts'
import {
  bindings,
  declarations,
  type Epilogue,
  fields,
  loadExtras,
  places,
  store,
} from './matmul-epilogue.ts'

export const reduceThreads = 256

/** `vectors`: the parts' rows are multiples of four long. */
export function reduceShader(e: Epilogue, dims: number, vectors: boolean): Shader {
  const matrices = 1 + e.outs + e.extras.length
  const v = `vec4<${e.type}>`
  const at = 'q0 + m * p.r0 + n'
  const part = vectors
    ? `x0[(${at} + i * p.kStep) >> 2u]`
    : `${v}(${[0, 1, 2, 3].map((c) => `x0[${at} + i * p.kStep + min(${c}, p.n - 1 - n)]`).join(', ')})`
  const body = [
    `let id = i32((wg.x + wg.y * groups.x) * ${reduceThreads}u + li);`,
    'if (id >= p.total) { return; }',
    'let n = (id % p.tilesN) * 4;',
    'var item = id / p.tilesN;',
    'let m = item % p.m; item /= p.m;',
    places(matrices, dims),
    `var sum = ${v}();`,
    `for (var i = 0; i < p.splits; i++) { sum += ${part}; }`,
    loadExtras(e, 1, 'm', 'n', 'a', true),
    loadExtras(e, 1, 'm', 'n', 'r', false),
    store(e, 1, 'm', 'n', 'sum', ['r', 'a']),
  ]
  return {
    params: fields(matrices, dims),
    bindings: [{ name: 'x0', item: vectors ? `vec4<${e.type}>` : e.type }, ...bindings(e, 1)],
    workgroup: [reduceThreads],
    declarations: declarations(e),
    body: body.join('\n'),
  }
}
