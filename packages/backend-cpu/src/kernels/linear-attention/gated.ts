/**
 * Fused linear attention with a decay per head and step, and retention's constant ones, forward and backward: the product
 * of `linear-attention/product.ts` without a normaliser, once forward and once per gradient. Nothing is stored for the
 * backward pass. With c = log α added up, d loss / dcₜ = qₜ · dqₜ − kₜ · dkₜ, and log αₜ gets the sum of those from t on (Yang
 * et al. 2024).
 *
 * Takes float32 operands with any strides, D and Dv up to 256, a decay per head and step or none. Results are the same bits on any number of threads.
 *
 * Reference: `GATED` in core's ops/linear-attention/gated.ts. Test: test/gated-linear-attention.test.ts.
 */

import type { GatedLinearAttentionAttrs, GradientAttrs, View } from '@tilegrad/core'
import type { KernelFactory } from '../../engine.ts'
import { f32, f64, type ModuleBuilder } from '../../wasm/index.ts'
import { compute, maxWidth } from './linear-attention.ts'
import { type Product, productParams, reader, rowOf } from './operands.ts'

const fits = (inputs: readonly View[]): boolean => {
  const [q, , v] = inputs
  return [q, v].every((t) => t.shape[3] >= 1 && t.shape[3] <= maxWidth)
}

export const gatedLinearAttention: KernelFactory<GatedLinearAttentionAttrs> = (engine) => ({
  dtypes: [['float32']],
  supports: fits,
  run([out], inputs, { hasDecay }) {
    const [q, , v] = inputs
    const tensors = { y: out, ...(hasDecay && { decay: inputs[3] }) }
    const p = {
      x: 'phiQ',
      k: 'phiK',
      v: 'plainValues',
      reach: 'past',
      finish: 'none',
      decay: hasDecay,
    } as const
    const steps = q.shape[2]
    const heads = q.shape[0] * q.shape[1]
    compute(engine, inputs, tensors, p, 'identity', {
      heads,
      rows: steps,
      keys: steps,
      inner: q.shape[3],
      outer: v.shape[3],
    })
  },
})

export const gatedLinearAttentionBackward: KernelFactory<GradientAttrs<GatedLinearAttentionAttrs>> = (
  engine,
) => ({
  dtypes: [['float32']],
  // The decay's gradient is made of those of q and k.
  supports: (inputs, { needs: [q, k, , decay] }) => fits(inputs) && (!decay || (q === true && k === true)),
  run(outputs, inputs, { hasDecay, needs }) {
    const [q, , v] = inputs
    const dout = inputs[inputs.length - 1]
    const [b, h, steps, d] = q.shape
    const dv = v.shape[3]
    const decay = hasDecay ? { decay: inputs[3] } : {}
    const left = [...outputs]
    const gradient = (
      i: number,
      p: Omit<Product, 'decay'>,
      inner: number,
      outer: number,
    ): View | undefined => {
      if (!needs[i]) return undefined
      const y = left.shift() as View
      const sizes = { heads: b * h, rows: steps, keys: steps, inner, outer }
      compute(engine, inputs, { y, dout, ...decay }, { ...p, decay: hasDecay }, 'identity', sizes)
      return y
    }
    const dq = gradient(
      0,
      { x: 'plainGradients', k: 'plainValues', v: 'phiK', reach: 'past', finish: 'phiQ' },
      dv,
      d,
    )
    const dk = gradient(
      1,
      { x: 'plainValues', k: 'plainGradients', v: 'phiQ', reach: 'future', finish: 'phiK' },
      dv,
      d,
    )
    gradient(2, { x: 'phiK', k: 'phiQ', v: 'plainGradients', reach: 'future', finish: 'none' }, d, dv)
    if (!needs[3] || !dq || !dk || b * h * steps === 0) return
    productParams.set(engine, { out: dk, dout: dq, y: left.shift() as View, rows: steps })
    engine.launch(engine.kernel('gatedLinearAttention:decay', buildDecayGradient), b * h, 1)
  },
})

/** log α's gradient, into y, from q, k, dq (in place of dO) and dk (in place of O). Its rows are heads. */
function buildDecayGradient(m: ModuleBuilder): void {
  m.kernel('main', (f, start, end, params) => {
    const word = reader(params)
    const [rows, width] = [f.let(word('rows')), f.let(word('width'))]
    f.for(start, end, 1, (head) => {
      const [b, h] = [f.let(head.divU(word('heads'))), f.let(head.remU(word('heads')))]
      const last = rows.sub(1)
      const names = ['q', 'dout', 'k', 'out', 'y'] as const
      const [q, dq, k, dk, y] = names.map((name) => f.let(rowOf(word, name, b, h, last)))
      const sum = f.let(f64.const(0))
      f.for(0, rows, 1, () => {
        const row = f.let(f32.const(0))
        const at = [q, dq, k, dk].map((p) => f.let(p))
        f.for(0, width, 1, () => {
          const [a, c, x, z] = at.map((p) => f32.load(p))
          row.set(row.add(a.mul(c)).sub(x.mul(z)))
          at.forEach((p, i) => p.set(p.add(word(`${names[i]}Step` as 'qStep'))))
        })
        sum.set(sum.add(f64.promoteF32(row)))
        f.store(y, f32.demoteF64(sum))
        ;[q, dq, k, dk, y].forEach((p, i) => p.set(p.sub(word(`${names[i]}Row` as 'qRow'))))
      })
    })
  })
}
