/** A backend that finds a pair of V8's computed wrongly: how it goes on. Only where V8 pairs instructions. */
import { layerNorm, softmax, tensor } from '@tilegrad/core'
import { expect, it, vi } from 'vitest'
import { kernelTable } from '../src/kernels/table.ts'
import { make, rows, spoil } from './guard-rig.ts'

it('a backend whose pairs are wrong goes on with 128 bits, right, with one warning, and later ones begin so', () => {
  const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
  const want = softmax(rows(make({ level: 'simd' })), -1).dataSync()
  const backend = make(
    {},
    {
      kernelTable: (engine) => {
        const table = kernelTable(engine)
        return engine.features.revectorized ? spoil(table, 'softmax', engine) : table
      },
    },
  )
  const x = rows(backend)
  const [w, b] = [1, 2].map((v) => tensor(new Float32Array(10).fill(v), [10], { device: backend }))
  expect(backend.level).toBe('revectorized')
  const before = layerNorm(x, [10], w, b).dataSync()
  expect(warn).not.toHaveBeenCalled()
  const got = softmax(x, -1).dataSync()
  expect(warn).toHaveBeenCalledTimes(1)
  expect(warn.mock.calls[0]?.[0]).toMatch(
    /256 bits computes wrongly here \(softmax, V8 .*going on with 128 bits/,
  )
  expect(backend.level).toBe('relaxed')
  expect(backend.engine.features.revectorized).toBe(false)
  // Their instructions differ, but not by more than rounding.
  got.forEach((value, i) => {
    expect(value).toBeCloseTo(want[i] as number, 6)
  })
  expect(layerNorm(x, [10], w, b).dataSync()).toEqual(before)
  softmax(x, -1).dispose()
  expect(make().level).toBe('relaxed')
  expect(make({ level: 'revectorized' }).level).toBe('relaxed')
  expect(warn).toHaveBeenCalledTimes(1)
})
