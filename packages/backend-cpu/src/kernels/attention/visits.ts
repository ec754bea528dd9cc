/**
 * Which blocks of queries meet which blocks of keys: the one place that knows about causality, windows, global tokens
 * and lists of blocks. The forward kernel, that of dQ and that of dK and dV walk by it, so that what is hidden whole
 * is never computed; what is hidden within a block, `hideFunc` hides.
 *
 * Queries and keys are cut into chunks of at most 64 and 96. Without a block mask, chunk i starts at i · 64 (i · 96).
 * With one, each of its blocks is cut by itself, as evenly as multiples of 16 allow.
 */

import type { FunctionBuilder, I32, Var } from '../../wasm/index.ts'
import { i32 } from '../../wasm/index.ts'
import { least, most } from '../matmul/panels.ts'
import { type Form, keyBlock, queryBlock, type reader, rowOf } from './blocks.ts'

type Words = ReturnType<typeof reader>
type Side = 'queries' | 'keys'

/** What stands in for "no limit" in positions of keys. */
export const far = 1 << 29

/** Keys per chunk. */
export const keyStep = (blockSize: number): number =>
  blockSize === 0 ? keyBlock : 16 * Math.ceil(blockSize / Math.ceil(blockSize / keyBlock) / 16)

/** Chunks per block. */
export const chunksPerBlock = (step: number, blockSize: number): number => Math.ceil(blockSize / step)

/** How many chunks n queries or keys make, none of them empty. */
export function chunksOf(n: number, step: number, blockSize: number): number {
  if (blockSize === 0 || n === 0) return Math.ceil(n / step)
  const whole = Math.ceil(n / blockSize) - 1
  return whole * chunksPerBlock(step, blockSize) + Math.ceil((n - whole * blockSize) / step)
}

/** The bounds [start, end) of chunk i, which may be empty in the last block of a block mask. */
export function chunk(
  f: FunctionBuilder,
  word: Words,
  { blocks }: Form,
  side: Side,
  i: I32,
): Record<'start' | 'end', Var<'i32'>> {
  if (!blocks) {
    const step = side === 'queries' ? queryBlock : keyBlock
    const start = f.let(i.mul(step))
    return { start, end: f.let(least(start.add(step), word(side))) }
  }
  const step = side === 'queries' ? i32.const(queryBlock) : word('keyStep')
  const per = f.let(word(`${side}PerBlock`))
  const block = f.let(i.divU(per))
  const from = f.let(block.mul(word('blockSize')))
  const start = f.let(from.add(i.sub(block.mul(per)).mul(step)))
  return { start, end: f.let(least(least(start.add(step), from.add(word('blockSize'))), word(side))) }
}

/** A task's place: batch item, head, first query and number of queries. */
export function queryTask(
  f: FunctionBuilder,
  word: Words,
  form: Form,
  task: I32,
): Record<'b' | 'h' | 'first' | 'rows', Var<'i32'>> {
  const count = f.let(word('blocks'))
  const head = f.let(task.divU(count))
  // Under a causal mask late queries see more: last, first, second last, second …, so that neighbours even
  // out.
  const i = f.let(task.sub(head.mul(count)))
  const half = f.let(i.shrU(1))
  const { start, end } = chunk(
    f,
    word,
    form,
    'queries',
    f.let(i32.select(i.and(1), half, count.sub(1).sub(half))),
  )
  return {
    b: f.let(head.divU(word('heads'))),
    h: f.let(head.remU(word('heads'))),
    first: start,
    rows: f.let(end.sub(start)),
  }
}

/**
 * The keys of [start, end) that queries first … last see, and some between them that they do not: [from, to), empty
 * where to ≤ from.
 */
export function visible(
  f: FunctionBuilder,
  word: Words,
  first: I32,
  last: I32,
  start: I32,
  end: I32,
): Record<'from' | 'to', Var<'i32'>> {
  const window = f.let(first.add(word('low')).add(1))
  const from = f.let(most(window, start))
  const to = f.let(least(last.add(word('high')).add(1), end))
  f.if(
    first.ltS(word('globalQueries')),
    () => from.set(start),
    () => {
      f.if(start.ltS(word('globalKeys')), () => {
        from.set(start)
        // Where the window begins after this block, only the global keys of it are seen.
        f.if(window.geS(end), () => to.set(least(to, word('globalKeys'))))
      })
    },
  )
  return { from, to }
}

/** Emits a loop over the chunks of keys that queries first … last see, upwards. */
export function eachKeyChunk(
  f: FunctionBuilder,
  word: Words,
  form: Form,
  [b, h]: readonly [I32, I32],
  first: I32,
  last: I32,
  body: (start: Var<'i32'>, end: Var<'i32'>) => void,
): void {
  if (form.blocks) {
    const block = f.let(first.divU(word('blockSize')))
    const at = f.let(rowOf(word, 'kvIndices', b, h, block))
    f.for(0, i32.load(rowOf(word, 'kvNumBlocks', b, h, block)), 1, () => {
      const per = f.let(word('keysPerBlock'))
      const i = f.let(i32.load(at).mul(per))
      f.for(i, i.add(per), 1, (j) => {
        const { start, end } = chunk(f, word, form, 'keys', j)
        const seen = visible(f, word, first, last, start, end)
        f.if(seen.from.ltS(seen.to), () => body(start, end))
      })
      at.set(at.add(word('kvIndicesStep')))
    })
    return
  }
  const globals = f.let(word('globalKeys'))
  const stop = f.let(least(last.add(word('high')).add(1), word('keys')))
  const near = f.let(most(first.add(word('low')).add(1), 0))
  // Queries far beyond the keys have a window that no key is in.
  const aligned = i32.select(near.ltS(stop), near.sub(near.remU(keyBlock)), near)
  near.set(i32.select(first.ltS(word('globalQueries')), 0, aligned))
  const start = f.let(i32.select(globals.gtS(0), 0, near))
  f.while(start.ltS(stop), () => {
    body(start, f.let(least(start.add(keyBlock), word('keys'))))
    start.set(start.add(keyBlock))
    // From the last block with global keys to the first one that the window reaches.
    f.if(start.geS(globals), () => start.set(most(start, near)))
  })
}

/** Emits a loop over the chunks of queries that see any of the keys start … end − 1, upwards. */
export function eachQueryChunk(
  f: FunctionBuilder,
  word: Words,
  form: Form,
  [b, h]: readonly [I32, I32],
  start: I32,
  end: I32,
  body: (first: Var<'i32'>, rows: Var<'i32'>) => void,
): void {
  const visit = (i: I32): void => {
    const queries = chunk(f, word, form, 'queries', i)
    const seen = visible(f, word, queries.start, queries.end.sub(1), start, end)
    f.if(queries.start.ltS(queries.end).and(seen.from.ltS(seen.to)), () =>
      body(queries.start, f.let(queries.end.sub(queries.start))),
    )
  }
  if (!form.blocks) {
    f.for(0, word('queryChunks'), 1, visit)
    return
  }
  const block = f.let(start.divU(word('blockSize')))
  const at = f.let(rowOf(word, 'qIndices', b, h, block))
  f.for(0, i32.load(rowOf(word, 'qNumBlocks', b, h, block)), 1, () => {
    const per = f.let(word('queriesPerBlock'))
    const i = f.let(i32.load(at).mul(per))
    f.for(i, i.add(per), 1, visit)
    at.set(at.add(word('qIndicesStep')))
  })
}
