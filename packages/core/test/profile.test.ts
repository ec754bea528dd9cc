import { GradError, profile, randn, reference, softmax, withBackend } from '@tilegrad/core'
import { expect, it } from 'vitest'

it('counts calls, arithmetic and bytes', () =>
  withBackend(reference, () => {
    const [a, b] = [randn([8, 16]), randn([16, 4])]
    const { rows, table } = profile(() => [a.matmul(b), a.matmul(b), a.expand([8, 16]).add(1)])
    expect(rows.find((r) => r.op === 'matmul')).toMatchObject({
      path: 'primitive',
      calls: 2,
      flops: 2 * (2 * 8 * 4 * 16),
      bytes: 2 * 4 * (8 * 16 + 16 * 4 + 8 * 4),
    })
    expect(rows.find((r) => r.op === 'add')).toMatchObject({ calls: 1, flops: 8 * 16, bytes: 2 * 4 * 8 * 16 })
    expect(table().split('\n')).toHaveLength(3)
    expect(table()).toMatch(/operator +path +device +calls +ms +share +GFLOP\/s +GB\/s/)
  }))

it('an expanded input is read once', () =>
  withBackend(reference, () => {
    const row = randn([1, 16]).expand([8, 16])
    const { rows } = profile(() => row.mul(2))
    expect(rows[0]?.bytes).toBe(4 * (16 + 8 * 16))
  }))

it('writes a trace in which parts lie within their composition', () =>
  withBackend(reference, () => {
    const x = randn([4, 4])
    const { chromeTrace } = profile(() => softmax(x, 1))
    const { traceEvents } = JSON.parse(chromeTrace()) as {
      traceEvents: { name: string; cat: string; ts: number; dur: number }[]
    }
    const whole = traceEvents.find((e) => e.cat === 'composed')
    expect(whole?.name).toBe('softmax')
    const parts = traceEvents.filter((e) => e !== whole)
    expect(parts.length).toBeGreaterThan(2)
    for (const e of parts) {
      expect(e.ts).toBeGreaterThanOrEqual(whole?.ts as number)
      expect(e.ts + e.dur).toBeLessThanOrEqual((whole?.ts as number) + (whole?.dur as number))
    }
  }))

it('refuses an asynchronous function, whose work it would not see', () => {
  expect(() => profile(async () => Promise.reject(new Error('late')))).toThrow(GradError)
})
