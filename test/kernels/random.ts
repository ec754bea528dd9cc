/** Random numbers for tests, the same ones in every run (mulberry32), and random layouts. */

import { type Layout, layout } from '@tilegrad/core'

/** A generator of numbers in [0, 1). */
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

export const pick = <T>(rnd: () => number, list: readonly T[]): T => list[Math.floor(rnd() * list.length)]
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
    ;[order[i], order[j]] = [order[j], order[i]]
  }
  const strides = shape.map(() => 0)
  let step = 1
  let offset = integer(rnd, 0, 3)
  for (const d of order.reverse()) {
    if (rnd() < expand) continue
    const gap = pick(rnd, [1, 1, 1, 2, 3])
    const n = Math.max(1, shape[d])
    const backwards = rnd() < 0.2
    strides[d] = backwards ? -step * gap : step * gap
    if (backwards) offset += (n - 1) * step * gap
    step *= n * gap
  }
  return { shape, strides, offset }
}

/** A layout whose leading dims are of any kind, in steps that are multiples of 4 or not, while its trailing ones are one run. */
export function randomRows(rnd: () => number, lead: readonly number[], dense: readonly number[]): Layout {
  const plain = rnd() < 0.4
  const unit = layout.numel(dense)
  const order = lead.map((_, d) => d)
  if (!plain) order.sort(() => rnd() - 0.5)
  const strides = lead.map(() => 0)
  let [step, offset] = [unit, plain ? 0 : pick(rnd, [0, 1, 4])]
  let end = unit
  for (const d of order.reverse()) {
    if (!plain && rnd() < 0.15) continue
    if (!plain) step += pick(rnd, [0, 0, 1, 4]) + (rnd() < 0.1 ? step : 0)
    const span = (Math.max(1, lead[d]) - 1) * step
    const turned = !plain && rnd() < 0.2
    strides[d] = turned ? -step : step
    if (turned) offset += span
    end += span
    step = end
  }
  return { shape: [...lead, ...dense], strides: [...strides, ...layout.contiguousStrides(dense)], offset }
}
