/**
 * Which blocks of the other side a workgroup's block visits: the one place that knows of causality, windows, global
 * tokens and lists of blocks. What is hidden whole is never loaded; what is hidden within a block, `hide` hides.
 *
 * - a range [begin, end): causality and windows,
 * - with global tokens, for a block of queries [0, g) before it; for a block of keys the range reaches further,
 * - a list: the visible blocks of a mask, those of them that lie in the range. Tiles divide the mask's blocks, so that a
 *   workgroup's block lies in one of them.
 */

import { colsOf, type Form, rowsOf } from './blocks.ts'

/** Which side's blocks stream by; the workgroup holds one of the other side. */
export type Streamed = 'keys' | 'queries'

/** Declares `begin` and `end` of what the block at q0 (keys stream by) or k0 (queries do) can see or be seen by. */
export function reach({ tile, globals }: Form, streamed: Streamed): string {
  const [rows, cols] = [rowsOf(tile), colsOf(tile)]
  if (streamed === 'keys') {
    const begin = `max(0, q0 + p.low + 1) / ${cols} * ${cols}`
    return `let begin = ${globals ? `select(${begin}, 0, q0 < p.globalQueries)` : begin};
let end = min(p.keys, min(q0 + ${rows}, p.queries) + p.high);`
  }
  const end = `min(p.queries, min(k0 + ${rows}, p.keys) - 1 - p.low)`
  return `let begin = max(0, k0 - p.high) / ${cols} * ${cols};
let end = ${globals ? `select(max(${end}, min(p.queries, p.globalQueries)), p.queries, k0 < p.globalKeys)` : end};`
}

/** A loop of `body` over the blocks that are visited, upwards; each begins at k0 (q0). Needs `reach`, and b and h. */
export function walk({ tile, globals, blocks }: Form, streamed: Streamed, body: string): string {
  const cols = colsOf(tile)
  const [own, at] = streamed === 'keys' ? ['q0', 'k0'] : ['k0', 'q0']
  const apart = globals && streamed === 'keys'
  if (blocks) {
    const row = (name: string): string =>
      `p.${name}At + b * p.${name}Batch + h * p.${name}Head + ${own} / p.blockSize * p.${name}Row`
    const before = apart ? `(${at} < begin && ${at} >= p.globalKeys)` : `${at} < begin`
    return `let perBlock = p.blockSize / ${cols};
let firstVisit = ${row('list')};
let visits = counts[u32(${row('counts')})] * perBlock;
for (var visit = 0; visit < visits; visit++) {
let ${at} = list[u32(firstVisit + visit / perBlock * p.listStep)] * p.blockSize + visit % perBlock * ${cols};
if (${at} >= end || ${before}) { continue; }
${body}
}`
  }
  const next = `${at} + ${cols}`
  // From the last block with global keys to the first one that the window reaches.
  const step = apart
    ? `${at} = select(${next}, max(${next}, begin), ${next} >= p.globalKeys)`
    : `${at} += ${cols}`
  return `for (var ${at} = ${apart ? '0' : 'begin'}; ${at} < end; ${step}) {
${body}
}`
}
