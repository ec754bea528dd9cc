/** float16 and bfloat16: stored in 2 bytes, computed with in float32, rounded to the nearest. */

import {
  add,
  applyProgram,
  autocast,
  type Backend,
  crossEntropy,
  data,
  div,
  expr as e,
  grad,
  layerNorm,
  linear,
  mul,
  profile,
  program,
  reference,
  scaledDotProductAttention,
  softmax,
  sub,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { pack, unpack } from '@tilegrad/core/kernel'
import { describe, expect, test } from 'vitest'
import type { Engine } from './fused.ts'
import { mismatch } from './operand.ts'

let state = 1
const random = (): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 2 ** 32
}
const normal = (n: number): number[] => Array.from({ length: n }, () => 4 * random() - 2)

/** The paths on which an expression ran. */
const pathsOf = (fn: () => void): string[] => [...new Set(profile(fn).rows.map(({ path }) => path))]

/** What `make` returns, from the same random numbers, on a backend. */
async function valuesOn(backend: Backend, seed: number, make: () => readonly Tensor[]): Promise<number[][]> {
  state = seed
  const made = withBackend(backend, make)
  return Promise.all(made.map(async (t) => Array.from(await data(t))))
}

/** `exact`: an engine has every number of float32, and adds up products of 16 bits as it does those of 32. */
export function testHalf({ backends }: Engine, exact: boolean): void {
  describe.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
    const all = unpack(
      dtype,
      Uint16Array.from({ length: 2 ** 16 }, (_, bits) => bits),
    )

    test.each(backends)('$name loads every number', async ({ backend }) => {
      const x = withBackend(backend, () => tensor(all, { dtype }).to('float32'))
      expect(await data(x)).toEqual(Float32Array.from(all))
    })

    test.each(backends)(
      '$name stores what is nearest: numbers, their middles, and their neighbours',
      async ({ backend }) => {
        const singles = new Float32Array(6 * 2 ** 16)
        const bits = new Uint32Array(singles.buffer)
        all.forEach((x, i) => {
          const next = all[i + 1] ?? 0
          const at = 6 * i
          singles.set([x, (x + next) / 2, (x + next) / 2, (x + next) / 2, x, x], at)
          bits[at + 2]++
          bits[at + 3]--
          bits[at + 4]++
          bits[at + 5]--
        })
        const got = await data(withBackend(backend, () => tensor(singles).to(dtype)))
        const want = unpack(dtype, pack(dtype, singles))
        // GPUs may take numbers below the smallest normal float32 for 0.
        const wrong = [...got.keys()].filter(
          (i) => !Object.is(got[i], want[i]) && (exact || Math.abs(singles[i]) >= 2 ** -126 || got[i] !== 0),
        )
        expect(wrong.map((i) => [singles[i], got[i], want[i]]).slice(0, 5)).toEqual([])
      },
    )

    test.each(backends)('$name stores it wherever views begin and however they step', async ({ backend }) => {
      for (let i = 0; i < 30; i++) {
        const [rows, columns] = [1 + Math.floor(9 * random()), 1 + Math.floor(40 * random())]
        const seed = state
        const make = (): Tensor[] => {
          const x = tensor(normal(rows * columns), [rows, columns], { dtype })
          const y = tensor(normal(rows * columns), [columns, rows], { dtype }).transpose(0, 1)
          const from = Math.min(i % 3, columns - 1)
          const part = (t: Tensor): Tensor => t.narrow(1, from, columns - from)
          const sum = add(part(x), part(y))
          part(x).copy_(mul(part(y), 2))
          x.slice(0, columns, { dim: 1, step: 2 }).copy_(
            sub(x.slice(0, columns, { dim: 1, step: 2 }), y.narrow(1, 0, 1)),
          )
          return [sum, x, x.narrow(0, rows - 1, 1), div(x, 3)]
        }
        const [want, got] = [await valuesOn(reference, seed, make), await valuesOn(backend, seed, make)]
        expect(got.slice(0, 3)).toEqual(want.slice(0, 3))
        // Division may be off in the last place of a float32, which may decide how it is rounded.
        const last = dtype === 'float16' ? 2 ** -10 : 2 ** -7
        expect(mismatch(Float32Array.from(got[3]), Float32Array.from(want[3]), 0, last)).toBeNull()
        state = seed + 1
      }
    })

    test.each(backends)('$name runs it in kernels, mixed with others', async ({ backend }) => {
      const f = program('mixed', 3, ([x, y, z]) => e.select(z, e.mul(x, e.tanh(y)), e.pow(x, 2)))
      const run = (): Tensor =>
        applyProgram(f, [
          tensor(normal(37), { dtype }),
          tensor(normal(37)),
          tensor(normal(37).map((x) => x > 0)),
        ])
      expect(withBackend(backend, () => pathsOf(run))).toEqual(['primitive'])
      expect(withBackend(backend, () => run().dtype)).toBe('float32')
      const [[got], [want]] = [
        await valuesOn(backend, 5, () => [run()]),
        await valuesOn(reference, 5, () => [run()]),
      ]
      expect(mismatch(Float32Array.from(got), Float32Array.from(want), 2e-6, 1e-6)).toBeNull()
    })

    const { name, backend } = backends[0]
    test(`${name}: losses in mixed precision read it as it is, and give it gradients`, async () => {
      for (const [rows, columns] of [
        [7, 33],
        [5, 36],
        [3, 1031],
      ] as const) {
        const values = normal(rows * columns).map((x) => 3 * x)
        const labels = Array.from({ length: rows }, (_, i) => (i === 1 ? -100 : (5 * i) % columns))
        const made = withBackend(backend, () => {
          const target = tensor(labels, { dtype: 'int32' })
          const logits = tensor(values, [rows, columns], { dtype, requiresGrad: true })
          const wide = logits.detach().to('float32')
          wide.requiresGrad = true
          const loss = autocast(dtype, () => crossEntropy(logits, target))
          const want = crossEntropy(wide, target)
          const own = crossEntropy(logits, target)
          const each = crossEntropy(logits, target, { reduction: 'none' })
          const all = crossEntropy(wide, target, { reduction: 'none' })
          return { own, each, all, loss, want, got: grad(loss, [logits])[0], exact: grad(want, [wide])[0] }
        })
        expect(made.loss.dtype).toBe('float32')
        expect(mismatch(await data(made.loss), await data(made.want), 0, 1e-5)).toBeNull()
        expect(made.got.dtype).toBe(dtype)
        const last = dtype === 'float16' ? 2 ** -10 : 2 ** -7
        // Without autocast it is rounded, as other results are.
        expect([made.own.dtype, made.each.dtype]).toEqual([dtype, dtype])
        expect(mismatch(await data(made.own), await data(made.want), 0, last)).toBeNull()
        expect(mismatch(await data(made.each), await data(made.all), 0, last)).toBeNull()
        expect(mismatch(await data(made.got), await data(made.exact), 1e-7, last)).toBeNull()
      }
    })

    test(`${name}: fused kernels compute in float32, forwards and backwards, and round once`, async () => {
      const values = Array.from({ length: 4 }, () => normal(2 * 3 * 8 * 16))
      const half = (i: number, shape: readonly number[]): Tensor => {
        const count = shape.reduce((a, b) => a * b)
        return tensor(values[i].slice(0, count), shape, { dtype, requiresGrad: true })
      }
      const heads = [2, 3, 8, 16]
      const on = <T>(fn: () => T): T => withBackend(backend, fn)
      const cases: [string, Tensor[], (...x: Tensor[]) => Tensor][] = on(() => [
        ['softmax', [half(0, [6, 33])], (x) => softmax(x, -1)],
        ['layer_norm', [half(0, [6, 32]), half(1, [32]), half(2, [32])], (x, w, b) => layerNorm(x, 32, w, b)],
        [
          'linear',
          [half(0, [6, 32]), half(1, [24, 32]), half(2, [24])],
          (x, w, b) => linear(x, w, b, { activation: 'gelu' }),
        ],
        [
          'attention',
          [half(0, heads), half(1, heads), half(2, heads)],
          (q, k, v) => scaledDotProductAttention(q, k, v, { isCausal: true }),
        ],
      ])
      for (const [name, inputs, f] of cases) {
        const made = on(() => {
          const wide = inputs.map((t) => {
            const x = t.detach().to('float32')
            x.requiresGrad = true
            return x
          })
          const weights = tensor(values[3].slice(0, f(...inputs).numel), f(...inputs).shape, { dtype })
          const [y, z] = [f(...inputs), f(...wide)]
          return {
            outputs: [y, z.to(dtype)],
            got: grad(mul(y, weights).sum(), inputs),
            want: grad(mul(z.to(dtype).to('float32'), weights.to('float32')).sum(), wide),
          }
        })
        const [y, z] = made.outputs
        expect(y.dtype, name).toBe(dtype)
        // On tensor cores products of 16 bits add up in another order than those of float32.
        const last = dtype === 'float16' ? 2 ** -10 : 2 ** -7
        const [atol, rtol] = exact ? [0, 0] : [1e-4, last]
        expect(mismatch(await data(y), await data(z), atol, rtol), name).toBeNull()
        for (const [i, g] of made.got.entries()) {
          expect(g.dtype, name).toBe(dtype)
          const exact = await data(made.want[i])
          const scale = Math.max(1e-3, ...Array.from(exact, Math.abs))
          const tolerance = dtype === 'float16' ? 2e-2 : 1e-1
          expect(mismatch(await data(g), exact, tolerance * scale, 0), name).toBeNull()
        }
        const paths = on(() => pathsOf(() => void f(...inputs)))
        expect(paths, name).toEqual(expect.not.arrayContaining(['javascript', 'composed']))
      }
    })
  })
}
