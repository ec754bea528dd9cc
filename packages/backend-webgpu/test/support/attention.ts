/** Attention on GPUs of several kinds against core's composition in float64. */

import { reference } from '@tilegrad/core'
import { type Case, checkAttention } from '../../../../test/kernels/attention.ts'
import type { WebGpuBackend } from '../../src/index.ts'
import { attention, attentionBackward } from '../../src/kernels/attention/attention.ts'
import { sharedGpu } from './shared-gpu.ts'

export const shared = await sharedGpu()
export const gpus: [string, WebGpuBackend][] = [
  ['all limits', shared.full()],
  ['default limits', shared.plain()],
]
/** What larger GPUs do: rows and values are read where they lie. */
const inPlace = shared.full()
const small = { ty: 16, rm: 1, tx: 4, kn: 4 }
Object.assign(inPlace.kernels, {
  scaled_dot_product_attention: attention(inPlace.engine, [{ ...small, inPlace: 'rows and values' }], null),
  scaled_dot_product_attentionBackward: attentionBackward(inPlace.engine, [{ ...small, inPlace: 'rows' }]),
})
gpus.push(['in place', inPlace])

/** What they do as well, unless blocks are skipped: dQ is a product of the stored dS, here for a head or two at a time. */
const stored = shared.full()
Object.assign(stored.kernels, {
  scaled_dot_product_attentionBackward: attentionBackward(stored.engine, undefined, {
    bytes: 2 ** 18,
    leastGroups: 1,
  }),
})
gpus.push(['stored', stored])

export function closeGpus(): void {
  for (const [, gpu] of gpus) gpu.close()
}

/**
 * Scores are sums of D ≤ 128 products below 1: their errors, some 10⁻⁷ to 10⁻⁶, become relative errors of the weights, so
 * outputs, means of values below 1, get 3·10⁻⁶ and gradients, sums of terms of either sign, 6·10⁻⁶ of the
 * largest of their tensor. The reference computes in float64.
 */
export async function check(
  c: Case,
  needs: readonly boolean[] = [true, true, true],
  without: readonly string[] = [],
  on: readonly (readonly [string, WebGpuBackend])[] = gpus,
): Promise<void> {
  const given = (typeof c.options === 'function' ? c.options(reference) : c.options) ?? {}
  const skipped = given.window || given.globalTokens || given.blockMask ? [...without, 'stored'] : without
  const backends = on
    .filter(([name]) => !skipped.includes(name))
    .map(([name, backend]) => ({ name, backend, kind: name }))
  await checkAttention({ backends }, c, needs, (which, largest) =>
    // Outputs are weighted means of numbers of about 1, and round as those; gradients add up more.
    [which === 0 ? 3e-6 * Math.max(1, largest) : 1e-6 + 6e-6 * largest, 0],
  )
}
