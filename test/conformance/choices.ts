import { data, layout, type Tensor, type TypedArray } from '@tilegrad/core'
import { difference, EXACT, LOOSE } from './compare.ts'
import type { Entry, OpCase } from './manifest.ts'

/** Checks of operators whose result is not fully determined: ties in any order, random masks. */

const plain = (e: Entry | undefined, otherwise: unknown): unknown => (e && 'value' in e ? e.value : otherwise)

/** How much dropout there is, by the arguments' names or places. */
export function dropoutRate(c: OpCase): number {
  const training = plain(c.kwargs.training ?? c.args.list[1], true)
  return training ? Number(plain(c.kwargs.p ?? c.args.list[0], 0.5)) : 0
}

/** Is anything random about it? */
export const isRandom = (c: OpCase): boolean => dropoutRate(c) > 0 && dropoutRate(c) < 1

/** Every element is x / (1 − p) or 0. */
export async function checkDropout(c: OpCase, x: Tensor, y: Tensor): Promise<string | null> {
  const p = dropoutRate(c)
  const [before, after] = [await data(x), await data(y)]
  const allowed = after.map((v, i) => (v === 0 ? 0 : before[i] / (1 - p)))
  return difference(after, allowed, y.shape, { rtol: 1e-6, atol: 0 })
}

/** The mask is ours: the gradient is 0 where the element was dropped, and scaled as the element was elsewhere. */
export async function checkDropoutGradient(
  x: Tensor,
  y: Tensor,
  d: Tensor,
  g: Tensor,
): Promise<string | null> {
  const [before, after, dout, got] = await Promise.all([x, y, d, g].map((t) => data(t)))
  const own = got.map((_, i) => (after[i] === 0 ? 0 : (dout[i] * after[i]) / before[i]))
  return difference(got, own, g.shape, LOOSE)
}

/** The values being right, each index must lead to its value, and none may come twice. */
export async function checkSelection(
  c: OpCase,
  x: Tensor,
  values: Tensor,
  indices: Tensor,
): Promise<string | null> {
  const dim = layout.wrapDim(
    c.op,
    Number(plain(c.kwargs.dim ?? c.args.list[c.op === 'topk' ? 1 : 0], -1)),
    x.rank,
  )
  const [from, chosen, at] = await Promise.all([x, values, indices].map((t) => data(t)))
  const [n, k] = [x.shape[dim] ?? 1, indices.shape[dim] ?? 1]
  const inner = layout.numel(x.shape.slice(dim + 1))
  const found: TypedArray = chosen.map((_, i) => {
    const [row, column] = [Math.floor(i / (k * inner)), i % inner]
    return from[(row * n + at[i]) * inner + column]
  })
  const wrong = difference(found, chosen, values.shape, EXACT)
  if (wrong) return `an index does not lead to its value: ${wrong}`
  const seen = new Set<number>()
  for (let i = 0; i < at.length; i++) {
    const place = (Math.floor(i / (k * inner)) * n + at[i]) * inner + (i % inner)
    if (seen.has(place)) return `index ${at[i]} comes twice`
    seen.add(place)
  }
  return null
}
