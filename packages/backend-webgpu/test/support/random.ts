/** Random numbers, the same ones in every run (mulberry32). */

import { type Layout, layout } from '@tilegrad/core'

export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

export const pick = <T>(rnd: () => number, list: readonly T[]): T =>
  list[Math.floor(rnd() * list.length)] as T
export const integer = (rnd: () => number, low: number, high: number): number =>
  low + Math.floor(rnd() * (high - low + 1))

/** A layout of any kind: permuted, with gaps, backwards, expanded. */
export function randomLayout(
  rnd: () => number,
  shape: readonly number[],
  { expand = 0.15, plain = 0.3 } = {},
): Layout {
  if (rnd() < plain) return { shape, strides: layout.contiguousStrides(shape), offset: integer(rnd, 0, 3) }
  const order = shape.map((_, d) => d)
  for (let i = order.length - 1; i > 0; i--) {
    const j = integer(rnd, 0, i)
    ;[order[i], order[j]] = [order[j] as number, order[i] as number]
  }
  const strides = new Array<number>(shape.length).fill(0)
  let step = 1
  let offset = integer(rnd, 0, 3)
  for (const d of order.reverse()) {
    if (rnd() < expand) continue
    const gap = pick(rnd, [1, 1, 1, 2, 3])
    const n = Math.max(1, shape[d] as number)
    const backwards = rnd() < 0.2
    strides[d] = backwards ? -step * gap : step * gap
    if (backwards) offset += (n - 1) * step * gap
    step *= n * gap
  }
  return { shape, strides, offset }
}
