/**
 * Fused linear attention with a decay per head and step, and retention's constant ones, forward and backward: the product
 * of `linear-attention.ts` without a normaliser, once forward and once per gradient. Nothing is stored for the backward
 * pass. With c = log α added up, d loss / dcₜ = qₜ · dqₜ − kₜ · dkₜ, and log αₜ gets the sum of those from t on (Yang et al.
 * 2024).
 *
 * Takes float32 operands with any strides, D and Dv up to 128, a decay per head and step or none. Not yet measured on a GPU.
 *
 * Reference: `GATED` in core's ops/linear-attention/gated.ts. Test: test/gated-linear-attention.test.ts.
 */

import type { GatedLinearAttentionAttrs, GradientAttrs, KernelOf, Primitives, View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { operand } from '../attention/blocks.ts'
import { grid } from '../layout.ts'
import { basis, threads } from './blocks.ts'
import { type Call, compute, maxWidth } from './linear-attention.ts'

const fits = (inputs: readonly View[]): boolean => {
  const [q, , v] = inputs
  return [q, v].every((t) => t.shape[3] >= 1 && t.shape[3] <= maxWidth)
}

const attrsOf = { causal: true, eps: 0, featureMap: 'identity' } as const
const kindOf = (decay: View | null): Pick<Call, 'kind' | 'decay'> =>
  decay ? { kind: 'faded', decay } : { kind: 'plain' }

export function gatedLinearAttention(engine: Engine): KernelOf<GatedLinearAttentionAttrs> {
  return {
    dtypes: [['float32']],
    supports: fits,
    run([y], [q, k, v, decay = null], { hasDecay }) {
      const operands = { x: q, k, v, y }
      compute(engine, { ...kindOf(hasDecay ? decay : null), result: 'out', ...operands }, attrsOf)
    },
  }
}

export function gatedLinearAttentionBackward(
  engine: Engine,
  scan: Primitives['scan'],
): KernelOf<GradientAttrs<GatedLinearAttentionAttrs>> {
  return {
    dtypes: [['float32']],
    // The decay's gradient is made of those of q and k.
    supports: (inputs, { needs: [q, k, , decay] }) => fits(inputs) && (!decay || (q === true && k === true)),
    run(outputs, inputs, { hasDecay, needs }) {
      const [q, k, v] = inputs
      const decay = hasDecay ? inputs[3] : null
      const dout = inputs.at(-1) as View
      const left = [...outputs]
      const gradient = (i: number, call: Pick<Call, 'result' | 'x' | 'k' | 'v'>): View | undefined => {
        if (!needs[i]) return undefined
        const y = left.shift() as View
        compute(engine, { ...kindOf(decay), ...call, y }, attrsOf)
        return y
      }
      const dq = gradient(0, { result: 'q', x: dout, k: v, v: k })
      const dk = gradient(1, { result: 'k', x: v, k: dout, v: q })
      gradient(2, { result: 'v', x: k, k: q, v: dout })
      const result = left.shift()
      if (!result || !dq || !dk) return
      const [b, h, t, width] = q.shape
      const rows = b * h * t
      if (rows === 0) return
      const sums = engine.pool.alloc(rows, 'float32')
      const kernel = engine.kernel('gatedLinearAttentionSums', 'gated_linear_attentionBackward', sumsShader)
      const values = { count: rows, heads: h, steps: t, width, q, dq, k, dk }
      const buffers = [...[q, dq, k, dk].map(bufferOf), sums]
      engine.run(kernel, buffers, values, grid(Math.ceil(rows / threads)))
      const view: View = { ...result, buffer: sums, strides: [h * t, t, 1, 1], offset: 0 }
      scan.run([result], [view], { kind: 'sum', dim: 2, reverse: true }, [])
      engine.pool.free(sums)
    },
  }
}

const plain = operand(false)
const sumsParams = block({
  ...{ count: u32, heads: u32, steps: u32, width: i32 },
  ...{ q: plain, dq: plain, k: plain, dk: plain },
})

/** Computes q · dq − k · dk of every row, a thread each. */
function sumsShader(): Shader<ValuesOf<typeof sumsParams>> {
  const names = ['q', 'dq', 'k', 'dk'] as const
  return {
    params: sumsParams,
    bindings: [
      ...names.map((name) => ({ name, item: 'f32' }) as const),
      { name: 'sums', item: 'f32', write: true },
    ],
    workgroup: [threads],
    body: `let id = (wg.x + wg.y * groups.x) * ${threads}u + li;
if (id >= p.count) { return; }
let t = i32(id % p.steps); let head = id / p.steps;
let b = i32(head / p.heads); let h = i32(head % p.heads);
${names.map((name) => `let ${name}Base = ${basis(name)} + t * p.${name}Row;`).join('\n')}
var sum = 0.0;
for (var c = 0; c < p.width; c++) {
sum += q[u32(qBase + c * p.qStep)] * dq[u32(dqBase + c * p.dqStep)] - k[u32(kBase + c * p.kStep)] * dk[u32(dkBase + c * p.dkStep)];
}
sums[id] = sum;`,
  }
}
