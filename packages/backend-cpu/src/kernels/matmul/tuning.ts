/**
 * Which tile matrix products use, found out on the machine where V8 is young: each of a few tiles multiplies data in
 * the first-level cache for about a millisecond, optimised code only, and the fastest wins. All of it takes 15 to 40 ms, once
 * per process and instruction set, at the first product that is worth it. A tile whose sums are not those of plain
 * JavaScript is out.
 *
 * The choice changes no result: each sum is one chain of multiply-adds in order of k, whatever the tile. Older V8s are
 * not measured: they do not change any more, and what is best for them is known (`matmul/micro.ts`).
 */

import type { Engine } from '../../engine.ts'
import type { FeatureLevel } from '../../machine/features.ts'
import { optimizedAtOnce } from '../../machine/node.ts'
import { i32, ModuleBuilder } from '../../wasm/index.ts'
import { multiply, type Tile, tileFor } from './micro.ts'

/** The best known one is first: another must be faster by 3 % or more. */
const candidates: Readonly<Partial<Record<FeatureLevel, readonly Tile[]>>> = {
  revectorized: [
    { rows: 6, vectors: 4, unroll: 2 },
    { rows: 4, vectors: 4, unroll: 2 },
    { rows: 6, vectors: 2, unroll: 2 },
  ],
}
/** Milliseconds for all candidates; those that there is no time for are not tried. */
const budget = 50
const depth = 256
const chosen = new Map<FeatureLevel, Tile>()

/** The tile for large products. */
export function tunedTile(engine: Engine): Tile {
  const { level } = engine.features
  let tile = chosen.get(level)
  if (tile === undefined) {
    const list = candidates[level]
    tile = list ? fastest(engine, list) : tileFor(engine.features)
    chosen.set(level, tile)
  }
  return tile
}

function fastest(engine: Engine, tiles: readonly Tile[]): Tile {
  const end = performance.now() + budget
  let best = tileFor(engine.features)
  let rate = 0
  for (const tile of tiles) {
    if (performance.now() > end) break
    const found = measure(engine, tile, Math.min(end, performance.now() + budget / tiles.length))
    if (found > 1.03 * rate) {
      best = tile
      rate = found
    }
  }
  return best
}

/** Multiply-adds per millisecond; 0 if the sums are wrong. */
function measure(engine: Engine, tile: Tile, end: number): number {
  const { rows } = tile
  const width = 4 * tile.vectors
  const m = new ModuleBuilder(engine.features)
  m.kernel('main', (f, start, stop, params) => {
    f.for(start, stop, 1, () => {
      const [a, b, out] = [0, 4, 8].map((at) => f.let(i32.load(params, at)))
      const aRow = f.let(i32.const(4 * depth))
      const sums = multiply(f, { tile, k: i32.const(depth), a, aRow, b, bStep: 4 * width })
      sums.forEach((row, i) => {
        row.forEach((x, j) => f.store(out, x, 4 * width * i + 16 * j))
      })
    })
  })
  const kernel = engine.pool.compile(m.build(), 'main')
  const [aWords, bWords] = [rows * depth, depth * width]
  const at = engine.scratch(4 * (aWords + bWords + rows * width)) >>> 2
  const { f32, i32: words } = engine.memory
  // Small integers: their sums are exact in any order.
  for (let i = 0; i < aWords; i++) f32[at + i] = (i % 7) - 3
  for (let i = 0; i < bWords; i++) f32[at + aWords + i] = (i % 11) - 5
  const pointers = [at, at + aWords, at + aWords + bWords]
  pointers.forEach((p, i) => {
    words[(engine.params >>> 2) + i] = 4 * p
  })
  const out = pointers[2] as number
  return optimizedAtOnce(() => {
    kernel.fn(0, 2, engine.params, 0)
    f32.fill(0, out, out + rows * width)
    kernel.fn(0, 1, engine.params, 0)
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < width; c++) {
        let sum = 0
        for (let k = 0; k < depth; k++)
          sum += (f32[at + r * depth + k] as number) * (f32[at + aWords + k * width + c] as number)
        if (f32[out + r * width + c] !== sum) return 0
      }
    }
    let least = Number.POSITIVE_INFINITY
    for (let n = 0; n < 20 && performance.now() < end; n++) {
      const begin = performance.now()
      kernel.fn(0, 20, engine.params, 0)
      least = Math.min(least, performance.now() - begin)
    }
    return (20 * depth * rows * width) / least
  })
}
