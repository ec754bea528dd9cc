import { noGrad } from '../autograd/tape.ts'
import { expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import { zeros } from '../ops/create.ts'
import { add_, copy_, fill_ } from '../ops/inplace.ts'
import { cat, narrow } from '../ops/shape.ts'
import { isFloat } from '../tensor/dtype.ts'
import { scope } from '../tensor/memory.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { attentionBlock, attentionBlockBackward, mergeAttention } from './attention-block.ts'
import { allGather, expectMessage, fromHost, type HostTensor, type Link, toHost } from './link.ts'

/** The layout of a sequence's parts: equal pieces in order, or two pieces each, which share causal attention evenly. */
export type RingOrder = 'contiguous' | 'zigzag'

/** First position and number of positions of piece `i` of `pieces`: as equal as whole numbers allow. */
function piece(length: number, i: number, pieces: number): [number, number] {
  const from = Math.floor((i * length) / pieces)
  return [from, Math.floor(((i + 1) * length) / pieces) - from]
}

/**
 * The pieces [first position, count] of a sequence that a rank holds: one, or in 'zigzag' order pieces `rank` and
 * 2 · size − 1 − rank of 2 · size. The first ranks' late pieces make up for their early ones, which see few keys
 * (Brandon et al. 2023 stripe instead; zigzag keeps positions in order).
 *
 * @example
 * ringPieces(8, { rank: 0, size: 2 }, 'zigzag') // → [[0, 2], [6, 2]]
 */
export function ringPieces(
  length: number,
  link: Pick<Link, 'rank' | 'size'>,
  order: RingOrder,
): [number, number][] {
  const { rank, size } = link
  return order === 'contiguous'
    ? [piece(length, rank, size)]
    : [rank, 2 * size - 1 - rank].map((i) => piece(length, i, 2 * size))
}

/**
 * This rank's part of a whole tensor along `dim`; a view where it is one piece. Inverse: `ringUnshard`.
 *
 * @example
 * const parts = await runRanks(2, async (link) => ringShard(arange(4), 0, link, 'contiguous').toArray())
 * parts // → [[0, 1], [2, 3]]
 */
export function ringShard(
  x: Tensor,
  dim: number,
  link: Pick<Link, 'rank' | 'size'>,
  order: RingOrder,
): Tensor {
  const at = dim < 0 ? dim + x.rank : dim
  const parts = ringPieces(x.shape[at], link, order).map(([from, count]) => narrow(x, at, from, count))
  return parts.length === 1 ? parts[0] : cat(parts, at)
}

/**
 * The whole of all ranks' parts, in the order of ranks.
 *
 * @example
 * await ringUnshard([arange(2), arange(2)], 0, 'contiguous').toArray() // → [0, 1, 0, 1]
 */
export function ringUnshard(parts: readonly Tensor[], dim: number, order: RingOrder): Tensor {
  const size = parts.length
  const at = dim < 0 ? dim + parts[0].rank : dim
  const length = parts.reduce((n, t) => n + t.shape[at], 0)
  const pieces = parts.flatMap((t, rank) => {
    let next = 0
    return ringPieces(length, { rank, size }, order).map(([from, count]) => {
      next += count
      return [from, narrow(t, at, next - count, count)] as const
    })
  })
  return cat(
    // Empty pieces begin where others do; their place does not matter.
    pieces.sort((a, b) => a[0] - b[0]).map(([, t]) => t),
    at,
  )
}

/** Options of `ringAttention`. */
export interface RingAttentionOptions {
  /** Positions see themselves and earlier ones only; ranks then hold what 'zigzag' order gives them. Default false. */
  isCausal?: boolean
  /** The factor of the scores. Default 1 / √D. */
  scale?: number | null
}

/** What `ringAttention` gives to a rank. */
export interface RingAttention {
  /** The outputs of this rank's queries, (B, H, T, Dv), a leaf, as no tape reaches other devices. */
  readonly out: Tensor
  /**
   * Gradients of this rank's q, k and v, given that of out. Once; every rank must call it. What made q, k and v gets
   * its gradients by `q.mul(dq).sum().add(k.mul(dk).sum()).add(v.mul(dv).sum()).backward()`.
   */
  backward(dout: Tensor): Promise<{ dq: Tensor; dk: Tensor; dv: Tensor }>
  /** Frees what is kept for `backward`, which does it itself. */
  dispose(): void
}

/** Which queries of a rank see which keys of another, by rows: [first query, first key, number of keys, causal]. */
interface Visible {
  readonly queries: readonly [number, number]
  readonly keys: readonly [number, number]
  readonly isCausal: boolean
}

/**
 * Causal and in zigzag order, rank r's early piece precedes all of a later rank's, and its late piece follows all of
 * it: so it sees nothing of the keys or all of them, and the work is the same for each pair of ranks.
 */
function visible(rank: number, from: number, plan: Plan): Visible {
  const [t, s] = [plan.queries[rank], plan.keys[from]]
  if (!plan.isCausal || from === rank) return { queries: [0, t], keys: [0, s], isCausal: plan.isCausal }
  return from < rank
    ? { queries: [0, t], keys: [0, plan.early[from]], isCausal: false }
    : { queries: [plan.early[rank], t - plan.early[rank]], keys: [0, s], isCausal: false }
}

interface Plan {
  readonly isCausal: boolean
  readonly scale: number
  /** Queries and keys of each rank, and how many of them are of its early piece. */
  readonly queries: readonly number[]
  readonly keys: readonly number[]
  readonly early: readonly number[]
}

interface Call {
  q: readonly number[]
  k: readonly number[]
  v: readonly number[]
  dtype: string
  isCausal: boolean
  scale: number
}

/**
 * Softmax attention over a sequence that is spread over several devices (Ring Attention, Liu et al. 2023): each holds a
 * part of the queries, and the keys and values of all ranks travel around the ring, from each rank to the next, while
 * the last ones are computed with. Partial results merge through the maxima and sums of their rows; going backward, gradients of keys
 * and values travel with them. Besides its part a device stores the keys and values of one other rank at a time.
 *
 * Every rank of the link must call it, with its part of the sequence: any, and of any length; if causal, the one that
 * `ringShard(x, 2, link, 'zigzag')` gives. Only transfers are awaited.
 *
 * @param q (B, H, T, D), on this rank's device
 * @param k (B, Hk, S, D), Hk a divisor of H
 * @param v (B, Hk, S, Dv)
 * @throws ShapeError on every rank where shapes or options of the ranks do not fit; RankError if another rank fails.
 * @example
 * const [q, k, v] = [randn([1, 2, 7, 4]), randn([1, 2, 7, 4]), randn([1, 2, 7, 4])]
 * const parts = await runRanks(2, async (link) => {
 *   const mine = (t: Tensor) => ringShard(t, 2, link, 'zigzag')
 *   const { out, backward } = await ringAttention(link, mine(q), mine(k), mine(v), { isCausal: true })
 *   const { dq } = await backward(onesLike(out))
 *   return { out, dq }
 * })
 * const whole = scaledDotProductAttention(q, k, v, { isCausal: true })
 * const out = ringUnshard(parts.map((p) => p.out), 2, 'zigzag')
 * const off = await out.sub(whole).square().sum().item()
 * off < 1e-9 // → true
 */
export async function ringAttention(
  link: Link,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RingAttentionOptions = {},
): Promise<RingAttention> {
  expectOptions('ringAttention', options, { isCausal: 1, scale: 1 })
  const plan = await agree(link, q, k, v, options)
  const { rank } = link
  // Views of our own: the caller may dispose of its tensors.
  const [queries, keys, values] = [q, k, v].map((t) => t.detach())
  const [b, h, t] = q.shape
  const { out, stats } = noGrad(() => {
    const [out, stats] = [
      [b, h, t, v.shape[3]],
      [2, b, h, t],
    ].map((shape) => zeros(shape, { dtype: q.dtype, device: q.backend }))
    // No key seen so far: a maximum of −∞, a sum of 0.
    scope(() => void fill_(narrow(stats, 0, 0, 1), -Infinity))
    return { out, stats }
  })
  await travel(link, 'ringAttention', [keys, values], async (from, [k, v]) => {
    scope(() => {
      const { queries: rows, keys: cols, isCausal } = visible(rank, from, plan)
      if (rows[1] === 0 || cols[1] === 0) return
      const part = attentionBlock(narrow(queries, 2, ...rows), narrow(k, 2, ...cols), narrow(v, 2, ...cols), {
        scale: plan.scale,
        isCausal,
      })
      mergeAttention({ out: narrow(out, 2, ...rows), stats: narrow(stats, 3, ...rows) }, part)
    })
  })
  const saved = [queries, keys, values, out.detach(), stats]
  const dispose = (): void => {
    for (const t of saved) t.dispose()
  }
  return {
    out,
    dispose,
    async backward(dout) {
      if (dout.shape.join() !== out.shape.join())
        throw new ShapeError(
          `ringAttention: gradient ${show(dout.shape)} must have the output's shape ${show(out.shape)}`,
        )
      const grads = await ringBackward(link, plan, saved, dout.detach())
      dispose()
      return grads
    },
  }
}

async function ringBackward(
  link: Link,
  plan: Plan,
  [queries, keys, values, out, stats]: readonly Tensor[],
  dout: Tensor,
): Promise<{ dq: Tensor; dk: Tensor; dv: Tensor }> {
  const { rank, size } = link
  const what = 'ringAttention: gradients'
  const dq = zeros(queries.shape, { dtype: queries.dtype, device: queries.backend })
  let sums: Tensor[] = []
  await travel(link, 'ringAttention: backward', [keys, values], async (from, block) => {
    const mine = noGrad(() =>
      scope(() => {
        const [k, v] = block
        const grads = block.map((t) => zeros(t.shape, { dtype: t.dtype, device: t.backend }))
        const { queries: rows, keys: cols, isCausal } = visible(rank, from, plan)
        if (rows[1] === 0 || cols[1] === 0) return grads
        const at = (t: Tensor): Tensor => narrow(t, 2, ...rows)
        const part = attentionBlockBackward(
          at(queries),
          narrow(k, 2, ...cols),
          narrow(v, 2, ...cols),
          { out: at(out), stats: narrow(stats, 3, ...rows), dout: at(dout) },
          { scale: plan.scale, isCausal },
        )
        add_(at(dq), part.dq)
        copy_(narrow(grads[0], 2, ...cols), part.dk)
        copy_(narrow(grads[1], 2, ...cols), part.dv)
        return grads
      }),
    )
    // The gradients of a block follow it, one rank behind: what the ranks before this one added.
    if (from !== rank) {
      const { tensors } = await expectMessage(link, (rank + size - 1) % size, what)
      scope(() => fromHost(tensors, dq.backend).forEach((t, i) => void add_(mine[i], t)))
    }
    if (size === 1) sums = mine
    else {
      link.send((rank + 1) % size, { what, tensors: await toHost(mine) })
      for (const t of mine) t.dispose()
    }
  })
  if (size > 1) {
    const { tensors } = await expectMessage(link, (rank + size - 1) % size, what)
    sums = fromHost(tensors, dq.backend)
  }
  dout.dispose()
  return { dq, dk: sums[0], dv: sums[1] }
}

/** Calls `visit` with this rank's tensors and then those of each other rank, going back through the ring. */
async function travel(
  link: Link,
  what: string,
  mine: readonly Tensor[],
  visit: (from: number, tensors: readonly Tensor[]) => Promise<void>,
): Promise<void> {
  const { rank, size } = link
  let block = mine
  let host: readonly HostTensor[] = size > 1 ? await toHost(mine) : []
  for (let step = 0; step < size; step++) {
    // On before computing: the next rank works on it meanwhile. The arrays are its from here on.
    if (step < size - 1) link.send((rank + 1) % size, { what, tensors: host })
    try {
      await visit((rank + size - step) % size, block)
    } finally {
      if (block !== mine) for (const t of block) t.dispose()
    }
    if (step < size - 1) {
      host = (await expectMessage(link, (rank + size - 1) % size, what)).tensors
      block = fromHost(host, mine[0].backend)
    }
  }
}

/** All ranks tell each other their shapes: every rank finds what does not fit, and says the same. */
async function agree(
  link: Link,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { isCausal = false, scale }: RingAttentionOptions,
): Promise<Plan> {
  const call: Call = {
    q: q.shape,
    k: k.shape,
    v: v.shape,
    dtype: [...new Set([q, k, v].map((t) => t.dtype))].join(' and '),
    isCausal,
    scale: scale ?? 1 / Math.sqrt(q.shape[3] ?? 1),
  }
  const calls = await allGather(link, 'ringAttention: shapes', call)
  const told = ({ q, k, v, dtype, isCausal, scale }: Call): string =>
    `q ${show(q)}, k ${show(k)}, v ${show(v)} ${dtype}${isCausal ? ', causal' : ''}, scale ${scale}`
  const refuse = (rank: number, expected: string): never => {
    throw new ShapeError(
      `ringAttention: rank ${rank} has ${told(calls[rank])}${rank > 0 ? `, rank 0 ${told(calls[0])}` : ''}; expected ${expected}`,
    )
  }
  const common = ({ q, k, v, dtype, isCausal, scale }: Call): string =>
    JSON.stringify([q.slice(0, 2), q[3], k.slice(0, 2), k[3], v[3], dtype, isCausal, scale])
  const total = calls.reduce((n, { q }) => n + (q[2] ?? 0), 0)
  calls.forEach((c, rank) => {
    const [b, h, t, d] = c.q
    const [, kh, s] = c.k
    const fits =
      c.q.length === 4 &&
      c.k.length === 4 &&
      c.v.length === 4 &&
      isFloat(c.dtype as Tensor['dtype']) &&
      c.k[0] === b &&
      c.k[3] === d &&
      [b, kh, s].every((n, i) => c.v[i] === n) &&
      kh > 0 &&
      h % kh === 0
    if (!fits) refuse(rank, 'floating q (B, H, T, D), k (B, Hk, S, D), v (B, Hk, S, Dv), Hk a divisor of H')
    if (common(c) !== common(calls[0]))
      refuse(rank, 'all but the lengths T and S to be the same on every rank')
    if (!c.isCausal) return
    const pieces = ringPieces(total, { rank, size: link.size }, 'zigzag')
    const mine = pieces.reduce((n, [, count]) => n + count, 0)
    if (t !== s || t !== mine)
      refuse(rank, `${mine} of ${total} positions, as ringShard(x, 2, link, 'zigzag') gives them`)
  })
  return {
    isCausal,
    scale: call.scale,
    queries: calls.map((c) => c.q[2]),
    keys: calls.map((c) => c.k[2]),
    early: calls.map((_, rank) => ringPieces(total, { rank, size: link.size }, 'zigzag')[0][1]),
  }
}
