import { grad } from '../autograd/backward.ts'
import { enableGrad, noGrad } from '../autograd/tape.ts'
import { expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import { zerosLike } from '../ops/create.ts'
import { type LinearAttentionCallOptions, linearAttention } from '../ops/linear-attention/linear-attention.ts'
import { add } from '../ops/pointwise.ts'
import { clone, narrow } from '../ops/shape.ts'
import { sameShape } from '../tensor/layout.ts'
import { scope } from '../tensor/memory.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { allGatherTensors, type Link } from './link.ts'
import type { RingAttention } from './ring-attention.ts'

/** Options of `ringLinearAttention`. */
export interface RingLinearAttentionOptions
  extends Pick<LinearAttentionCallOptions, 'isCausal' | 'eps' | 'featureMap'> {}

/**
 * Linear attention over a sequence that is spread over several devices: all that a part of the sequence needs to know of
 * the others is their state Σ φ(k)ᵀ [v, 1], (B, H, D, Dv + 1), whatever their length. Each rank computes its own, sees
 * those of the others (the earlier ones if causal), and starts from their sum; going backward, the gradients of the
 * states take the way back.
 *
 * Every rank of the link must call it, with its part of the sequence in order, of any length:
 * `ringShard(x, 2, link, 'contiguous')`.
 *
 * @param q (B, H, T, D), on this rank's device
 * @param k (B, H, S, D), S = T if causal
 * @param v (B, H, S, Dv)
 * @throws ShapeError where the ranks' states differ in shape, and as `linearAttention`; RankError if another rank fails.
 * @example
 * const [q, k, v] = [randn([1, 2, 7, 4]), randn([1, 2, 7, 4]), randn([1, 2, 7, 4])]
 * const parts = await runRanks(3, async (link) => {
 *   const mine = (t: Tensor) => ringShard(t, 2, link, 'contiguous')
 *   return (await ringLinearAttention(link, mine(q), mine(k), mine(v), { isCausal: true })).out
 * })
 * const whole = linearAttention(q, k, v, { isCausal: true })
 * const out = ringUnshard(parts, 2, 'contiguous')
 * const off = await out.sub(whole).square().sum().item()
 * off < 1e-9 // → true
 */
export async function ringLinearAttention(
  link: Link,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RingLinearAttentionOptions = {},
): Promise<RingAttention> {
  const { isCausal = false, ...rest } = expectOptions('ringLinearAttention', options, {
    isCausal: 1,
    eps: 1,
    featureMap: 1,
  })
  const { rank } = link
  const [queries, keys, values] = [q, k, v].map(leaf)
  const state = enableGrad(
    () =>
      linearAttention(narrow(queries, 2, 0, 0), keys, values, {
        ...rest,
        isCausal: false,
        returnState: true,
      })[1],
  )
  const before = await sumOf(link, 'states', state, (other) => (isCausal ? other < rank : other !== rank))
  const initial = before && leaf(before)
  const taped = enableGrad(() =>
    linearAttention(queries, keys, values, { ...rest, isCausal, initialState: initial }),
  )
  const saved = [queries, keys, values, state, before, initial, taped]
  const dispose = (): void => {
    for (const t of saved) t?.dispose()
  }
  return {
    out: taped.detach(),
    dispose,
    async backward(dout) {
      const inputs = initial ? [queries, keys, values, initial] : [queries, keys, values]
      const [dq, dk, dv, given] = grad(taped, inputs, { gradOutputs: [dout] })
      const back = given ?? noGrad(() => zerosLike(state))
      const dstate = await sumOf(link, 'gradients of states', back, (other) =>
        isCausal ? other > rank : other !== rank,
      )
      back.dispose()
      const sums = scope(() => {
        if (!dstate) return [clone(dk), clone(dv)]
        const [more, moreValues] = grad(state, [keys, values], { gradOutputs: [dstate] })
        return noGrad(() => [add(dk, more), add(dv, moreValues)])
      })
      for (const t of [dk, dv, dstate]) t?.dispose()
      dispose()
      return { dq, dk: sums[0], dv: sums[1] }
    },
  }
}

function leaf(t: Tensor): Tensor {
  const own = t.detach()
  own.requiresGrad = true
  return own
}

/** The sum of some other ranks' tensors, in the order of ranks; null if there is none. */
async function sumOf(
  link: Link,
  what: string,
  mine: Tensor,
  wanted: (rank: number) => boolean,
): Promise<Tensor | null> {
  const all = (await allGatherTensors(link, `ringLinearAttention: ${what}`, [mine])).map(([t]) => t)
  const odd = all.findIndex((t) => !sameShape(t.shape, all[0].shape))
  if (odd >= 0)
    throw new ShapeError(
      `ringLinearAttention: rank ${odd} has a state ${show(all[odd].shape)}, rank 0 ${show(all[0].shape)}; expected the same (B, H, D, Dv + 1) on every rank`,
    )
  const others = all.filter((_, rank) => wanted(rank))
  const sum =
    others.length === 0
      ? null
      : noGrad(() => scope(() => others.slice(1).reduce((s, t) => add(s, t), clone(others[0]))))
  for (const t of all) if (t !== mine) t.dispose()
  return sum
}
