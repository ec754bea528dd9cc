/** float16 and bfloat16 on the CPU: converted four at a time, computed in float32, rounded to the nearest. */
import {
  add,
  apply,
  applyProgram,
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
import { afterAll, describe, expect, it } from 'vitest'
import { createCpuBackend } from '../src/index.ts'

const cpu = createCpuBackend({ threads: 2 })
afterAll(() => cpu.close())
const on = <T>(fn: () => T): T => withBackend(cpu, fn)

let state = 1
const random = (): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 2 ** 32
}
const normal = (n: number): number[] => Array.from({ length: n }, () => 4 * random() - 2)

/** The paths on which an expression ran. */
const pathsOf = (fn: () => void): string[] => [...new Set(profile(fn).rows.map(({ path }) => path))]

describe.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
  const all = unpack(
    dtype,
    Uint16Array.from({ length: 2 ** 16 }, (_, bits) => bits),
  )

  it('loads every number', () => {
    const got = on(() => tensor(all, { dtype }).to('float32').dataSync())
    expect(got).toEqual(Float32Array.from(all))
  })

  it('stores what is nearest: numbers, their middles, and their neighbours', () => {
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
    const got = on(() => tensor(singles).to(dtype).dataSync())
    const want = unpack(dtype, pack(dtype, singles))
    const wrong = [...got.keys()].filter((i) => !Object.is(got[i], want[i]))
    expect(wrong.map((i) => [singles[i], got[i], want[i]]).slice(0, 5)).toEqual([])
  })

  it('is stored wherever views begin and however they step', () => {
    for (let i = 0; i < 60; i++) {
      const [rows, columns] = [1 + Math.floor(9 * random()), 1 + Math.floor(40 * random())]
      const values = normal(rows * columns)
      const other = normal(rows * columns)
      const [got, want] = [cpu, reference].map((backend) =>
        withBackend(backend, () => {
          const x = tensor(values, [rows, columns], { dtype })
          const y = tensor(other, [columns, rows], { dtype }).transpose(0, 1)
          const from = Math.min(i % 3, columns - 1)
          const part = (t: Tensor): Tensor => t.narrow(1, from, columns - from)
          const sum = add(part(x), part(y))
          part(x).copy_(mul(part(y), 2))
          x.slice(1, 0, columns, 2).copy_(sub(x.slice(1, 0, columns, 2), y.narrow(1, 0, 1)))
          return [...sum.dataSync(), ...x.dataSync(), ...div(x, 3).dataSync()]
        }),
      )
      expect(got).toEqual(want)
    }
  })

  it('runs in WebAssembly, mixed with others', () => {
    const f = program('mixed', 3, ([x, y, z]) => e.select(z, e.mul(x, e.tanh(y)), e.pow(x, 2)))
    const run = (): Tensor =>
      applyProgram(f, [
        tensor(normal(37), { dtype }),
        tensor(normal(37)),
        tensor(normal(37).map((x) => x > 0)),
      ])
    expect(on(() => pathsOf(run))).toEqual(['primitive'])
    state = 5
    const got = on(run)
    state = 5
    const want = withBackend(reference, run)
    expect(got.dtype).toBe('float32')
    got.dataSync().forEach((x, i) => expect(Math.abs(x - want.dataSync()[i])).toBeLessThan(1e-6))
  })

  it('fused kernels compute in float32, forwards and backwards, and round once', () => {
    const data = Array.from({ length: 4 }, () => normal(2 * 3 * 8 * 16))
    const half = (i: number, shape: readonly number[], requiresGrad = true): Tensor =>
      tensor(
        data[i].slice(
          0,
          shape.reduce((a, b) => a * b),
        ),
        shape,
        { dtype, requiresGrad },
      )
    const heads = [2, 3, 8, 16]
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
    for (const [name, inputs, f] of cases)
      on(() => {
        const wide = inputs.map((t) => {
          const x = t.detach().to('float32')
          x.requiresGrad = true
          return x
        })
        const weights = tensor(data[3].slice(0, f(...inputs).numel), f(...inputs).shape, { dtype })
        const y = f(...inputs)
        const z = f(...wide)
        expect(y.dtype, name).toBe(dtype)
        expect(y.dataSync(), name).toEqual(z.to(dtype).dataSync())
        const [got, want] = [
          grad(mul(y, weights).sum(), inputs),
          grad(mul(z.to(dtype).to('float32'), weights.to('float32')).sum(), wide),
        ]
        got.forEach((g, i) => {
          expect(g.dtype, name).toBe(dtype)
          const tolerance = dtype === 'float16' ? 2e-2 : 1e-1
          const exact = want[i].dataSync()
          const scale = Math.max(1e-3, ...exact.map(Math.abs))
          g.dataSync().forEach((x, j) => expect(Math.abs(x - exact[j]) / scale, name).toBeLessThan(tolerance))
        })
        expect(
          pathsOf(() => void f(...inputs)),
          name,
        ).toEqual(expect.not.arrayContaining(['javascript', 'composed']))
      })
  })

  it('sums what is beyond its range, and saves half of the memory', () => {
    on(() => {
      const x = tensor(new Float32Array(4096).fill(100), { dtype, requiresGrad: true })
      expect(x.mean().itemSync()).toBe(100)
      expect(x.storage.bytes).toBe(8192)
      const { liveBytes } = cpu.stats()
      const y = softmax(x.reshape([64, 64]), -1)
      // The result alone; what was computed in float32 is gone.
      expect(cpu.stats().liveBytes - liveBytes).toBe(8192)
      y.sum().backward()
      expect(x.grad?.dtype).toBe(dtype)
    })
  })
})

it('operators of the user compute in float32 as well', () => {
  const CUBE = { name: 'cube', compose: ([x]: readonly Tensor[]) => [x.mul(x).mul(x).div(10)] }
  const x = tensor([50], { dtype: 'float16', requiresGrad: true })
  const [y] = apply(CUBE, [x], {})
  expect(y.dtype).toBe('float16')
  // x · x · x is beyond 65504.
  expect(y.itemSync()).toBe(12496)
  y.backward()
  expect(x.grad?.itemSync()).toBe(750)
})
