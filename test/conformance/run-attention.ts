import { join } from 'node:path'
import {
  type Backend,
  data,
  grad,
  linearAttention,
  profile,
  scaledDotProductAttention,
  scope,
  type Tensor,
} from '@tilegrad/core'
import { difference, HALF_INPUTS, type Half, LOOSE } from './compare.ts'
import { readJson, Tensors } from './manifest.ts'
import { failed, type Outcome, PASSED, type Report, skipped } from './report.ts'

interface AttentionCase {
  readonly name: string
  readonly kind: string
  /** Softmax attention: 'full', 'causal' or 'window'. */
  readonly mask?: string
  /** With mask 'window', key j is seen by query i if i − window < j ≤ i. */
  readonly window?: number
  /** Linear attention. */
  readonly causal?: boolean
  readonly eps?: number
}

/** Runs the cases of `attention.json` whose name matches. */
export async function runAttention(
  dir: string,
  backend: Backend,
  only: RegExp,
  report: Report,
  half?: Half,
): Promise<void> {
  const manifest = readJson(join(dir, 'attention.json')) as
    | readonly AttentionCase[]
    | { cases: readonly AttentionCase[] }
  const cases = 'cases' in manifest ? manifest.cases : manifest
  const tensors = new Tensors(join(dir, 'attention.safetensors'), backend)
  for (const c of cases) {
    const name = `attention.${c.name}`
    if (only.test(name)) report.add(name, await runCase(c, tensors, backend, half))
  }
}

/** The operator of a case, by the name its fused kernel has. */
function operator(c: AttentionCase): { op: string; run(q: Tensor, k: Tensor, v: Tensor): Tensor } | null {
  if (c.kind.startsWith('linear_attention')) {
    const { causal: isCausal = false, eps = 1e-6 } = c
    return { op: 'linear_attention', run: (q, k, v) => linearAttention(q, k, v, { isCausal, eps }) }
  }
  if (c.kind !== 'softmax attention' || !['full', 'causal', 'window'].includes(c.mask ?? '')) return null
  const options = { isCausal: c.mask !== 'full', window: c.mask === 'window' ? (c.window ?? 0) : 0 }
  return {
    op: 'scaled_dot_product_attention',
    run: (q, k, v) => scaledDotProductAttention(q, k, v, options),
  }
}

async function runCase(
  c: AttentionCase,
  tensors: Tensors,
  backend: Backend,
  half: Half | undefined,
): Promise<Outcome> {
  const known = operator(c)
  if (!known) return skipped(`no attention of kind '${c.kind}' with mask '${c.mask}' here`)
  const { op, run } = known
  let live: Tensor[] = []
  try {
    const { result, rows } = profile(() =>
      scope(() => {
        const load = (x: string): Tensor => {
          const t = tensors.load(`${c.name}.${x}`)
          return half ? t.to(half) : t
        }
        const inputs = ['q', 'k', 'v'].map(load)
        for (const t of inputs) t.requiresGrad = true
        const [q, k, v] = inputs
        const out = run(q, k, v)
        const dout = load('dout')
        return [out, ...grad(out, [q, k, v], { gradOutputs: [dout], retainGraph: true })]
      }),
    )
    live = result
    for (const [i, what] of ['out', 'dq', 'dk', 'dv'].entries()) {
      const want = tensors.values(`${c.name}.${what}`)
      const why = difference(await data(result[i]), want, result[i].shape, half ? HALF_INPUTS[half] : LOOSE)
      if (why) return failed(`${what}: ${why}`)
    }
    // Where 16 bits are widened the operator runs as another, in float32.
    if (op in backend.kernels && !half) {
      const ran = (name: string): boolean => rows.some((r) => r.op === name && r.path === 'fused')
      for (const name of [op, `${op}Backward`])
        if (!ran(name)) return failed(`${backend.name} has a fused ${op}, but ${name} did not run as one`)
    }
    return PASSED
  } catch (error) {
    return failed(error instanceof Error ? `${error.name}: ${error.message}` : String(error))
  } finally {
    for (const t of live) t.dispose()
  }
}
