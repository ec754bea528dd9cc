/** Softmax attention and its gradients written out in float64, pair by pair, for any rule of what is seen. */

export interface Sizes {
  readonly B: number
  readonly H: number
  readonly Hk: number
  readonly T: number
  readonly S: number
  readonly D: number
  readonly Dv: number
}

/** What happens to the pair of query i and key j in a head. */
export interface Rules {
  seen(b: number, h: number, i: number, j: number): boolean
  /** Added to the score. */
  bias?(b: number, h: number, i: number, j: number): number
  /** Dropout's factor of the weight. */
  keep?(b: number, h: number, i: number, j: number): number
}

type Floats = Float32Array | Float64Array

/** out, dq, dk, dv; all dense, scores scaled by 1 / √D. */
export function written(
  { B, H, Hk, T, S, D, Dv }: Sizes,
  [q, k, v, dout]: readonly [Floats, Floats, Floats, Floats],
  { seen, bias = () => 0, keep = () => 1 }: Rules,
): [out: Float64Array, dq: Float64Array, dk: Float64Array, dv: Float64Array] {
  const dot = (x: Floats, at: number, y: Floats, from: number, n: number): number => {
    let sum = 0
    for (let d = 0; d < n; d++) sum += (x[at + d] as number) * (y[from + d] as number)
    return sum
  }
  const add = (x: Float64Array, at: number, factor: number, y: Floats, from: number, n: number): void => {
    for (let d = 0; d < n; d++) x[at + d] = (x[at + d] as number) + factor * (y[from + d] as number)
  }
  const out = new Float64Array(B * H * T * Dv)
  const dq = new Float64Array(B * H * T * D)
  const dk = new Float64Array(B * Hk * S * D)
  const dv = new Float64Array(B * Hk * S * Dv)
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      const head = b * Hk + Math.floor((h * Hk) / H)
      for (let i = 0; i < T; i++) {
        const row = (b * H + h) * T + i
        const pairs: { j: number; p: number; keep: number; dp: number }[] = []
        let top = -Infinity
        for (let j = 0; j < S; j++) {
          if (!seen(b, h, i, j)) continue
          const score = dot(q, row * D, k, (head * S + j) * D, D) / Math.sqrt(D) + bias(b, h, i, j)
          pairs.push({ j, p: score, keep: keep(b, h, i, j), dp: 0 })
          top = Math.max(top, score)
        }
        if (top === -Infinity) continue
        let total = 0
        for (const x of pairs) {
          x.p = Math.exp(x.p - top)
          total += x.p
        }
        let delta = 0
        for (const x of pairs) {
          const value = (head * S + x.j) * Dv
          x.p /= total
          x.dp = x.keep * dot(dout, row * Dv, v, value, Dv)
          delta += x.p * x.dp
          add(out, row * Dv, x.p * x.keep, v, value, Dv)
          add(dv, value, x.p * x.keep, dout, row * Dv, Dv)
        }
        for (const x of pairs) {
          const ds = (x.p * (x.dp - delta)) / Math.sqrt(D)
          add(dq, row * D, ds, k, (head * S + x.j) * D, D)
          add(dk, (head * S + x.j) * D, ds, q, row * D, D)
        }
      }
    }
  }
  return [out, dq, dk, dv]
}
