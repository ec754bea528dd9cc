/** What each variant means, in plain tensor operators: no fused kernel, no chunks. */
import { matmul, softmax, stack, type Tensor, tensor, where } from '@tilegrad/core'

/** softmax(q kᵀ / √D + bias) v over the keys that a query sees, with the T × T matrix. */
export function denseAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  visible: (query: number, key: number, head: number) => boolean,
  bias: (query: number, key: number, head: number) => number = () => 0,
): Tensor {
  const [, h, t, d] = q.shape
  const each = <T>(f: (i: number, j: number, head: number) => T): T[] =>
    Array.from({ length: h * t * t }, (_, n) => f(Math.floor(n / t) % t, n % t, Math.floor(n / (t * t))))
  const device = q.backend
  const scores = matmul(q, k.transpose(-2, -1))
    .div(Math.sqrt(d))
    .add(tensor(Float64Array.from(each(bias)), [h, t, t], { device, dtype: q.dtype }))
  const seen = tensor(Uint8Array.from(each(visible), Number), [h, t, t], { device, dtype: 'bool' })
  return matmul(softmax(where(seen, scores, Number.NEGATIVE_INFINITY), -1), v)
}

export interface Recurrence {
  /** log α, (B, H, T, 1) or (B, H, T, D). */
  readonly logDecay?: Tensor
  /** β, (B, H, T): correct what the state recalls instead of adding to it. */
  readonly beta?: Tensor
}

/** Step by step: S ← diag(α) S, then S ← S + kᵀ v, or with β S ← S + β kᵀ (v − k S); out = q S. */
export function recurrence(q: Tensor, k: Tensor, v: Tensor, { logDecay, beta }: Recurrence = {}): Tensor {
  const [, , t] = q.shape
  const decay = logDecay?.exp()
  let state: Tensor | null = null
  const out: Tensor[] = []
  const row = (x: Tensor, i: number): Tensor => x.narrow(2, i, 1)
  for (let i = 0; i < t; i++) {
    const [key, value] = [row(k, i), row(v, i)]
    if (state && decay) state = state.mul(row(decay, i).transpose(-2, -1))
    const found: Tensor | null = beta && state ? matmul(key, state) : null
    const written = beta ? (found ? value.sub(found) : value).mul(row(beta.unsqueeze(-1), i)) : value
    const update = matmul(key.transpose(-2, -1), written)
    state = state ? state.add(update) : update
    out.push(matmul(row(q, i), state).squeeze(2))
  }
  return stack(out, 2)
}

/** Σ φ(q)·φ(k) v / Σ φ(q)·φ(k) over earlier keys, φ = elu + 1, with the T × T matrix. */
export function denseLinearAttention(q: Tensor, k: Tensor, v: Tensor): Tensor {
  const phi = (x: Tensor): Tensor => where(x.gt(0), x.add(1), x.clamp(null, 0).exp())
  const weights = matmul(phi(q), phi(k).transpose(-2, -1)).tril()
  return matmul(weights, v).div(weights.sum(-1, { keepdim: true }).add(1e-6))
}
